package record

import (
	"bytes"
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Record is a parsed record: its header, and its bytes, which are borrowed from
// whoever parsed them. It is valid as long as they are, and safe to read concurrently.
type Record struct {
	Header
	p        []byte
	verified bool // the blocks' checksums were right when they came
}

// Parse takes p, exactly one record, and checks all of it but the blocks' own
// checksums. It keeps p and allocates nothing for data records. Errors: those of
// ParseHeader, and ErrShort when p is shorter than the header says.
func Parse(p []byte) (Record, error) {
	h, err := ParseHeader(p)
	switch {
	case err != nil:
		return Record{}, err
	case len(p) < h.Size:
		return Record{}, fmt.Errorf("%d of %d bytes: %w", len(p), h.Size, ErrShort)
	case len(p) > h.Size:
		return Record{}, corrupt("bytes after its end")
	}
	return h.open(p)
}

// ParseTables is Parse for one who has not read the payload: p begins with the
// header, tables and body of the record whose header is h. On such a record
// VerifyPayload and OpenBlock fail with ErrShort unless p happens to hold the block.
func ParseTables(h Header, p []byte) (Record, error) {
	if len(p) > h.Size {
		p = p[:h.Size]
	}
	again, err := ParseHeader(p)
	switch {
	case err != nil:
		return Record{}, err
	case again != h:
		return Record{}, corrupt("another record's header")
	case len(p) < h.TablesEnd():
		return Record{}, fmt.Errorf("%d of %d bytes of tables: %w", len(p), h.TablesEnd(), ErrShort)
	}
	return h.open(p)
}

func (h Header) open(p []byte) (Record, error) {
	if err := h.checkTables(p); err != nil {
		return Record{}, err
	}
	return Record{Header: h, p: p}, nil
}

// Bytes returns what was parsed, borrowed.
func (r Record) Bytes() []byte { return r.p }

// Block returns entry i of the block table, 0 <= i < r.Blocks.
func (r Record) Block(i int) Block {
	b, _ := decodeBlock(r.p[HeaderBytes : HeaderBytes+r.Blocks*blockBytes][i*blockBytes:])
	return b
}

// Extent returns entry i of the extent table, 0 <= i < r.Extents.
func (r Record) Extent(i int) Extent {
	at := HeaderBytes + r.Blocks*blockBytes
	return decodeExtent(r.p[at : at+r.Extents*extentBytes][i*extentBytes:], r.First)
}

// Body returns the body of a control record, borrowed; it is empty for data.
func (r Record) Body() []byte {
	return r.p[r.TablesEnd()-r.Header.Body : r.TablesEnd()]
}

// VerifyPayload checks every block's checksum, if that was not done as they came (Arrival). It
// does not decompress.
func (r Record) VerifyPayload() error {
	if r.verified && !invariant.Enabled {
		return nil
	}
	seed := seedOf(r.Identity)
	for i := range r.Blocks {
		b := r.Block(i)
		stored, err := r.stored(b)
		if err != nil {
			return fmt.Errorf("block %d: %w", i, err)
		}
		if b.sum(seed, i, stored) != b.CRC {
			return fmt.Errorf("%w: block %d: checksum", ErrCorrupt, i)
		}
	}
	return nil
}

// OpenBlock verifies block i and puts its raw bytes into dst, whose length does not
// matter and whose capacity should be LineBytes (it is replaced if too small); it
// returns dst cut to the block. dst must not overlap the record.
func (r Record) OpenBlock(dst []byte, i int) ([]byte, error) {
	b := r.Block(i)
	stored, err := r.stored(b)
	if err != nil {
		return nil, fmt.Errorf("block %d: %w", i, err)
	}
	return OpenStored(dst, r.Identity, i, b, stored)
}

func (r Record) stored(b Block) ([]byte, error) {
	if len(r.p) < b.At+b.Stored {
		return nil, ErrShort
	}
	return r.p[b.At : b.At+b.Stored], nil
}

var zeros [4096]byte

// allZero says whether p holds nothing but zeros. The first word decides for nearly all data.
func allZero(p []byte) bool {
	if len(p) >= 8 && le.Uint64(p) != 0 {
		return false
	}
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}

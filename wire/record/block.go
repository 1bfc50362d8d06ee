package record

import (
	"fmt"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine/crc32c"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// OpenStored verifies and decompresses one block that was read by itself: block
// number of the record with identity id, with its table entry (At is not used) and
// its stored bytes. dst is as for Record.OpenBlock and must not overlap stored.
func OpenStored(dst []byte, id Identity, number int, b Block, stored []byte) ([]byte, error) {
	if err := b.verify(id, number, stored); err != nil {
		return nil, err
	}
	dst = slices.Grow(dst[:0], b.Raw)[:b.Raw]
	if b.Codec == CodecRaw {
		copy(dst, stored)
		return dst, nil
	}
	if !decodeLZ4(dst, stored) {
		return nil, fmt.Errorf("%w: block %d: LZ4 data", ErrCorrupt, number)
	}
	return dst, nil
}

// verify says whether stored is the block, whole.
func (b Block) verify(id Identity, number int, stored []byte) error {
	if what := b.check(); what != "" {
		return fmt.Errorf("%w: block %d: %s", ErrCorrupt, number, what)
	}
	if len(stored) != b.Stored {
		return fmt.Errorf("block %d: %d of %d bytes: %w", number, len(stored), b.Stored, ErrShort)
	}
	if b.sum(seedOf(id), number, stored) != b.CRC {
		return fmt.Errorf("%w: block %d: checksum", ErrCorrupt, number)
	}
	return nil
}

// OpenPrefix is OpenStored for one who wants the first want raw bytes alone: it
// verifies all that is stored, and decompresses no more than it must. It returns want
// bytes, or the whole block when that has fewer.
func OpenPrefix(dst []byte, id Identity, number int, b Block, stored []byte, want int) ([]byte, error) {
	if want >= b.Raw || want < 0 {
		return OpenStored(dst, id, number, b, stored)
	}
	if err := b.verify(id, number, stored); err != nil {
		return nil, err
	}
	if b.Codec == CodecRaw {
		return append(dst[:0], stored[:want]...), nil
	}
	dst = slices.Grow(dst[:0], b.Raw)[:b.Raw]
	if !decodePrefix(dst, stored, want) {
		return nil, fmt.Errorf("%w: block %d: LZ4 data", ErrCorrupt, number)
	}
	return dst[:want], nil
}

// seedOf is the CRC state after an identity, the same for all blocks of a record.
// The few bytes are fed by the table: a slice of them handed to crc32.Update would
// be allocated anew each time.
func seedOf(id Identity) uint32 {
	crc := ^uint32(0)
	crc = feed(crc, uint64(id.Stream))
	crc = feed(crc, uint64(id.Epoch)|uint64(id.Incarnation)<<32)
	return feed(crc, uint64(id.Seq))
}

// sum is the checksum of a block: identity (by its seed), number, raw length,
// codec, and the bytes as stored.
func (b Block) sum(seed uint32, number int, stored []byte) uint32 {
	return crc32c.Update(b.seed(seed, number), stored)
}

// seed is the checksum of all of that but the bytes.
func (b Block) seed(seed uint32, number int) uint32 {
	if invariant.Planted("record/sum-without-number") {
		number = 0
	}
	return ^feed(seed, uint64(uint32(number))|uint64(uint16(b.Raw))<<32|uint64(b.Codec)<<48)
}

// feed takes the eight bytes of v, lowest first, into a CRC state.
func feed(crc uint32, v uint64) uint32 {
	for range 8 {
		crc = castagnoli[byte(crc)^byte(v)] ^ crc>>8
		v >>= 8
	}
	return crc
}

package record

import (
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// OpenStored verifies and decompresses one block that was read by itself: block
// number of the record with identity id, with its table entry (At is not used) and
// its stored bytes. dst is as for Record.OpenBlock and must not overlap stored.
func OpenStored(dst []byte, id Identity, number int, b Block, stored []byte) ([]byte, error) {
	if what := b.check(); what != "" {
		return nil, fmt.Errorf("%w: block %d: %s", ErrCorrupt, number, what)
	}
	if len(stored) != b.Stored {
		return nil, fmt.Errorf("block %d: %d of %d bytes: %w", number, len(stored), b.Stored, ErrShort)
	}
	if b.sum(seedOf(id), number, stored) != b.CRC {
		return nil, fmt.Errorf("%w: block %d: checksum", ErrCorrupt, number)
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
	if invariant.Planted("record/sum-without-number") {
		number = 0
	}
	crc := feed(seed, uint64(uint32(number))|uint64(uint16(b.Raw))<<32|uint64(b.Codec)<<48)
	return crc32.Update(^crc, castagnoli, stored)
}

// feed takes the eight bytes of v, lowest first, into a CRC state.
func feed(crc uint32, v uint64) uint32 {
	for range 8 {
		crc = castagnoli[byte(crc)^byte(v)] ^ crc>>8
		v >>= 8
	}
	return crc
}

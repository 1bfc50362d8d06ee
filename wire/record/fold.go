package record

import (
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Fold gathers what writes left in their places between two checkpoints, and seals it
// into a folded record. Blocks of other records are taken as they are stored, where
// enough of them is still wanted: only their checksums are made anew, over the new
// identity, after the old ones were verified. No place may be added twice: the extents
// of a folded record are in no order. Not safe for concurrent use.
type Fold struct {
	blocks  []Block // At: in payload
	extents []Extent
	payload []byte
	raw     int

	loose     []byte // raw bytes of the block that is being filled
	looseFrom int    // in extents: the first of its extents
}

// Room says whether a block of data and its extents, as many as given, still fit.
func (f *Fold) Room(extents int) bool {
	return f.raw+len(f.loose)+LineBytes <= MaxRawBytes && len(f.blocks)+2 <= MaxBlocks && f.Extents()+extents <= MaxExtents
}

// Extents is how many extents the record would have.
func (f *Fold) Extents() int { return len(f.extents) }

// Empty says whether there is nothing to seal.
func (f *Fold) Empty() bool { return len(f.extents) == 0 }

// Bytes is what the record would take at most.
func (f *Fold) Bytes() int {
	return HeaderBytes + (len(f.blocks)+1)*blockBytes + len(f.extents)*extentBytes + len(f.payload) + len(f.loose)
}

// Stored takes block number of the record with identity id as it is stored, for the
// extents of it that are wanted, in the order of their places in the block (Block and
// Ticket are not looked at). stored is copied. ErrCorrupt: the block does not verify;
// then nothing was taken.
func (f *Fold) Stored(id Identity, number int, b Block, stored []byte, wanted []Extent) error {
	if what := b.check(); what != "" || len(stored) != b.Stored {
		return fmt.Errorf("%w: block %d: %s, %d bytes", ErrCorrupt, number, what, len(stored))
	}
	if b.sum(seedOf(id), number, stored) != b.CRC && !invariant.Planted("record/fold-unverified") {
		return fmt.Errorf("%w: block %d: checksum", ErrCorrupt, number)
	}
	end := 0
	for _, e := range wanted {
		if e.Kind != ExtentData || e.Len < 1 || e.BlockOff < end || e.BlockOff+int(e.Len) > b.Raw {
			return fmt.Errorf("%w: block %d: extent of %d bytes at %d", ErrCorrupt, number, e.Len, e.BlockOff)
		}
		end = e.BlockOff + int(e.Len)
	}
	if len(wanted) == 0 {
		return nil
	}
	f.closeLoose(nil)
	b.At = len(f.payload)
	f.payload = append(f.payload, stored...)
	for _, e := range wanted {
		e.Block, e.Ticket = len(f.blocks), 1
		f.extents = append(f.extents, e)
	}
	f.blocks = append(f.blocks, b)
	f.raw += b.Raw
	return nil
}

// Data takes bytes that lie in one line of a volume; they are copied, packed with
// others and compressed by c.
func (f *Fold) Data(v VolumeID, off int64, data []byte, c *Compressor) {
	if len(data) == 0 || off/LineBytes != (off+int64(len(data))-1)/LineBytes {
		panic("BUG: folded data that does not lie in one line")
	}
	if full(len(f.loose), len(data), len(f.loose) > 0 && f.extents[len(f.extents)-1].ends(v, off)) {
		f.closeLoose(c)
	}
	if len(f.loose) == 0 {
		f.looseFrom = len(f.extents)
	}
	f.extents = append(f.extents, Extent{Volume: v, Kind: ExtentData, Off: off, Len: int64(len(data)), Ticket: 1, BlockOff: len(f.loose)})
	f.loose = append(f.loose, data...)
}

// Zero takes zeros of any length.
func (f *Fold) Zero(v VolumeID, off, n int64) {
	f.extents = append(f.extents, Extent{Volume: v, Kind: ExtentZero, Off: off, Len: n, Ticket: 1})
}

// closeLoose ends the block that is being filled; without a compressor it stays raw.
func (f *Fold) closeLoose(c *Compressor) {
	if len(f.loose) == 0 {
		return
	}
	b := Block{Codec: CodecRaw, Raw: len(f.loose), Stored: len(f.loose), At: len(f.payload)}
	f.raw += b.Raw
	if c != nil {
		b.Codec, b.Stored = c.store(f.loose)
	}
	f.payload = append(f.payload, f.loose[:b.Stored]...)
	for i := f.looseFrom; i < len(f.extents); i++ {
		if f.extents[i].Kind == ExtentData {
			f.extents[i].Block = len(f.blocks)
		}
	}
	f.blocks = append(f.blocks, b)
	f.loose = f.loose[:0]
}

// Seal appends the folded record to dst, returns it, and empties f. It brings a group
// to the checkpoint; part tells the records of one checkpoint apart, from 1. It panics
// on an empty f or a zero in its arguments: bugs of the caller's.
func (f *Fold) Seal(dst []byte, checkpoint uint64, part Incarnation, t Time, c *Compressor) []byte {
	if f.Empty() {
		panic("BUG: sealing an empty fold")
	}
	f.closeLoose(c)
	h := Header{
		Identity: Identity{Stream: FoldedStream, Epoch: 1, Incarnation: part, Seq: Seq(checkpoint)}, Kind: KindFolded, Time: t, First: 1, Last: 1,
		Blocks: len(f.blocks), Extents: len(f.extents), Raw: int64(f.raw), Stored: int64(len(f.payload)),
	}
	start := len(dst)
	dst = append(dst, make([]byte, h.TablesEnd())...)
	p := dst[start:]
	seed, blocks, extents := seedOf(h.Identity), p[HeaderBytes:], p[HeaderBytes+len(f.blocks)*blockBytes:]
	for i, b := range f.blocks {
		b.CRC = b.sum(seed, i, f.payload[b.At:b.At+b.Stored])
		b.At += h.TablesEnd()
		b.put(blocks[i*blockBytes:])
	}
	for i, e := range f.extents {
		e.put(extents[i*extentBytes:], h.First)
	}
	dst = append(dst, f.payload...)
	*f = Fold{blocks: f.blocks[:0], extents: f.extents[:0], payload: f.payload[:0], loose: f.loose[:0]}
	return h.finish(dst, start)
}

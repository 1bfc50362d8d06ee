package record

import (
	"bytes"
	"slices"

	"github.com/pierrec/lz4/v4"

	"github.com/holdfast-dr/holdfast/ioengine/crc32c"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Seal appends the record to dst and returns it; with Bound() free bytes in dst it
// does not allocate. The pieces' data is read here, once: bytes that change while
// they are read (they may lie in memory that another process writes) end up either
// way, but the record is whole. The batch keeps its pieces until Reset. Seal panics
// on an empty batch or a zero in id or t: bugs of the caller's.
func (b *Batch) Seal(dst []byte, id Identity, t Time, c *Compressor) []byte {
	if b.Empty() {
		panic("BUG: sealing an empty batch")
	}
	h := Header{
		Identity: id, Kind: KindData, Time: t, First: b.first, Last: b.last,
		Blocks: len(b.blocks), Extents: b.Extents(), Raw: int64(b.raw),
	}
	start, bound := len(dst), b.Bound()
	dst = slices.Grow(dst, bound)
	p := dst[start : start+bound]

	table, extents := p[HeaderBytes:], p[HeaderBytes+len(b.blocks)*blockBytes:]
	copy(extents, b.table)
	at, seed, parts := h.TablesEnd(), seedOf(id), b.parts
	far := b.raw >= farFrom
	for i, s := range b.blocks {
		block := Block{Codec: CodecRaw, Raw: s.raw, Stored: s.raw, At: at}
		var stored bool
		if block.CRC, stored = c.storeHard(p[at:], parts[:s.parts], s.raw, block.seed(seed, i), far); !stored {
			block.Codec, block.Stored = c.pack(p[at:], parts[:s.parts], s.raw)
			block.CRC = block.sum(seed, i, p[at:at+block.Stored])
		}
		parts = parts[s.parts:]
		at += block.Stored
		block.put(table[i*blockBytes:])
	}
	h.Stored = int64(at - h.TablesEnd())
	return h.finish(dst[:start+at], start)
}

// finish writes the header of the record that makes up p from start on, whose other
// parts all stand, and returns p.
func (h *Header) finish(p []byte, start int) []byte {
	if h.Stream == 0 || h.Epoch == 0 || h.Incarnation == 0 || h.Seq == 0 || h.Time <= 0 || h.First == 0 {
		panic("BUG: a record without identity, time or ticket")
	}
	rec := p[start:]
	h.Size = len(rec)
	h.tables = sumOf(rec[HeaderBytes:h.TablesEnd()])
	h.put(rec)
	return p
}

func gather(dst []byte, parts [][]byte) {
	for _, part := range parts {
		dst = dst[copy(dst, part):]
	}
}

// Compressor decides each block's codec and compresses. One per goroutine: it
// holds the encoder's tables (about 110 KiB).
//
// Of what the encoder made, one block in sixteen is opened again, by a decoder that is not ours,
// and held against what it was made of: checksums of records are of what is stored, so nobody behind
// it would notice a wrong block. One that is not the same is stored raw, and from then on all
// are opened. (To open all of them always costs 0.4 CPU-s/GiB, a tenth of all that the data path takes.)
type Compressor struct {
	// StoreOnly makes every block raw, for links faster than the encoder.
	StoreOnly bool
	// Wrong is how many blocks did not open as what they were made of: a fault of the
	// encoder, or of the machine.
	Wrong int

	encoded  uint // blocks
	doubted  bool // one of them was wrong
	hard     bool // the last block did not shrink: the probe is asked about the next; else it is dearer than trying
	seen     positions
	dense    int // blocks in a row that the probe, where it was asked, found dense
	raw, out room
	opened   [LineBytes]byte
}

// NewCompressor returns a compressor that uses LZ4 where it pays.
func NewCompressor() *Compressor { return new(Compressor) }

// farFrom is from how many bytes on a record is too large to be in the caches still when it is sent.
const farFrom = 256 << 10

// storeHard puts a block in raw form at the start of dst, when that is all that is to be done with it,
// and returns its checksum, of which crc is the beginning. The probe is asked once the
// bytes are in the caches, behind copying them, which costs a quarter of asking it before. When it
// says that they may shrink they are not stored, and dst holds garbage.
func (c *Compressor) storeHard(dst []byte, parts [][]byte, raw int, crc uint32, far bool) (sum uint32, stored bool) {
	if !c.StoreOnly && !c.hard {
		return 0, false
	}
	for _, part := range parts {
		if far {
			crc = crc32c.CopyFar(crc, dst, part)
		} else {
			crc = crc32c.Update(crc, dst[:copy(dst, part)])
		}
		dst = dst[len(part):]
	}
	if c.StoreOnly {
		return crc, true
	}
	c.dense++
	if c.dense > probeAll && c.dense%probeEvery != 0 && !invariant.Planted("record/probes-on") {
		return crc, true
	}
	if !denseParts(parts, raw) && !invariant.Planted("record/hard-for-ever") {
		c.dense = 0
		return 0, false
	}
	return crc, true
}

// After probeAll dense blocks in a row one in probeEvery is probed: what comes in long rows, as files
// that are compressed or encrypted do, is noticed to end two blocks later at most for a third of the probes.
const (
	probeAll   = 16
	probeEvery = 3
)

// pack puts a block, whose raw bytes are the parts, in its stored form at the start of dst, which
// has room for the raw bytes at least. They are read once, into memory of the compressor's: what
// is encoded does not change meanwhile. What is encoded goes straight to dst.
func (c *Compressor) pack(dst []byte, parts [][]byte, raw int) (Codec, int) {
	p := c.raw[:raw]
	gather(p, parts)
	n := c.encodeWell(dst, raw)
	if c.hard = n == 0; !c.hard {
		return CodecLZ4, n
	}
	return CodecRaw, copy(dst, p)
}

// store turns the raw bytes p of a block into their stored form, at the start of p.
func (c *Compressor) store(p []byte) (Codec, int) {
	if c.StoreOnly || dense(p) {
		return CodecRaw, len(p)
	}
	copy(c.raw[:], p)
	if n := c.encodeWell(p, len(p)); n > 0 {
		return CodecLZ4, n
	}
	return CodecRaw, copy(p, c.raw[:])
}

// encodeWell is encode, with 0 too for what does not open as what it was.
func (c *Compressor) encodeWell(dst []byte, n int) int {
	m := c.encode(dst, n)
	if m > 0 && c.looks() && !c.opens(dst[:m], n) {
		c.Wrong++
		c.doubted = true
		return 0
	}
	return m
}

// openEvery is one in how many blocks is opened again, while none was wrong.
const openEvery = 16

// looks says whether this block is opened again.
func (c *Compressor) looks() bool {
	c.encoded++
	return c.encoded%openEvery == 1 || c.doubted && !invariant.Planted("record/never-doubts")
}

// opens says whether a block is one of the first n bytes of c.raw.
func (c *Compressor) opens(block []byte, n int) bool {
	got, err := lz4.UncompressBlock(block, c.opened[:n])
	return err == nil && got == n && bytes.Equal(c.opened[:n], c.raw[:n]) || invariant.Planted("record/unopened")
}

// encode makes dst, of at least n bytes, an LZ4 block of the first n bytes of c.raw; 0: they do not shrink.
func (c *Compressor) encode(dst []byte, n int) int {
	if len(dst) >= len(c.out) {
		return c.seen.encode((*room)(dst), &c.raw, n)
	}
	return copy(dst, c.out[:c.seen.encode(&c.out, &c.raw, n)])
}

const (
	probeBytes  = 1024 // in 16 runs, spread over the block
	probeRuns   = 16
	probeRun    = probeBytes / probeRuns
	probeDense  = 5600 // uniformly random bytes give 5116, standard deviation 90
	minProbable = 2 * probeBytes
)

// Dense is the probe that spares the encoder blocks that will not shrink.
func Dense(p []byte) bool { return dense(p) }

// dense is the probe: it guesses that a block will not shrink because its bytes are
// as evenly spread as random ones, by the sum of the squared counts in a sample. It
// costs 1 to 2 % of what LZ4 does. It is wrong for repeats of random data, which are then stored raw.
func dense(p []byte) bool {
	if len(p) < minProbable {
		return false // compressing it is as cheap
	}
	var counts [256]uint16
	for i := range probeRuns {
		at := i * (len(p) - probeRun) / (probeRuns - 1)
		for _, c := range p[at : at+probeRun] {
			counts[c]++
		}
	}
	return even(&counts)
}

// denseParts is dense of a block of so many bytes in parts.
func denseParts(parts [][]byte, raw int) bool {
	if len(parts) == 1 {
		return dense(parts[0])
	}
	if raw < minProbable {
		return false
	}
	var counts [256]uint16
	first := 0 // where parts[0] begins
	for i := range probeRuns {
		at := i * (raw - probeRun) / (probeRuns - 1)
		for left := probeRun; left > 0; {
			for at-first >= len(parts[0]) {
				first, parts = first+len(parts[0]), parts[1:]
			}
			run := parts[0][at-first:]
			run = run[:min(left, len(run))]
			for _, c := range run {
				counts[c]++
			}
			at, left = at+len(run), left-len(run)
		}
	}
	return even(&counts)
}

// even says whether a sample's counts are those of random bytes.
func even(counts *[256]uint16) bool {
	sum := 0
	for _, n := range counts {
		sum += int(n) * int(n)
	}
	return sum < probeDense
}

package record

import (
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Piece is one write, or a part of one, on its way into a batch.
type Piece struct {
	Volume   VolumeID
	Off, Len int64 // bytes in the volume; Len is at least 1
	Ticket   Ticket
	Data     []byte // Len bytes, lent to the batch until it is reset; nil stands for zeros
}

// Limits say how much a batch takes. Zero means as much as the format allows.
type Limits struct {
	Raw     int // bytes of data; a slow link wants less, see design section 12
	Extents int
}

const (
	// maxFirstPiece is the longest data piece that an empty batch takes in spite of
	// Limits.Raw, and minExtents the extents it takes in spite of Limits.Extents: such
	// a piece touches at most three lines.
	maxFirstPiece = 64 << 10
	minExtents    = 3
)

// Batch gathers pieces until they are sealed into one record. It holds slices of
// the pieces' data, never copies. Not safe for concurrent use.
//
// The extent table is kept as it will stand in the record. The data is a row of
// parts, in the order of the extents; each block is the next few of them.
type Batch struct {
	limits Limits

	first, last Ticket
	end         Extent // the last extent, as it stands in the table; Len 0 when empty
	table       []byte
	parts       [][]byte
	blocks      []span
	raw         int
}

// span is a block to be: how many bytes, in how many parts.
type span struct{ raw, parts int }

// NewBatch returns an empty batch.
func NewBatch(l Limits) *Batch {
	if l.Raw <= 0 || l.Raw > MaxRawBytes {
		l.Raw = MaxRawBytes
	}
	if l.Extents <= 0 || l.Extents > MaxExtents {
		l.Extents = MaxExtents
	}
	return &Batch{limits: l}
}

// Add takes a piece, whole, or refuses it and stays as it was: then seal first. An
// empty batch takes every piece of up to 64 KiB of data, or of Limits.Raw if that is
// more, and zeros of any length. Tickets must not fall; a piece that begins where
// the last one ended, with the same ticket, becomes one extent with it as far as
// lines and blocks allow. Data that is all zero becomes a zero extent. It panics on
// a piece that no batch can hold, or out of order: a bug of the caller's.
func (b *Batch) Add(p Piece) bool {
	if p.Volume == 0 || p.Ticket == 0 || p.Ticket < b.last || p.Off < 0 || p.Len < 1 || p.Len > VolumeLimit || p.Off+p.Len > VolumeLimit ||
		p.Data != nil && int64(len(p.Data)) != p.Len {
		panic("BUG: a piece without volume, ticket, length or order")
	}
	if !b.fits(p) {
		return false
	}
	if b.Empty() {
		b.first = p.Ticket
	}
	b.last = p.Ticket
	if p.Data == nil {
		b.addZero(p.Volume, p.Off, p.Len)
		return true
	}
	for off, data := p.Off, p.Data; len(data) > 0; {
		n := min(LineBytes-int(off%LineBytes), len(data))
		if allZero(data[:n]) {
			b.addZero(p.Volume, off, int64(n))
		} else {
			b.addData(p.Volume, off, data[:n])
		}
		off, data = off+int64(n), data[n:]
	}
	return true
}

// fits counts with the worst: every line of the piece a new extent and a new block.
func (b *Batch) fits(p Piece) bool {
	raw, lines := 0, 1
	if p.Data != nil {
		raw, lines = int(p.Len), int((p.Off+p.Len-1)/LineBytes-p.Off/LineBytes)+1
	}
	if b.Empty() {
		if raw > max(b.limits.Raw, maxFirstPiece) || lines > max(b.limits.Extents, minExtents) {
			panic("BUG: a piece longer than any batch")
		}
		return true
	}
	return b.raw+raw <= b.limits.Raw &&
		b.Extents()+lines <= b.limits.Extents &&
		len(b.blocks)+lines <= MaxBlocks &&
		p.Ticket-b.first <= 1<<32-1
}

func (b *Batch) addZero(v VolumeID, off, n int64) {
	if b.follows(v, off) && b.end.Kind == ExtentZero {
		b.grow(n)
		return
	}
	b.push(Extent{Volume: v, Kind: ExtentZero, Off: off, Len: n, Ticket: b.last})
}

// addData takes data that lies in one line.
func (b *Batch) addData(v VolumeID, off int64, data []byte) {
	block := len(b.blocks) - 1
	fresh := block < 0 || full(b.blocks[block].raw, len(data), b.end.ends(v, off))
	if fresh {
		b.blocks = append(b.blocks, span{})
		block++
	}
	s := &b.blocks[block]
	sameLine := off/LineBytes == b.end.Off/LineBytes || invariant.Planted("record/merge-over-line")
	if !fresh && b.follows(v, off) && b.end.Kind == ExtentData && sameLine {
		b.grow(int64(len(data)))
	} else {
		b.push(Extent{Volume: v, Kind: ExtentData, Off: off, Len: int64(len(data)), Ticket: b.last, Block: block, BlockOff: s.raw})
	}
	b.parts = append(b.parts, data)
	s.raw += len(data)
	s.parts++
	b.raw += len(data)
}

// full says whether a block of so many bytes takes no more n bytes; next: they lie behind the
// last. Whoever reads one of many short writes reads and opens all of its block, so blocks of
// such are short: 16 KiB of db pages take 2 % more than 32, and half as long to open.
func full(have, n int, next bool) bool {
	most := LineBytes
	if !next && n <= scatteredPiece && !invariant.Planted("record/long-scattered") {
		most = scatteredBlock
	}
	return have+n > most
}

const (
	scatteredPiece = 8 << 10
	scatteredBlock = LineBytes / 2
)

// ends says whether the extent ends where off of a volume is.
func (e *Extent) ends(v VolumeID, off int64) bool {
	return e.Len > 0 && e.Volume == v && e.Off+e.Len == off
}

// follows says whether a piece at off continues the last extent.
func (b *Batch) follows(v VolumeID, off int64) bool {
	return b.end.ends(v, off) && (b.end.Ticket == b.last || invariant.Planted("record/merge-tickets"))
}

func (b *Batch) push(e Extent) {
	b.table = append(b.table, make([]byte, extentBytes)...)
	b.end = e
	b.grow(0)
}

// grow makes the last extent n bytes longer and writes it down.
func (b *Batch) grow(n int64) {
	b.end.Len += n
	b.end.put(b.table[len(b.table)-extentBytes:], b.first)
}

// Raw is the data held, in bytes before compression.
func (b *Batch) Raw() int { return b.raw }

// Extents is how many extents the record would have.
func (b *Batch) Extents() int { return len(b.table) / extentBytes }

// Empty says whether there is nothing to seal.
func (b *Batch) Empty() bool { return len(b.table) == 0 }

// First is the ticket of the first piece; 0 when empty.
func (b *Batch) First() Ticket { return b.first }

// Last is the ticket of the last piece; 0 when empty.
func (b *Batch) Last() Ticket { return b.last }

// Reset empties the batch for use anew and lets go of all data.
func (b *Batch) Reset() {
	clear(b.parts)
	*b = Batch{limits: b.limits, table: b.table[:0], parts: b.parts[:0], blocks: b.blocks[:0]}
}

// Bound is the size, in bytes, that the sealed record cannot exceed.
func (b *Batch) Bound() int {
	return HeaderBytes + len(b.blocks)*blockBytes + len(b.table) + b.raw
}

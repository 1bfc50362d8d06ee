package index

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/holdfast-dr/holdfast/ioengine/crc32c"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// pageBytes is the unit in which runs are read and verified. See FORMAT.md.
const pageBytes = 4096

// What every page begins with. The checksum covers the run's identity, the page's
// number and all bytes after it, so that no page of another place or file verifies.
const (
	atPageCRC  = 0 // u32
	atPageKind = 4 // u8, then a zero byte
	atCount    = 6 // u16
	pageHeader = 8
)

// The kinds of page.
const (
	pageHead   = 1
	pageData   = 2
	pageFences = 3
	pageTail   = 4
	pageFoot   = 5
)

var (
	le = binary.LittleEndian
)

// runID is what makes a run itself.
type runID struct {
	group  record.GroupID
	number uint64 // rises within the index; names the file
	life   uint64 // drawn when it was made
}

func (id runID) sum(page uint64, p []byte) uint32 {
	var b [32]byte
	le.PutUint64(b[:], uint64(id.group))
	le.PutUint64(b[8:], id.number)
	le.PutUint64(b[16:], id.life)
	le.PutUint64(b[24:], page)
	return crc32c.Update(crc32.Checksum(b[:], castagnoli), p[atPageKind:])
}

// seal makes p the run's page of that number.
func (id runID) seal(page uint64, kind byte, count int, p []byte) {
	p[atPageKind], p[atPageKind+1] = kind, 0
	le.PutUint16(p[atCount:], uint16(count))
	le.PutUint32(p[atPageCRC:], id.sum(page, p))
}

// verify says whether p is the run's page of that number and kind; any kind for 0.
func (id runID) verify(page uint64, kind byte, p []byte) error {
	if le.Uint32(p[atPageCRC:]) != id.sum(page, p) && !invariant.Planted("journal/index/page-unchecked") {
		return fmt.Errorf("page %d: checksum: %w", page, ErrCorrupt)
	}
	if kind != 0 && p[atPageKind] != kind {
		return fmt.Errorf("page %d: of kind %d, want %d: %w", page, p[atPageKind], kind, ErrCorrupt)
	}
	return nil
}

// Flags of a version in a data page.
const (
	hasCell   = 1 << iota // distance to the last version's cell follows
	hasArea               // volume, level and cell follow
	hasSpan               // offset and length in the cell follow; else those of the last version
	hasStream             // which stream of the run's list; else that of the last version
	isZero                // no block follows
	isRaw                 // the block is stored as it is
	isFull                // the block has LineBytes raw
	inUnits               // offsets and lengths are multiples of unit, and divided by it
)

const (
	unit          = 512
	atBaseSeq     = pageHeader // u64: of the first version
	atBasePos     = atBaseSeq + 8
	dataHeader    = atBasePos + 8
	maxVersion    = 88 // bytes of one version, at most
	minVersion    = 4
	maxPageCount  = (pageBytes - dataHeader) / minVersion
	maxRunStreams = 1 << 16
)

// streamLife is a stream in one life, as a run lists it.
type streamLife struct {
	stream record.StreamID
	epoch  record.Epoch
	inc    record.Incarnation
}

// dataPage builds a data page.
type dataPage struct {
	p     []byte
	count int

	// Of the first version, and of the last.
	seq    record.Seq
	pos    segment.Pos
	area   area
	cell   uint64
	span   span
	origin int
}

func (d *dataPage) reset() {
	*d = dataPage{p: append(d.p[:0], make([]byte, dataHeader)...), origin: -1}
}

// add appends v, whose stream is the run's list's of that number. False: the page is full.
func (d *dataPage) add(v *version, origin int) bool {
	if len(d.p)+maxVersion > pageBytes {
		return false
	}
	if d.count == 0 {
		d.seq, d.pos = v.seq, v.pos
		le.PutUint64(d.p[atBaseSeq:], uint64(v.seq))
		le.PutUint64(d.p[atBasePos:], uint64(v.pos))
	}
	off, n := uint64(v.span>>32), uint64(uint32(v.span))
	flags := byte(0)
	if (off|n|uint64(v.blockOff))%unit == 0 {
		flags |= inUnits
	}
	switch {
	case d.count == 0 || v.area != d.area:
		flags |= hasArea | hasSpan
	case v.cell != d.cell:
		flags |= hasCell | hasSpan
	case v.span != d.span:
		flags |= hasSpan
	}
	if origin != d.origin {
		flags |= hasStream
	}
	if v.zero {
		flags |= isZero
	} else {
		if v.block.Codec == record.CodecRaw {
			flags |= isRaw
		}
		if v.block.Raw == record.LineBytes {
			flags |= isFull
		}
	}
	d.p = d.put(append(d.p, flags), flags, v, origin)
	d.area, d.cell, d.span, d.origin = v.area, v.cell, v.span, origin
	d.count++
	return true
}

func (d *dataPage) put(p []byte, flags byte, v *version, origin int) []byte {
	shift := 0
	if flags&inUnits != 0 {
		shift = 9
	}
	if flags&hasArea != 0 {
		p = binary.AppendUvarint(p, uint64(v.area))
		p = binary.AppendUvarint(p, v.cell)
	} else if flags&hasCell != 0 {
		p = binary.AppendUvarint(p, v.cell-d.cell)
	}
	if flags&hasSpan != 0 {
		p = binary.AppendUvarint(p, uint64(v.span>>32)>>shift)
		p = binary.AppendUvarint(p, uint64(uint32(v.span))>>shift)
	}
	if flags&hasStream != 0 {
		p = binary.AppendUvarint(p, uint64(origin))
	}
	p = binary.AppendVarint(p, int64(v.seq-d.seq))
	p = binary.AppendVarint(p, int64(v.pos-d.pos))
	p = binary.AppendUvarint(p, uint64(v.ext))
	if v.zero {
		return p
	}
	p = binary.AppendUvarint(p, uint64(v.number))
	p = binary.AppendUvarint(p, uint64(v.block.At))
	p = binary.AppendUvarint(p, uint64(v.blockOff)>>shift)
	if flags&isFull == 0 || flags&isRaw == 0 {
		p = le.AppendUint16(p, uint16(v.block.Stored-1))
	}
	if flags&(isFull|isRaw) == 0 {
		p = le.AppendUint16(p, uint16(v.block.Raw-1))
	}
	return le.AppendUint32(p, v.block.CRC)
}

// dataReader takes the versions off a verified data page, in order.
type dataReader struct {
	d       decoder
	origins []streamLife
	left    int
	origin  int
	baseSeq uint64
	basePos uint64

	page, hops []byte // the hops are those of a page that came through the cache
}

func (r *dataReader) reset(p []byte, origins []streamLife) {
	*r = dataReader{d: decoder{p: p[dataHeader:pageBytes]}, page: p[:pageBytes], hops: p[pageBytes:], origins: origins, left: int(le.Uint16(p[atCount:])), origin: -1,
		baseSeq: le.Uint64(p[atBaseSeq:]), basePos: le.Uint64(p[atBasePos:])}
}

// next makes v, which holds the one before, the page's next version; false at the end, and when
// the page does not hold what it should: then bad is set.
func (r *dataReader) next(v *version) bool {
	if r.left == 0 {
		return false
	}
	r.left--
	flags := r.d.u8()
	shift := 0
	if flags&inUnits != 0 {
		shift = 9
	}
	if flags&hasArea != 0 {
		v.area = area(r.d.uvarint())
		v.cell = r.d.uvarint()
	} else if flags&hasCell != 0 {
		v.cell += r.d.uvarint()
	}
	if flags&hasSpan != 0 {
		off := r.d.uvarint() << shift
		v.span = span(off<<32 | r.d.uvarint()<<shift&(1<<32-1))
	}
	if flags&hasStream != 0 {
		r.origin = int(min(r.d.uvarint(), maxRunStreams))
	}
	if r.origin < 0 || r.origin >= len(r.origins) {
		r.d.bad = true
		return false
	}
	o := &r.origins[r.origin]
	v.stream, v.epoch, v.inc = o.stream, o.epoch, o.inc
	v.seq = record.Seq(r.baseSeq + uint64(r.d.varint()))
	v.pos = segmentPos(r.basePos + uint64(r.d.varint()))
	v.ext = uint16(r.d.uvarint())
	v.zero = flags&isZero != 0
	if v.zero {
		v.number, v.blockOff, v.block = 0, 0, record.Block{}
	} else {
		r.nextBlock(flags, shift, v)
	}
	if v.pos < 0 || v.block.Stored > record.LineBytes || v.block.Raw > record.LineBytes || !v.fits() {
		r.d.bad = true
	}
	return !r.d.bad
}

// fits says whether the versions of a group lie in their cell, and that in a volume.
func (g *group) fits() bool {
	level := g.area.level()
	if level >= levels || g.cell > (record.VolumeLimit-1)>>cellShift(level) {
		return false
	}
	if level > partLevel {
		return g.span == 0
	}
	off, n := uint64(g.span>>32), uint64(uint32(g.span))
	return n > 0 && off+n <= 1<<cellShift(level)
}

func (r *dataReader) nextBlock(flags byte, shift int, v *version) {
	v.number = uint16(r.d.uvarint())
	b := &v.block
	b.At = int(r.d.uvarint() & (1<<32 - 1))
	v.blockOff = uint16(r.d.uvarint() << shift)
	b.Codec, b.Raw, b.Stored = record.CodecLZ4, record.LineBytes, record.LineBytes
	if flags&isFull == 0 || flags&isRaw == 0 {
		b.Stored = int(r.d.u16()) + 1
	}
	if flags&isRaw != 0 {
		b.Codec, b.Raw = record.CodecRaw, b.Stored
	} else if flags&isFull == 0 {
		b.Raw = int(r.d.u16()) + 1
	}
	b.CRC = r.d.fixed32()
}

package index

import (
	"cmp"

	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// A volume is divided into cells on twelve levels: of 32 KiB (a line) on level 0, and
// eight times as long on each level above. A version stands in the cell it lies in, on
// the lowest level whose cells are not shorter than it; where it lies in two, it is two
// versions. So a lookup looks into one cell of every level that has any, and what is
// short and what is long are found in the same way.
//
// Zeros alone are longer than a line. Beyond level 5 (1 GiB) only whole cells stand: a
// longer zero is cut at their borders, into some dozens of versions at most.
const (
	levels     = 12
	levelShift = 3
	partLevel  = 5 // the highest with versions shorter than a cell
	fineLevel  = 2 // up to here (2 MiB) versions are many; those above are looked through one by one
	lineShift  = 15
)

func cellShift(level uint8) uint { return lineShift + levelShift*uint(level) }

// area is a volume and a level, in the order of versions in a run.
type area uint64

func areaOf(vol record.VolumeID, level uint8) area { return area(vol)<<8 | area(level) }
func (a area) volume() record.VolumeID             { return record.VolumeID(a >> 8) }
func (a area) level() uint8                        { return uint8(a) }

// span is where in its cell a version lies: offset<<32 | length. Zero: it is the cell.
type span uint64

func spanOf(off, n int64) span { return span(off)<<32 | span(n) }

// group is what versions of the same place and stream share: of them a checkpoint can
// only show the newest that it holds.
type group struct {
	area   area
	cell   uint64
	span   span
	stream record.StreamID
}

func (g *group) compare(o *group) int {
	switch {
	case g.area != o.area:
		return cmp.Compare(g.area, o.area)
	case g.cell != o.cell:
		return cmp.Compare(g.cell, o.cell)
	case g.span != o.span:
		return cmp.Compare(g.span, o.span)
	}
	return cmp.Compare(g.stream, o.stream)
}

// place is where in the volume the versions of the group lie.
func (g *group) place() (off, n int64) {
	shift := cellShift(g.area.level())
	base := int64(g.cell << shift)
	if g.span == 0 {
		return base, 1 << shift
	}
	return base + int64(g.span>>32), int64(uint32(g.span))
}

// sortKey orders versions: by group, and in a group from the newest to the oldest. In a
// group seq and pos fall together.
type sortKey struct {
	group
	seq record.Seq
	pos segment.Pos
	ext uint16 // which extent of its record
}

func (k *sortKey) compare(o *sortKey) int {
	if c := k.group.compare(&o.group); c != 0 {
		return c
	}
	switch {
	case k.seq != o.seq:
		return cmp.Compare(o.seq, k.seq)
	case k.pos != o.pos:
		return cmp.Compare(o.pos, k.pos)
	}
	return cmp.Compare(o.ext, k.ext)
}

// version is all that is needed to find and verify the bytes of an extent, or of the part
// of one that lies in a cell.
type version struct {
	sortKey
	zero     bool
	epoch    record.Epoch
	inc      record.Incarnation
	number   uint16 // of the block
	blockOff uint16
	block    record.Block
}

// eachCell calls fn for the parts of [off, off+n) by the rule above; at is where in the
// extent the part begins.
func eachCell(off, n int64, fn func(level uint8, cell uint64, s span, at int64)) {
	level := uint8(0)
	for level < partLevel && n > 1<<cellShift(level) {
		level++
	}
	for at, end := off, off+n; at < end; {
		if up := wholeLevel(at, end); up > partLevel {
			fn(up, uint64(at)>>cellShift(up), 0, at-off)
			at += 1 << cellShift(up)
			continue
		}
		size := int64(1) << cellShift(level)
		part := min(end-at, size-at%size)
		fn(level, uint64(at)>>cellShift(level), spanOf(at%size, part), at-off)
		at += part
	}
}

// wholeLevel is the highest level that has a cell which begins at off and ends by end; 0
// when none beyond partLevel does.
func wholeLevel(off, end int64) uint8 {
	for level := uint8(levels - 1); level > partLevel; level-- {
		if size := int64(1) << cellShift(level); off%size == 0 && end-off >= size {
			return level
		}
	}
	return 0
}

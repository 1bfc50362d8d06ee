package index

import (
	"cmp"
	"slices"
	"sync"

	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// source is a memtable or a run: it holds versions of records in [lo, hi).
type source interface {
	// collect gives l, of every group that touches [from, to), the newest version that l's
	// checkpoint holds, that is not masked, and that does not lie below l.from.
	collect(l *lookup, vol record.VolumeID, from, to int64, masks []Span) error
	// next lowers fine and coarse to where the first versions that reach beyond off may
	// begin, or to off: of levels up to fineLevel, and of those above.
	next(l *lookup, vol record.VolumeID, off int64, fine, coarse *int64) error
}

// sourceRef is a source as a state of the table holds it.
type sourceRef struct {
	source
	hi    segment.Pos
	masks []Span // records in them are forgotten; ordered, apart
}

// lookup is one search. It is reused, for what it has allocated.
type lookup struct {
	at     Vector
	from   segment.Pos // records below are not looked for
	most   int64       // bytes of a volume that are searched at once
	found  []found     // not settled yet
	cursor cursor
	probes []uint64
	steps  int // along chains of memtables
	coming coming
}

// found is a version as a piece, with what tells which is newer.
type found struct {
	Piece
	ext uint16
}

var lookups = sync.Pool{New: func() any { return new(lookup) }}

// take adds a version to what was found.
func (l *lookup) take(v *version) {
	off, n := v.place()
	p := Piece{Off: off, Len: n, In: IsZero, Pos: v.pos, ID: record.Identity{Stream: v.stream, Epoch: v.epoch, Incarnation: v.inc, Seq: v.seq}}
	if !v.zero {
		p.In, p.Number, p.Block, p.BlockOff = InLog, int(v.number), v.block, int(v.blockOff)
	}
	l.found = append(l.found, found{p, v.ext})
}

const (
	// chunkBytes is how much of a volume is searched at once.
	chunkBytes = 256 << 10
	// walkBytes is the same for a walk, which wants all of it: each search begins at the top
	// of every run.
	walkBytes = 2 << 20
)

// step appends to dst the pieces of the next part of [off, end), and returns where that
// ends. Zeros carry their record's place.
func (l *lookup) step(dst []Piece, sources []sourceRef, vol record.VolumeID, off, end int64) ([]Piece, int64, error) {
	to := min((off/l.most+1)*l.most, end)
	if end-off > l.most {
		fine, coarse := end, end
		for i := range sources {
			if sources[i].hi <= l.from {
				break
			}
			if err := sources[i].next(l, vol, off, &fine, &coarse); err != nil {
				return dst, 0, err
			}
		}
		if next := min(fine, coarse); next > off {
			return append(dst, Piece{Off: off, Len: next - off, In: InReplica}), next, nil
		}
		to = max(to, min(fine, end)) // long zeros alone: in one go
	}
	dst, err := l.chunk(dst, sources, vol, off, to)
	return dst, to, err
}

// chunk searches [from, to): the sources from the newest on, until all is found.
func (l *lookup) chunk(dst []Piece, sources []sourceRef, vol record.VolumeID, from, to int64) ([]Piece, error) {
	begin, missing := len(dst), to-from
	l.found = l.found[:0]
	l.coming = coming{wanted: l.coming.wanted, vol: vol, from: from, to: to, probes: l.coming.probes}
	for i := range sources {
		s := &sources[i]
		if s.hi <= l.from || missing == 0 {
			break
		}
		l.coming.rest = sources[i+1:]
		if err := s.collect(l, vol, from, to, s.masks); err != nil {
			return dst, err
		}
		older := l.from
		if i+1 < len(sources) {
			older = max(older, sources[i+1].hi)
		}
		dst, missing = l.settle(dst, begin, from, to, missing, older)
	}
	dst, missing = l.settle(dst, begin, from, to, missing, 0)
	if missing > 0 {
		dst, _ = cover(dst, begin, Piece{Off: from, Len: to - from, In: InReplica})
	}
	return dst, nil
}

// settle takes what was found at or above older, newest first, for the answer: nothing
// newer can come any more.
func (l *lookup) settle(dst []Piece, begin int, from, to, missing int64, older segment.Pos) ([]Piece, int64) {
	if len(l.found) > 1 {
		slices.SortFunc(l.found, func(a, b found) int {
			if c := cmp.Compare(a.Pos, b.Pos); c != 0 {
				return c
			}
			return cmp.Compare(a.ext, b.ext)
		})
	}
	for n := len(l.found); n > 0 && missing > 0 && l.found[n-1].Pos >= older; n-- {
		p := l.found[n-1].Piece
		l.found = l.found[:n-1]
		if p.Off < from {
			p = p.after(from - p.Off)
		}
		p.Len = min(p.Len, to-p.Off)
		var got int64
		dst, got = cover(dst, begin, p)
		missing -= got
	}
	return dst, missing
}

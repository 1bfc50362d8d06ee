package index

import (
	"math"

	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Stored finds places by where their bytes lie; see Lookups. It reads every page of
// every run that holds records of the spans, past the cache.
func (t *Table) Stored(spans []Span) ([]Place, error) {
	lo, hi := segment.Pos(math.MaxInt64), segment.Pos(0)
	for _, s := range spans {
		lo, hi = min(lo, s.From-record.MaxRecordBytes), max(hi, s.To)
	}
	view, err := t.use()
	if err != nil {
		return nil, err
	}
	defer view.release()
	f := storedFinder{spans: spans, lo: max(lo, segment.Pos(t.first.Load())), hi: hi, tables: make(map[segment.Pos]segment.Pos)}
	for _, s := range view.sources {
		switch src := s.source.(type) {
		case *memtable:
			err = src.each(func(v *version) error { f.see(v); return nil })
		case *run:
			if src.overlaps(f.lo, f.hi) {
				err = f.scan(src, s.masks)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return f.places(), nil
}

// storedFinder takes the versions of records that may lie in the spans, and where the
// tables of each of those end: where its first block begins, which some extent fills.
type storedFinder struct {
	spans  []Span
	lo, hi segment.Pos // of records
	near   []version
	tables map[segment.Pos]segment.Pos
}

func (f *storedFinder) scan(r *run, masks []Span) error {
	s := r.scan(nil)
	for {
		ok, err := s.next()
		if !ok || err != nil {
			return err
		}
		if masked(masks, s.v.pos) == nil {
			f.see(&s.v)
		}
	}
}

func (f *storedFinder) see(v *version) {
	if v.zero || v.pos < f.lo || v.pos >= f.hi {
		return
	}
	from := v.pos + segment.Pos(v.block.At)
	if v.number == 0 {
		f.tables[v.pos] = from
	}
	for _, s := range f.spans { // whether it lies in one is known when the tables are
		if s.From < from+segment.Pos(v.block.Stored) && s.To > v.pos {
			f.near = append(f.near, *v)
			return
		}
	}
}

func (f *storedFinder) places() (found []Place) {
	for i := range f.near {
		v := &f.near[i]
		if !f.liesIn(v) {
			continue
		}
		off, n := v.place()
		found = append(found, Place{Volume: v.area.volume(), Off: off, Len: n, Pos: v.pos, Number: int(v.number), Stream: v.stream, Seq: v.seq})
	}
	return found
}

// liesIn says whether a span touches the version's block, or what comes before the first
// block of its record.
func (f *storedFinder) liesIn(v *version) bool {
	tables, from := f.tables[v.pos], v.pos+segment.Pos(v.block.At)
	for _, s := range f.spans {
		if s.From < from+segment.Pos(v.block.Stored) && s.To > from || s.From < tables && s.To > v.pos {
			return true
		}
	}
	return false
}

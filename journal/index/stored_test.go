package index

import (
	"math/rand/v2"
	"testing"

	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// For each block of each record Stored gives the extents that lie in it, newest
// versions or not; for damage to a record's tables, all of its extents with bytes.
func TestStored(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	v := NewVersions()
	type at struct {
		pos segment.Pos
		r   record.Record
	}
	var all []at
	for seq := record.Seq(1); seq <= 20; seq++ {
		r := randomRecord(t, rng, record.Identity{Stream: 1, Epoch: 1, Incarnation: 1, Seq: seq})
		pos := segment.Pos(seq) << 20
		must(t, v.Add(pos, r))
		all = append(all, at{pos, r})
	}
	f := func(what string, a at, span Span, holds func(e record.Extent) bool) {
		t.Helper()
		want := make(map[Place]bool)
		for i := range a.r.Extents {
			if e := a.r.Extent(i); e.Kind == record.ExtentData && holds(e) {
				want[Place{Volume: e.Volume, Off: e.Off, Len: e.Len, Pos: a.pos, Number: e.Block, Stream: 1, Seq: a.r.Seq}] = true
			}
		}
		got, err := v.Stored([]Span{{From: 1, To: 2}, span})
		must(t, err)
		for _, p := range got {
			if !want[p] {
				t.Errorf("%s: %+v is not in it", what, p)
			}
			delete(want, p)
		}
		if len(want) != 0 {
			t.Errorf("%s: %v is missing", what, want)
		}
	}
	for _, a := range all {
		for i := range a.r.Blocks {
			b := a.r.Block(i)
			from := a.pos + segment.Pos(b.At)
			to := from + segment.Pos(b.Stored)
			in := func(e record.Extent) bool { return e.Block == i }
			f("the first byte", a, Span{from, from + 1}, in)
			f("the last byte", a, Span{to - 1, to}, in)
		}
		f("the header", a, Span{a.pos, a.pos + 1}, func(record.Extent) bool { return true })
		f("before it", a, Span{a.pos - 1, a.pos}, func(record.Extent) bool { return false })
	}
}

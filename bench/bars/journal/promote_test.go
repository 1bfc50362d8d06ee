package main

import "testing"

// What is promoted is counted between the ends of passes: where each frees what came in since the one
// before, they keep up, wherever in a pass the counting begins and ends.
func TestPasses(t *testing.T) {
	f := func(what string, wantTaken, wantPromoted int64, log ...int64) {
		t.Helper()
		var p passes
		for i, n := range log {
			p.look(int64(i+1), n)
		}
		if taken, promoted := p.between(); taken != wantTaken || promoted != wantPromoted {
			t.Errorf("%s: %d taken and %d promoted, want %d and %d", what, taken, promoted, wantTaken, wantPromoted)
		}
	}
	f("they keep up", 8, 8, 7, 8, 5, 6, 7, 9, 5, 6, 7, 9, 5, 6)
	f("they fall behind", 8, 6, 7, 8, 5, 6, 7, 8, 5, 6, 7, 8, 5, 6)
	f("they catch up", 4, 5, 7, 8, 5, 6, 7, 8, 3, 4)
	f("one pass", 0, 0, 7, 8, 5, 6)
	f("none", 0, 0, 7, 8)
}

// Whole segments are counted, and less than one too few is none; more than one is.
func TestKeepsUp(t *testing.T) {
	f := func(want float64, taken, promoted int64) {
		t.Helper()
		if got := keepsUp(taken, promoted); got != want {
			t.Errorf("%d of %d: %v, want %v", promoted, taken, got, want)
		}
	}
	f(1, 8*logSegment, 8*logSegment)
	f(1, 8*logSegment, 7*logSegment+1)
	f(0.875, 8*logSegment, 7*logSegment)
	f(1.125, 8*logSegment, 9*logSegment)
}

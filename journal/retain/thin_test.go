package retain

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestThin(t *testing.T) {
	tiers := []Tier{{0, time.Hour}, {time.Minute, day}, {time.Hour, 30 * day}}
	f := func(what string, now time.Duration, cps []Dated, want string) {
		t.Helper()
		if got := fmt.Sprint(Thin(tiers, now, cps)); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	row := func(n int, step time.Duration) (cps []Dated) {
		for i := range n {
			cps = append(cps, Dated{Number: uint64(i + 1), At: time.Duration(i) * step, Good: true})
		}
		return cps
	}
	f("young", 50*time.Minute, row(10, 20*time.Second), "[]")
	f("each minute", 2*time.Hour, row(10, 20*time.Second), "[{1 4} {4 7} {7 10}]")
	f("each hour", 2*day, row(10, 20*time.Minute), "[{1 4} {4 7} {7 10}]")
	cps := row(7, 20*time.Second)
	cps[1].Kept, cps[3].Good = true, false
	f("a pin, and a bad one first", 2*time.Hour, cps, "[{2 5} {5 7}]")
	for i := range cps {
		cps[i].Good = false
	}
	f("all bad", 2*time.Hour, cps, "[{2 4} {4 7}]")
	f("few", 2*time.Hour, row(2, time.Second), "[]")
}

// What is left is thinned no more, nothing kept goes, and each span keeps one; and at a
// later time what was thinned early leaves no gap that thinning late would not.
func TestThinConverges(t *testing.T) {
	tiers := []Tier{{0, time.Hour}, {time.Minute, day}, {time.Hour, 30 * day}}
	rapid.Check(t, func(t *rapid.T) {
		var cps []Dated
		now := time.Duration(0)
		for i := range rapid.IntRange(0, 80).Draw(t, "count") {
			now += time.Duration(rapid.IntRange(1, 4000).Draw(t, "step")) * time.Second
			cps = append(cps, Dated{Number: uint64(i + 1), At: now, Good: rapid.IntRange(0, 4).Draw(t, "good") > 0, Kept: rapid.IntRange(0, 9).Draw(t, "kept") == 0})
		}
		now += time.Duration(rapid.Int64Range(0, int64(40*day/time.Second)).Draw(t, "later")) * time.Second
		left := thinned(cps, Thin(tiers, now, cps))
		if again := Thin(tiers, now, left); again != nil {
			t.Fatalf("thins again: %v", again)
		}
		for _, c := range cps {
			if c.Kept && !slices.Contains(left, c) {
				t.Fatalf("checkpoint %d is kept and goes", c.Number)
			}
			every := tierAt(tiers, now-c.At).Every
			if c.Good && !slices.ContainsFunc(left, func(d Dated) bool {
				return d == c || every > 0 && d.Good && d.At/every == c.At/every
			}) {
				t.Fatalf("nothing of the span of checkpoint %d is left", c.Number)
			}
		}
		later := now + 10*day
		if a, b := thinned(left, Thin(tiers, later, left)), thinned(cps, Thin(tiers, later, cps)); len(a) > len(b)+len(cps)/2 {
			t.Fatalf("thinning early leaves %d, late %d", len(a), len(b))
		}
	})
}

func thinned(cps []Dated, pairs []Pair) (left []Dated) {
	for _, c := range cps {
		if !slices.ContainsFunc(pairs, func(p Pair) bool { return c.Number > p.From && c.Number < p.To }) {
			left = append(left, c)
		}
	}
	return left
}

package journal

import (
	"math/rand/v2"
	"reflect"
	"testing"
)

// In whatever order spans come, they hold the numbers that any of them holds.
func TestSpans(t *testing.T) {
	const top = 60
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var ss spans
		var held [top + 1]bool
		for range rng.IntN(12) {
			lo := uint64(rng.IntN(top - 2))
			s := span{lo, lo + 2 + uint64(rng.IntN(top-1-int(lo)))}
			ss = ss.add(s)
			for n := s.lo + 1; n < s.hi && n <= top; n++ {
				held[n] = true
			}
		}
		from := uint64(rng.IntN(top))
		high := ss.above(from)
		for n := range uint64(top + 1) {
			if ss.holds(n) != held[n] || n >= from && high.holds(n) != held[n] {
				t.Fatalf("seed %d: %v and above %d %v: number %d is not %v", seed, ss, from, high, n, held[n])
			}
		}
		again := spans{}
		for _, s := range ss {
			again = again.add(s)
		}
		if len(ss) > 0 && !reflect.DeepEqual(again, ss) {
			t.Fatalf("seed %d: %v added again is %v", seed, ss, again)
		}
	}
}

// What was repaired is whole, and nothing else.
func TestDamageRepaired(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		place := func() damage {
			from := int64(rng.IntN(50))
			return damage{0, from, from + 1 + int64(rng.IntN(20)), "why"}
		}
		var ds damages
		var bad [80]bool
		for range 20 {
			d := place()
			damaged := rng.IntN(2) == 0
			if damaged {
				ds = ds.add(d)
			} else {
				ds = ds.without(d)
			}
			for at := d.from; at < d.to; at++ {
				bad[at] = damaged
			}
			for at := range int64(len(bad)) {
				if ds.holds(damage{0, at, at + 1, ""}) != bad[at] {
					t.Fatalf("seed %d: %v: %d is not %v", seed, ds, at, bad[at])
				}
			}
		}
	}
	many := damages{}
	for n := range int64(maxDamages) {
		many = many.add(damage{0, n * 10, n*10 + 5, "why"})
	}
	if rest := many.without(damage{volume: 0, from: 12, to: 13}); len(rest) > maxDamages || !rest.holds(damage{0, 13, 15, ""}) {
		t.Errorf("%d damages, %v", len(rest), rest[:3])
	}
}

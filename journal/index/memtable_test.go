package index

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// What is sorted digit by digit is sorted, and what begins at one place stays in its order.
func TestByPlace(t *testing.T) {
	f := func(n int, low, width uint, common uint64) {
		t.Run(fmt.Sprintf("n=%d/low=%d/width=%d", n, low, width), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(n), uint64(width)))
			p := make([]placed, n)
			for i := range p {
				p[i] = placed{common | rng.Uint64N(1<<width)<<low, uint32(i)}
			}
			want := slices.Clone(p)
			slices.SortStableFunc(want, func(a, b placed) int { return cmp.Compare(a.off, b.off) })
			if byPlace(p); !slices.Equal(p, want) {
				t.Error("not in order")
			}
		})
	}
	f(0, 0, 1, 0)
	f(fewPlaces, 9, 20, 0)
	f(fewPlaces+1, 9, 20, 0)
	f(5000, 0, 0, 1<<40)
	f(5000, 12, 1, 0)
	f(5000, 12, 11, 1<<50)
	f(5000, 12, 12, 0)
	f(20000, 12, 25, 1<<45)
	f(20000, 0, 56, 0)
	f(20000, 9, 3, 1<<30)
}

// What is covered, by parts and by the longest stretch, is never more than was added, and a stretch that
// was added is known.
func TestCoverage(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 7))
	for range 5000 {
		const cell = 32 << 10
		unit := int64(1) << rng.UintN(13)
		any := func() (lo, hi int64) {
			lo = rng.Int64N(cell/unit) * unit
			return lo, lo + min(cell-lo, unit*(1+rng.Int64N(8)))
		}
		lo, hi := any()
		c, have := newCoverage(0, lo, hi), make([]bool, cell)
		for range 12 {
			from, to := any()
			if from >= hi || to <= lo {
				continue
			}
			done := c.add(from, to)
			for i := from; i < to; i++ {
				have[i] = true
			}
			if all := !slices.Contains(have[lo:hi], false); done && !all || !done && from <= lo && to >= hi {
				t.Fatalf("[%d, %d) of [%d, %d): done %v", from, to, lo, hi, done)
			}
			if unit >= 512 && unit <= 4096 && lo%512 == 0 && done == slices.Contains(have[lo:hi], false) {
				t.Fatalf("sectors: done %v", done)
			}
			from, to = any()
			if from < hi && to > lo && c.has(from, to) && slices.Contains(have[max(lo, from):min(hi, to)], false) {
				t.Fatalf("[%d, %d) is not covered", from, to)
			}
		}
	}
}

// Many places share chains: what is found is of the place that is asked for, and as new as it may be.
func TestSharedChains(t *testing.T) {
	m, f := newMemtable(), newFeeder(1<<30)
	wrote := map[int64][]record.Seq{} // by block, rising
	for range 1 << 14 / feedWrites {
		var at []int64
		pos, r := f.next(func() int64 { at = append(at, f.random()); return at[len(at)-1] })
		must(t, m.add(pos, &r))
		for _, block := range at {
			wrote[block] = append(wrote[block], r.Seq)
		}
	}
	for _, upTo := range []record.Seq{0, 1, 100, f.seq / 2, f.seq - 1, f.seq} {
		l := &lookup{at: NewVector(Checkpoint{At: []StreamAt{{Stream: 0x123456789abcdef, Seq: upTo}}})}
		for block := range int64(1 << 15) {
			want := record.Seq(0)
			for _, seq := range wrote[block] {
				if seq <= upTo {
					want = seq
				}
			}
			l.found = l.found[:0]
			must(t, m.collect(l, 1, block<<12, (block+1)<<12, nil))
			got := record.Seq(0)
			for _, p := range l.found {
				if p.Off != block<<12 || p.Len != 4096 {
					t.Fatalf("block %d: %+v", block, p)
				}
				got = max(got, p.ID.Seq)
			}
			if got != want {
				t.Fatalf("block %d up to %d: found %d, want %d", block, upTo, got, want)
			}
		}
	}
}

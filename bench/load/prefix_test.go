package load

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// story is a small workload as disks may carry it out: each operation happens at one
// moment between its issue and its answer.
type story struct {
	ops   []Op
	order []uint64 // the numbers of those that happened, as they happened
}

const (
	storyVolumes = 2
	storySectors = 6
)

// tell makes up a story of a few workers. It breaks off anywhere: some operations were
// not answered then, and some of those did not happen.
func tell(rng *rand.Rand) story {
	type worker struct {
		op       uint64 // 0: idle
		happened bool
	}
	var h History
	var order []uint64
	workers := make([]worker, 1+rng.IntN(4))
	for range 10 + rng.IntN(50) {
		switch w := &workers[rng.IntN(len(workers))]; {
		case w.op == 0:
			kind := [...]OpKind{OpZero, OpTrim, OpWrite, OpWrite, OpWrite, OpWrite, OpWrite, OpWrite}[rng.IntN(8)]
			at := rng.Int64N(storySectors)
			w.op = h.Issue(kind, rng.IntN(storyVolumes), at, 1+rng.Int64N(storySectors-at))
		case !w.happened:
			order = append(order, w.op)
			w.happened = true
		default:
			h.Done(w.op)
			*w = worker{}
		}
	}
	return story{h.Ops(), order}
}

// state is what the sectors hold after these operations. A trim zeroes every other one.
func (s story) state(order []uint64) [][]uint64 {
	seen := make([][]uint64, storyVolumes)
	for v := range seen {
		seen[v] = make([]uint64, storySectors)
	}
	for _, n := range order {
		op := s.ops[n-1]
		for at := op.Sector; at < op.Sector+op.Sectors; at++ {
			switch {
			case op.Kind == OpWrite:
				seen[op.Volume][at] = n
			case op.Kind == OpZero || (n+uint64(at))%2 == 0:
				seen[op.Volume][at] = 0
			}
		}
	}
	return seen
}

// alone says that all else on the write's sectors was over before it was issued, or is
// a write issued after its answer: nothing then excuses its absence.
func (s story) alone(write Op) bool {
	return write.Done != 0 && !slices.ContainsFunc(s.ops, func(op Op) bool {
		apart := op.Volume != write.Volume || op.Sector+op.Sectors <= write.Sector || write.Sector+write.Sectors <= op.Sector
		before := op.Done != 0 && op.Done < write.Issued
		after := op.Kind == OpWrite && op.Issued > write.Done
		return op.Number != write.Number && !apart && !before && !after
	})
}

// sees says whether a sector holds a write of which it is true.
func (s story) sees(seen [][]uint64, is func(Op) bool) bool {
	return slices.ContainsFunc(slices.Concat(seen...), func(n uint64) bool { return n != 0 && is(s.ops[n-1]) })
}

func (s story) String() string { return fmt.Sprintf("%+v\nhappened in the order %v", s.ops, s.order) }

// TestEveryPrefixPasses: whenever the disks of a random story are stopped, the oracle
// takes what they hold; at the story's end, also for all of it.
func TestEveryPrefixPasses(t *testing.T) {
	for seed := range uint64(2000) {
		s := tell(rand.New(rand.NewPCG(seed, 1)))
		for n := range len(s.order) + 1 {
			seen, whole := s.state(s.order[:n]), n == len(s.order)
			if _, err := judge(s.ops, seen, false); err != nil {
				t.Fatalf("seed %d, first %d: %v\n%v in %v", seed, n, err, seen, s)
			}
			if _, err := judge(s.ops, seen, whole); err != nil {
				t.Fatalf("seed %d, whole: %v\n%v in %v", seed, err, seen, s)
			}
		}
	}
}

// TestLostWriteIsRefused: a prefix that lacks one write which nothing overlapped in
// time, and of which something was still to be seen, is refused where a write issued
// after its answer stands, and where all is asked.
func TestLostWriteIsRefused(t *testing.T) {
	refused := map[bool]int{} // by whether all was asked
	for seed := range uint64(4000) {
		rng := rand.New(rand.NewPCG(seed, 2))
		s := tell(rng)
		for _, prefix := range [][]uint64{s.order, s.order[:rng.IntN(len(s.order)+1)]} {
			full := s.state(prefix)
			for i, n := range prefix {
				write := s.ops[n-1]
				if write.Kind != OpWrite || !s.alone(write) || !s.sees(full, func(op Op) bool { return op.Number == n }) {
					continue
				}
				seen := s.state(slices.Concat(prefix[:i], prefix[i+1:]))
				later := s.sees(seen, func(op Op) bool { return op.Issued > write.Done })
				for whole, sure := range map[bool]bool{false: later, true: len(prefix) == len(s.order)} {
					if !sure {
						continue
					}
					if _, err := judge(s.ops, seen, whole); err == nil {
						t.Fatalf("seed %d: write %d is missing in %v, and that passes (whole: %v)\n%v in %v", seed, n, prefix, whole, seen, s)
					}
					refused[whole]++
				}
			}
		}
	}
	if refused[false] < 1000 || refused[true] < 1000 {
		t.Errorf("refused %v, by whether all was asked: the test reaches little", refused)
	}
}

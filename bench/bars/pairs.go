package bars

import (
	"fmt"
	"slices"
	"time"
)

// Side runs one side of a pair, and returns how many cores others used meanwhile.
type Side func() (foreign float64, err error)

// Pairs measures ours beside the peer's as often as the run has pairs, and hands each pair
// to keep, with how many cores others used at most.
func Pairs[A, B any](r *Run, ours func() (A, float64, error), peer func() (B, float64, error), keep func(A, B, float64)) error {
	for i := range r.Pairs {
		var a A
		var b B
		foreign, err := r.Pair(i,
			func() (f float64, err error) { a, f, err = ours(); return },
			func() (f float64, err error) { b, f, err = peer(); return })
		if err != nil {
			return err
		}
		keep(a, b, foreign)
	}
	return nil
}

// Pair runs the sides of the i-th pair one after the other, each with an empty page cache,
// and all of them again while others disturb them.
func (r *Run) Pair(i int, sides ...Side) (foreign float64, err error) {
	const rest = 5 * time.Second // until whoever disturbed may be done
	return pair(i, sides, DropCaches, func(foreign float64) error {
		fmt.Printf("again: others used %.2f cores\n", foreign)
		t := time.NewTimer(rest)
		defer t.Stop()
		select {
		case <-t.C:
			return nil
		case <-r.Context.Done():
			return r.Context.Err()
		}
	})
}

// pairTries is how often a pair is run when others disturb it; the last stands as it is.
const pairTries = 3

// pair runs the sides in an order that turns round with i. Before each side it calls ready,
// and disturbed before it runs all of them again.
func pair(i int, sides []Side, ready func() error, disturbed func(foreign float64) error) (foreign float64, err error) {
	sides = slices.Clone(sides)
	if i%2 == 1 {
		slices.Reverse(sides)
	}
	for try := 1; ; try++ {
		foreign = 0
		for _, side := range sides {
			if err := ready(); err != nil {
				return 0, err
			}
			f, err := side()
			if err != nil {
				return 0, err
			}
			foreign = max(foreign, f)
		}
		if foreign <= ForeignLimit || try == pairTries {
			return foreign, nil
		}
		if err := disturbed(foreign); err != nil {
			return 0, err
		}
	}
}

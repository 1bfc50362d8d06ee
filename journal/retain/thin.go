package retain

import (
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Dated is a checkpoint as thinning looks at it.
type Dated struct {
	Number uint64
	At     time.Duration // as Ages dates it
	Good   bool
	Kept   bool // whatever the tiers say: it is pinned, or a view stands at it
}

// Pair is two checkpoints that stay; those between them are to go, and what they alone
// hold is to be folded.
type Pair struct{ From, To uint64 }

// Thin says which of the checkpoints, ordered by number, go. Of those that fall into
// one span of their tier the first good one stays, and without one the first. The last
// one given always stays, and so do those that Kept says. What it returns is apart and
// in order. Given what is left it returns nothing, until time has passed.
func Thin(tiers []Tier, now time.Duration, cps []Dated) (pairs []Pair) {
	if len(tiers) == 0 || len(cps) < 3 {
		return nil
	}
	stays := make([]bool, len(cps))
	stays[0], stays[len(cps)-1] = true, true
	for i := 0; i < len(cps); {
		every := tierAt(tiers, now-cps[i].At).Every
		j, first := i+1, i
		for j < len(cps) && every > 0 && cps[j].At/every == cps[i].At/every && tierAt(tiers, now-cps[j].At).Every == every {
			j++
		}
		for k := i; k < j; k++ {
			if cps[k].Good {
				first = k
				break
			}
		}
		stays[first] = true
		for k := i; k < j; k++ {
			stays[k] = stays[k] || cps[k].Kept && !invariant.Planted("journal/retain/thin-pinned")
		}
		i = j
	}
	from := 0
	for i := 1; i < len(cps); i++ {
		if !stays[i] {
			continue
		}
		if i > from+1 {
			pairs = append(pairs, Pair{cps[from].Number, cps[i].Number})
		}
		from = i
	}
	return pairs
}

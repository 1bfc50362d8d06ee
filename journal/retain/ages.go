package retain

import (
	"slices"
	"sort"
	"time"
)

// Ages says when checkpoints were listed, roughly and never too early. Its zero value
// knows of none. Not for use by several goroutines at once.
type Ages struct {
	marks   []Mark // both parts rise
	thinned int    // marks left by the last thinning
}

// Mark says that by At, of the group's Clock, the checkpoints up to Number were listed.
type Mark struct {
	At     time.Duration
	Number uint64
}

// shortest is the least distance between marks that are kept: no policy needs closer.
const shortest = 5 * time.Second

// Note notes that at this time the newest listed checkpoint is number.
func (a *Ages) Note(at time.Duration, number uint64, tiers []Tier) {
	if n := len(a.marks); n > 0 && (number <= a.marks[n-1].Number || at < a.marks[n-1].At) || number == 0 {
		return
	}
	a.marks = append(a.marks, Mark{at, number})
	if len(a.marks) > a.thinned+a.thinned/4+64 {
		a.thin(at, tiers)
	}
}

// thin leaves out marks that stand closer than anybody needs.
func (a *Ages) thin(now time.Duration, tiers []Tier) {
	kept := a.marks[:0]
	for i, m := range a.marks {
		if n := len(kept); n > 0 && i+1 < len(a.marks) && a.marks[i+1].At-kept[n-1].At < spacing(tiers, now-m.At) {
			continue // what it dated, the next one dates later
		}
		kept = append(kept, m)
	}
	a.marks, a.thinned = kept, len(kept)
}

// spacing is how close marks of that age need to stand.
func spacing(tiers []Tier, age time.Duration) time.Duration {
	if len(tiers) == 0 {
		return max(shortest, age/128)
	}
	return max(shortest, tierAt(tiers, age).Every/2)
}

// tierAt is the tier that a checkpoint of that age falls under.
func tierAt(tiers []Tier, age time.Duration) Tier {
	i := sort.Search(len(tiers), func(i int) bool { return age <= tiers[i].For })
	return tiers[min(i, len(tiers)-1)]
}

// Listed returns the newest checkpoint that certainly was listed by at; 0: none.
func (a *Ages) Listed(at time.Duration) uint64 {
	i := sort.Search(len(a.marks), func(i int) bool { return a.marks[i].At > at })
	if i == 0 {
		return 0
	}
	return a.marks[i-1].Number
}

// Date returns a time by which the checkpoint was listed; false: none is known.
func (a *Ages) Date(number uint64) (time.Duration, bool) {
	i := sort.Search(len(a.marks), func(i int) bool { return a.marks[i].Number >= number })
	if i == len(a.marks) {
		return 0, false
	}
	return a.marks[i].At, true
}

// Forget drops what dates only checkpoints below number.
func (a *Ages) Forget(number uint64) {
	i := sort.Search(len(a.marks), func(i int) bool { return a.marks[i].Number >= number })
	if i > 0 {
		a.marks = slices.Delete(a.marks, 0, i)
		a.thinned = min(a.thinned, len(a.marks))
	}
}

// Clone returns a copy that shares nothing with a.
func (a *Ages) Clone() *Ages { return &Ages{marks: slices.Clone(a.marks), thinned: a.thinned} }

// Marks returns the marks, in order; they are lent.
func (a *Ages) Marks() []Mark { return a.marks }

package journal

import (
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/retain"
)

// thin states that the checkpoints strictly between those of each pair are gone, durably,
// and then lists them no more; what only they held is folded later. Pinned ones stay. A
// pair is left out when a view stands between, or when it reaches beyond what may go: the
// promotion limit, the newest good checkpoint, or the oldest of all that are listed. It
// returns how many went.
func (g *Group) thin(pairs []retain.Pair) (thinned int, err error) {
	g.marking.Lock()
	defer g.marking.Unlock()
	if g.heldByFailover() != nil {
		return 0, nil
	}
	ceiling := g.thinCeiling()
	facts := g.manifest.now()
	g.mu.Lock()
	was := g.thinned
	var todo spans
	for _, p := range pairs {
		s := span{p.From, p.To}
		if s.hi <= s.lo+1 || s.lo < facts.gone || s.hi > ceiling || g.viewedWithinLocked(s) && !invariant.Planted("journal/thin-viewed") {
			continue
		}
		todo = todo.add(s)
		g.thinned = g.thinned.add(s) // from here on no view of one is opened
	}
	g.mu.Unlock()
	if len(todo) == 0 {
		return 0, nil
	}
	var es []entry
	for part := todo; len(part) > 0; part = part[min(len(part), maxParts):] {
		es = append(es, entry{kind: entryThinned, spans: part[:min(len(part), maxParts)]})
	}
	if !invariant.Planted("journal/thin-unsaid") {
		if err := g.manifest.put(true, es...); err != nil {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.thinned = was
			return 0, err
		}
	}
	for _, s := range todo {
		last := s.hi - 1
		if invariant.Planted("journal/thin-the-end") {
			last = s.hi
		}
		n, err := g.store.catalogue.ForgetBetween(g.info.ID, s.lo+1, last, func(cp *Checkpoint) bool { return g.keeps(&facts, cp.Number) })
		if err != nil {
			g.log.Warn("checkpoints that were thinned out are still in the catalogue", "above", s.lo, "below", s.hi, "error", err)
		}
		thinned += n
	}
	if thinned > 0 {
		g.log.Info("checkpoints were thinned out", "count", thinned)
	}
	return thinned, g.recount()
}

// keeps says whether thinning leaves the checkpoint.
func (g *Group) keeps(f *facts, number uint64) bool {
	_, pinned := f.pins[number]
	return pinned && !invariant.Planted("journal/thin-pinned")
}

// thinCeiling is the newest checkpoint that may be the end of a pair.
func (g *Group) thinCeiling() uint64 {
	_, good := listed{g}.Newest(^uint64(0) - 1)
	g.mu.Lock()
	defer g.mu.Unlock()
	return min(good, g.cuts.limit)
}

func (g *Group) viewedWithinLocked(s span) (viewed bool) {
	g.eachHeldLocked(func(n uint64, _ bool) { viewed = viewed || s.holds(n) })
	return viewed
}

// lostLocked says whether no view of the checkpoint may be opened any more.
func (g *Group) lostLocked(number uint64) bool {
	if number < g.gone {
		return true
	}
	if !g.thinned.holds(number) {
		return false
	}
	facts := g.manifest.now()
	return !g.keeps(&facts, number)
}

// thinPage is how many checkpoints thinning looks at at once.
const thinPage = 4096

// thinByPolicy thins as the group's policy says.
func (g *Group) thinByPolicy() (thinned int, err error) {
	for after := uint64(0); ; {
		pairs, next, err := g.ThinPlan(after, thinPage)
		if err != nil {
			return thinned, fmt.Errorf("thinning: %w", err)
		}
		n, err := g.thin(pairs)
		thinned += n
		if err != nil {
			return thinned, fmt.Errorf("thinning: %w", err)
		}
		if next <= after {
			return thinned, nil
		}
		after = next
	}
}

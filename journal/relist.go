package journal

import (
	"math"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/segment"
)

// relisting makes the catalogue tell of a group what its log and manifest do. What the
// catalogue covers of this log is kept, and what lies beyond is entered; one that covers
// nothing, or another log, is entered anew.
type relisting struct {
	g      *Group
	facts  *facts
	covers segment.Pos // checkpoints that were complete by then are there
	batch  []Checkpoint
	put    int // checkpoints entered
}

// relistBatch is how many checkpoints are entered at once.
const relistBatch = 500

// newRelisting finds out what the catalogue covers, and clears one that covers nothing
// of this log.
func newRelisting(g *Group, facts *facts) (*relisting, error) {
	r := &relisting{g: g, facts: facts}
	m, ok := g.store.catalogue.Covers(g.info.ID)
	if ok && m.Pos >= g.logFirst() && m.Pos <= g.segments.Durable() {
		_, life, known := g.segments.Life(m.Pos)
		if known && life == m.Life || invariant.Planted("journal/any-catalogue") {
			r.covers = m.Pos
			return r, nil
		}
	}
	g.log.Info("checkpoints are listed anew", "catalogue_covers", int64(m.Pos))
	return r, g.store.catalogue.Clear(g.info.ID)
}

// list takes a checkpoint that was complete at pos.
func (r *relisting) list(pos segment.Pos, cp Checkpoint) error {
	if pos <= r.covers || r.facts.lost(cp.Number) {
		return nil
	}
	r.facts.mark(&cp)
	r.batch = append(r.batch, cp)
	if len(r.batch) < relistBatch {
		return nil
	}
	return r.flush()
}

func (r *relisting) flush() error {
	if len(r.batch) == 0 {
		return nil
	}
	err := r.g.store.catalogue.Put(r.g.info.ID, r.batch...)
	r.put += len(r.batch)
	r.batch = r.batch[:0]
	return err
}

// end enters the rest, up to the newest that ever was complete, makes all that is listed
// say what the manifest does, and states what the catalogue covers now.
func (r *relisting) end(newest uint64) error {
	if err := r.flush(); err != nil {
		return err
	}
	if _, err := r.g.store.catalogue.ForgetBetween(r.g.info.ID, newest+1, math.MaxUint64, nil); err != nil {
		return err
	}
	if err := r.forgetLost(); err != nil {
		return err
	}
	if err := r.remark(); err != nil {
		return err
	}
	return r.g.covered()
}

// covered states that the catalogue tells of all that is durable now.
func (g *Group) covered() error {
	pos := g.segments.Durable()
	number, life, ok := g.segments.Life(pos)
	if !ok {
		return nil // it is found again by the next opening
	}
	return g.store.catalogue.SetCovers(g.info.ID, index.Marker{Pos: pos, Segment: number, Life: life})
}

// forgetLost takes out what went since the catalogue was written.
func (r *relisting) forgetLost() error {
	lost := func(first, last uint64) error {
		_, err := r.g.store.catalogue.ForgetBetween(r.g.info.ID, first, last, func(cp *Checkpoint) bool { return !r.facts.lost(cp.Number) })
		return err
	}
	if r.facts.gone > 1 {
		if err := lost(1, r.facts.gone-1); err != nil {
			return err
		}
	}
	for _, s := range r.facts.thinned {
		if err := lost(s.lo+1, s.hi-1); err != nil {
			return err
		}
	}
	return nil
}

// remark puts tags and pins right: of those that the manifest names, and of those that
// the catalogue calls pinned and the manifest does not.
func (r *relisting) remark() error {
	c, id := r.g.store.catalogue, r.g.info.ID
	numbers := make(map[uint64]struct{})
	for _, named := range []map[uint64]string{r.facts.tags, r.facts.pins, r.facts.bad} {
		for n := range named {
			numbers[n] = struct{}{}
		}
	}
	for q := (index.Query{Pinned: true, Limit: relistBatch}); ; {
		page, err := c.List(id, q)
		if err != nil {
			return err
		}
		for _, cp := range page.Checkpoints {
			numbers[cp.Number] = struct{}{}
		}
		if q.After = page.Next; q.After == 0 {
			break
		}
	}
	for n := range numbers {
		_, err := c.Change(id, n, n, func(cp *Checkpoint) bool {
			was := *cp
			r.facts.mark(cp)
			return cp.Tag != was.Tag || cp.Pinned != was.Pinned || cp.Label != was.Label || cp.State != was.State
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// mark makes a checkpoint say what the manifest does.
func (f *facts) mark(cp *Checkpoint) {
	if tag, ok := f.tags[cp.Number]; ok {
		cp.Tag = tag
	}
	cp.Label, cp.Pinned = f.pins[cp.Number], false
	if _, ok := f.pins[cp.Number]; ok {
		cp.Pinned = true
	}
	if reason, ok := f.bad[cp.Number]; ok {
		cp.State, cp.Reason = index.Bad, reason
	}
}

// recount keeps for State which good checkpoints there are.
func (g *Group) recount() error {
	c, id := g.store.catalogue, g.info.ID
	counts, err := c.Counts(id)
	if err != nil {
		return err
	}
	oldest, _, err := c.Oldest(id, 1)
	if err != nil {
		return err
	}
	newest, _, err := c.Newest(id, math.MaxUint64)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.listed.count, g.listed.bad, g.listed.oldest, g.listed.newest = counts.Good, counts.Bad, oldest.Number, newest.Number
	return nil
}

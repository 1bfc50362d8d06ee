package journal

import (
	"slices"
	"sync"

	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/scrub"
	"github.com/holdfast-dr/holdfast/journal/segment"
)

// A checkpoint is verifying until all of the log that it needs was read back from the
// device once. Segments are read back in order as they are sealed, so this is one number a
// group: the checkpoints up to it are verified. It is reckoned when somebody lists, and the
// catalogue says nothing of it. A verifying checkpoint is opened like a good one.

// verified knows where the newest checkpoints of a group are complete in its log.
type verified struct {
	mu    sync.Mutex
	ends  []endOf // rising; one for each segment that is not verified yet
	upto  uint64  // the checkpoints up to here are verified
	begun bool    // what an earlier run knew was taken over
}

// endOf says that the checkpoint is the newest that was complete within the segment.
type endOf struct{ segment, number uint64 }

// complete notes that a checkpoint is complete in what is durable now.
func (g *Group) complete(number uint64) {
	seg, _, ok := g.segments.Life(g.segments.Durable())
	if !ok {
		return
	}
	v := &g.verified
	v.mu.Lock()
	defer v.mu.Unlock()
	if n := len(v.ends); n > 0 && v.ends[n-1].segment >= seg {
		v.ends[n-1].number = max(v.ends[n-1].number, number)
		return
	}
	v.ends = append(v.ends, endOf{seg, number})
}

// Verified is the highest checkpoint such that all of the log that it and those before it
// need was read back from the device.
func (g *Group) Verified() uint64 {
	if g.opened() != nil {
		return 0
	}
	open := uint64(0) // the first segment that was not read back
	for _, i := range g.segments.Segments() {
		if i.State != segment.StateVerified && i.State != segment.StateBad {
			open = i.Number
			break
		}
	}
	v := &g.verified
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.begun {
		v.begun = true
		v.upto = g.store.scrubber.uptoOf(g)
	}
	was := v.upto
	for len(v.ends) > 0 && v.ends[0].segment < open {
		v.upto = max(v.upto, v.ends[0].number)
		v.ends = v.ends[1:]
	}
	if v.upto != was {
		g.store.scrubber.verifiedUpto(g, v.upto)
	}
	return v.upto
}

// uptoOf is what an earlier run knew of the group.
func (r *scrubber) uptoOf(g *Group) uint64 {
	lineage := g.manifest.now().lineage
	r.mu.Lock()
	defer r.mu.Unlock()
	if b := r.book.Groups[uint64(g.info.ID)]; b.Lineage == lineage {
		return b.Upto
	}
	return 0
}

func (r *scrubber) verifiedUpto(g *Group, number uint64) {
	lineage := g.manifest.now().lineage
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.book.Groups[uint64(g.info.ID)]
	if !ok || b.Lineage != lineage {
		b = scrub.Group{Lineage: lineage, Full: scrub.Never}
	}
	b.Upto = number
	r.book.SetGroup(uint64(g.info.ID), b)
	r.dirty = true
}

// shown is cp as a user sees it.
func shown(cp Checkpoint, upto uint64) Checkpoint {
	if cp.State == index.Good && cp.Number > upto {
		cp.State = index.Verifying
	}
	return cp
}

// Shown is cp as a user sees it: one whose log was not read back yet is verifying.
func (g *Group) Shown(cp Checkpoint) Checkpoint { return shown(cp, g.Verified()) }

// ListShown is List, with the states that a user sees.
func (g *Group) ListShown(q Query) (Page, error) {
	upto := g.Verified()
	want := q.State
	switch {
	case want == index.Verifying && !q.Newest:
		q.After = max(q.After, upto)
	case want == index.Good && q.Newest && (q.After == 0 || q.After > upto+1):
		q.After = upto + 1
	}
	if want == index.Verifying {
		q.State = index.Good
	}
	page, err := g.List(q)
	if err != nil {
		return page, err
	}
	n := len(page.Checkpoints)
	for i, cp := range page.Checkpoints {
		page.Checkpoints[i] = shown(cp, upto)
	}
	page.Checkpoints = slices.DeleteFunc(page.Checkpoints, func(cp Checkpoint) bool { return want != "" && cp.State != want })
	if len(page.Checkpoints) < n { // beyond what is asked for nothing follows
		page.Next = 0
	}
	return page, nil
}

// CountsShown is Counts, with the states that a user sees. It counts those that are
// verifying, which are those of a few segments.
func (g *Group) CountsShown() (Counts, error) {
	counts, err := g.Counts()
	if err != nil {
		return counts, err
	}
	verifying := 0
	for q := (Query{After: g.Verified(), Limit: 1000, State: index.Good}); ; {
		page, err := g.List(q)
		if err != nil {
			return counts, err
		}
		verifying += len(page.Checkpoints)
		if q.After = page.Next; q.After == 0 {
			break
		}
	}
	verifying = min(verifying, counts.Good)
	counts.Good, counts.Verifying = counts.Good-verifying, verifying
	return counts, nil
}

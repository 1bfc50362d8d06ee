package capture

import (
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// entryState is what a ring's next entry turns out to be.
type entryState int

const (
	entryReady   entryState = iota // published: a write
	entryPending                   // its slot is in ticketing still
	entryStale                     // its slot was revoked, or freed by an earlier Tap
	entryMark                      // a ticket of our own
)

// entryStateOf judges an entry by the word of its slot.
func entryStateOf(use uint32, slotWord uint64) entryState {
	if uint32(useOf(slotWord)) != use {
		return entryStale
	}
	switch stateOf(slotWord) {
	case slotPublished:
		return entryReady
	case slotTicketing:
		return entryPending
	}
	return entryStale
}

// mergeState is all that the merge decides from.
type mergeState struct {
	expected record.Ticket // one above the last given or skipped; 0 for none yet
	lowest   record.Ticket // the lowest ticket that stands at the head of a ring or of our own
	state    entryState
	floor    record.Ticket // tickets below were discarded, for this pool
	// closed is the lowest ticket under which, after it was seen, nothing was found in
	// ticketing and no pool missing: what is not in a ring by now never will be.
	closed record.Ticket
}

type mergeAction int

const (
	mergeGive mergeAction = iota
	mergeDrop             // free it and go on: it was discarded
	mergeSkip             // nothing to free: go on
	mergeLate             // it comes after a higher one was given: free it, its pool must fold
	mergeLook             // tickets are missing: see whether they can still come
	mergeWait             // not now
)

// mergeStep decides what to do with the lowest ticket at hand.
func mergeStep(m mergeState) mergeAction {
	switch {
	case m.state == entryPending:
		return mergeWait
	case m.state == entryStale:
		return mergeSkip
	case m.state == entryReady && m.lowest < m.floor:
		return mergeDrop
	case m.lowest < m.expected:
		return mergeLate
	case m.lowest > m.expected && m.closed != m.lowest && !invariant.Planted("capture/skip-missing"):
		return mergeLook
	}
	return mergeGive
}

const (
	// revokeAfter is how long a slot may be in ticketing.
	revokeAfter = 20 * time.Millisecond
	// missingAfter is how long a filter that stands in the order page may be missing before
	// the VRA goes on without it, having added to lost.
	missingAfter = 2 * time.Second
)

// lookTicketing says whether the ring's slot in ticketing, if any, may still bring a
// ticket; one that has been there too long is revoked.
func (r *tapRing) lookTicketing(now time.Time) (pending bool) {
	busy := r.busy.Load()
	if busy == 0 || busy > uint64(r.pool.shape.slots) {
		return false
	}
	w := r.pool.stateWord(uint32(busy - 1))
	word := w.Load()
	if stateOf(word) != slotTicketing {
		return false
	}
	if r.watched != word {
		r.watched, r.since = word, now
		return true
	}
	if now.Sub(r.since) < revokeAfter {
		return true
	}
	if w.CompareAndSwap(word, withState(word, slotRevoked)) {
		r.pool.revoked++
	}
	return false
}

// collectLocked appends the next writes in ticket order, at most most, to out. waits
// says that something is there which cannot be given yet. t.merge is held.
func (t *Tap) collectLocked(out []Write, most int) (_ []Write, waits bool, err error) {
	var closed record.Ticket
	for len(out) < most {
		r, mark := t.lowestLocked()
		if r == nil && mark == 0 {
			return out, false, nil
		}
		m := mergeState{expected: t.merge.expected, closed: closed, lowest: mark, state: entryMark}
		if r != nil {
			m.lowest, m.state, m.floor = r.ticket, r.headState(), r.pool.floor
			m.floor = max(m.floor, t.merge.floor)
		}
		switch mergeStep(m) {
		case mergeWait:
			t.lookAllLocked()
			return out, true, nil
		case mergeLook:
			if !t.lookAllLocked() {
				return out, true, nil
			}
			closed = m.lowest
			t.reloadLocked()
			continue
		case mergeLate:
			if r != nil {
				t.lateLocked(r)
			}
			t.forwardLocked(r)
		case mergeDrop:
			r.dropHead()
			t.forwardLocked(r)
		case mergeSkip:
			r.skipHead()
			t.forwardLocked(r)
		case mergeGive:
			w := Write{Kind: Mark, Ticket: mark, Captured: t.clock.now()}
			if r != nil {
				if w, err = r.takeHead(); err != nil {
					return out, false, err
				}
			}
			out = append(out, w)
			t.forwardLocked(r)
		}
		t.merge.expected = max(t.merge.expected, m.lowest+1)
	}
	return out, false, nil
}

// lowestLocked finds the ring whose head has the lowest ticket, or, with no ring, our own mark.
func (t *Tap) lowestLocked() (lowest *tapRing, mark record.Ticket) {
	for _, p := range t.merge.pools {
		for i := range p.rings {
			r := &p.rings[i]
			if r.peek() && (lowest == nil || r.ticket < lowest.ticket) {
				lowest = r
			}
		}
	}
	if len(t.merge.marks) > 0 && (lowest == nil || t.merge.marks[0] < lowest.ticket) {
		return nil, t.merge.marks[0]
	}
	return lowest, 0
}

// forwardLocked steps over the head of r, or over our own mark when r is nil.
func (t *Tap) forwardLocked(r *tapRing) {
	if r == nil {
		t.merge.marks = t.merge.marks[1:]
		return
	}
	r.read++
}

// reloadLocked looks at all tails afresh.
func (t *Tap) reloadLocked() {
	for _, p := range t.merge.pools {
		for i := range p.rings {
			p.rings[i].seen = p.rings[i].tail.Load()
		}
	}
}

// lookAllLocked says whether a missing ticket is missing for good: every filter in the
// order page is mapped, or was given up, and no slot is in ticketing.
func (t *Tap) lookAllLocked() bool {
	now := time.Now()
	final := t.allMappedLocked(now)
	for _, p := range t.merge.pools {
		for i := range p.rings {
			if p.rings[i].lookTicketing(now) {
				final = false
			}
		}
	}
	return final
}

// allMappedLocked says whether the pool of every filter in the order page is mapped.
// One that has been missing too long is given up: lost is added to, and if it lives it
// must fold before the durable ticket may go on, and again when it is back.
func (t *Tap) allMappedLocked(now time.Time) bool {
	all := true
	t.merge.entered = t.page.entered(t.merge.entered[:0])
	for _, e := range t.merge.entered {
		if t.poolLocked(e.instance) != nil {
			delete(t.merge.missing, e)
			continue
		}
		m, known := t.merge.missing[e]
		switch {
		case !known:
			m.since = now
			all = false
		case m.gone:
		case now.Sub(m.since) < missingAfter:
			all = false
		default:
			m.gone = true
			m.lives = lives(filterLockName(t.cfg.RunDir, t.cfg.Group, e.key))
			t.page.passed.Store(1)
			t.page.lost.Add(1)
			t.cfg.Log.Warn("a filter cannot be reached: its writes are lost until it is back", "lives", m.lives)
		}
		t.merge.missing[e] = m
	}
	return all
}

// missingFilter is a filter that stands in the order page and is not mapped.
type missingFilter struct {
	since time.Time
	gone  bool // given up
	lives bool // its process was there when it was given up
}

// frozenLocked says that generations must not be dropped: a filter was passed over
// whose writes may have tickets that we called durable.
func (t *Tap) frozenLocked() bool {
	for _, p := range t.merge.pools {
		if p.mustFold {
			return true
		}
	}
	for e, m := range t.merge.missing {
		if m.gone && m.lives && lives(filterLockName(t.cfg.RunDir, t.cfg.Group, e.key)) {
			return true
		}
	}
	return false
}

// foldedLocked notes that a filter has folded: where none is left that must, the page says so.
func (t *Tap) foldedLocked() {
	if !t.frozenLocked() {
		t.page.passed.Store(0)
	}
}

// lateLocked frees a write that can no longer be put in order; its pool must fold.
func (t *Tap) lateLocked(r *tapRing) {
	r.dropHead()
	if !r.pool.mustFold {
		r.pool.mustFold = true
		t.page.passed.Store(1)
		t.page.lost.Add(1)
		t.cfg.Log.Error("a write came after a later one was given: its filter must fold")
		for _, l := range t.links() {
			if filterKey(l.socket) == r.pool.key {
				t.wg.Go(func() {
					t.foldLate(t.run, r.pool, func(q request) error { _, err := l.ask(t.run, q, again); return err })
				})
			}
		}
	}
}

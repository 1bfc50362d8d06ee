package journal

import (
	"maps"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// kick wakes the commit rounds.
func (s *Store) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// queued says that the group has something for the next round.
func (s *Store) queued(g *Group) {
	s.mu.Lock()
	s.pending[g] = struct{}{}
	s.mu.Unlock()
	s.kick()
}

// run is the commit rounds of all groups: whatever was appended while one round was
// on its way goes into the next, so that a slow disk makes larger rounds and not
// more of them. What the world did not allow is tried again after a while. After Close
// it does one more, and ends.
func (s *Store) run() {
	defer close(s.stopped)
	again := time.NewTimer(retryAfter)
	again.Stop()
	for closed := false; !closed; {
		select {
		case <-s.wake:
		case <-again.C:
		}
		var groups map[*Group]struct{}
		s.mu.Lock()
		groups, closed = s.pending, s.closed
		s.pending = make(map[*Group]struct{})
		if closed { // a group may have queued something and not said so yet
			for _, g := range s.groups {
				groups[g] = struct{}{}
			}
		}
		s.mu.Unlock()
		s.round(groups)
		if s.mayTake() != nil || len(s.behind) > 0 {
			again.Reset(retryAfter)
		}
	}
}

// retryAfter is how long the store waits before it tries again what it could not do.
const retryAfter = 3 * time.Second

// round commits what the groups have queued, all at once, and then lists the
// checkpoints that became complete, now or before: one write of the watermarks serves
// them all.
func (s *Store) round(groups map[*Group]struct{}) {
	var wg sync.WaitGroup
	for g := range groups {
		wg.Go(g.round)
	}
	wg.Wait()
	maps.Copy(groups, s.behind)
	s.list(groups)
	clear(s.behind)
	for g := range groups {
		if g.waits() {
			s.behind[g] = struct{}{}
		}
	}
}

// list makes the complete checkpoints of the groups visible. The watermark comes
// first: once a checkpoint was shown, damage to what it needs must never again pass
// for a torn tail.
func (s *Store) list(groups map[*Group]struct{}) {
	marks := make(map[record.GroupID]segment.Watermark)
	for g := range groups {
		if len(g.unlisted) > 0 {
			marks[g.info.ID] = g.watermark()
		}
	}
	if len(marks) == 0 {
		return
	}
	if !invariant.Planted("journal/no-watermark") {
		if err := s.watermarks.Raise(marks); err != nil {
			for g := range groups {
				g.notListed(err) // tried again with the next, or after a while
			}
			return
		}
	}
	for g := range groups {
		g.notListed(g.listAll())
	}
}

package journal

import (
	"time"

	"github.com/holdfast-dr/holdfast/journal/segment"
)

// reindex builds the group's index anew, beside all else, and tries again until it
// succeeds or the group ends.
func (g *Group) reindex() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		g.index.giveUp(ErrClosed)
		return
	}
	g.upkeep.Go(func() {
		select {
		case <-g.loaded: // an opening that finds damage builds it anew itself
		case <-g.ended:
			g.index.giveUp(ErrClosed)
			return
		}
		if g.index == nil { // it did not even open
			return
		}
		if _, err := g.index.whole(); err == nil {
			return
		}
		for {
			began := time.Now()
			err := g.buildIndex()
			if err == nil {
				g.log.Info("index was built anew", "took", time.Since(began))
				g.store.queued(g, urgent) // what waited for it is tried again
				return
			}
			g.log.Error("index is not built anew", "error", err)
			select {
			case <-time.After(retryAfter):
			case <-g.ended:
				g.index.giveUp(ErrClosed)
				return
			}
		}
	})
}

// buildIndex replays the whole log into the index. Records that come meanwhile are found
// in the log too; the last of them while no other is taken.
func (g *Group) buildIndex() error {
	g.relogging.Lock()
	defer g.relogging.Unlock()
	g.index.begin()
	facts := g.manifest.now()
	l := &loading{g: g, lineage: facts.lineage, history: beginning(&facts), facts: &facts, anew: true}
	pos := g.logFirst()
	err := g.index.table.Reset()
	if err == nil {
		g.index.table.SetMarks(g.folds())
		err = g.index.table.Drop(pos)
	}
	for end := segment.Pos(0); err == nil && pos != end; {
		end = pos
		if pos, err = l.replay(pos); err == nil {
			err = g.openStill()
		}
	}
	return g.index.end(func() (segment.Pos, error) {
		if err != nil {
			return 0, err
		}
		l.anew = false // nobody waits for the disk here
		end, err := l.replay(pos)
		if err == nil {
			err = g.index.table.Drop(g.logFirst())
		}
		return end, err
	})
}

// openStill is nil until the group ends.
func (g *Group) openStill() error {
	select {
	case <-g.ended:
		return ErrClosed
	default:
		return nil
	}
}

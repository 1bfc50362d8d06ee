package journal

import (
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// watermark is how far the log is durable.
func (g *Group) watermark() segment.Watermark {
	return segment.Watermark{Durable: g.segments.Durable()}
}

// listAll shows the complete checkpoints, whose watermark is durable. What the
// catalogue does not take stays unlisted until the next time.
func (g *Group) listAll() error {
	cps := g.unlisted
	if len(cps) == 0 {
		return nil
	}
	if err := g.enter(cps); err != nil {
		return err
	}
	g.unlisted = nil
	g.showSegments()
	g.mu.Lock()
	listed := g.onListed
	g.mu.Unlock()
	for _, cp := range cps {
		if listed != nil && cp.State == index.Good {
			listed(cp)
		}
	}
	return nil
}

// enter puts the checkpoints into the catalogue, as bad where they need what is
// damaged.
func (g *Group) enter(cps []Checkpoint) error {
	g.marking.Lock()
	defer g.marking.Unlock()
	if err := g.placeLocked(); err != nil {
		return err
	}
	if err := g.spoilNew(&g.hurt, cps); err != nil {
		return err
	}
	if err := g.store.catalogue.Put(g.info.ID, cps...); err != nil {
		return err
	}
	if err := g.covered(); err != nil {
		return err
	}
	if len(g.damages) > 0 {
		g.sayLocked() // what was listed may have covered it
	}
	return g.recount()
}

// waits says whether something is to be tried again: to list, or to state damage.
func (g *Group) waits() bool {
	g.marking.Lock()
	defer g.marking.Unlock()
	if err := g.stateLocked(); err != nil {
		g.log.Error("damage is not stated in the manifest", "error", err)
	}
	if err := g.placeLocked(); err != nil {
		g.log.Error("checkpoints are bad and could not be marked", "error", err)
	}
	return len(g.unlisted) > 0 || len(g.unstated) > 0 || len(g.unplaced) > 0 || g.unblamed
}

// notListed keeps why complete checkpoints are not listed; nil: all are.
func (g *Group) notListed(err error) {
	if n := len(g.unlisted); n == 0 || invariant.Planted("journal/unlisted-unsaid") {
		err = nil
	} else if err != nil {
		g.log.Error("checkpoints are not listed", "count", n, "error", err)
		err = fmt.Errorf("%d checkpoints are complete and cannot be listed: %w", n, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.behind = err
}

// showSegments enters what changed about the segments. It is for people: nothing is
// lost when it fails.
func (g *Group) showSegments() {
	var changed []segment.Info
	for _, s := range g.segments.Segments() {
		if g.shown[s.Number] != s.State {
			changed = append(changed, s)
		}
	}
	if len(changed) == 0 {
		return
	}
	if err := g.store.catalogue.PutSegments(g.info.ID, changed...); err != nil {
		g.log.Warn("segments are not in the catalogue", "error", err)
		return
	}
	for _, s := range changed {
		g.shown[s.Number] = s.State
	}
}

// showSegmentsAnew makes the catalogue tell of the segments what is true now.
func (g *Group) showSegmentsAnew() error {
	infos := g.segments.Segments()
	for _, s := range infos {
		g.shown[s.Number] = s.State
	}
	return g.store.catalogue.PutSegments(g.info.ID, infos...)
}

// Checkpoints returns up to limit listed checkpoints with numbers above after, oldest
// first, bad ones too.
func (g *Group) Checkpoints(after uint64, limit int) ([]Checkpoint, error) {
	if err := g.opened(); err != nil {
		return nil, err
	}
	return g.store.catalogue.Checkpoints(g.info.ID, after, limit)
}

// Checkpoint returns one; ErrNotFound when it is not listed.
func (g *Group) Checkpoint(number uint64) (Checkpoint, error) {
	if err := g.opened(); err != nil {
		return Checkpoint{}, err
	}
	cp, ok, err := g.store.catalogue.Checkpoint(g.info.ID, number)
	if err == nil && !ok {
		err = fmt.Errorf("journal: group %s: checkpoint %d: %w", g.info.ID, number, ErrNotFound)
	}
	return cp, err
}

// Latest returns the newest good checkpoint; ErrNotFound when there is none.
func (g *Group) Latest() (Checkpoint, error) {
	g.mu.Lock()
	number := g.listed.newest
	g.mu.Unlock()
	return g.Checkpoint(number)
}

// OnListed sets what is called with each good checkpoint after it is listed; those
// listed before are not told, and bad ones are not: a source takes what it is told for
// safe.
func (g *Group) OnListed(f func(Checkpoint)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.onListed = f
}

// isDamage says whether bytes that were kept are not what they were.
func isDamage(err error) bool {
	return errors.Is(err, record.ErrCorrupt) || errors.Is(err, segment.ErrCorrupt) || errors.Is(err, replica.ErrCorrupt)
}

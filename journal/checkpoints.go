package journal

import (
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/journal/view"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// ViewOptions say what a view may do.
type ViewOptions = view.Options

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
	g.examineLocked(cps)
	if err := g.store.catalogue.Put(g.info.ID, cps...); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, cp := range cps {
		g.countLocked(cp)
	}
	return nil
}

// waits says whether something is to be tried again: to list, or to state damage.
func (g *Group) waits() bool {
	g.marking.Lock()
	defer g.marking.Unlock()
	if err := g.stateLocked(); err != nil {
		g.log.Error("damage is not stated in the manifest", "error", err)
	}
	return len(g.unlisted) > 0 || len(g.unstated) > 0
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

// countLocked counts a checkpoint that is now listed, if it is good.
func (g *Group) countLocked(cp Checkpoint) {
	if cp.State != index.Good {
		return
	}
	l := &g.listed
	l.count++
	if l.oldest == 0 {
		l.oldest = cp.Number
	}
	l.newest = cp.Number
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

// OpenView opens the group as it was at the checkpoint. Its cost does not depend on
// the checkpoint's age nor on how much was written. A bad checkpoint opens too: what
// is damaged in it reads as an error, and never as bytes.
func (g *Group) OpenView(number uint64, o ViewOptions) (*view.View, error) {
	cp, err := g.Checkpoint(number)
	if err != nil {
		return nil, err
	}
	cfg := view.Config{Checkpoint: number, FS: g.store.cfg.FS, Dir: g.scratchDir(), Options: o,
		Log: g.segments, Versions: g.versions, At: g.versions.Vector(cp.At),
		Damaged: g.viewed}
	if cfg.Disks, err = g.disks(cp); err != nil {
		return nil, fmt.Errorf("journal: group %s: checkpoint %d: %w", g.info.ID, number, err)
	}
	var opened *view.View
	cfg.Closed = func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.views, opened)
	}
	opened, err = view.New(cfg) // not under mu: a slow disk under scratch holds up nobody else
	if err != nil {
		return nil, fmt.Errorf("journal: group %s: checkpoint %d: %w", g.info.ID, number, err)
	}
	g.mu.Lock()
	closed := g.closed
	if !closed {
		g.views[opened] = struct{}{}
	}
	g.mu.Unlock()
	if closed {
		return nil, errors.Join(ErrClosed, opened.Close())
	}
	return opened, nil
}

// disks are the volumes that a checkpoint holds.
func (g *Group) disks(cp Checkpoint) (disks []view.Disk, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, ErrClosed
	}
	for _, v := range cp.Volumes {
		have := g.volumes[v.ID]
		if have == nil {
			return nil, fmt.Errorf("volume %d: %w", v.ID, ErrVolume)
		}
		disks = append(disks, view.Disk{Volume: view.Volume{ID: v.ID, Name: have.info.Name, Bytes: v.Bytes}, Replica: have.replica})
	}
	return disks, nil
}

// isDamage says whether bytes that were kept are not what they were.
func isDamage(err error) bool {
	return errors.Is(err, record.ErrCorrupt) || errors.Is(err, segment.ErrCorrupt) || errors.Is(err, replica.ErrCorrupt)
}

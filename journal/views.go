package journal

import (
	"errors"
	"fmt"
	"path"

	"github.com/holdfast-dr/holdfast/journal/view"
)

// ViewOptions say what a view may do, and how long it lives.
type ViewOptions struct {
	view.Options
	// Live: a production disk stands on it, and it never gives way. Else it is a test.
	Live bool
}

// OpenView opens the group as it was at the checkpoint. Its cost does not depend on
// the checkpoint's age nor on how much was written. A bad checkpoint opens too: what
// is damaged in it reads as an error, and never as bytes.
func (g *Group) OpenView(number uint64, o ViewOptions) (*view.View, error) {
	cp, err := g.Checkpoint(number)
	if err != nil {
		return nil, err
	}
	cfg := view.Config{Checkpoint: number, FS: g.store.cfg.FS, Dir: g.scratchDir(), Options: o.Options,
		Log: g.segments, Versions: g.index, At: g.index.Vector(cp),
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
		g.views[opened] = o
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

// ViewsHold returns the oldest checkpoint that an open view shows: neither it nor what
// comes after may be promoted past it, or dropped. False: there is no view.
func (g *Group) ViewsHold() (number uint64, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for v := range g.views {
		if n := v.Checkpoint(); !ok || n < number {
			number, ok = n, true
		}
	}
	return number, ok
}

// YieldViews closes the views that are no live ones, because of reason, which their
// user is told, and returns how many those were.
func (g *Group) YieldViews(reason string) (closed int, err error) {
	g.mu.Lock()
	var yield []*view.View
	for v, o := range g.views {
		if !o.Live {
			yield = append(yield, v)
		}
	}
	g.mu.Unlock()
	for _, v := range yield {
		g.log.Warn("view gives way", "checkpoint", v.Checkpoint(), "reason", reason)
		err = errors.Join(err, v.Close())
	}
	return len(yield), err
}

// clearScratch removes what views of an earlier run left: they ended with it.
func (g *Group) clearScratch() error {
	fs := g.store.cfg.FS
	names, err := fs.List(g.scratchDir())
	for _, n := range names {
		err = errors.Join(err, fs.Remove(path.Join(g.scratchDir(), n)))
	}
	return err
}

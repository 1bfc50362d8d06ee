package journal

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/view"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// ViewOptions say what a view may do, and how long it lives.
type ViewOptions struct {
	view.Options
	// Live: a production disk stands on it, and it never gives way. Else it is a test.
	Live bool
	// Passing: whoever serves it closes it once its user has gone. Only kept views have it.
	Passing bool
	// Name is a label for people, of at most 63 bytes; only kept views have one.
	Name string
	// Opened is what a kept view tells about when it was.
	Opened time.Time
}

// views are a group's views.
type views struct {
	open map[*view.View]ViewOptions // also those that are kept
	kept map[uint64]*keptView       // by number

	rooted atomic.Bool // their folder is there, durably
}

// viewNumbers draws the numbers of views, of which no two of a store are ever the same.
type viewNumbers struct {
	sync.Mutex
	last uint64
}

func (n *viewNumbers) next() uint64 {
	n.Lock()
	defer n.Unlock()
	n.last++
	return n.last
}

func (n *viewNumbers) seen() uint64 {
	n.Lock()
	defer n.Unlock()
	return n.last
}

func (n *viewNumbers) saw(number uint64) {
	n.Lock()
	defer n.Unlock()
	n.last = max(n.last, number)
}

// OpenView opens the group as it was at the checkpoint, until it is closed or the store
// is. Its cost does not depend on the checkpoint's age nor on how much was written. A
// bad checkpoint opens too: what is damaged in it reads as an error, and never as bytes.
func (g *Group) OpenView(number uint64, o ViewOptions) (*view.View, error) {
	return g.openView(number, o, view.Config{Number: g.store.viewing.next()})
}

// openView opens a view; cfg says which, and how it is opened.
func (g *Group) openView(number uint64, o ViewOptions, cfg view.Config) (*view.View, error) {
	cp, err := g.Checkpoint(number)
	if err == nil && g.beyond(number) && !invariant.Planted("journal/views-beyond") {
		err = fmt.Errorf("journal: group %s: checkpoint %d: %s: %w", g.info.ID, number, cp.Reason, ErrCorrupt)
	}
	if err != nil {
		return nil, err
	}
	alone, err := g.readsAlone(cfg.Number)
	if err != nil {
		return nil, fmt.Errorf("journal: group %s: checkpoint %d: %w", g.info.ID, number, err)
	}
	cfg.Checkpoint, cfg.Options = number, o.Options
	cfg.FS, cfg.Dir, cfg.Group, cfg.Boot = g.store.cfg.FS, g.scratchDir(), g.info.ID, g.store.cfg.Boot
	cfg.Cache, cfg.Owner, cfg.At = g.store.cache, g.blockOwner, g.index.Vector(cp)
	g.readsFrom(&cfg)
	if alone {
		cfg.Versions = view.ReplicasAlone{}
	}
	cfg.Spoiled = func(err error) {
		g.log.Error("what a view has written is damaged", "view", cfg.Number, "checkpoint", number, "error", err)
	}
	if cfg.Disks, err = g.disks(cp); err != nil {
		return nil, fmt.Errorf("journal: group %s: checkpoint %d: %w", g.info.ID, number, err)
	}
	var opened *view.View
	cfg.Closed = func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.views.open, opened)
	}
	opened, err = view.New(cfg) // not under mu: a slow disk under scratch holds up nobody else
	if err != nil {
		return nil, fmt.Errorf("journal: group %s: checkpoint %d: %w", g.info.ID, number, err)
	}
	if g.failoverNow().State.Passes() {
		g.passes(opened)
	}
	g.mu.Lock()
	closed, gone, leaving := g.closed, g.lostLocked(number), g.leaving
	if !closed && !gone && !leaving {
		if g.views.open == nil {
			g.views.open = make(map[*view.View]ViewOptions)
		}
		g.views.open[opened] = o
	}
	g.mu.Unlock()
	if gone && !closed {
		return nil, errors.Join(fmt.Errorf("journal: group %s: checkpoint %d: %w", g.info.ID, number, ErrNotFound), opened.Close())
	}
	if leaving && !closed {
		return nil, errors.Join(fmt.Errorf("journal: group %s: %w", g.info.ID, ErrRemoved), opened.Close())
	}
	if closed {
		end := opened.Close
		if cfg.Again {
			end = opened.Leave
		}
		return nil, errors.Join(ErrClosed, end())
	}
	return opened, nil
}

// readsFrom says where a view reads.
func (g *Group) readsFrom(cfg *view.Config) {
	cfg.Log, cfg.Versions = g.segments, g.index
	cfg.Damaged, cfg.Steady = g.viewed, &g.steady
	if g.store.cfg.Protector != nil {
		cfg.Repair = g.repairsFor
	}
}

// Newest opens what the group holds of its volumes now: all that is durable, whether a
// checkpoint has it or not, and perhaps some of what comes while it is read. It takes no writes,
// keeps nothing from being promoted or dropped, and is closed before the store is.
func (g *Group) Newest() (*view.View, error) {
	cp := Checkpoint{Number: math.MaxUint64}
	for _, v := range g.Volumes() {
		cp.Volumes = append(cp.Volumes, record.VolumeSize{ID: v.ID, Bytes: v.Bytes})
	}
	cfg := view.Config{Checkpoint: cp.Number, At: g.newest()}
	g.readsFrom(&cfg)
	var err error
	if cfg.Disks, err = g.disks(cp); err == nil {
		return view.New(cfg)
	}
	return nil, fmt.Errorf("journal: group %s: what it holds now: %w", g.info.ID, err)
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
	g.eachHeldLocked(func(n uint64, _ bool) {
		if !ok || n < number {
			number, ok = n, true
		}
	})
	return number, ok
}

// eachHeldLocked calls f with the checkpoint of each view, also of one that is kept and does
// not open, since what ails it may pass; live: it is no test.
func (g *Group) eachHeldLocked(f func(checkpoint uint64, live bool)) {
	for v, o := range g.views.open {
		f(v.Checkpoint(), o.Live)
	}
	for _, k := range g.views.kept {
		if k.rec.life == viewOpen || k.rec.life == viewFailed {
			f(k.rec.checkpoint, k.rec.live)
		}
	}
}

// YieldViews closes the views that are no live ones, because of reason, which their
// user is told, and returns how many those were.
func (g *Group) YieldViews(reason string) (closed int, err error) {
	g.viewing.Lock()
	defer g.viewing.Unlock()
	g.mu.Lock()
	var kept []*keptView
	of := make(map[*view.View]bool)
	for _, k := range g.views.kept {
		of[k.view] = true
		if !k.rec.live && k.rec.life != viewGave {
			kept = append(kept, k)
		}
	}
	var passing []*view.View
	for v, o := range g.views.open {
		if !o.Live && !of[v] {
			passing = append(passing, v)
		}
	}
	g.mu.Unlock()
	for _, v := range passing {
		err = errors.Join(err, v.Close())
	}
	for _, k := range kept {
		g.log.Warn("view gives way", "view", k.rec.number, "checkpoint", k.rec.checkpoint, "reason", reason)
		err = errors.Join(err, g.endView(k, viewGave, cutView(reason)))
	}
	if len(kept) > 0 {
		err = errors.Join(err, g.forgetViews())
	}
	return len(passing) + len(kept), err
}

// leaveViews ends all views as the store is closed; those that are kept leave their
// scratch.
func (g *Group) leaveViews() error {
	g.mu.Lock()
	end := make(map[*view.View]func() error)
	for v := range g.views.open {
		end[v] = v.Close
	}
	for _, k := range g.views.kept {
		if k.view != nil {
			end[k.view] = k.view.Leave
		}
	}
	g.mu.Unlock()
	var err error
	for _, e := range end {
		err = errors.Join(err, e())
	}
	return err
}

package journal

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/journal/view"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// What of scratch is brought into the replicas: settleBytes at once, and each time that settleMost of a volume are there durably, scratch
// tells of it no more.
const (
	settleBytes = 4 << 20
	settleMost  = 256 << 20
)

// settle makes the replicas of a committed failover what its machines see, while they run:
//
//  0. nothing of that is done, and no checkpoint given up, while its view is not there, or not good;
//  1. all other checkpoints are stated gone, and test views end;
//  2. the replicas are brought to the failover's checkpoint, as by any promotion;
//  3. that is stated: from then on the view reads them alone, and nobody else reads them;
//  4. what the machines have written goes from scratch into the replicas, and so does what they write;
//  5. the replicas are read back: see pass. From then on they are plain disks, the view writes to them, and what is left
//     in scratch goes there too.
//
// Each step is repeated after a crash. It returns when there was nothing left to move.
func (g *Group) settle(pace func(int64) error) error {
	g.settling.Lock()
	defer g.settling.Unlock()
	f := g.failoverNow()
	if f.State == failover.Committed {
		if _, err := g.failoverView(f); err != nil && !invariant.Planted("journal/settles-blind") {
			return fmt.Errorf("all checkpoints are kept: %w", err)
		}
		if err := g.forgetOthers(f.Checkpoint); err != nil {
			return err
		}
		if err := g.promote(f.Checkpoint, pace); err != nil {
			return err
		}
		if err := g.statePromoted(); err != nil {
			return err
		}
		f = g.failoverNow()
	}
	if err := g.empty(pace); err != nil || f.State != failover.Settled {
		return err
	}
	if err := g.pass(pace); err != nil {
		return err
	}
	return g.empty(pace)
}

// empty moves what stands in the scratch of a failover whose replicas hold its checkpoint into them, until there was nothing left.
// g.settling is held.
func (g *Group) empty(pace func(int64) error) error {
	f := g.failoverNow()
	if !f.State.Merged() || f.State.Gone() {
		return nil
	}
	i, err := g.settlesFrom(f)
	if i.View == nil {
		return err
	}
	i.View.Rebase()
	for _, v := range i.View.Volumes() {
		for {
			moved, err := i.View.Settle(v.ID, settleBytes, settleMost, beneath{g, v.ID, pace})
			if err != nil {
				return fmt.Errorf("volume %d: %w", v.ID, err)
			}
			if moved == 0 {
				break
			}
		}
	}
	return nil
}

// settlesFrom tells of the failover's view, and what ails it now: not what the run before has met, of which the cause may be gone.
func (g *Group) settlesFrom(f failover.Failover) (ViewInfo, error) {
	i, err := g.failoverView(f)
	if err == nil && invariant.Planted("journal/fails-for-ever") {
		err = g.Failover().Err
	}
	return i, err
}

// neverPlain says why the group's disks never become plain ones; empty: they do.
func (g *Group) neverPlain() string {
	if g.store.plain() || invariant.Planted("journal/all-become-plain") {
		return ""
	}
	return "the target keeps its disks over several stores, and those are no plain ones"
}

// errHurried says that the disks of a failover are wanted, so that they are not read back first.
var errHurried = errors.New("the disks are wanted")

// pass has the view of a settled failover write to the disks themselves. Nobody can tell what they should hold from then on, so
// they are read back once, whole, and held against their sums before; where they do not verify the machines stay as they are, until the
// store is opened again. Disks that are kept over several stores are no plain ones, and stay. g.settling is held.
func (g *Group) pass(pace func(int64) error) error {
	i, err := g.settlesFrom(g.failoverNow())
	if i.View == nil || err != nil || g.neverPlain() != "" || g.unsound != nil {
		return cmp.Or(err, g.unsound)
	}
	for _, v := range i.View.Volumes() {
		if err := g.readBackWhole(v, pace); errors.Is(err, errHurried) {
			return nil
		} else if err != nil {
			return err
		}
	}
	g.retention.passing.Lock()
	err = g.retention.promoter.Finish() // no crash brings an older block back
	g.retention.passing.Unlock()
	if err == nil {
		err = g.stateWhile(failover.Verified{})
	}
	if err != nil {
		return err
	}
	g.passes(i.View)
	return nil
}

// readBackWhole holds a volume's replica against its sums.
func (g *Group) readBackWhole(v view.Volume, pace func(int64) error) error {
	g.mu.Lock()
	r := g.replicaOf(v.ID)
	g.mu.Unlock()
	found, err := r.Verify(0, v.Bytes, func(n int) error {
		if g.hurried.Load() > 0 {
			return errHurried
		}
		return pace(int64(n))
	})
	if err != nil {
		return fmt.Errorf("volume %d: read its replica back: %w", v.ID, err)
	}
	if len(found) > 0 && !invariant.Planted("journal/passes-rotten") {
		d := found[0]
		g.unsound = fmt.Errorf("volume %d: its replica is damaged in %d places, the first of %d bytes at %d: machines stay on the view: %w", v.ID, len(found), d.Len, d.Off, d.Err)
	}
	return g.unsound
}

// passes has a view write to the group's disks.
func (g *Group) passes(v *view.View) {
	v.Pass(func(id record.VolumeID) view.Plain {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.replicaOf(id).Plain()
	})
}

// forgetOthers states that all checkpoints but one are about to go, and ends the views that stand in
// the way: those of tests.
func (g *Group) forgetOthers(number uint64) error {
	g.marking.Lock()
	facts := g.manifest.now()
	var es []entry
	for n := range facts.pins {
		if n != number {
			es = append(es, entry{kind: entryPin, number: n})
		}
	}
	above := span{number, math.MaxUint64}
	g.mu.Lock()
	g.thinned = g.thinned.add(above)
	g.mu.Unlock()
	es = append(es, entry{kind: entryThinned, spans: []span{above}})
	err := g.onReserve(func() error { return g.manifest.put(true, es...) })
	if err == nil {
		_, err = g.store.catalogue.ForgetBetween(g.info.ID, number+1, math.MaxUint64-1, nil)
	}
	if err == nil {
		err = g.recount()
	}
	g.marking.Unlock()
	if err != nil {
		return err
	}
	if _, err := g.YieldViews("the failover that it was beside is committed"); err != nil {
		return err
	}
	for _, v := range g.Views() {
		if v.Options.Live && !g.ViewInUse(v.Number) {
			return fmt.Errorf("view v%d is live and reads what is about to change: close it: %w", v.Number, ErrInUse)
		}
	}
	return nil
}

// readsAlone says whether a view reads the replicas alone: that of a failover that is settled. While one
// is committed no other view is opened: what they would read changes.
func (g *Group) readsAlone(number uint64) (bool, error) {
	f := g.failoverNow()
	if f.State.Final() && number != f.View {
		return false, fmt.Errorf("a live failover stands on it: %w", ErrInUse)
	}
	return f.State.Merged(), nil
}

// statePromoted states that the replicas hold the failover's checkpoint.
func (g *Group) statePromoted() error { return g.stateWhile(failover.Promoted{}) }

// stateWhile takes an event in, while no other step is taken.
func (g *Group) stateWhile(e failover.Event) error {
	g.failing.Lock()
	defer g.failing.Unlock()
	return g.failoverStep(e, failover.ByWord, 0)
}

// beneath is the replica of a volume, into which what machines wrote is moved.
type beneath struct {
	g    *Group
	id   record.VolumeID
	pace func(int64) error
}

// Put implements view.Below.
func (b beneath) Put(parts []view.Part) error {
	g := b.g
	g.retention.passing.Lock()
	defer g.retention.passing.Unlock()
	g.mu.Lock()
	r := g.replicaOf(b.id)
	g.mu.Unlock()
	changes := make([]replica.Change, len(parts))
	for i, p := range parts {
		changes[i] = replica.Change{Off: p.Off, Len: p.Len, Data: p.Data}
	}
	p := g.retention.promoter
	p.Pace = b.pace
	found, err := p.Apply(r, changes)
	for _, d := range found {
		g.log.Error("a replica is damaged where a machine has written a part of a block", "volume", b.id, "offset", d.Off, "error", d.Err)
	}
	return err
}

// Sync implements view.Below.
func (b beneath) Sync() error {
	b.g.retention.passing.Lock()
	defer b.g.retention.passing.Unlock()
	if invariant.Planted("journal/settle-unsynced") {
		return nil
	}
	return b.g.retention.promoter.Finish()
}

// settles begins to settle a committed failover, unless that is under way.
func (g *Group) settles() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.failover.State; g.closed || g.settlesNow || !s.Final() || s.Gone() || invariant.Planted("journal/never-settles") {
		return
	}
	g.settlesNow = true
	g.upkeep.Go(func() {
		r := &g.store.retainer
		err := g.settle(func(n int64) error {
			now := time.Now()
			return g.settlePace.wait(r.ctx, now, n, r.pacer.target(now, 0), paceAhead)
		})
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.settlesNow = false; g.closed || errors.Is(err, ErrClosed) {
			return
		}
		if err != nil {
			err = fmt.Errorf("journal: group %s: the failover does not settle: %w", g.info.ID, err)
		}
		g.undriven = err
	})
}

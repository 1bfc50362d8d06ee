package journal

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/view"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// ErrInUse says that a failover, a view or a machine stands in the way; the text before it says which.
var ErrInUse = errors.New("it is in use")

// FailoverRequest says what a failover is to be.
type FailoverRequest struct {
	ID         string // drawn by the caller, 1 to 128 bytes: the same again continues it
	Checkpoint uint64
	Note       string // why the source was not stopped, at most 256 bytes
	Timer      time.Duration
	Then       failover.End
}

// FailoverInfo tells of the last failover of a group.
type FailoverInfo struct {
	failover.Failover
	Remains time.Duration  // of its timer, now
	View    ViewInfo       // what machines run on; Number 0: it is not there
	Err     error          // why it does not get on, or what ails its view; nil: nothing
	Over    failover.Ended // how it was ended; zero: it was not, or nobody knows
	// NeverPlain says why its disks never become plain ones, for people; empty: they do.
	NeverPlain string
}

// OnDisksAlone says that the disks hold all that the machines see, durably but for what these have not flushed. How much stands in scratch does
// not say it: zeros there take no space, and a view that is not there has none.
func (i FailoverInfo) OnDisksAlone() bool {
	v := i.View.View
	return i.State == failover.OnDisks || i.State.Passes() && v != nil && v.Passed()
}

// BeginFailover fences the source and opens the group at a checkpoint, for machines to run on. Both
// are durable when it returns: before that none may be started. While the failover lasts nothing of
// the history goes. What failed half way stands as it is: the same call again goes on with it, and
// Rollback ends it. ErrNotFound; ErrCorrupt: the checkpoint is bad; those of failover.Step.
func (g *Group) BeginFailover(r FailoverRequest) (FailoverInfo, error) {
	if r.ID == "" || len(r.ID) > failover.MaxID || len(r.Note) > failover.MaxNote || r.Timer < 0 || r.Then != failover.Rollback && r.Then != failover.Commit {
		return FailoverInfo{}, fmt.Errorf("journal: group %s: a failover %q with %d bytes of note and a timer of %s is not valid", g.info.ID, r.ID, len(r.Note), r.Timer)
	}
	g.failing.Lock()
	defer g.failing.Unlock()
	if err := cmp.Or(g.opened(), g.Stays()); err != nil {
		return FailoverInfo{}, err
	}
	if err := g.beginFailing(r); err != nil {
		return FailoverInfo{}, fmt.Errorf("journal: group %s: failover: %w", g.info.ID, err)
	}
	err := g.driveLocked()
	return g.Failover(), err
}

func (g *Group) beginFailing(r FailoverRequest) error {
	have := g.failoverNow()
	next, err := have.Step(failover.Begin{ID: r.ID, Checkpoint: r.Checkpoint, Above: g.manifest.now().epoch, View: g.store.viewing.next(),
		Note: r.Note, Timer: r.Timer, Then: r.Then, Now: g.store.cfg.Clock(), Ended: g.manifest.now().ended})
	if err != nil || next == have {
		return err
	}
	if err := g.mayRecover(r.Checkpoint); err != nil {
		return err // before anybody is fenced
	}
	g.admitting.Lock()
	defer g.admitting.Unlock()
	undo, err := g.fence(next.Epoch)
	if err != nil {
		return err
	}
	g.marking.Lock() // nothing goes meanwhile
	defer g.marking.Unlock()
	if err = g.mayRecover(r.Checkpoint); err == nil {
		var over []entry
		if have.State != failover.None {
			over = []entry{g.overNow(have.ID, failover.Succeeded, 0)}
		}
		err = g.stateFailover(next, over...)
	}
	if err != nil {
		undo()
	}
	return err
}

// mayRecover says whether machines may be started from the checkpoint.
func (g *Group) mayRecover(number uint64) error {
	cp, err := g.Checkpoint(number)
	if err != nil {
		return err
	}
	g.mu.Lock()
	gone := g.lostLocked(number)
	g.mu.Unlock()
	if gone {
		return fmt.Errorf("checkpoint %d: %w", number, ErrNotFound)
	}
	if cp.State == index.Bad || g.beyond(number) {
		return fmt.Errorf("checkpoint %d is bad: %s: %w", number, cp.Reason, ErrCorrupt)
	}
	return nil
}

// fence refuses what is below the epoch from now on, and returns once all that was taken before is
// durable or refused; undo takes that back.
func (g *Group) fence(epoch record.Epoch) (undo func(), err error) {
	g.mu.Lock()
	was := g.admission.epoch
	g.admission.epoch = max(was, epoch)
	g.mu.Unlock()
	undo = func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.admission.epoch = was
	}
	if err := g.onCommit(func() error { return nil }); err != nil {
		undo()
		return nil, err
	}
	return undo, nil
}

// overNow states that a failover is over.
func (g *Group) overNow(id string, by failover.Ender, machines int) entry {
	return entry{kind: entryEnded, ended: failover.Ended{ID: id, By: by, Wall: g.store.cfg.Clock().Wall, Machines: uint32(machines)}}
}

// stateFailover makes it durable how far the failover has come, and what more there is to say. What is durable though its witness
// is not counts: after a crash it would be read.
func (g *Group) stateFailover(next failover.Failover, more ...entry) error {
	if !invariant.Planted("journal/machines-first") {
		es := failoverEntries(next)
		if e, ok := plainEntry(next.State); ok && g.manifest.now().failover.State.Merged() && !invariant.Planted("journal/settled-again") {
			es = []entry{e} // what is stated again, and torn off after it, would be settled once more
		}
		es = append(es, more...)
		err := g.onReserve(func() error { return g.manifest.put(true, es...) })
		if err != nil && g.manifest.now().failover != next {
			return err
		}
	}
	g.mu.Lock()
	was := g.failover
	g.failover = next
	g.mu.Unlock()
	if was.State != next.State {
		g.log.Warn("live failover", "id", next.ID, "state", next.State.String(), "checkpoint", next.Checkpoint, "epoch", next.Epoch, "note", next.Note)
	}
	return nil
}

// driveLocked does what the state asks for until there is nothing left to do. Each step may be done
// again after a crash in it. g.failing is held.
func (g *Group) driveLocked() (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("journal: group %s: failover: %w", g.info.ID, err)
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		if err != nil || !g.failover.State.Final() { // there settle says it
			g.undriven = err
		}
	}()
	for {
		var e failover.Event
		switch f := g.failoverNow(); f.State {
		case failover.Raised:
			if err := g.keepFailoverView(f); err != nil {
				return err
			}
			e = failover.Kept{}
		case failover.RollingBack:
			if err := g.dropFailoverView(f); err != nil {
				return err
			}
			e = failover.Dropped{}
		default:
			return nil
		}
		if err := g.failoverStep(e, failover.ByWord, 0); err != nil {
			return err
		}
	}
}

// failoverStep takes an event in, durably. Where that ends it, by is what does, and machines how many
// connections its disks have.
func (g *Group) failoverStep(e failover.Event, by failover.Ender, machines int) error {
	have := g.failoverNow()
	next, err := have.Step(e)
	if err != nil || next == have {
		return err
	}
	var more []entry
	if next.State == failover.RollingBack && have.State != next.State {
		more = []entry{g.overNow(have.ID, by, machines)}
	}
	if err := g.stateFailover(next, more...); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.admission.epoch = max(g.admission.epoch, next.Epoch)
	return nil
}

func (g *Group) failoverNow() failover.Failover {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.failover
}

// keepFailoverView opens the view, unless an earlier try did. It has no limit: it is a production
// disk.
func (g *Group) keepFailoverView(f failover.Failover) error {
	g.mu.Lock()
	k := g.views.kept[f.View]
	g.mu.Unlock()
	if k != nil { // nobody was told of it, so nothing was written to it
		if err := g.dropFailoverView(f); err != nil {
			return err
		}
	}
	o := ViewOptions{Options: view.Options{Scratch: true}, Live: true, Name: "failover", Opened: time.Unix(0, f.Began)}
	_, err := g.keepView(f.View, f.Checkpoint, o)
	return err
}

// dropFailoverView ends the view, if it is there, with all that was written to it.
func (g *Group) dropFailoverView(f failover.Failover) error {
	g.viewing.Lock()
	defer g.viewing.Unlock()
	g.mu.Lock()
	k := g.views.kept[f.View]
	g.mu.Unlock()
	if k == nil || invariant.Planted("journal/rollback-keeps-scratch") {
		return nil
	}
	if err := g.endView(k, viewClosed, ""); err != nil {
		return err
	}
	g.logged(g.forgetViews())
	return nil
}

// CommitFailover makes the failover with the ID final, durably; the empty ID is the present one.
func (g *Group) CommitFailover(id string) (FailoverInfo, error) {
	return g.endFailover(failover.Accept{ID: id})
}

// RollBackFailover ends the failover with the ID: what was written is discarded, and a source may go
// on. The empty ID is the present one. Of one that has not begun it is remembered, durably, that it shall not. An error of the disk leaves it under way: it is tried again by
// the same call, by PassFailover and when the store is opened.
func (g *Group) RollBackFailover(id string) (FailoverInfo, error) {
	return g.endFailover(failover.Abandon{ID: id})
}

func (g *Group) endFailover(e failover.Event) (FailoverInfo, error) {
	g.failing.Lock()
	defer g.failing.Unlock()
	if err := g.opened(); err != nil {
		return FailoverInfo{}, err
	}
	if err := g.failoverStep(e, failover.ByWord, 0); err != nil {
		return FailoverInfo{}, fmt.Errorf("journal: group %s: failover: %w", g.info.ID, errors.Join(err, g.neverBegins(e)))
	}
	err := g.driveLocked()
	return g.Failover(), err
}

// neverBegins remembers of a failover that is not there, and that somebody wanted to end, that it shall
// not begin.
func (g *Group) neverBegins(e failover.Event) error {
	a, ok := e.(failover.Abandon)
	if f := g.failoverNow(); !ok || a.ID == "" || len(a.ID) > failover.MaxID || f.State != failover.None && f.ID == a.ID || invariant.Planted("journal/begins-late") {
		return nil
	}
	if _, known := failover.Find(g.manifest.now().ended, a.ID); known {
		return nil
	}
	return g.onReserve(func() error { return g.manifest.put(true, g.overNow(a.ID, failover.BeforeIt, 0)) })
}

// PassFailover lets time pass: a failover whose timer has run down ends, and what could not be done
// is tried again. It is to be called every few seconds. machines is how many connections its disks have:
// if they are taken away now that is remembered.
func (g *Group) PassFailover(machines int) error {
	if s := g.failoverNow().State; !s.Fences() || s.Gone() { // the usual case costs nothing
		return nil
	}
	g.failing.Lock()
	defer g.failing.Unlock()
	if err := g.opened(); err != nil {
		return err
	}
	if err := g.timePasses(machines); err != nil {
		return fmt.Errorf("journal: group %s: failover: %w", g.info.ID, err)
	}
	err := g.driveLocked()
	if err == nil {
		g.settles()
	}
	return err
}

// timePasses takes in what the clocks say. g.failing is held.
func (g *Group) timePasses(machines int) error {
	_, err := g.failoverView(g.failoverNow())
	return g.failoverStep(failover.Passed{Now: g.store.cfg.Clock(), Amiss: err != nil}, failover.ByTimer, machines)
}

// Failover tells of the group's last failover.
func (g *Group) Failover() FailoverInfo {
	f := g.failoverNow()
	i := FailoverInfo{Failover: f, Remains: f.LeftAt(g.store.cfg.Clock()), NeverPlain: g.neverPlain()}
	if f.State == failover.RollingBack || f.State == failover.RolledBack {
		i.Over, _ = failover.Find(g.manifest.now().ended, f.ID)
	}
	g.mu.Lock()
	i.Err = g.undriven
	g.mu.Unlock()
	var err error
	if i.View, err = g.failoverView(f); err != nil && f.State == failover.Recovering && f.Timer > 0 && i.Remains == 0 {
		err = fmt.Errorf("its timer has run down, and it is not committed, as %w", err)
	}
	if i.Err == nil {
		i.Err = err
	}
	return i
}

// failoverView tells of the view that a failover's machines run on, if it must be there. The error: it is not, or it is not good.
func (g *Group) failoverView(f failover.Failover) (i ViewInfo, err error) {
	if !f.State.Shows() {
		return i, nil
	}
	g.mu.Lock()
	k := g.views.kept[f.View]
	g.mu.Unlock()
	if k == nil {
		return i, fmt.Errorf("the file of its view v%d is gone, and what was written to it is not shown: %w", f.View, ErrCorrupt)
	}
	if i = g.tellView(k); i.State != ViewGood {
		err = fmt.Errorf("its view v%d is %s: %s", f.View, i.State, i.Reason)
	}
	return i, err
}

// ViewInUse says whether a live failover stands on the view: it is not to be closed by itself.
func (g *Group) ViewInUse(number uint64) bool {
	f := g.failoverNow()
	return f.View == number && f.State.Fences()
}

// Grant is the epoch that a source may go on with that comes with a lower one. False: none may.
func (g *Group) Grant() (record.Epoch, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.admission.epoch, g.failover.State == failover.RolledBack
}

// loadFailover goes on with what the manifest says is under way. What does not work now is tried
// again: the group opens all the same.
func (g *Group) loadFailover() {
	g.failing.Lock()
	defer g.failing.Unlock()
	f := g.manifest.now().failover
	g.mu.Lock()
	g.failover = f
	g.mu.Unlock()
	g.store.viewing.saw(f.View)
	err := g.timePasses(0) // another boot may count from here
	if err == nil {
		err = g.driveLocked()
	}
	if err != nil {
		g.log.Error("failover does not get on", "id", f.ID, "state", f.State.String(), "error", err)
	}
}

// heldByFailover says that no checkpoint may go now.
func (g *Group) heldByFailover() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.heldByFailoverLocked()
}

func (g *Group) heldByFailoverLocked() error {
	if g.failover.State.Holds() && !invariant.Planted("journal/promotes-in-failover") {
		return fmt.Errorf("the group is in a live failover at checkpoint %d: %w", g.failover.Checkpoint, ErrInUse)
	}
	return nil
}

// WhyFenced says for people why a source of a lower epoch is not let in.
func (g *Group) WhyFenced() string {
	switch f := g.failoverNow(); f.State {
	case failover.Committed, failover.Settled, failover.Passing, failover.Moving:
		return fmt.Sprintf("a live failover to checkpoint %d was committed at the target: its machines run there", f.Checkpoint)
	case failover.OnDisks:
		return fmt.Sprintf("a live failover to checkpoint %d was committed at the target: its machines run there, on plain disks", f.Checkpoint)
	case failover.Released:
		return fmt.Sprintf("a live failover to checkpoint %d was committed at the target, and its disks were given away: its machines run there, or are protected from there", f.Checkpoint)
	case failover.None, failover.RolledBack:
		return "the target has come to a higher epoch"
	default:
		return fmt.Sprintf("a live failover to checkpoint %d is under way at the target", f.Checkpoint)
	}
}

// fencedLocked says why an older writer is refused.
func (g *Group) fencedLocked(err error) error {
	if f := g.failover; errors.Is(err, ErrFenced) && f.State != failover.None {
		return fmt.Errorf("a live failover at checkpoint %d of this group is %s: %w", f.Checkpoint, f.State, err)
	}
	return err
}

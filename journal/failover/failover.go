// Package failover decides how far a live failover of a group has come at its target. It is pure: the
// group makes each state durable before it acts on it, so that whoever comes after a crash at any
// moment goes on from there.
//
//	           Begin                Kept                           Promoted            Release
//	none ───────────────► raised ─────────► recovering ──────────► committed ─────────► settled ─────────► released
//	  ▲                     │                   │        Commit, or time
//	  │ Begin               │ Rollback, time    │ Rollback, or time
//	  │                     ▼                   ▼
//	rolled-back ◄──────── rolling-back ◄────────┘
//	            Dropped
//
//	             Verified           MoveOn          LetGo          Release
//	     settled ─────────► passing ───────► moving ─────► on-disks ──────► released
//
// Passing, moving and on-disks are how a settled failover ends without being handed over: machines move onto plain disks.
//
// What a caller may rely on:
//   - The epoch rises with Begin, and again when a rollback is through. In between no source appends.
//   - Raised, Recovering and RollingBack hold the history: no checkpoint goes. From Committed on the
//     machines' disks are the group's truth, all other checkpoints may go, and no source is ever let
//     in again.
//   - From Passing on the replicas are plain disks: no sum counts any more, and what the view is written goes to them.
//   - While it is Moving a machine may write to the disks past the view, and another to the view: they are not given away, as the view could not end.
//   - From OnDisks, or Released, on the disks are not the journal's any more: whoever they were given to writes to
//     them, and nothing else of the group is left.
//   - Begin with the same id and checkpoint is told what became of it and changes nothing. With another
//     it is refused, unless the last failover was rolled back: of two who begin at once one wins.
//   - An id whose failover is over, or was given up before it began, begins none: a word that comes
//     late, or twice, fences nobody.
//   - Time alone never makes final what is not there: a failover whose view is amiss waits for a word.
//   - Time is what passed on a clock that nobody sets, within one boot. What cannot be told, as over a
//     reboot, did not pass: nothing ends early.
package failover

import (
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/retain"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// State says how far a failover has come.
type State uint8

// The states. Their numbers are on disk.
const (
	None        State = iota
	Raised            // the source is fenced; the view is not kept yet
	Recovering        // the view is kept: machines may run
	RollingBack       // the view goes
	RolledBack        // it is over: a source is granted Epoch
	Committed         // it is final: what the view shows is the group
	Settled           // the replicas hold the checkpoint, and what was written goes there too
	Released          // the disks were given away, with all that was written
	Passing           // the replicas are plain disks, and the view writes to them
	OnDisks           // the view is gone: machines write to the disks themselves
	Moving            // as Passing, and machines have begun to move onto the disks themselves
)

// Last is the last of the states.
const Last = Moving

var stateNames = [...]string{"none", "raised", "recovering", "rolling-back", "rolled-back", "committed", "settled", "released", "passing", "on-disks", "moving"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Holds says that no checkpoint goes by its age or for want of space: a rollback would offer it
// again, or the failover itself says what goes.
func (s State) Holds() bool {
	return s.Fences() && (s != RollingBack || !invariant.Planted("journal/failover/rolling-lets-go"))
}

// Final says that there is no way back.
func (s State) Final() bool { return s == Committed || s.Merged() }

// Merged says that the replicas hold the checkpoint, and have gone on: nothing of the log goes over them again.
func (s State) Merged() bool { return s == Settled || s.Plain() }

// Plain says that the disks are plain: no sum tells what they should hold.
func (s State) Plain() bool { return s.Passes() || s.Gone() }

// Passes says that the view writes to the disks.
func (s State) Passes() bool { return s == Passing || s == Moving }

// Gone says that the disks are not the journal's any more.
func (s State) Gone() bool { return s == OnDisks || s == Released }

// Fences says that no source may append.
func (s State) Fences() bool { return s != None && s != RolledBack }

// Shows says that the view must be there.
func (s State) Shows() bool { return s == Recovering || s.Final() && !s.Gone() }

// End is how a failover ends when its time is over.
type End uint8

// The ends. Their numbers are on disk.
const (
	Rollback End = iota + 1
	Commit
)

func (e End) String() string {
	if e == Commit {
		return "commit"
	}
	return "rollback"
}

// Failover is the last failover of a group; its zero value is none.
type Failover struct {
	State      State
	ID         string // drawn by who began it, at most MaxID bytes
	Checkpoint uint64
	Epoch      record.Epoch // that it raised: no lower one appends
	View       uint64       // the number of the view that machines run on
	Note       string       // why the source was not stopped, at most MaxNote bytes; empty: nothing was said
	Began      int64        // wall clock, ns: a label
	Timer      time.Duration
	Then       End

	// Left of Timer at the instant At. Zero Timer: it does not end by itself.
	Left time.Duration
	At   retain.Instant
}

// Limits of what is kept.
const (
	MaxID   = 128
	MaxNote = 256
)

// noteEvery is how much time may be forgotten over a restart in another boot.
const noteEvery = time.Minute

// Errors of Step. What was refused changed nothing.
var (
	ErrOther        = errors.New("another failover of the group is under way")
	ErrNone         = errors.New("no failover of the group is under way")
	ErrCommitted    = errors.New("the failover was committed, which is final")
	ErrRolledBack   = errors.New("the failover was rolled back")
	ErrNotReady     = errors.New("the failover's disks are not there yet")
	ErrNotCommitted = errors.New("the failover is not committed")
	ErrUnsettled    = errors.New("the replicas do not hold yet what the machines see")
	ErrReleased     = errors.New("the failover's disks were given away")
	ErrMoving       = errors.New("the failover's machines have begun to move onto its disks, and its view cannot end before all have")
	ErrEnded        = errors.New("the failover of that id is over, or was given up before it began")
)

// Event is something that is asked for, or happened.
type Event interface{ event() }

// The events.
type (
	// Begin asks for a failover. View is a number that was never drawn before, Above the epoch in force.
	Begin struct {
		ID         string
		Checkpoint uint64
		Above      record.Epoch
		View       uint64
		Note       string
		Timer      time.Duration
		Then       End
		Now        retain.Instant
		Ended      []Ended // those that were before
	}
	// Kept says that the view is written down.
	Kept struct{}
	// Abandon asks for the rollback of the failover with the ID; empty: whichever there is.
	Abandon struct{ ID string }
	// Dropped says that the view is gone with all that was written to it.
	Dropped struct{}
	// Accept asks for the commit of the failover with the ID; empty: whichever there is.
	Accept struct{ ID string }
	// Promoted says that the replicas hold the checkpoint.
	Promoted struct{}
	// Release asks for the disks of the failover with the ID; empty: whichever there is. All that was written
	// stands in them.
	Release struct{ ID string }
	// Verified says that the replicas hold the checkpoint whole, by their sums, and all else that was written is in scratch.
	Verified struct{}
	// MoveOn says that machines of the failover with the ID are about to move onto the disks themselves; empty: whichever there is.
	MoveOn struct{ ID string }
	// LetGo says that the machines of the failover with the ID have moved onto the disks themselves; empty: whichever
	// there is. Nothing is left in scratch.
	LetGo struct{ ID string }
	// Passed says what the clocks say. Amiss: the view is not there, or not good; then time does not commit it.
	Passed struct {
		Now   retain.Instant
		Amiss bool
	}
)

func (Begin) event()    {}
func (Kept) event()     {}
func (Abandon) event()  {}
func (Dropped) event()  {}
func (Accept) event()   {}
func (Promoted) event() {}
func (Release) event()  {}
func (Verified) event() {}
func (MoveOn) event()   {}
func (LetGo) event()    {}
func (Passed) event()   {}

// Step returns what the failover is after the event: to be made durable where it differs, and then
// acted upon. With an error it is what it was.
func (f Failover) Step(e Event) (Failover, error) {
	switch e := e.(type) {
	case Begin:
		return f.begin(e)
	case Kept:
		if f.State == Raised {
			f.State = Recovering
		}
		return f, nil
	case Abandon:
		return f.abandon(e)
	case Dropped:
		if f.State == RollingBack {
			f.State, f.Epoch = RolledBack, f.Epoch+1
		}
		return f, nil
	case Accept:
		return f.accept(e)
	case Promoted:
		if f.State == Committed {
			f.State = Settled
		}
		return f, nil
	case Release:
		return f.release(e)
	case Verified:
		if f.State == Settled {
			f.State = Passing
		}
		return f, nil
	case MoveOn:
		return f.moveOn(e)
	case LetGo:
		return f.letGo(e)
	case Passed:
		return f.passed(e), nil
	}
	panic(fmt.Sprintf("BUG: unknown event %T", e))
}

func (f Failover) begin(e Begin) (Failover, error) {
	if f.State != None && e.ID == f.ID && !invariant.Planted("journal/failover/begins-twice") {
		if e.Checkpoint != f.Checkpoint {
			return f, fmt.Errorf("%s began at checkpoint %d, not %d: %w", f.ID, f.Checkpoint, e.Checkpoint, ErrOther)
		}
		return f, nil
	}
	if _, over := Find(e.Ended, e.ID); over && !invariant.Planted("journal/failover/begins-late") {
		return f, fmt.Errorf("%s: %w", e.ID, ErrEnded)
	}
	if f.State.Fences() && !invariant.Planted("journal/failover/two-win") {
		return f, fmt.Errorf("%s at checkpoint %d is %s: %w", f.ID, f.Checkpoint, f.State, ErrOther)
	}
	return Failover{State: Raised, ID: e.ID, Checkpoint: e.Checkpoint, Epoch: max(e.Above, f.Epoch) + 1, View: e.View, Note: e.Note,
		Began: e.Now.Wall, Timer: e.Timer, Then: e.Then, Left: e.Timer, At: e.Now}, nil
}

// of says whether the failover is the one that is meant.
func (f Failover) of(id string) error {
	switch {
	case f.State == None:
		return ErrNone
	case id != "" && id != f.ID:
		return fmt.Errorf("it is %s, at checkpoint %d: %w", f.ID, f.Checkpoint, ErrOther)
	}
	return nil
}

func (f Failover) abandon(e Abandon) (Failover, error) {
	if err := f.of(e.ID); err != nil {
		return f, err
	}
	switch {
	case f.State == Raised, f.State == Recovering:
		f.State = RollingBack
	case f.State.Final():
		return f, ErrCommitted
	}
	return f, nil
}

func (f Failover) accept(e Accept) (Failover, error) {
	if err := f.of(e.ID); err != nil {
		return f, err
	}
	switch f.State {
	case Raised:
		return f, ErrNotReady
	case Recovering:
		f.State = Committed
	case RollingBack, RolledBack:
		return f, ErrRolledBack
	}
	return f, nil
}

func (f Failover) release(e Release) (Failover, error) {
	if err := f.of(e.ID); err != nil {
		return f, err
	}
	switch f.State {
	case Settled, Passing, OnDisks:
		f.State = Released
	case Released:
	case Moving:
		if !invariant.Planted("journal/failover/releases-halfway") {
			return f, ErrMoving
		}
		f.State = Released
	case Committed:
		if !invariant.Planted("journal/failover/releases-early") {
			return f, ErrUnsettled
		}
		f.State = Released
	case RollingBack, RolledBack:
		return f, ErrRolledBack
	default:
		return f, ErrNotCommitted
	}
	return f, nil
}

func (f Failover) moveOn(e MoveOn) (Failover, error) {
	if err := f.of(e.ID); err != nil {
		return f, err
	}
	switch f.State {
	case Passing:
		f.State = Moving
		return f, nil
	case Moving, OnDisks:
		return f, nil
	}
	return f, f.notPassing()
}

func (f Failover) letGo(e LetGo) (Failover, error) {
	if err := f.of(e.ID); err != nil {
		return f, err
	}
	switch f.State {
	case Passing, Moving:
		f.State = OnDisks
		return f, nil
	case OnDisks:
		return f, nil
	case Settled:
		if invariant.Planted("journal/failover/lets-go-early") {
			f.State = OnDisks
			return f, nil
		}
	}
	return f, f.notPassing()
}

// notPassing is why no machine moves onto the disks of a failover whose view does not pass to them.
func (f Failover) notPassing() error {
	switch f.State {
	case Committed, Settled:
		return ErrUnsettled
	case Released:
		return ErrReleased
	case RollingBack, RolledBack:
		return ErrRolledBack
	}
	return ErrNotCommitted
}

// passed ends the failover when its time is over. What was used up is noted now and then.
func (f Failover) passed(e Passed) Failover {
	if f.Timer == 0 || f.State != Raised && f.State != Recovering {
		return f
	}
	left := f.LeftAt(e.Now)
	switch {
	case left <= 0 && f.Then == Commit && f.State == Recovering && !e.Amiss:
		f.State = Committed
	case left <= 0 && f.Then == Rollback:
		f.State = RollingBack
	case f.Left-left < noteEvery && e.Now.Boot == f.At.Boot:
		return f
	}
	f.Left, f.At = left, e.Now
	return f
}

// LeftAt is how much of the timer is left; never below zero.
func (f Failover) LeftAt(now retain.Instant) time.Duration {
	return max(0, f.Left-certain(f.At, now))
}

// certain is the time that has passed by the clock that only runs forward, within one boot.
func certain(from, to retain.Instant) time.Duration {
	if invariant.Planted("journal/failover/wall") {
		return max(0, time.Duration(to.Wall-from.Wall))
	}
	if from.Boot != to.Boot || to.Boot == [16]byte{} {
		return 0
	}
	return max(0, to.Mono-from.Mono)
}

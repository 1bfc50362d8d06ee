package datapath

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/journal/failover"
)

// recoveryHandler implements api.RecoveryHandler.
type recoveryHandler struct{ *handler }

// failoverTimer is how long a failover lasts that is neither committed nor rolled back, unless
// another time was given.
const failoverTimer = time.Hour

// passEvery is how often the timers of failovers are looked at, and what did not work is tried again.
const passEvery = time.Second

// passFailovers lets time pass for the failovers of all groups until ctx ends.
func (t *Target) passFailovers(ctx context.Context) {
	tick := time.NewTicker(passEvery)
	defer tick.Stop()
	failed := make(map[string]string) // by group, as it was logged
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, g := range t.groups() {
			err, name := g.PassFailover(t.machinesOn(g)), g.Info().Name
			if err == nil {
				delete(failed, name)
			} else if text := err.Error(); failed[name] != text && !errors.Is(err, journal.ErrClosed) {
				failed[name] = text
				t.cfg.Log.Error("live failover does not get on, and is tried again", "group", name, "error", err)
			}
			if i := g.Failover(); i.View.Number != 0 {
				if err := t.views.serveOne(g, i.View.Number); err != nil {
					t.cfg.Log.Error("the view of a live failover is not served", "group", name, "error", err)
				}
			}
		}
	}
}

// machinesOn is how many connections the disks of a group's live failover have.
func (t *Target) machinesOn(g *journal.Group) int { return t.failoverView(g).clients }

// failoverView is the view of a group's live failover as it is served; the zero one: it is not.
func (t *Target) failoverView(g *journal.Group) viewStatus {
	if number := g.Failover().View.Number; number != 0 {
		for _, v := range t.views.list(g.Info().Name) {
			if v.Number == number {
				return v
			}
		}
	}
	return viewStatus{}
}

// byTimer says what a timer that ran down has done; empty: it did nothing.
func byTimer(i journal.FailoverInfo) string {
	if i.Over.By != failover.ByTimer {
		return ""
	}
	text := "its timer rolled it back at " + time.Unix(0, i.Over.Wall).UTC().Format(time.RFC3339)
	if i.Over.Machines == 0 {
		return text + "; nobody was connected to its disks"
	}
	return text + fmt.Sprintf(", and took its disks, which had %d connections, from machines that ran: holdfast failover resume stops them where they were started", i.Over.Machines)
}

// failoverState says how a group stands in a live failover; ok: it is in one, or was committed.
func failoverState(i journal.FailoverInfo) (state, reason string, ok bool) {
	switch i.State {
	case failover.Raised:
		reason = fmt.Sprintf("a live failover at checkpoint %d has begun: its source is fenced, and its disks are not there yet", i.Checkpoint)
	case failover.Recovering:
		reason = fmt.Sprintf("a live failover: machines may run on checkpoint %d as view v%d", i.Checkpoint, i.View.Number)
	case failover.RollingBack:
		reason = fmt.Sprintf("the live failover at checkpoint %d is being rolled back", i.Checkpoint)
		if by := byTimer(i); by != "" {
			reason += ": " + by
		}
	case failover.Committed:
		reason = fmt.Sprintf("the live failover at checkpoint %d was committed: machines run on view v%d, and no source may send this group", i.Checkpoint, i.View.Number)
	case failover.Settled:
		reason = fmt.Sprintf("the live failover at checkpoint %d was committed: machines run on view v%d, whose replicas hold all but %d KiB of what they wrote, and no source may send this group",
			i.Checkpoint, i.View.Number, i.View.ScratchBytes>>10)
	case failover.Passing:
		reason = fmt.Sprintf("the live failover at checkpoint %d was committed: machines run on view v%d, which passes to plain disks all but %d KiB of what they wrote; holdfast failover plain moves them there",
			i.Checkpoint, i.View.Number, i.View.ScratchBytes>>10)
	case failover.Moving:
		reason = fmt.Sprintf("the live failover at checkpoint %d was committed: machines move from view v%d onto plain disks", i.Checkpoint, i.View.Number)
	case failover.OnDisks:
		reason = fmt.Sprintf("the live failover at checkpoint %d was committed: machines run on plain disks, and the group is NOT protected now: nothing that they write is sent or kept; holdfast reverse protects it the other way round", i.Checkpoint)
	default:
		return "", "", false
	}
	if i.Timer != 0 && (i.State == failover.Raised || i.State == failover.Recovering) {
		reason += fmt.Sprintf("; %s by itself in %s", i.Then, i.Remains.Round(time.Second))
	}
	if i.NeverPlain != "" && i.State == failover.Settled {
		reason += "; they stay on the view: " + i.NeverPlain
	}
	if i.Note != "" {
		reason += fmt.Sprintf("; the source was not stopped (%s): two copies may live", i.Note)
	}
	if i.Err != nil {
		reason += "; " + i.Err.Error()
	}
	return api.StateRecovering, reason, true
}

// Begin begins a live failover, or continues it.
func (h recoveryHandler) Begin(_ context.Context, r *holdfastv1.RecoveryServiceBeginRequest) (*holdfastv1.RecoveryServiceBeginResponse, error) {
	g, err := h.targetGroup(r.Group)
	if err != nil {
		return nil, err
	}
	q := journal.FailoverRequest{ID: r.Id, Note: r.Note, Timer: failoverTimer, Then: failover.Rollback}
	switch {
	case r.Id == "" || len(r.Id) > api.MaxFailoverID:
		return nil, api.Errorf(api.InvalidArgument, "draw one", "a failover needs an id, of at most %d bytes", api.MaxFailoverID)
	case len(r.Note) > api.MaxFailoverNote:
		return nil, api.Errorf(api.InvalidArgument, "write less", "the note of a failover has at most %d bytes", api.MaxFailoverNote)
	case r.Then == api.ThenCommit:
		q.Then = failover.Commit
	case r.Then != "" && r.Then != api.ThenRollback:
		return nil, api.Errorf(api.InvalidArgument, "say rollback or commit", "a failover does not end by %q", r.Then)
	}
	if r.Timer != nil {
		if q.Timer = r.Timer.AsDuration(); q.Timer < 0 {
			return nil, api.Errorf(api.InvalidArgument, "give how long it is to last, or 0", "a timer of %s", q.Timer)
		}
	}
	if have := g.Failover(); have.ID == r.Id && r.Checkpoint == api.Latest && have.State != failover.None {
		q.Checkpoint = have.Checkpoint // what was the latest then
	} else if q.Checkpoint, err = numberOf(g, r.Checkpoint); err != nil {
		return nil, err
	}
	if h.target.views.count() >= maxViews {
		return nil, api.Errorf(api.Exhausted, "close one", "%v", errTooMany)
	}
	i, err := g.BeginFailover(q)
	if err != nil {
		return nil, failoverFailure(i, err)
	}
	m, err := h.failover(g, i)
	return &holdfastv1.RecoveryServiceBeginResponse{Failover: m}, err
}

// Get tells of the last one.
func (h recoveryHandler) Get(_ context.Context, r *holdfastv1.RecoveryServiceGetRequest) (*holdfastv1.RecoveryServiceGetResponse, error) {
	g, err := h.targetGroup(r.Group)
	if err != nil {
		return nil, err
	}
	m, err := h.failover(g, g.Failover())
	return &holdfastv1.RecoveryServiceGetResponse{Failover: m}, err
}

// Commit makes it final.
func (h recoveryHandler) Commit(_ context.Context, r *holdfastv1.RecoveryServiceCommitRequest) (*holdfastv1.RecoveryServiceCommitResponse, error) {
	m, err := h.end(r.Group, r.Id, (*journal.Group).CommitFailover)
	return &holdfastv1.RecoveryServiceCommitResponse{Failover: m}, err
}

// Rollback ends it.
func (h recoveryHandler) Rollback(_ context.Context, r *holdfastv1.RecoveryServiceRollbackRequest) (*holdfastv1.RecoveryServiceRollbackResponse, error) {
	m, err := h.end(r.Group, r.Id, (*journal.Group).RollBackFailover)
	return &holdfastv1.RecoveryServiceRollbackResponse{Failover: m}, err
}

func (h recoveryHandler) end(group, id string, how func(*journal.Group, string) (journal.FailoverInfo, error)) (*holdfastv1.Failover, error) {
	g, err := h.targetGroup(group)
	if err != nil {
		return nil, err
	}
	i, err := how(g, id)
	if err != nil {
		return nil, failoverFailure(i, err)
	}
	return h.failover(g, i)
}

// MoveOn says that machines are about to move onto the disks.
func (h recoveryHandler) MoveOn(_ context.Context, r *holdfastv1.RecoveryServiceMoveOnRequest) (*holdfastv1.RecoveryServiceMoveOnResponse, error) {
	m, err := h.end(r.Group, r.Id, func(g *journal.Group, id string) (journal.FailoverInfo, error) {
		if i := g.Failover(); i.NeverPlain != "" {
			return i, api.Errorf(api.Precondition, "leave them on the view", "%s", i.NeverPlain)
		}
		return g.MoveOn(id)
	})
	return &holdfastv1.RecoveryServiceMoveOnResponse{Failover: m}, err
}

// LetGo ends the view of a failover whose machines have moved onto its disks.
func (h recoveryHandler) LetGo(_ context.Context, r *holdfastv1.RecoveryServiceLetGoRequest) (*holdfastv1.RecoveryServiceLetGoResponse, error) {
	m, err := h.end(r.Group, r.Id, h.letGo)
	return &holdfastv1.RecoveryServiceLetGoResponse{Failover: m}, err
}

// letGo ends the serving over NBD first: who is connected may write. Machines over vhost-user go on with the disks.
func (h recoveryHandler) letGo(g *journal.Group, id string) (journal.FailoverInfo, error) {
	i := g.Failover()
	next, err := i.Step(failover.LetGo{ID: id})
	if err != nil || next == i.Failover {
		return i, err
	}
	if err := h.target.views.serveOne(g, i.Failover.View); err != nil { // nobody comes back to what is not served
		return i, err
	}
	switch v := h.target.failoverView(g); {
	case v.Number != 0 && v.View != nil && v.socket == "":
		return i, fmt.Errorf("view v%d is not served yet: who uses it cannot be known: %w", v.Number, journal.ErrInUse)
	case v.clients > v.shared && !invariant.Planted("datapath/lets-go-of-the-connected"):
		return i, fmt.Errorf("view v%d has %d connections over NBD: %w", v.Number, v.clients-v.shared, journal.ErrInUse)
	case len(v.away) > 0 && !invariant.Planted("datapath/lets-go-of-the-silent"):
		return i, fmt.Errorf("view v%d: processes that used it over NBD before this vra began have not come back, which they do when they read or write, and are there still: %s: %w",
			v.Number, describeProcesses(v.away), journal.ErrInUse)
	case v.waits && !invariant.Planted("datapath/lets-go-after-restart"):
		return i, fmt.Errorf("view v%d is served for less than %s, and a machine that was connected before may be on its way back: %w", v.Number, returnWait, journal.ErrInUse)
	case v.shared > 0 && !i.OnDisksAlone():
		return i, fmt.Errorf("view v%d does not pass all to its disks yet: %w", v.Number, failover.ErrUnsettled)
	}
	err = h.target.views.moveOn(g, i.Failover.View, func() error {
		_, err := g.LetGo(id)
		return err
	})
	if err != nil {
		err = errors.Join(err, h.target.views.serveOne(g, i.Failover.View))
	}
	return g.Failover(), err
}

// failoverFailure says what to do about a failover that was refused, or does not get on.
func failoverFailure(i journal.FailoverInfo, err error) error {
	switch {
	case errors.Is(err, journal.ErrNotFound):
		return api.Errorf(api.NotFound, "see checkpoint list", "%v", err)
	case errors.Is(err, failover.ErrNone):
		return api.Errorf(api.Precondition, "begin one", "%v", err)
	case errors.Is(err, failover.ErrEnded):
		return api.Errorf(api.Precondition, "begin another one, under an id of its own", "%v", err)
	case errors.Is(err, failover.ErrOther):
		return api.Errorf(api.Precondition, "see how it stands, and commit it or roll it back", "%v", err)
	case errors.Is(err, failover.ErrCommitted):
		return api.Errorf(api.Precondition, "go back by protecting the machines that run here", "%v", err)
	case errors.Is(err, failover.ErrRolledBack):
		return api.Errorf(api.Precondition, "begin another one", "%v", err)
	case errors.Is(err, failover.ErrNotCommitted), errors.Is(err, failover.ErrReleased), errors.Is(err, failover.ErrMoving):
		return api.Errorf(api.Precondition, "see how it stands", "%v", err)
	case errors.Is(err, failover.ErrUnsettled), errors.Is(err, journal.ErrInUse):
		return api.Errorf(api.Unavailable, "see how it stands, and ask again", "%v", err)
	case errors.Is(err, ioengine.ErrLocked):
		return api.Errorf(api.Precondition, "stop whoever else has it, and ask again: the machines go on", "somebody has a disk open: %v", err)
	case errors.Is(err, failover.ErrNotReady):
		return api.Errorf(api.Unavailable, "begin it again with the same id, or roll it back", "%v", err)
	case errors.Is(err, journal.ErrCorrupt):
		return api.Errorf(api.DataLoss, "take another checkpoint", "%v", err)
	case i.State == failover.Raised:
		return api.Errorf(api.Unavailable, "mend that and begin it again with the same id, or roll it back: its source is fenced until then", "%v", err)
	case i.State == failover.RollingBack:
		return api.Errorf(api.Unavailable, "mend that: the rollback is tried again by itself", "%v", err)
	}
	return err
}

// failover tells of one. What machines may run on is served by then.
func (h recoveryHandler) failover(g *journal.Group, i journal.FailoverInfo) (*holdfastv1.Failover, error) {
	m := &holdfastv1.Failover{Group: g.Info().Name, State: i.State.String(), Id: i.ID, Epoch: uint32(i.Epoch), Note: i.Note}
	if i.State == failover.None {
		return m, nil
	}
	m.Checkpoint, m.Began, m.Then = strconv.FormatUint(i.Checkpoint, 10), api.Timestamp(time.Unix(0, i.Began)), i.Then.String()
	if i.Timer != 0 {
		m.Timer = api.Span(i.Timer)
		if i.State == failover.Raised || i.State == failover.Recovering {
			m.Left = api.Span(i.Remains)
		}
	}
	m.Lineage, m.OnDisksAlone, m.NeverPlain = fmt.Sprintf("%016x", g.Info().Lineage), i.OnDisksAlone(), i.NeverPlain
	for _, d := range disksOf(g, i) {
		m.Disks = append(m.Disks, &holdfastv1.Disk{Volume: d.Name, Id: uint32(d.ID), Bytes: uint64(d.Bytes), Path: d.Path})
	}
	err := i.Err
	if i.View.Number != 0 {
		served := h.target.views.serveOne(g, i.View.Number)
		err = cmp.Or(err, served)
		for _, v := range h.target.views.list(m.Group) {
			if v.Number == i.View.Number {
				m.View = v.message()
			}
		}
	}
	m.Reason = byTimer(i)
	if err != nil {
		m.Reason = err.Error()
	}
	return m, nil
}

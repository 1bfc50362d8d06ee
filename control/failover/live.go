package failover

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm"
	"github.com/holdfast-dr/holdfast/control/recovery"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/ioengine/wait"
)

// How soon the target is asked again for what it could not do just now, at first and at most.
const (
	againFirst = 10 * time.Millisecond
	againMost  = time.Second
)

// again asks the target until it does not say Unavailable any more, or ctx ends.
func again(ctx context.Context, ask func() error) error {
	for rest := againFirst; ; rest = min(2*rest, againMost) {
		err := ask()
		f := api.AsFailure(err)
		if f == nil {
			return nil
		}
		if f.Code != api.Unavailable {
			return Explain(err)
		}
		if serr := wait.For(ctx, rest); serr != nil {
			return errors.Join(serr, Explain(err))
		}
	}
}

// stopSource stops a protected machine, by its libvirt or its monitor. That nobody listens there, or not any more, says
// nothing of the guest: a socket may be forwarded.
func (c *carrier) stopSource(ctx context.Context, m *recovery.Machine) (found, error) {
	s := m.Source
	var was bool
	var err error
	if s.Domain != "" {
		was, err = kvm.EndDomain(ctx, s.Libvirt, s.Domain, c.job.Plan.SourceHow)
	} else {
		err = turnOff(ctx, s.QMP, c.job.Plan.SourceHow)
	}
	if err != nil {
		return found{}, sourceUnknown(err)
	}
	if was {
		return found{text: recovery.WasOff}, nil
	}
	return found{text: "off"}, nil
}

// sourceUnknown says what to do about a protected machine that nobody knows to be off.
func sourceUnknown(err error) error {
	return fmt.Errorf("whether the source's machine is off is not known: %w; if it is certain that it does not run, or two copies are the lesser evil: --override-reason", err)
}

var errNoSource = errors.New("the context names no source vra")

// turnOff turns the guest of a monitor off, and returns once QEMU said that it is.
func turnOff(ctx context.Context, qmp string, how hypervisor.How) error {
	mon, err := kvm.Dial(ctx, qmp)
	if err != nil {
		return fmt.Errorf("it cannot be reached: %w", err)
	}
	defer mon.Close()
	if how == hypervisor.ByForce {
		err = mon.Do(ctx, kvm.Command{Execute: "quit"}, nil)
		if _, refused := errors.AsType[*kvm.Refused](err); refused {
			return err
		}
	} else if err := kvm.PowerDown(ctx, mon); err != nil {
		return err
	}
	return kvm.Ended(ctx, mon)
}

// lastCut makes a checkpoint of all that the source wrote, and waits until it is at the target.
func (c *carrier) lastCut(ctx context.Context) (found, error) {
	if c.Source == nil {
		return found{}, errNoSource
	}
	if err := c.parted(ctx); err != nil {
		return found{}, err
	}
	var id string
	err := again(ctx, func() error {
		res, err := c.Source.Checkpoints.Create(ctx, &holdfastv1.CheckpointsServiceCreateRequest{Group: c.job.Plan.Group, Tag: "move " + c.job.Plan.ID, IdempotencyKey: c.job.Plan.Key + " cut"})
		id = res.GetCheckpoint().GetId()
		return err
	})
	return found{text: "checkpoint " + id, checkpoint: id}, err
}

// checkpoint is the one that the job is about.
func (j *Job) checkpoint() string {
	id := j.Plan.Checkpoint
	for _, e := range j.entries {
		if e.Checkpoint != "" {
			id = e.Checkpoint
		}
	}
	return id
}

// begin fences the source, and has the disks opened. Nobody may use those that were the source's by then.
func (c *carrier) begin(ctx context.Context) (found, error) {
	p := c.job.Plan
	if err := c.parted(ctx); err != nil {
		return found{}, err
	}
	req := &holdfastv1.RecoveryServiceBeginRequest{Group: p.Group, Checkpoint: c.job.checkpoint(), Id: p.Key, Note: p.Override, Timer: api.Span(p.Timer), Then: string(p.Then)}
	var f *holdfastv1.Failover
	err := again(ctx, func() error {
		res, err := c.Target.Recovery.Begin(ctx, req)
		f = res.GetFailover()
		return err
	})
	if err != nil {
		return found{}, err
	}
	return found{text: fmt.Sprintf("epoch %d, view %s", f.GetEpoch(), f.GetView().GetId()), checkpoint: f.GetCheckpoint(), view: f.GetView().GetId()}, nil
}

// failover is what the target says of the job's; nil when it knows none of that name.
func (r *Runner) failover(ctx context.Context, p *recovery.Plan) (f *holdfastv1.Failover, err error) {
	err = again(ctx, func() error {
		res, err := r.Target.Recovery.Get(ctx, &holdfastv1.RecoveryServiceGetRequest{Group: p.Group})
		f = res.GetFailover()
		return err
	})
	if f.GetId() != p.Key {
		f = nil
	}
	return f, err
}

// takeBack lets the source go on, where it was fenced. Where the target knows of none it is asked all the same: it may
// still be at work on what it was asked to begin, and rolls that back behind it.
func (c *carrier) takeBack(ctx context.Context) (found, error) {
	f, err := c.failover(ctx, c.job.Plan)
	if err != nil {
		return found{}, err
	}
	if f.GetState() == api.FailoverRolledBack {
		return found{text: "the target had done it"}, nil
	}
	err = again(ctx, func() error {
		_, err := c.Target.Recovery.Rollback(ctx, &holdfastv1.RecoveryServiceRollbackRequest{Group: c.job.Plan.Group, Id: c.job.Plan.Key})
		return err
	})
	if f == nil && err != nil && api.AsFailure(err).Code == api.Precondition {
		if f, gerr := c.failover(ctx, c.job.Plan); gerr == nil && f == nil { // none, or another's
			return found{text: "it had not begun"}, nil
		}
	}
	return found{text: "the source may go on"}, err
}

// keep makes the failover final.
func (c *carrier) keep(ctx context.Context) (found, error) {
	err := again(ctx, func() error {
		_, err := c.Target.Recovery.Commit(ctx, &holdfastv1.RecoveryServiceCommitRequest{Group: c.job.Plan.Group, Id: c.job.Plan.Key})
		return err
	})
	return found{text: "the machines stay; the source does not go on"}, err
}

// settleLimit is how long the target may take to say how a failover stands.
const settleLimit = 30 * time.Second

// Settle finds out whether a live failover whose machines run was ended by its timer; then it says so to
// the job, and says true.
func (r *Runner) Settle(ctx context.Context, j *Job) (bool, error) {
	if !j.Plan.Kind.Fences() || j.State.Phase != recovery.Running {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	f, err := r.failover(ctx, j.Plan)
	if err != nil || invariant.Planted("failover/never-settles") {
		return false, err
	}
	e := recovery.Entry{Time: r.Now(), Who: "the timer"}
	switch f.GetState() {
	case api.FailoverCommitted, api.FailoverSettled, api.FailoverPassing, api.FailoverMoving, api.FailoverOnDisks:
		e.Event = recovery.Final
	case api.FailoverRolledBack, api.FailoverRollingBack:
		e.Event, e.Note = recovery.Undo, f.GetReason() // what was taken from machines that ran
	default:
		return false, nil
	}
	return true, j.happened(e)
}

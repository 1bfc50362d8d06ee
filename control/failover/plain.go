package failover

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/recovery"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// MayMoveOnto says why a job of a folder cannot move its machines onto plain disks, before there is one: for what the target says of them, or as a
// machine is not as it must be for that. That the disks do not hold all yet is no reason.
func (r *Runner) MayMoveOnto(ctx context.Context, folder string, p *recovery.Plan) error {
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	f, err := r.committed(ctx, p)
	if err == nil {
		_, err = passes(f)
	}
	if err != nil {
		return Explain(err)
	}
	return r.MayMove(ctx, folder, p)
}

// MayMove says why a machine of a plan cannot change its disks as it is now.
func (r *Runner) MayMove(ctx context.Context, folder string, p *recovery.Plan) error {
	h, err := r.Hypervisor(p.Hypervisor, machinesDir(folder, p))
	for _, m := range p.Machines {
		if err == nil {
			err = h.MaySetDisk(ctx, m.Name)
		}
		if p.Kind == recovery.Reverse && errors.Is(err, hypervisor.ErrAbsent) { // it writes to nothing
			err = nil
		}
	}
	return err
}

// committed is what the target says of the failover whose machines move onto plain disks.
func (r *Runner) committed(ctx context.Context, p *recovery.Plan) (*holdfastv1.Failover, error) {
	res, err := r.Target.Recovery.Get(ctx, &holdfastv1.RecoveryServiceGetRequest{Group: p.Group})
	f := res.GetFailover()
	if err == nil && f.GetId() != p.Onto.Failover {
		err = api.Errorf(api.Precondition, "see holdfast status", "the last failover of group %s is another one: %s", p.Group, f.GetState())
	}
	return f, err
}

// passes says whether the disks of a failover hold all that its machines see, and go on to. What stands in the way is an error. That nothing
// stands in scratch does not say it: zeros take no space there, and a view that is broken or not there has none.
func passes(f *holdfastv1.Failover) (bool, error) {
	switch f.State {
	case api.FailoverCommitted, api.FailoverSettled, api.FailoverPassing, api.FailoverMoving, api.FailoverOnDisks:
	case api.FailoverReleased:
		return false, api.Errorf(api.Precondition, "they are protected from there, or were: see holdfast status", "the failover's disks were handed over, by a reversal")
	case api.FailoverRollingBack, api.FailoverRolledBack:
		return false, api.Errorf(api.Precondition, "begin another one", "the failover is %s, and its machines have no disks", f.State)
	default:
		return false, api.Errorf(api.Precondition, "commit it first", "the failover is %s, and not committed", f.State)
	}
	switch {
	case f.NeverPlain != "" && !invariant.Planted("failover/waits-for-ever"):
		return false, api.Errorf(api.Precondition, "leave the machines on the view", "%s", f.NeverPlain)
	case f.Reason != "":
		return false, api.Errorf(api.Precondition, "mend that", "%s", f.Reason)
	}
	return f.GetOnDisksAlone() || invariant.Planted("failover/onto-unsettled"), nil
}

// settle waits until the target's disks are what the machines see.
func (c *carrier) settle(ctx context.Context) (found, error) {
	f, err := c.settled(ctx)
	return found{text: fmt.Sprintf("%d disks hold all that the machines see", len(f.GetDisks()))}, err
}

func (c *carrier) settled(ctx context.Context) (f *holdfastv1.Failover, err error) {
	err = c.poll(ctx, func() (far string, done bool, err error) {
		if f, err = c.committed(ctx, c.job.Plan); err != nil {
			return "", false, err
		}
		far = fmt.Sprintf("%s: %d KiB of what machines wrote are in scratch", f.State, f.View.GetScratchBytes()>>10)
		done, err = passes(f)
		return far, done, err
	})
	return f, err
}

// onto moves a machine onto its disks. What it is served until then is the same. The target is told before: from then on it does not give the disks
// away, to whoever asks, until all machines are there.
func (c *carrier) onto(ctx context.Context, m *recovery.Machine) (found, error) {
	f, err := c.settled(ctx) // as after a restart of the target, which looks first whether anything is left in scratch
	if err == nil {
		err = c.machines.MaySetDisk(ctx, m.Name)
	}
	if err == nil && !invariant.Planted("failover/moves-unsaid") {
		err = again(ctx, func() error {
			_, err := c.Target.Recovery.MoveOn(ctx, &holdfastv1.RecoveryServiceMoveOnRequest{Group: c.job.Plan.Group, Id: c.job.Plan.Onto.Failover})
			return err
		})
	}
	if err != nil {
		return found{}, err
	}
	for _, d := range m.Disks {
		to, err := plainDisk(f, d.Volume)
		if err == nil {
			err = c.machines.SetDisk(ctx, m.Name, to)
		}
		if err != nil {
			return found{}, err
		}
	}
	return found{text: fmt.Sprintf("%d disks", len(m.Disks))}, nil
}

// plainDisk is a volume's disk at the target.
func plainDisk(f *holdfastv1.Failover, volume string) (hypervisor.Disk, error) {
	for _, d := range f.GetDisks() {
		if d.Volume == volume {
			return hypervisor.Disk{Volume: volume, File: d.Path, Bytes: int64(d.Bytes)}, nil
		}
	}
	return hypervisor.Disk{}, fmt.Errorf("the failover has no volume %s", volume)
}

// letGo has the target write to the disks no more.
func (c *carrier) letGo(ctx context.Context) (found, error) {
	err := again(ctx, func() error {
		_, err := c.Target.Recovery.LetGo(ctx, &holdfastv1.RecoveryServiceLetGoRequest{Group: c.job.Plan.Group, Id: c.job.Plan.Onto.Failover})
		return err
	})
	return found{text: "nobody but the machines writes to their disks"}, err
}

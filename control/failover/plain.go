package failover

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/recovery"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// committed is what the target says of the failover whose machines move onto plain disks.
func (c *carrier) committed(ctx context.Context) (*holdfastv1.Failover, error) {
	res, err := c.Target.Recovery.Get(ctx, &holdfastv1.RecoveryServiceGetRequest{Group: c.job.Plan.Group})
	f := res.GetFailover()
	if err == nil && f.GetId() != c.job.Plan.Onto.Failover {
		err = api.Errorf(api.Precondition, "see holdfast status", "the last failover of group %s is another one: %s", c.job.Plan.Group, f.GetState())
	}
	return f, err
}

// passes says whether the disks of a failover hold all that its machines see, and go on to. What stands in the way is an error. That nothing
// stands in scratch does not say it: zeros take no space there, and a view that is broken or not there has none.
func passes(f *holdfastv1.Failover) (bool, error) {
	if f.Reason != "" {
		return false, api.Errorf(api.Precondition, "mend that", "%s", f.Reason)
	}
	return f.GetOnDisksAlone() || invariant.Planted("failover/onto-unsettled"), nil
}

// settle waits until the target's disks are what the machines see.
func (c *carrier) settle(ctx context.Context) (found, error) {
	var f *holdfastv1.Failover
	err := c.poll(ctx, func() (far string, done bool, err error) {
		if f, err = c.committed(ctx); err != nil {
			return "", false, err
		}
		switch f.State {
		case api.FailoverCommitted, api.FailoverSettled, api.FailoverPassing, api.FailoverOnDisks:
		default:
			return "", false, api.Errorf(api.Precondition, "commit it first", "the failover is %s, and not committed", f.State)
		}
		far = fmt.Sprintf("%s: %d KiB of what machines wrote are in scratch", f.State, f.View.GetScratchBytes()>>10)
		if why := f.View.GetReason(); why != "" {
			far += "; the view is " + f.View.GetState() + ": " + why
		}
		done, err = passes(f)
		return far, done, err
	})
	return found{text: fmt.Sprintf("%d disks hold all that the machines see", len(f.GetDisks()))}, err
}

// onto moves a machine onto its disks. What it is served until then is the same.
func (c *carrier) onto(ctx context.Context, m *recovery.Machine) (found, error) {
	var f *holdfastv1.Failover
	err := again(ctx, func() (err error) { f, err = c.committed(ctx); return err })
	var all bool
	if err == nil {
		all, err = passes(f)
	}
	if err == nil && !all {
		err = errors.New("the disks do not hold all that the machines see")
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

// MovesOnto says why a failover is not to be reversed, as a job of the folder moves its machines onto plain disks: one that has begun with
// a machine, or is being carried out. A filter would not see what such a machine writes. A job that cannot be read counts as one.
func MovesOnto(folder, id string) error {
	ids, err := IDs(folder)
	if err != nil {
		return err
	}
	for _, job := range ids {
		entries, busy, err := Read(folder, job)
		if err != nil {
			return err
		}
		if len(entries) == 0 || entries[0].Plan == nil || entries[0].Plan.Onto == nil || entries[0].Plan.Onto.Failover != id {
			continue
		}
		begun := slices.ContainsFunc(entries, func(e recovery.Entry) bool { return e.Began != nil && e.Began.Do == recovery.Onward })
		if (begun || busy) && !invariant.Planted("failover/reverses-halfway") {
			return fmt.Errorf("job %s moves its machines onto plain disks, and no filter would see what they write there: finish that first, with holdfast failover resume %s",
				job, job)
		}
	}
	return nil
}

// letGo has the target write to the disks no more.
func (c *carrier) letGo(ctx context.Context) (found, error) {
	err := again(ctx, func() error {
		_, err := c.Target.Recovery.LetGo(ctx, &holdfastv1.RecoveryServiceLetGoRequest{Group: c.job.Plan.Group, Id: c.job.Plan.Onto.Failover})
		return err
	})
	return found{text: "nobody but the machines writes to their disks"}, err
}

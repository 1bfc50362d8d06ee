package failover

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm"
	"github.com/holdfast-dr/holdfast/control/recovery"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/ioengine/wait"
)

// do carries a step out, for the first time or again.
func (c *carrier) do(ctx context.Context, s recovery.Step) (found, error) {
	m := c.job.Plan.Machine(s.Machine)
	var err error
	switch s.Do {
	case recovery.Open:
		return c.open(ctx)
	case recovery.Close:
		return c.close(ctx)
	case recovery.StopSource:
		return c.stopSource(ctx, m)
	case recovery.LastCut:
		return c.lastCut(ctx)
	case recovery.Begin:
		return c.begin(ctx)
	case recovery.TakeBack:
		return c.takeBack(ctx)
	case recovery.Keep:
		return c.keep(ctx)
	case recovery.Adopt:
		return c.adopt(ctx)
	case recovery.HandOver:
		return c.handOver(ctx)
	case recovery.Serve:
		return c.serve(ctx)
	case recovery.Attach:
		return c.attach(ctx, m)
	case recovery.Sync:
		return c.sync(ctx)
	case recovery.Settle:
		return c.settle(ctx)
	case recovery.Onward:
		return c.onto(ctx, m)
	case recovery.LetGo:
		return c.letGo(ctx)
	case recovery.Define:
		return c.define(ctx, m)
	case recovery.Delay:
		return found{}, wait.For(ctx, m.Delay)
	case recovery.Before:
		return c.script(ctx, s, m.Before.Command)
	case recovery.After:
		return c.script(ctx, s, m.After.Command)
	case recovery.Start:
		return c.start(ctx, m)
	case recovery.Wait:
		return c.wait(ctx, s, m)
	case recovery.Picture:
		return c.picture(ctx, m.Name)
	case recovery.Stop:
		err = c.stop(ctx, m.Name)
	case recovery.Undefine:
		err = c.machines.Undefine(ctx, m.Name)
	default:
		err = fmt.Errorf("this release does not know the step %q", s.Do)
	}
	return found{}, err
}

// name is how the target's views are found again: by it, whoever asks.
func (c *carrier) name() string { return c.job.Plan.ID + " " + c.job.Plan.Key }

// view finds the job's view; nil when there is none.
func (c *carrier) view(ctx context.Context) (*holdfastv1.View, error) {
	res, err := api.All(ctx, &holdfastv1.ViewsServiceListRequest{Group: c.job.Plan.Group}, c.Target.Views.List)
	if err != nil {
		return nil, Explain(err)
	}
	for _, v := range res.GetViews() {
		if v.GetName() == c.name() && !invariant.Planted("failover/never-found") {
			return v, nil
		}
	}
	return nil, nil
}

// disks is the view that the job's machines stand on; nil when there is none.
func (c *carrier) disks(ctx context.Context) (*holdfastv1.View, error) {
	if !c.job.Plan.Kind.Fences() {
		return c.view(ctx)
	}
	f, err := c.failover(ctx, c.job.Plan)
	return f.GetView(), err
}

// Explain makes an error of a call to the target one line with what to do.
func Explain(err error) error {
	f := api.AsFailure(err)
	if f == nil {
		return nil
	}
	if f.Code == api.Unavailable && f.Next == "" {
		f.Message, f.Next = "the vra does not answer: "+f.Message, "see holdfast status"
	}
	return f
}

// open opens the group's disks, unless an earlier try did.
func (c *carrier) open(ctx context.Context) (found, error) {
	v, err := c.view(ctx)
	if err != nil {
		return found{}, err
	}
	if v == nil {
		res, err := c.Target.Views.Open(ctx, &holdfastv1.ViewsServiceOpenRequest{Group: c.job.Plan.Group, Checkpoint: c.job.Plan.Checkpoint, Name: c.name(), IdempotencyKey: c.job.Plan.Key})
		if err != nil {
			return found{}, Explain(err)
		}
		v = res.GetView()
	}
	return found{text: "view " + v.GetId(), checkpoint: v.GetCheckpoint(), view: v.GetId()}, nil
}

// close closes them, and drops what was written.
func (c *carrier) close(ctx context.Context) (found, error) {
	v, err := c.view(ctx)
	if err != nil || v == nil {
		return found{}, err
	}
	_, err = c.Target.Views.Close(ctx, &holdfastv1.ViewsServiceCloseRequest{Id: v.GetId(), IdempotencyKey: c.job.Plan.Key + " close"})
	if f := api.AsFailure(err); f != nil && f.Code != api.NotFound {
		return found{}, Explain(err)
	}
	return found{text: fmt.Sprintf("view %s, with %d bytes that were written to it", v.GetId(), v.GetScratchBytes())}, nil
}

// served says where a view serves a volume.
func served(v *holdfastv1.View, volume string) (*holdfastv1.ViewVolume, error) {
	for _, vol := range v.GetVolumes() {
		if vol.GetName() == volume {
			return vol, nil
		}
	}
	if v.GetState() != "good" && v.GetReason() != "" {
		return nil, fmt.Errorf("view %s is %s: %s", v.GetId(), v.GetState(), v.GetReason())
	}
	return nil, fmt.Errorf("checkpoint %s has no volume %s", v.GetCheckpoint(), volume)
}

// picture keeps what the machine's screen shows, beside the report.
func (c *carrier) picture(ctx context.Context, name string) (found, error) {
	p, err := c.machines.Screenshot(ctx, name)
	if err != nil {
		return found{}, err
	}
	file := name + ".png"
	return found{text: file, file: file}, kvm.WriteFile(filepath.Join(c.job.Dir, file), p)
}

// maxKept is how much of what a machine said is kept.
const maxKept = 4 << 20

// stop cuts the machine's power: what its disks hold goes away with them. What it said is kept.
func (c *carrier) stop(ctx context.Context, name string) error {
	if err := c.machines.Stop(ctx, name, hypervisor.ByForce); err != nil {
		return err
	}
	state, err := c.machines.State(ctx, name)
	if err != nil || state == hypervisor.Absent {
		return err
	}
	var said []byte
	for len(said) < maxKept {
		p, err := c.machines.Serial(ctx, name, int64(len(said)))
		if err != nil {
			return err
		}
		if said = append(said, p...); len(p) == 0 {
			break
		}
	}
	path := filepath.Join(c.job.Dir, name+".serial")
	if len(said) == 0 {
		return nil
	}
	return os.WriteFile(path, said, 0o600)
}

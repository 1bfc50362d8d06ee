package failover

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm"
	"github.com/holdfast-dr/holdfast/control/recovery"
)

// checkLimit is how long all that is asked beforehand may take to answer.
const checkLimit = 30 * time.Second

// Check says all that is known to keep a job of that plan from bringing its machines up, before anything is touched: a source's machine is
// not stopped for what cannot begin. It asks both sites and looks at this host, and changes nothing.
//
// What only shows later: whether the target has room for what machines write, whether it serves a volume over vhost-user, and whether the
// checkpoint is older than one of the group's volumes.
func (r *Runner) Check(ctx context.Context, p *recovery.Plan) error {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	if p.Kind == recovery.Reverse {
		return r.checkOldSource(ctx, p)
	}
	errs := []error{r.checkTarget(ctx, p)}
	for i := range p.Machines {
		if err := checkHost(p.Hypervisor, &p.Machines[i]); err != nil {
			errs = append(errs, fmt.Errorf("machine %s: %w", p.Machines[i].Name, err))
		}
	}
	if p.Kind == recovery.Move {
		errs = append(errs, r.checkCut(ctx, p))
	}
	for _, s := range p.Up() {
		if s.Do == recovery.StopSource {
			errs = append(errs, checkSource(ctx, p.Machine(s.Machine)))
		}
	}
	return errors.Join(errs...)
}

// checkTarget is about the checkpoint, the volumes, and what a failover of before left.
func (r *Runner) checkTarget(ctx context.Context, p *recovery.Plan) error {
	errs := []error{r.checkCheckpoint(ctx, p)}
	g, err := groupOf(ctx, r.Target, p.Group)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	has := map[string]bool{}
	for _, v := range g.GetVolumes() {
		has[v.GetName()] = true
	}
	for _, m := range p.Machines {
		for _, d := range m.Disks {
			if !has[d.Volume] {
				errs = append(errs, fmt.Errorf("machine %s: group %s has no volume %s: name one of holdfast status -o json in disks", m.Name, p.Group, d.Volume))
			}
		}
	}
	if p.Kind.Fences() {
		errs = append(errs, r.checkNoOther(ctx, p))
	}
	return errors.Join(errs...)
}

func (r *Runner) checkCheckpoint(ctx context.Context, p *recovery.Plan) error {
	if p.Checkpoint == "" {
		return nil // the last cut's
	}
	res, err := r.Target.Checkpoints.Get(ctx, &holdfastv1.CheckpointsServiceGetRequest{Group: p.Group, Id: p.Checkpoint})
	c := res.GetCheckpoint()
	switch {
	case err != nil && api.AsFailure(err).Code == api.NotFound:
		return fmt.Errorf("group %s has no checkpoint %s: take one of holdfast checkpoint list", p.Group, p.Checkpoint)
	case err != nil:
		return Explain(err)
	case c.GetState() == api.CheckpointBad:
		return fmt.Errorf("checkpoint %s is bad (%s): take another one of holdfast checkpoint list", p.Checkpoint, c.GetReason())
	}
	return nil
}

// checkNoOther says which failover of the group stands in the way of another one.
func (r *Runner) checkNoOther(ctx context.Context, p *recovery.Plan) error {
	res, err := r.Target.Recovery.Get(ctx, &holdfastv1.RecoveryServiceGetRequest{Group: p.Group})
	if err != nil {
		return Explain(err)
	}
	switch f := res.GetFailover(); f.GetState() {
	case api.FailoverRaised, api.FailoverRecovering:
		return fmt.Errorf("another failover of group %s is under way (%s): commit it or roll it back: see holdfast failover list", p.Group, f.GetState())
	case api.FailoverRollingBack:
		return fmt.Errorf("another failover of group %s is still rolled back: see holdfast status", p.Group)
	case api.FailoverCommitted, api.FailoverSettled, api.FailoverPassing, api.FailoverMoving, api.FailoverOnDisks:
		return fmt.Errorf("a failover of group %s was committed (%s), and its machines run: go back with holdfast reverse", p.Group, f.GetState())
	}
	return nil
}

// groupOf is how a group stands at a site.
func groupOf(ctx context.Context, at *api.Client, group string) (*holdfastv1.Group, error) {
	res, err := api.All(ctx, &holdfastv1.StatusServiceGetRequest{Group: group}, at.Status.Get)
	if err != nil {
		return nil, Explain(err)
	}
	for _, g := range res.GetGroups() {
		if g.GetName() == group {
			return g, nil
		}
	}
	return nil, fmt.Errorf("there is no group %s: see holdfast status", group)
}

// checkCut says why the source could not bring its last write over.
func (r *Runner) checkCut(ctx context.Context, p *recovery.Plan) error {
	if r.Source == nil {
		return errNoSource
	}
	g, err := groupOf(ctx, r.Source, p.Group)
	if err != nil {
		return fmt.Errorf("the source: %w", err)
	}
	switch g.GetState() {
	case api.StateDisconnected, api.StatePaused, api.StateRemoved, api.StateStandby, api.StateError:
		return fmt.Errorf("the source's last write cannot come over: group %s is %s there (%s): mend that first, see holdfast status", p.Group, g.GetState(), g.GetReason())
	}
	return nil
}

// checkOldSource says why the old source could not take its disks as replicas.
func (r *Runner) checkOldSource(ctx context.Context, p *recovery.Plan) error {
	if r.Source == nil {
		return errNoOldSource
	}
	if _, err := r.Source.Status.Get(ctx, &holdfastv1.StatusServiceGetRequest{Group: p.Group}); err != nil && api.AsFailure(err).Code == api.Unavailable {
		return fmt.Errorf("the old source: %w", Explain(err))
	}
	return nil
}

// checkSource says why a protected machine could not be stopped: nobody who could do it answers.
func checkSource(ctx context.Context, m *recovery.Machine) (err error) {
	s := m.Source
	if s.Domain != "" {
		err = kvm.MayEndDomain(ctx, s.Libvirt, s.Domain)
	} else if mon, derr := kvm.Dial(ctx, s.QMP); derr == nil {
		err = mon.Close()
	} else {
		err = fmt.Errorf("it cannot be reached: %w", derr)
	}
	if err != nil {
		err = fmt.Errorf("machine %s: %w", m.Name, sourceUnknown(err))
	}
	return err
}

// checkHost is about what a machine needs of this host.
func checkHost(where config.Hypervisor, m *recovery.Machine) error {
	var errs []error
	program := func(what, name string) {
		if _, err := exec.LookPath(name); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w: install it, or name another", what, err))
		}
	}
	if !where.Libvirt() {
		program("its QEMU", kvm.DefaultQEMU)
	}
	for _, f := range []struct{ what, name string }{{"kernel", m.Kernel}, {"initrd", m.Initrd}} {
		if f.name == "" {
			continue
		}
		if st, err := os.Stat(f.name); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w: put it there, or name another", f.what, err))
		} else if !st.Mode().IsRegular() {
			errs = append(errs, fmt.Errorf("%s: %s is no file: name another", f.what, f.name))
		}
	}
	for _, s := range []struct {
		what   string
		script recovery.Script
	}{{"before", m.Before}, {"after", m.After}} {
		if len(s.script.Command) > 0 {
			program(s.what, s.script.Command[0])
		}
	}
	if m.Wait.Kind == config.WaitScript {
		program("wait", m.Wait.What)
	}
	for _, n := range m.Networks {
		errs = append(errs, checkBridge(n))
	}
	return errors.Join(errs...)
}

// checkBridge says that this host has no such bridge.
func checkBridge(n hypervisor.Network) error {
	if n.Bridge == "" {
		return nil
	}
	if _, err := os.Stat(filepath.Join("/sys/class/net", n.Bridge)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("this host has no bridge %s: make it, or name another as live of the network", n.Bridge)
	} else if err != nil {
		return fmt.Errorf("bridge %s: %w", n.Bridge, err)
	}
	return nil
}

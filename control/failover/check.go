package failover

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm"
	"github.com/holdfast-dr/holdfast/control/recovery"
)

// checkLimit is how long all that is asked beforehand may take to answer; sourceLimit, how long a protected machine's monitor or libvirt
// may, beside the others.
const (
	checkLimit  = 30 * time.Second
	sourceLimit = 10 * time.Second
)

// Check says all that is known to keep a job of that plan from bringing its machines up, before anything is touched: a source's machine is
// not stopped for what cannot begin. It asks both sites and looks at this host, all at once, and changes nothing. Warnings are about what
// will fail, or may, and the job goes on without.
//
// What only shows later: whether the target has room for what machines write, whether it serves a volume over vhost-user, or else over NBD, and whether the
// checkpoint is older than one of the group's volumes.
func (r *Runner) Check(ctx context.Context, p *recovery.Plan) (warnings []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	switch p.Kind {
	case recovery.Plain:
		return nil, nil // its machines run, and each of its steps looks for itself
	case recovery.Reverse:
		return nil, r.checkOldSource(ctx, p)
	}
	up := p.Up()
	sources := make([]error, len(up))
	var ends sync.WaitGroup
	for i, s := range up {
		if s.Do == recovery.StopSource {
			ends.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, sourceLimit)
				defer cancel()
				m := p.Machine(s.Machine)
				off, err := checkSource(ctx, m, p.SourceHow)
				if sources[i] = err; err == nil && off {
					sources[i] = r.checkUsed(ctx, p, m)
				}
			})
		}
	}
	var here hostFound
	ends.Go(func() { here = answered(ctx, func() hostFound { return checkHost(p, os.Stat) }) })
	target := r.checkTarget(ctx, p)
	var cut error
	if p.Kind == recovery.Move {
		cut = r.checkCut(ctx, p)
	}
	ends.Wait()
	return here.warnings, errors.Join(append([]error{target, here.err, cut}, sources...)...)
}

// checkTarget is about the checkpoint, the volumes, and what a failover of before left.
func (r *Runner) checkTarget(ctx context.Context, p *recovery.Plan) error {
	errs := []error{r.checkCheckpoint(ctx, p)}
	groups, err := groupsOf(ctx, r.Target, p.Group, api.RoleTarget)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	has := map[string]bool{}
	for _, g := range groups { // one whose machines are on its disks may stand beside the one that protects them
		for _, v := range g.GetVolumes() {
			has[v.GetName()] = true
		}
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

// groupsOf is how the groups of that name stand at a site in that role, one at least: two sites may protect each other with groups of one name.
func groupsOf(ctx context.Context, at *api.Client, group, role string) (groups []*holdfastv1.Group, err error) {
	res, err := api.All(ctx, &holdfastv1.StatusServiceGetRequest{Group: group}, at.Status.Get)
	if err != nil {
		return nil, Explain(err)
	}
	for _, g := range res.GetGroups() {
		if g.GetName() == group && g.GetRole() == role {
			groups = append(groups, g)
		}
	}
	if len(groups) == 0 {
		return nil, fmt.Errorf("there is no group %s: see holdfast status", group)
	}
	return groups, nil
}

// checkCut says why the source could not bring its last write over.
func (r *Runner) checkCut(ctx context.Context, p *recovery.Plan) error {
	if r.Source == nil {
		return errNoSource
	}
	groups, err := groupsOf(ctx, r.Source, p.Group, api.RoleSource)
	if err != nil {
		return fmt.Errorf("the source: %w", err)
	}
	g := groups[0]
	switch g.GetState() {
	case api.StateDisconnected, api.StatePaused, api.StateRemoved, api.StateStandby, api.StateError:
		return fmt.Errorf("the source's last write cannot come over: group %s is %s there (%s): mend that first, see holdfast status", p.Group, g.GetState(), g.GetReason())
	case api.StateResync, api.StateInitialSync:
		if eta := time.Duration(g.GetEtaSeconds() * float64(time.Second)); eta > recovery.CutLimit {
			return fmt.Errorf("the source's last write would not come over within %s: group %s is in %s there, for %s more: wait for that, see holdfast status",
				config.Duration(recovery.CutLimit), p.Group, g.GetState(), config.Duration(eta.Round(time.Second)))
		}
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

// checkSource says why a protected machine could not be stopped: nobody who could do it answers; and whether it is a domain that is off already.
func checkSource(ctx context.Context, m *recovery.Machine, how hypervisor.How) (off bool, err error) {
	s := m.Source
	if s.Domain != "" {
		off, err = kvm.MayEndDomain(ctx, s.Libvirt, s.Domain, how)
	} else if mon, derr := kvm.Dial(ctx, s.QMP); derr == nil {
		err = mon.Close()
	} else {
		err = fmt.Errorf("it cannot be reached: %w", derr)
	}
	if err != nil {
		err = fmt.Errorf("machine %s: %w", m.Name, sourceUnknown(err))
	}
	return off, err
}

// hostFound is what this host lacks.
type hostFound struct {
	warnings []string
	err      error
}

// answered is what look finds before ctx ends: a file system may hang.
func answered(ctx context.Context, look func() hostFound) hostFound {
	found := make(chan hostFound, 1)
	go func() { found <- look() }()
	select {
	case h := <-found:
		return h
	case <-ctx.Done():
		return hostFound{err: errors.New("this host's files and programs did not answer")}
	}
}

// checkHost is about what the machines of a plan need of this host.
func checkHost(p *recovery.Plan, stat func(string) (os.FileInfo, error)) hostFound {
	h := hostLook{where: p.Hypervisor, stat: stat, live: p.Kind.Fences()}
	for _, m := range p.Machines {
		h.prepared = h.prepared || len(m.Before.Command) > 0
	}
	for _, m := range p.Machines {
		h.machine = m.Name
		h.look(&m)
	}
	return hostFound{h.warnings, errors.Join(h.errs...)}
}

// hostLook looks at this host, machine by machine.
type hostLook struct {
	where    config.Hypervisor
	stat     func(string) (os.FileInfo, error)
	live     bool // it goes on without what comes once its machines run
	prepared bool // scripts run before machines are started, which may make what is missing
	machine  string
	warnings []string
	errs     []error
}

// fails says what is wrong: an error, or a warning where the job goes on without.
func (h *hostLook) fails(goesOn bool, err error, then string) {
	if goesOn {
		h.warnings = append(h.warnings, fmt.Sprintf("machine %s: %v: %s", h.machine, err, then))
	} else {
		h.errs = append(h.errs, fmt.Errorf("machine %s: %w", h.machine, err))
	}
}

const (
	failsAlone = "the failover will go on without it"
	makesIt    = "a before script has to make it"
)

func (h *hostLook) look(m *recovery.Machine) {
	if !h.where.Libvirt() {
		h.program(false, "its QEMU", kvm.DefaultQEMU)
	}
	h.file("kernel", m.Kernel)
	h.file("initrd", m.Initrd)
	if len(m.Before.Command) > 0 {
		h.program(false, "before", m.Before.Command[0])
	}
	if len(m.After.Command) > 0 {
		h.program(h.live, "after", m.After.Command[0])
	}
	if m.Wait.Kind == config.WaitScript {
		h.program(h.live, "wait", m.Wait.What)
	}
	for _, n := range m.Networks {
		if n.Bridge != "" {
			h.bridge(n.Bridge)
		}
		for _, f := range n.Forward {
			at, _, _ := strings.Cut(f, "=")
			h.port(at)
		}
	}
}

func (h *hostLook) program(soft bool, what, name string) {
	if _, err := exec.LookPath(name); err != nil {
		h.fails(soft, fmt.Errorf("%s: %w: install it, or name another", what, err), failsAlone)
	}
}

// file is about one that the hypervisor reads: a libvirt, with rights of its own.
func (h *hostLook) file(what, name string) {
	if name == "" {
		return
	}
	st, err := h.stat(name)
	switch {
	case errors.Is(err, fs.ErrPermission) && h.where.Libvirt():
	case err != nil:
		h.fails(h.prepared && errors.Is(err, fs.ErrNotExist), fmt.Errorf("%s: %w: put it there, or name another", what, err), makesIt)
	case !st.Mode().IsRegular():
		h.fails(false, fmt.Errorf("%s: %s is no file: name another", what, name), "")
	}
}

// port is about one of this host's that QEMU is to listen at. What else there may be against it, QEMU's own rights decide.
func (h *hostLook) port(at string) {
	l, err := net.Listen("tcp", at)
	switch {
	case err == nil:
		l.Close()
	case errors.Is(err, syscall.EADDRINUSE):
		h.fails(false, fmt.Errorf("somebody listens at %s already, which it would forward: stop a test that runs still (holdfast failover list), end whoever it is (ss -ltnp), or name another port in forward", at), "")
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		h.fails(h.prepared, fmt.Errorf("this host has no address %s, at which it would forward: name another in forward", at), makesIt)
	}
}

func (h *hostLook) bridge(name string) {
	if _, err := h.stat(filepath.Join("/sys/class/net", name)); errors.Is(err, fs.ErrNotExist) {
		h.fails(h.prepared, fmt.Errorf("this host has no bridge %s: make it, or name another as live of the network", name), makesIt)
	} else if err != nil {
		h.fails(false, fmt.Errorf("bridge %s: %w", name, err), "")
	}
}

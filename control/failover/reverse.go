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
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm"
	"github.com/holdfast-dr/holdfast/control/recovery"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/ioengine/wait"
)

// pollEvery is how often a step that takes long is asked how far it has come, and tellEvery how often that is told.
const (
	pollEvery = 100 * time.Millisecond
	tellEvery = 2 * time.Second
)

var errNoOldSource = errors.New("the context names no source vra: the old source's, which takes the target's part")

// poll asks until done, and tells now and then how far it has come.
func (c *carrier) poll(ctx context.Context, ask func() (far string, done bool, err error)) error {
	var told time.Time
	for {
		var far string
		var done bool
		err := again(ctx, func() (err error) { far, done, err = ask(); return err })
		if err != nil || done {
			return err
		}
		if now := c.Now(); c.Progress != nil && now.Sub(told) >= tellEvery {
			c.Progress(far)
			told = now
		}
		if err := wait.For(ctx, pollEvery); err != nil {
			return err
		}
	}
}

// pace tells how fast something goes, since it was first asked.
type pace struct {
	began time.Time
	first uint64
}

// far says how far it has come, how fast it goes, and how long it takes yet.
func (p *pace) far(now time.Time, done, all uint64) string {
	if p.began.IsZero() {
		p.began, p.first = now, done
	}
	text := fmt.Sprintf("%d of %d MiB", done>>20, all>>20)
	took := now.Sub(p.began).Seconds()
	if took <= 0 || done <= p.first || done > all {
		return text
	}
	rate := float64(done-p.first) / took
	return text + fmt.Sprintf(", %.0f MiB/s, %s left", rate/(1<<20), time.Duration(float64(all-done)/rate*float64(time.Second)).Round(time.Second))
}

// adopt has the old source take its disks as replicas.
func (c *carrier) adopt(ctx context.Context) (found, error) {
	if c.Source == nil {
		return found{}, errNoOldSource
	}
	r := c.job.Plan.Reversal
	req := &holdfastv1.RecoveryServiceAdoptRequest{Group: c.job.Plan.Group, Id: r.ID, Stream: r.Stream, Lineage: r.Lineage}
	for _, d := range r.Disks {
		req.Disks = append(req.Disks, &holdfastv1.Disk{Volume: d.Volume, Id: d.ID, Bytes: d.Bytes, Path: d.Path})
	}
	var p pace
	var res *holdfastv1.RecoveryServiceAdoptResponse
	err := c.poll(ctx, func() (far string, done bool, err error) {
		if res, err = c.Source.Recovery.Adopt(ctx, req); err != nil {
			return "", false, err
		}
		return "reading the old disks: " + p.far(c.Now(), res.ReadBytes, res.Bytes), res.Adopted, nil
	})
	if err != nil {
		return found{}, err
	}
	return found{text: fmt.Sprintf("%d disks, %d MiB, stay where they are", len(r.Disks), res.Bytes>>20)}, nil
}

// handOver has the target become the source of the disks that machines run on.
func (c *carrier) handOver(ctx context.Context) (found, error) {
	res, err := c.handedOver(ctx)
	if err != nil {
		return found{}, err
	}
	return found{text: fmt.Sprintf("%d disks", len(res.Disks))}, nil
}

func (c *carrier) handedOver(ctx context.Context) (res *holdfastv1.RecoveryServiceHandOverResponse, err error) {
	r := c.job.Plan.Reversal
	req := &holdfastv1.RecoveryServiceHandOverRequest{Group: c.job.Plan.Group, Failover: r.Failover, Id: r.ID, Stream: r.Stream, Control: r.Control, Data: r.Data, Interval: api.Span(r.Interval)}
	err = c.poll(ctx, func() (far string, done bool, err error) {
		res, err = c.Target.Recovery.HandOver(ctx, req)
		return "the vra takes its new part", res.GetSource(), err
	})
	return res, err
}

// serve starts the filter of the disks, and tells it of machines that write past it: it may not see who has a disk open.
func (c *carrier) serve(ctx context.Context) (found, error) {
	got, err := c.served(ctx)
	if err == nil && c.job.Plan.Reversal.OnDisks && !invariant.Planted("failover/filter-untold") {
		err = c.tell(func(f kvm.Filter) error { return f.Detach(ctx) })
	}
	return got, err
}

// tell tells the filter something of each volume.
func (c *carrier) tell(do func(kvm.Filter) error) error {
	r := c.job.Plan.Reversal
	for _, d := range r.Disks {
		f, err := c.Filter(r.Filter, d.Volume)
		if err == nil {
			err = do(f)
		}
		if err != nil {
			return fmt.Errorf("volume %s: %w", d.Volume, err)
		}
	}
	return nil
}

// served starts the filter of the disks, unless it runs.
func (c *carrier) served(ctx context.Context) (found, error) {
	h, err := c.handedOver(ctx)
	if err != nil {
		return found{}, err
	}
	if served, err := answers(h.Nbd); err != nil || served {
		return found{text: "the filter runs"}, err
	}
	name := c.job.Plan.Reversal.Filter
	if err := c.writeFilter(name, h); err != nil {
		return found{}, err
	}
	pid, err := c.startFilter(name)
	if err != nil {
		return found{}, fmt.Errorf("vra-filter --config %s: %w", name, err)
	}
	for {
		if served, err := answers(h.Nbd); err != nil || served {
			return found{text: fmt.Sprintf("vra-filter --config %s, process %d; let a service manager do that from now on", name, pid)}, err
		}
		if err := wait.For(ctx, pollEvery); err != nil {
			return found{}, fmt.Errorf("the filter does not serve, and %s says why: %w", c.filterLog(), err)
		}
	}
}

// attach moves a machine that is on plain disks onto the filter. That counts on writes past it until all of them are there.
func (c *carrier) attach(ctx context.Context, m *recovery.Machine) (found, error) {
	if _, err := c.served(ctx); err != nil { // it may have ended since
		return found{}, err
	}
	h, err := c.handedOver(ctx)
	if err == nil {
		err = c.machines.MaySetDisk(ctx, m.Name)
	}
	if errors.Is(err, hypervisor.ErrAbsent) {
		return found{text: "it is not there any more"}, nil
	}
	if err != nil {
		return found{}, err
	}
	for _, d := range m.Disks {
		i := slices.IndexFunc(h.Disks, func(have *holdfastv1.Disk) bool { return have.Volume == d.Volume })
		if i < 0 {
			return found{}, fmt.Errorf("the target handed no volume %s over", d.Volume)
		}
		to := hypervisor.Disk{Volume: d.Volume, NBD: kvm.ExportURI(d.Volume, h.Nbd), VhostUser: h.Disks[i].VhostUser, Bytes: int64(h.Disks[i].Bytes)}
		if err := c.machines.SetDisk(ctx, m.Name, to); err != nil {
			return found{}, err
		}
	}
	return found{text: fmt.Sprintf("%d disks", len(m.Disks))}, nil
}

// answers says whether somebody serves at a unix socket.
func answers(socket string) (bool, error) {
	conn, err := net.Dial("unix", socket)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, conn.Close()
}

// writeFilter writes the filter's file, unless there is one.
func (c *carrier) writeFilter(name string, h *holdfastv1.RecoveryServiceHandOverResponse) error {
	if _, err := os.Stat(name); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	id, err := config.ParseID(c.job.Plan.Reversal.ID)
	if err != nil {
		return err
	}
	f := &config.Filter{RunDir: h.RunDir, Group: config.FilterGroup{Name: c.job.Plan.Group, ID: id}, PoolSocket: h.Pool}
	for _, d := range h.Disks {
		f.Volumes = append(f.Volumes, config.FilterVolume{Name: d.Volume, ID: d.Id, Path: d.Path, NBD: h.Nbd, VhostUser: d.VhostUser})
	}
	if err := f.Validate(); err != nil {
		return err
	}
	text, err := config.Marshal(f)
	if err != nil {
		return err
	}
	return kvm.WriteFile(name, text)
}

func (c *carrier) filterLog() string { return filepath.Join(c.job.Dir, "filter.log") }

// startFilter starts a process that outlives this one; what it says is kept beside the job.
func (c *carrier) startFilter(name string) (pid int, err error) {
	log, err := os.OpenFile(c.filterLog(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	cmd := exec.Command(c.FilterBinary, "--config", name)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	pid = cmd.Process.Pid
	err = os.WriteFile(filepath.Join(c.job.Dir, "filter.pid"), strconv.AppendInt(nil, int64(pid), 10), 0o600)
	return pid, errors.Join(err, cmd.Process.Release())
}

// sync waits until what differs was sent and a checkpoint is listed.
func (c *carrier) sync(ctx context.Context) (found, error) {
	if c.Source == nil {
		return found{}, errNoOldSource
	}
	if _, err := c.served(ctx); err != nil { // it may be that of before a reboot
		return found{}, err
	}
	if p := c.job.Plan; p.Reversal.OnDisks && p.Onto != nil { // all machines are there: from now on all of the disks is compared. Again it changes nothing
		if err := c.tell(func(f kvm.Filter) error { return f.Attach(ctx) }); err != nil {
			return found{}, err
		}
	}
	var g *holdfastv1.Group
	var newest string
	err := c.poll(ctx, func() (far string, done bool, err error) {
		res, err := c.Target.Status.Get(ctx, &holdfastv1.StatusServiceGetRequest{Group: c.job.Plan.Group})
		if err != nil {
			return "", false, err
		}
		if g = res.Groups[0]; g.Role != api.RoleSource {
			return "", false, fmt.Errorf("group %s is not sent from the second site: see holdfast status", g.Name)
		}
		far = g.State + ": " + g.Reason
		if s := g.Sync; s != nil && s.TotalBytes > 0 {
			far = fmt.Sprintf("comparing and sending: %d of %d MiB", s.DoneBytes>>20, s.TotalBytes>>20)
			if s.BytesPerSecond > 0 {
				far += fmt.Sprintf(", %.0f MiB/s, %s left", s.BytesPerSecond/(1<<20), time.Duration(float64(s.TotalBytes-s.DoneBytes)/s.BytesPerSecond*float64(time.Second)).Round(time.Second))
			}
		}
		if g.State == api.StateProtected {
			newest, err = c.newest(ctx)
		}
		return far, newest != "", err
	})
	if err != nil {
		return found{}, err
	}
	return found{text: fmt.Sprintf("checkpoint %s; %d bytes of the disks were sent, %d on the wire", newest, g.PackRawBytesTotal, g.WireBytesTotal), checkpoint: newest}, nil
}

// newest is the newest checkpoint that the old source lists; empty: none is.
func (c *carrier) newest(ctx context.Context) (string, error) {
	res, err := c.Source.Checkpoints.List(ctx, &holdfastv1.CheckpointsServiceListRequest{Group: c.job.Plan.Group, NewestFirst: true, PageSize: 1})
	if err != nil || len(res.Checkpoints) == 0 {
		return "", err
	}
	return res.Checkpoints[0].Id, nil
}

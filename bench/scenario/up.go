package scenario

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
)

// Progress is how far Up has come.
type Progress struct {
	Stage       string // what is being done, for people: "copying web.raw", "initial sync"
	Done, Total int64  // bytes; Total is 0 while it is not known
}

// Up brings a lab up and returns when the initial sync is complete and the first
// checkpoint is listed. progress, which may be nil, is called now and then. When Up
// fails or ctx ends, nothing stays: no process, no file.
func Up(ctx context.Context, o Options, progress func(Progress)) (*Lab, error) {
	// What can be known before anything is made.
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if progress == nil {
		progress = func(Progress) {}
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	if err := checkBinaries(o.Binaries); err != nil {
		return nil, err
	}
	if err := CheckDir(dir); err != nil {
		return nil, err
	}
	if o.TargetStore != "" {
		if o.TargetStore, err = filepath.Abs(o.TargetStore); err != nil {
			return nil, err
		}
		if err := checkEmpty(o.TargetStore); err != nil {
			return nil, fmt.Errorf("the target's store: %w", err)
		}
	}
	disks := o.plan()
	total, err := lookAtImages(disks)
	if err != nil {
		return nil, err
	}
	if !o.Overcommit {
		if err := checkSpace(dir, total); err != nil {
			return nil, err
		}
	}

	boot := bootID()
	maker, err := identify(os.Getpid())
	if err != nil {
		return nil, err
	}
	m := &manifest{
		Version: manifestVersion, ID: rand.Text(), Made: time.Now().UTC(), Boot: boot, Maker: maker,
		Group: GroupName, Link: o.link(), Binaries: o.Binaries,
	}
	if err := claim(dir, m); err != nil {
		return nil, err
	}
	lab := &Lab{dir: dir, m: m}
	if err := lab.up(ctx, &o, disks, progress); err != nil {
		_, downErr := lab.Down(context.WithoutCancel(ctx), true)
		return nil, errors.Join(err, downErr)
	}
	return lab, nil
}

// checkBinaries says whether the programs are there.
func checkBinaries(dir string) error {
	for _, name := range []string{"holdfast", "vra", "vra-filter", "vra-sidecar"} {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("%s is not in %s: build it there with: make build", name, dir)
		}
	}
	return nil
}

// up makes disks, keys and configuration, starts the supervisor and waits.
func (lab *Lab) up(ctx context.Context, o *Options, disks []planned, progress func(Progress)) error {
	m, dir := lab.m, lab.dir
	if err := m.makeRunDir(dir, memoryFirst(runPlaces(os.Getuid(), os.Getenv("XDG_RUNTIME_DIR")))); err != nil {
		return err
	}
	if err := m.makeDisks(ctx, dir, disks, progress); err != nil {
		return err
	}
	if err := m.takePorts(); err != nil {
		return err
	}
	if err := m.writeSites(dir, o); err != nil {
		return err
	}
	m.Daemons = m.daemonList(dir)
	if err := m.save(dir); err != nil {
		return err
	}
	died, err := lab.startSupervisor(o.Env)
	if err != nil {
		return err
	}
	return lab.ready(ctx, died, cmp.Or(o.errorWait, errorWait), progress, func(source, target *holdfastv1.Group) bool {
		return source.GetState() != api.StateInitialSync && target.GetCheckpoints() > 0
	})
}

// makeDisks makes the empty disks and copies the images.
func (m *manifest) makeDisks(ctx context.Context, dir string, disks []planned, progress func(Progress)) error {
	if err := m.name(dir, "disks", kindFolder); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "disks"), 0o700); err != nil {
		return err
	}
	for _, d := range disks {
		d.NBD, d.VhostUser = nbdURI(d.Name, m.runPath(diskSocket(d.Volume))), m.runPath(vhostSocket(d.Volume))
		m.Volumes = append(m.Volumes, d.Volume)
		for _, name := range []string{d.Disk, d.Disk + config.ActivitySuffix, d.Disk + config.ActivitySuffix + ".new"} {
			if err := m.name(dir, name, kindFile); err != nil {
				return err
			}
		}
		to := filepath.Join(dir, d.Disk)
		if d.image == "" {
			if err := makeDisk(to, d.Size); err != nil {
				return err
			}
			continue
		}
		p := Progress{Stage: "copying " + d.Name, Total: d.Size}
		if err := copyDisk(ctx, d.image, to, d.Size, func(n int64) { p.Done += n; progress(p) }); err != nil {
			if errors.Is(err, syscall.ENOSPC) {
				return fmt.Errorf("no space for a copy of %s in %s: make room or name another folder", d.image, dir)
			}
			return err
		}
	}
	return nil
}

// startSupervisor starts the supervisor apart from this terminal and process. died
// gives its end.
func (lab *Lab) startSupervisor(env []string) (died <-chan error, err error) {
	out, err := openLog(lab.logPath("supervisor"))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(filepath.Join(lab.m.Binaries, "holdfast"), "lab", "supervise", "--dir", lab.dir)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	// From here on the supervisor alone writes the manifest; that it runs is noted
	// here too, in case it has not come to do it.
	if lab.m.Supervisor, err = identify(cmd.Process.Pid); err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	end := make(chan error, 1)
	go func() { end <- cmd.Wait() }()
	return end, nil
}

// Waiting for a lab: how often it is looked at, how long its daemons may take to
// answer at all, how long the group may be in error (it is, until the daemons have
// found each other), and after how many deaths of one daemon it is given up.
const (
	lookEvery  = 200 * time.Millisecond
	answerWait = 30 * time.Second
	errorWait  = 10 * time.Second
	tooOften   = 4
)

// ready waits until the group is as it should be, as both its ends see it, and notes
// that the lab has come up.
func (lab *Lab) ready(ctx context.Context, died <-chan error, errorWait time.Duration, progress func(Progress), asItShould func(source, target *holdfastv1.Group) bool) error {
	source, target := api.DialUnix(lab.m.runPath(sourceSocket)), api.DialUnix(lab.m.runPath(targetSocket))
	defer source.Close()
	defer target.Close()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	silentSince, fineSince := time.Now(), time.Now()
	p := Progress{Stage: "starting"}
	progress(p)
	for {
		select {
		case <-look.C:
		case err := <-died:
			return fmt.Errorf("the lab's supervisor ended: %v: %s", err, lastLine(lab.logPath("supervisor")))
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if st, err := lab.m.ask(ctx, request{Do: "status"}); err == nil {
			for _, d := range st.Processes {
				if d.Restarts >= tooOften {
					return fmt.Errorf("%s died %d times: %s", d.Name, d.Restarts, advise(d.LastExit))
				}
			}
		}
		s, sourceErr := groupOf(ctx, source, lab.m.Group)
		t, targetErr := groupOf(ctx, target, lab.m.Group)
		if sourceErr == nil {
			silentSince = time.Now()
			if s.GetState() != api.StateError {
				fineSince = time.Now()
			} else if time.Since(fineSince) > errorWait {
				return fmt.Errorf("the group is in error: %s", advise(s.GetReason()))
			}
			if sync := s.GetSync(); sync != nil {
				p = Progress{Stage: "initial sync", Done: sync.GetDoneBytes(), Total: sync.GetTotalBytes()}
				if s.GetState() != api.StateInitialSync {
					p.Stage = "resync"
				}
			} else if p.Total > 0 {
				p = Progress{Stage: "first checkpoint"}
			}
		} else if time.Since(silentSince) > answerWait {
			return fmt.Errorf("the source vra does not answer (%w); it said last: %s", sourceErr, lastLine(lab.logPath(daemonSource)))
		}
		progress(p)
		if sourceErr == nil && targetErr == nil && asItShould(s, t) {
			_, err := lab.m.ask(ctx, request{Do: "ready"})
			return err
		}
	}
}

// groupOf asks a VRA for a group.
func groupOf(ctx context.Context, c *api.Client, name string) (*holdfastv1.Group, error) {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	res, err := c.Status.Get(ctx, &holdfastv1.StatusServiceGetRequest{Group: name})
	if err != nil {
		return nil, api.AsFailure(err)
	}
	for _, g := range res.GetGroups() {
		if g.GetName() == name {
			return g, nil
		}
	}
	return nil, fmt.Errorf("it does not know the group %s", name)
}

package scenario

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
)

// Start starts a lab that has ended, with its own disks, journal, link and names, and
// returns when its group is protected again and a checkpoint of after the start is
// listed. Of the options it uses Dir, Binaries and Env. When it fails or ctx ends, the
// lab is ended again, and nothing of it is lost.
//
// The marks went away with the runtime folder, and the disks may have been written to
// meanwhile: they are synced whole.
func Start(ctx context.Context, o Options, progress func(Progress)) (*Lab, error) {
	if progress == nil {
		progress = func(Progress) {}
	}
	if err := checkBinaries(o.Binaries); err != nil {
		return nil, err
	}
	lab, err := Open(o.Dir)
	if err != nil {
		return nil, err
	}
	unlock, err := lockFolder(lab.dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if lab, err = Open(lab.dir); err != nil { // as it is now
		return nil, err
	}
	if err := lab.m.mayStart(lab.dir); err != nil {
		return nil, err
	}
	if err := lab.start(ctx, &o, progress); err != nil {
		_, downErr := lab.Down(context.WithoutCancel(ctx), false)
		return nil, errors.Join(err, downErr, noMaker(lab.dir))
	}
	return lab, nil
}

// noMaker notes that nobody brings the lab up any more.
func noMaker(dir string) error {
	m, err := loadManifest(dir)
	if err != nil {
		return err
	}
	m.Maker = process{}
	return m.save(dir)
}

// lockFolder keeps a second Start out.
func lockFolder(dir string) (unlock func() error, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		f.Close()
		return nil, fmt.Errorf("the lab in %s is being started by another command", dir)
	}
	return f.Close, nil
}

// mayStart says why a lab cannot be started.
func (m *manifest) mayStart(dir string) error {
	switch {
	case m.Maker.alive(m.Boot):
		return fmt.Errorf("the lab in %s is being started by process %d", dir, m.Maker.PID)
	case m.Supervisor.alive(m.Boot):
		return fmt.Errorf("the lab in %s runs already: see it with: %s", dir, Command("lab", "status", "--dir", dir))
	case m.anyAlive():
		return fmt.Errorf("daemons of the lab in %s run without their supervisor: end them first with: %s", dir, Command("lab", "down", "--dir", dir))
	case m.RunDir == "" || len(m.Daemons) == 0:
		return fmt.Errorf("the lab in %s never came up: remove it with: %s", dir, Command("lab", "down", "--purge", "--dir", dir))
	}
	return nil
}

func (lab *Lab) start(ctx context.Context, o *Options, progress func(Progress)) error {
	m, dir := lab.m, lab.dir
	maker, err := identify(os.Getpid())
	if err != nil {
		return err
	}
	m.Boot, m.Maker, m.Supervisor, m.Binaries = bootID(), maker, process{}, o.Binaries
	m.Daemons = m.daemonList(dir)
	if err := m.save(dir); err != nil {
		return err
	}
	if err := m.remakeRunDir(); err != nil {
		return err
	}
	if err := m.keepPorts(dir); err != nil {
		return err
	}
	began := time.Now()
	died, err := lab.startSupervisor(o.Env)
	if err != nil {
		return err
	}
	return lab.ready(ctx, died, cmp.Or(o.errorWait, errorWait), progress, func(source, target *holdfastv1.Group) bool {
		state := source.GetState()
		return (state == api.StateProtected || state == api.StateBehind) && api.Time(target.GetNewest().GetTime()).After(began)
	})
}

// remakeRunDir makes the runtime folder anew where it was: the names of the disks
// point there. One that was left is of dead processes.
func (m *manifest) remakeRunDir() error {
	if err := m.removeRunDir(); err != nil {
		return err
	}
	if err := os.Mkdir(m.RunDir, 0o700); err != nil {
		return fmt.Errorf("the lab's runtime folder cannot be made again, and the names of its disks point there: %w", err)
	}
	if err := os.WriteFile(filepath.Join(m.RunDir, markerName), []byte(m.ID), 0o600); err != nil {
		return err
	}
	return m.makeSiteRunDirs()
}

// keepPorts takes other ports where somebody has taken one of ours meanwhile.
func (m *manifest) keepPorts(dir string) error {
	free := true
	for _, port := range m.Ports {
		l, err := net.Listen("tcp", loopback(port))
		if err != nil {
			free = false
			continue
		}
		l.Close()
	}
	if free {
		return nil
	}
	if err := m.takePorts(); err != nil {
		return err
	}
	source, err := config.LoadVRA(filepath.Join(dir, fileSource))
	if err != nil {
		return err
	}
	target, err := config.LoadVRA(filepath.Join(dir, fileTarget))
	if err != nil {
		return err
	}
	context, err := config.LoadContext(filepath.Join(dir, contextName))
	if err != nil {
		return err
	}
	if source.Source == nil || len(source.Source.Groups) != 1 || target.Target == nil {
		return fmt.Errorf("%s and %s are not as the lab made them", fileSource, fileTarget)
	}
	context.Ports = m.Ports
	source.Source.Groups[0].Target = m.linkEnds()
	target.Target.ListenControl, target.Target.ListenData = loopback(m.Ports[portTargetControl]), loopback(m.Ports[portTargetData])
	files := map[string]any{fileSource: source, fileTarget: target, contextName: context}
	if _, err := os.Stat(filepath.Join(dir, remoteName)); err == nil { // else it has no sidecars
		remote := *context
		remote.VRAs = m.remote(dir)
		files[remoteName], files[fileSourceSidecar], files[fileTargetSidecar] = &remote, m.sidecar(dir, sourceSite), m.sidecar(dir, targetSite)
	}
	for file, c := range files {
		text, err := config.Marshal(c)
		if err != nil {
			return err
		}
		if err := replaceFile(filepath.Join(dir, file), text); err != nil {
			return err
		}
	}
	return m.save(dir)
}

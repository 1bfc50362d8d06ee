package kvm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Local runs machines as plain QEMU processes of this host, each in a folder of its own:
//
//	NAME/machine.json  its definition
//	NAME/pid           locked by QEMU while it is there: so it is known, also by another process, whether it runs
//	NAME/qmp           its monitor
//	NAME/serial        all that it said
//	NAME/vars.fd       what UEFI keeps
//
// QEMU is no child of whoever started it, and runs on when that ends. A machine has the disks and
// networks of its definition, and nothing that QEMU adds by itself.
type Local struct {
	dir  string
	qemu string
	kvm  bool
}

// Names in a machine's folder.
const (
	definitionName = "machine.json"
	pidName        = "pid"
	monitorName    = "qmp"
	serialName     = "serial"
	varsName       = "vars.fd"
	pictureName    = "screen.png"
)

// DefaultQEMU is the program that machines run in.
const DefaultQEMU = "qemu-system-x86_64"

// NewLocal makes a driver that keeps its machines in dir, which it makes when it is needed.
func NewLocal(dir, qemu string) (*Local, error) {
	dir, err := filepath.Abs(dir)
	return &Local{dir: dir, qemu: qemu, kvm: lendsProcessor()}, err
}

// lendsProcessor says whether guests can run on the processor itself. A /dev/kvm that opens does not say so.
func lendsProcessor() bool {
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !bytes.Contains(cpu, []byte(" vmx ")) && !bytes.Contains(cpu, []byte(" svm ")) {
		return false
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	return err == nil && f.Close() == nil
}

func (l *Local) folder(name string) (string, error) {
	if name == "" || name != filepath.Base(name) || !filepath.IsLocal(name) {
		return "", fmt.Errorf("%q is no name of a machine", name)
	}
	return filepath.Join(l.dir, name), nil
}

var _ hypervisor.Hypervisor = (*Local)(nil)

// Check says what is wrong with a definition.
func (l *Local) Check(m hypervisor.Machine) error {
	m.Disks = nil
	_, ferr := l.folder(m.Name)
	_, err := l.arguments(m)
	return errors.Join(ferr, err)
}

// Shares: each QEMU of today can, with memory that the driver gives it.
func (l *Local) Shares(context.Context) error { return nil }

// Define writes the definition down, after all of it was found to be possible.
func (l *Local) Define(_ context.Context, m hypervisor.Machine) error {
	dir, err := l.folder(m.Name)
	if err != nil {
		return err
	}
	if _, err := l.arguments(m); err != nil {
		return fmt.Errorf("machine %s: %w", m.Name, err)
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	have, err := os.ReadFile(filepath.Join(dir, definitionName))
	if err == nil && bytes.Equal(have, text) {
		return nil
	}
	if pid, err := holder(dir); err == nil && pid > 0 {
		return fmt.Errorf("machine %s runs, with another definition", m.Name)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return WriteFile(filepath.Join(dir, definitionName), text)
}

// WriteFile makes a file appear whole or not at all, and stay; its owner alone reads it.
func WriteFile(path string, text []byte) error { return WriteFileFor(path, text, 0o600) }

// WriteFileFor is WriteFile with the permissions with which the file appears.
func WriteFileFor(path string, text []byte, mode os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(text)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (l *Local) definition(name string) (dir string, m hypervisor.Machine, err error) {
	if dir, err = l.folder(name); err != nil {
		return dir, m, err
	}
	text, err := os.ReadFile(filepath.Join(dir, definitionName))
	if errors.Is(err, fs.ErrNotExist) {
		return dir, m, fmt.Errorf("machine %s: %w", name, hypervisor.ErrAbsent)
	}
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	return dir, m, err
}

// holder is the process that has a machine's pid file locked; 0 when none has.
func holder(dir string) (pid int, err error) {
	f, err := os.OpenFile(filepath.Join(dir, pidName), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lock := syscall.Flock_t{Type: syscall.F_WRLCK}
	if err := syscall.FcntlFlock(f.Fd(), syscall.F_GETLK, &lock); err != nil {
		return 0, fmt.Errorf("%s: %w", f.Name(), err)
	}
	if lock.Type == syscall.F_UNLCK {
		return 0, nil
	}
	if lock.Pid <= 0 { // it is in another namespace, or the lock is of no process
		return 0, fmt.Errorf("%s is locked by a process that cannot be told (pid %d)", f.Name(), lock.Pid)
	}
	return int(lock.Pid), nil
}

// monitor connects to a machine's monitor. The way through the open folder is short, however
// deep that lies: the path of a socket holds 107 bytes.
func monitor(ctx context.Context, dir string) (*Monitor, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return Dial(ctx, fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), monitorName))
}

// look is how often something is looked at that nobody tells of.
const look = 20 * time.Millisecond

// Start runs QEMU, paused, and lets the guest go once its monitor answers. A QEMU that another
// call began to start is gone on with.
func (l *Local) Start(ctx context.Context, name string) error {
	return l.unserved(name, l.start(ctx, name))
}

func (l *Local) start(ctx context.Context, name string) error {
	dir, m, err := l.definition(name)
	if err != nil {
		return err
	}
	pid, err := holder(dir)
	if err != nil {
		return err
	}
	if pid == 0 {
		if err := l.launch(ctx, dir, m); err != nil {
			return fmt.Errorf("machine %s: %w", name, err)
		}
	}
	mon, err := l.awaitMonitor(ctx, dir)
	if err != nil {
		return fmt.Errorf("machine %s: %w", name, err)
	}
	defer mon.Close()
	status, err := statusOf(ctx, mon)
	if err != nil || status == "running" {
		return err
	}
	if err := mon.Do(ctx, Command{Execute: "cont"}, nil); err != nil {
		return err
	}
	if status, err = statusOf(ctx, mon); err == nil && status != "running" {
		err = fmt.Errorf("machine %s does not run: it is %s", name, status)
	}
	return err
}

// unserved adds to why a machine did not start which of its disks nobody serves over vhost-user: QEMU waits for that, and says nothing.
func (l *Local) unserved(name string, why error) error {
	_, m, err := l.definition(name)
	if why == nil || err != nil || invariant.Planted("kvm/unserved-unsaid") {
		return why
	}
	for _, d := range m.Disks {
		if !overVhost(d) {
			continue
		}
		c, err := net.DialTimeout("unix", d.VhostUser, time.Second)
		if err == nil {
			c.Close()
		} else if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			why = fmt.Errorf("%w: nobody serves disk %s at %s (is vra up?)", why, d.Volume, d.VhostUser)
		}
	}
	return why
}

// launch runs QEMU, which goes into the background once its monitor listens.
func (l *Local) launch(ctx context.Context, dir string, m hypervisor.Machine) error {
	args, err := l.arguments(m)
	if err != nil {
		return err
	}
	if m.Firmware == hypervisor.UEFI {
		if err := keepVars(dir); err != nil {
			return err
		}
	}
	c := exec.CommandContext(ctx, l.qemu, args...)
	c.Dir = dir
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is for us
	said, err := os.OpenFile(filepath.Join(dir, "qemu.log"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer said.Close()
	c.Stdout, c.Stderr = said, said // a file: QEMU keeps it while it runs
	err = c.Run()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil && !invariant.Planted("kvm/hangs-on") {
		return errors.Join(ctx.Err(), giveUp(ctx, dir))
	}
	if pid, herr := holder(dir); herr == nil && pid > 0 {
		return nil // another call was quicker
	}
	text, rerr := os.ReadFile(said.Name())
	if text = bytes.TrimSpace(text); rerr == nil && len(text) > 0 {
		return fmt.Errorf("QEMU does not start: %s", text)
	}
	return fmt.Errorf("QEMU does not start: %w", err)
}

// giveUp ends a QEMU that was not ready in time, as where nobody serves its disks: its guest has run nothing, and nobody could ask it whether that is so.
// One that answers stays.
func giveUp(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	pid, err := holder(dir)
	if err != nil || pid == 0 {
		return err
	}
	if mon, err := monitor(ctx, dir); err == nil {
		return mon.Close()
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("end process %d: %w", pid, err)
	}
	return nil
}

// awaitMonitor connects once QEMU listens, which is when it holds the pid file and a moment more.
func (l *Local) awaitMonitor(ctx context.Context, dir string) (*Monitor, error) {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		mon, err := monitor(ctx, dir)
		if err == nil {
			return mon, nil
		}
		if pid, herr := holder(dir); herr != nil || pid == 0 {
			return nil, errors.Join(err, herr)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		}
	}
}

func statusOf(ctx context.Context, mon *Monitor) (string, error) {
	var s struct{ Status string }
	err := mon.Do(ctx, Command{Execute: "query-status"}, &s)
	return s.Status, err
}

// State asks QEMU, where there is one.
func (l *Local) State(ctx context.Context, name string) (hypervisor.State, error) {
	dir, _, err := l.definition(name)
	if errors.Is(err, hypervisor.ErrAbsent) {
		return hypervisor.Absent, nil
	}
	if err != nil {
		return "", err
	}
	pid, err := holder(dir)
	if err != nil || pid == 0 {
		return hypervisor.Off, err
	}
	mon, err := l.awaitMonitor(ctx, dir)
	if err != nil {
		if pid, herr := holder(dir); herr == nil && pid == 0 {
			return hypervisor.Off, nil // it ended meanwhile
		}
		return "", err
	}
	defer mon.Close()
	status, err := statusOf(ctx, mon)
	if err != nil {
		if pid, herr := holder(dir); herr == nil && pid == 0 {
			return hypervisor.Off, nil
		}
		return "", err
	}
	if status == "running" {
		return hypervisor.Running, nil
	}
	return hypervisor.Paused, nil
}

// Stop presses the power button and waits, or ends QEMU.
func (l *Local) Stop(ctx context.Context, name string, how hypervisor.How) error {
	dir, _, err := l.definition(name)
	if errors.Is(err, hypervisor.ErrAbsent) {
		return nil
	}
	if err != nil {
		return err
	}
	pid, err := holder(dir)
	if err != nil || pid == 0 {
		return err
	}
	if how == hypervisor.Gracefully {
		if err := press(ctx, dir); err != nil {
			return fmt.Errorf("machine %s: %w", name, err)
		}
	} else if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("machine %s: end process %d: %w", name, pid, err)
	}
	if invariant.Planted("kvm/stopped-at-once") {
		return nil
	}
	return l.gone(ctx, dir, name)
}

// press presses the power button. A guest that is paused could not hear it.
func press(ctx context.Context, dir string) error {
	mon, err := monitor(ctx, dir)
	if err != nil {
		return err
	}
	defer mon.Close()
	return PowerDown(ctx, mon)
}

// PowerDown asks the guest of a monitor to shut down.
func PowerDown(ctx context.Context, mon *Monitor) error {
	status, err := statusOf(ctx, mon)
	if err != nil {
		return err
	}
	if status != "running" {
		return fmt.Errorf("the guest is %s, and would not hear that it is to stop", status)
	}
	return mon.Do(ctx, Command{Execute: "system_powerdown"}, nil)
}

// ErrLost says that a monitor was lost while nobody had said that its guest is off: it may run.
var ErrLost = errors.New("the monitor was lost before the guest was off")

// Ended waits until the guest of a monitor is off: QEMU said that it ends, and did, or stands there shut
// down. ErrLost.
func Ended(ctx context.Context, mon *Monitor) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		status, err := statusOf(ctx, mon)
		if ctx.Err() != nil {
			return fmt.Errorf("the guest is not off: %w", ctx.Err())
		}
		if status == "shutdown" || mon.dead != nil && mon.ending {
			return nil // QEMU closes its disks before its monitor
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrLost, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// gone waits until QEMU has ended.
func (l *Local) gone(ctx context.Context, dir, name string) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		pid, err := holder(dir)
		if err != nil || pid == 0 {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("machine %s is not off: %w", name, ctx.Err())
		}
	}
}

// Screenshot has QEMU write what the machine's screen shows.
func (l *Local) Screenshot(ctx context.Context, name string) ([]byte, error) {
	dir, _, err := l.definition(name)
	if err != nil {
		return nil, err
	}
	mon, err := monitor(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("machine %s has no screen: %w", name, err)
	}
	defer mon.Close()
	if mon.Version[0] < 7 || mon.Version[0] == 7 && mon.Version[1] < 1 {
		return nil, fmt.Errorf("QEMU %d.%d takes no pictures as PNG: 7.1 and later do", mon.Version[0], mon.Version[1])
	}
	path := filepath.Join(dir, pictureName)
	defer os.Remove(path)
	if err := mon.Do(ctx, Command{Execute: "screendump", Arguments: map[string]any{"filename": path, "format": "png"}}, nil); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

// maxSerial is what Serial returns at once.
const maxSerial = 1 << 20

// Serial reads what QEMU wrote down, at most 1 MiB at once.
func (l *Local) Serial(_ context.Context, name string, off int64) ([]byte, error) {
	dir, _, err := l.definition(name)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(dir, serialName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.NewSectionReader(f, off, maxSerial))
}

// Undefine removes the machine's folder.
func (l *Local) Undefine(_ context.Context, name string) error {
	dir, err := l.folder(name)
	if err != nil {
		return err
	}
	if pid, err := holder(dir); err != nil || pid > 0 {
		return errors.Join(err, fmt.Errorf("machine %s is not off", name))
	}
	return os.RemoveAll(dir)
}

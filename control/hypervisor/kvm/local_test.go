package kvm

import (
	"bytes"
	"context"
	"errors"
	"image/png"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm/kvmtest"
)

// served has a disk with the boot sector served over NBD, as a view is.
func served(t *testing.T) hypervisor.Disk {
	t.Helper()
	for _, name := range []string{DefaultQEMU, "qemu-nbd"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip(name + " is not there; install it: apt-get install qemu-system-x86 qemu-utils")
		}
	}
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	disk, socket := filepath.Join(dir, "disk"), filepath.Join(dir, "nbd")
	if err := os.WriteFile(disk, append(bytes.Clone(kvmtest.BootSector), make([]byte, 1<<20-512)...), 0o600); err != nil {
		t.Fatal(err)
	}
	listening(t, socket).serves(t, "qemu-nbd", "--persistent", "-x", "data", "--image-opts", "driver=raw,file.driver=file,file.locking=off,file.filename="+disk)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return hypervisor.Disk{Volume: "data", NBD: "nbd+unix:///data?socket=" + socket}
}

// socket is one at which somebody listens from the beginning, whoever serves there, and between two who do: nobody has to wait for it.
type socket struct{ *os.File }

func listening(t *testing.T, path string) socket {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err := errors.Join(err, l.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return socket{f}
}

// serves runs a program that finds the socket as file 3, as service managers give it, until the test ends or by kill.
func (s socket) serves(t *testing.T, argv ...string) (kill func()) {
	t.Helper()
	c := exec.Command("sh", append([]string{"-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"`, "sh"}, argv...)...)
	c.ExtraFiles, c.Stderr = []*os.File{s.File}, t.Output()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() { c.Process.Kill(); c.Wait() })
	t.Cleanup(kill)
	return kill
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	late := time.NewTimer(30 * time.Second)
	defer late.Stop()
	tick := time.NewTicker(look)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-late.C:
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// TestLocal takes a real machine through its life, each call twice, and by two drivers that know
// nothing of one another: whoever comes after a kill carries on.
func TestLocal(t *testing.T) {
	disk := served(t)
	// Deeper than a socket's path can be.
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep/", 30))
	drivers := make([]*Local, 2)
	for i := range drivers {
		var err error
		if drivers[i], err = NewLocal(dir, DefaultQEMU); err != nil {
			t.Fatal(err)
		}
	}
	m := hypervisor.Machine{Name: "web1", MemoryBytes: 32 << 20, CPUs: 1, Firmware: hypervisor.BIOS, Disks: []hypervisor.Disk{disk}, Networks: []hypervisor.Network{{MAC: "52:54:00:00:00:01"}}}
	ctx := t.Context()
	each := func(what string, do func(l *Local) error) {
		t.Helper()
		for _, l := range drivers {
			if err := do(l); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
	state := func(want hypervisor.State) {
		t.Helper()
		each("state", func(l *Local) error {
			got, err := l.State(ctx, "web1")
			if err == nil && got != want {
				t.Errorf("it is %s, want %s", got, want)
			}
			return err
		})
	}
	start := func(l *Local) error { return l.Start(ctx, "web1") }
	stop := func(how hypervisor.How) func(l *Local) error {
		return func(l *Local) error { return l.Stop(ctx, "web1", how) }
	}
	state(hypervisor.Absent)
	each("stop what is not there", stop(hypervisor.ByForce))
	if err := start(drivers[0]); !errors.Is(err, hypervisor.ErrAbsent) {
		t.Errorf("started what is not there: %v", err)
	}
	each("define", func(l *Local) error { return l.Define(ctx, m) })
	state(hypervisor.Off)
	if p, err := drivers[0].Serial(ctx, "web1", 0); err != nil || p != nil {
		t.Errorf("before it was started it said %q, %v", p, err)
	}
	t.Cleanup(func() { drivers[0].Stop(context.Background(), "web1", hypervisor.ByForce) })
	each("start", start)
	state(hypervisor.Running)
	said := func() string { p, _ := drivers[1].Serial(ctx, "web1", 0); return string(p) }
	until(t, "the guest says HELLO", func() bool { return said() == "HELLO\n" })
	if p, err := drivers[0].Serial(ctx, "web1", 3); err != nil || string(p) != "LO\n" {
		t.Errorf("from 3 on it said %q, %v", p, err)
	}
	shot, err := drivers[0].Screenshot(ctx, "web1")
	if err != nil {
		t.Fatal(err)
	}
	if picture, err := png.Decode(bytes.NewReader(shot)); err != nil || picture.Bounds().Dx() < 320 {
		t.Errorf("a picture of %d bytes: %v", len(shot), err)
	}
	other := m
	other.CPUs = 2
	if err := drivers[0].Define(ctx, other); err == nil || !strings.Contains(err.Error(), "another definition") {
		t.Errorf("defined anew while it runs: %v", err)
	}
	if err := drivers[0].Undefine(ctx, "web1"); err == nil || !strings.Contains(err.Error(), "not off") {
		t.Errorf("undefined while it runs: %v", err)
	}
	mon, err := monitor(ctx, filepath.Join(dir, "web1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := mon.Do(ctx, Command{Execute: "stop"}, nil); err != nil {
		t.Fatal(err)
	}
	mon.Close()
	state(hypervisor.Paused)
	if err := drivers[0].Stop(ctx, "web1", hypervisor.Gracefully); err == nil || !strings.Contains(err.Error(), "would not hear") {
		t.Errorf("stopped gracefully while paused: %v", err)
	}
	each("start what is paused", start)
	state(hypervisor.Running)
	each("stop gracefully", stop(hypervisor.Gracefully))
	if pid, err := holder(filepath.Join(dir, "web1")); err != nil || pid != 0 {
		t.Errorf("process %d is there still, %v", pid, err)
	}
	state(hypervisor.Off)
	if _, err := drivers[0].Screenshot(ctx, "web1"); err == nil {
		t.Error("a picture of a machine that is off")
	}
	each("start again", start)
	until(t, "the guest says HELLO again", func() bool { return said() == "HELLO\nHELLO\n" })
	each("stop by force", stop(hypervisor.ByForce))
	if pid, err := holder(filepath.Join(dir, "web1")); err != nil || pid != 0 {
		t.Errorf("process %d is there still, %v", pid, err)
	}
	state(hypervisor.Off)
	each("undefine", func(l *Local) error { return l.Undefine(ctx, "web1") })
	state(hypervisor.Absent)
}

// TestUEFI starts a machine with UEFI, which says itself what it boots, and keeps variables of the machine's own.
func TestUEFI(t *testing.T) {
	_, empty, err := uefi()
	if err != nil {
		t.Skip(err)
	}
	disk := served(t)
	l, err := NewLocal(t.TempDir(), DefaultQEMU)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	err = l.Define(ctx, hypervisor.Machine{Name: "web1", MemoryBytes: 128 << 20, CPUs: 1, Firmware: hypervisor.UEFI, Disks: []hypervisor.Disk{disk}})
	if err == nil {
		t.Cleanup(func() { l.Stop(context.Background(), "web1", hypervisor.ByForce) })
		err = l.Start(ctx, "web1")
	}
	if err != nil {
		t.Fatal(err)
	}
	until(t, "UEFI boots", func() bool {
		p, err := l.Serial(ctx, "web1", 0)
		return err == nil && bytes.Contains(p, []byte("BdsDxe"))
	})
	if err := l.Stop(ctx, "web1", hypervisor.ByForce); err != nil {
		t.Fatal(err)
	}
	vars := func(path string) []byte {
		t.Helper()
		p, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	dir := filepath.Join(l.dir, "web1")
	kept := vars(filepath.Join(dir, varsName))
	if bytes.Equal(kept, vars(empty)) {
		t.Error("UEFI has kept nothing")
	}
	if err := keepVars(dir); err != nil || !bytes.Equal(kept, vars(filepath.Join(dir, varsName))) {
		t.Errorf("at the next start what it kept is gone: %v", err)
	}
}

// TestLocalRefuses: what cannot be started is told with QEMU's own words, or before it is asked.
func TestLocalRefuses(t *testing.T) {
	disk := served(t)
	good := hypervisor.Machine{Name: "web1", MemoryBytes: 32 << 20, CPUs: 1, Disks: []hypervisor.Disk{disk}}
	ctx := t.Context()
	f := func(defined bool, want string, change func(*hypervisor.Machine, *Local)) {
		t.Helper()
		l, err := NewLocal(t.TempDir(), DefaultQEMU)
		if err != nil {
			t.Fatal(err)
		}
		m := good
		change(&m, l)
		if err := l.Check(m); (err == nil) != (defined || strings.Contains(want, "NBD")) {
			t.Errorf("check: %v", err)
		}
		err = l.Define(ctx, m)
		if (err == nil) != defined {
			t.Errorf("define: %v", err)
			return
		}
		if err == nil {
			err = l.Start(ctx, m.Name)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if err := l.Stop(ctx, "web1", hypervisor.ByForce); err != nil {
			t.Error(err)
		}
	}
	f(true, "QEMU does not start", func(_ *hypervisor.Machine, l *Local) { l.qemu = "/nowhere/qemu" })
	f(true, "could not open kernel file", func(m *hypervisor.Machine, _ *Local) { m.Kernel = "/nowhere/kernel" })
	f(true, "export", func(m *hypervisor.Machine, _ *Local) {
		m.Disks = []hypervisor.Disk{{Volume: "other", NBD: strings.Replace(disk.NBD, "data?", "other?", 1)}}
	})
	f(false, "is no name", func(m *hypervisor.Machine, _ *Local) { m.Name = "../web1" })
	f(false, "whole MiB", func(m *hypervisor.Machine, _ *Local) { m.MemoryBytes++ })
	f(false, "0 processors", func(m *hypervisor.Machine, _ *Local) { m.CPUs = 0 })
	f(false, "without a kernel", func(m *hypervisor.Machine, _ *Local) { m.Cmdline = "quiet" })
	f(false, "no NBD export", func(m *hypervisor.Machine, _ *Local) { m.Disks = []hypervisor.Disk{{Volume: "d", NBD: "/dev/sda"}} })
	f(false, "forward", func(m *hypervisor.Machine, _ *Local) { m.Networks = []hypervisor.Network{{Forward: []string{"80"}}} })
	f(false, "isolated network only", func(m *hypervisor.Machine, _ *Local) {
		m.Networks = []hypervisor.Network{{Bridge: "br0", Forward: []string{"127.0.0.1:1=:2"}}}
	})
	f(false, "network 0", func(m *hypervisor.Machine, _ *Local) { m.Networks = []hypervisor.Network{{MAC: "x"}} })
	f(false, "is not allowed", func(m *hypervisor.Machine, _ *Local) { m.Extra = []string{"-drive", "file=/etc/passwd"} })
	f(false, "names a file", func(m *hypervisor.Machine, _ *Local) { m.Extra = []string{"-smbios", "file=/etc/passwd"} })
	f(false, "names a file", func(m *hypervisor.Machine, _ *Local) { m.Extra = []string{"-machine", "pc,firmware=x"} })
	f(false, "no word behind", func(m *hypervisor.Machine, _ *Local) { m.Extra = []string{"-cpu"} })
}

// TestArguments: a machine has what its definition names and nothing else.
func TestArguments(t *testing.T) {
	l := &Local{kvm: true}
	disk := hypervisor.Disk{Volume: "a-volume-with-a-long-name", NBD: "nbd+unix:///data?socket=/run/v1/data.nbd"}
	f := func(m hypervisor.Machine, want, not string) {
		t.Helper()
		m.Name, m.MemoryBytes, m.CPUs = "web1", 64<<20, 2
		args, err := l.arguments(m)
		if err != nil {
			t.Fatal(err)
		}
		line := strings.Join(args, " ")
		for _, w := range strings.Split(want, "|") {
			if !strings.Contains(line, w) {
				t.Errorf("no %q in %s", w, line)
			}
		}
		if not != "" && strings.Contains(line, not) {
			t.Errorf("%q in %s", not, line)
		}
	}
	f(hypervisor.Machine{}, "-name web1 -no-user-config -nodefaults|-m 64 -smp 2|-accel kvm -cpu max|-nic none|-daemonize -S", "-netdev")
	f(hypervisor.Machine{Networks: []hypervisor.Network{{}}}, "-netdev user,id=net0,restrict=on -device virtio-net-pci,netdev=net0,romfile=", "-nic")
	f(hypervisor.Machine{Networks: []hypervisor.Network{{Forward: []string{"127.0.0.1:2222=10.0.2.15:22"}, MAC: "52:54:00:00:00:01"}}},
		"restrict=on,hostfwd=tcp:127.0.0.1:2222-10.0.2.15:22|,mac=52:54:00:00:00:01", "")
	f(hypervisor.Machine{Networks: []hypervisor.Network{{Bridge: "br0"}}}, "-netdev bridge,id=net0,br=br0", "-netdev user")
	f(hypervisor.Machine{Disks: []hypervisor.Disk{disk}}, `"export":"data"|"reconnect-delay":3600|"path":"/run/v1/data.nbd"|"serial":"a-volume-with-a-long"`, "")
	vhost := hypervisor.Disk{Volume: "data", VhostUser: "/run/v1-1,2"}
	f(hypervisor.Machine{VhostUser: true, Disks: []hypervisor.Disk{vhost}}, "-object memory-backend-memfd,id=shared,share=on,size=67108864 -machine memory-backend=shared|"+
		`-chardev socket,id=disk0,path=/run/v1-1,,2,reconnect=1 -device {"bootindex":1,"chardev":"disk0","driver":"vhost-user-blk-pci","id":"vd0"`, "-blockdev")
	if _, err := l.arguments(hypervisor.Machine{Name: "web1", MemoryBytes: 64 << 20, CPUs: 1, Disks: []hypervisor.Disk{vhost}}); err == nil || !strings.Contains(err.Error(), "does not share its memory") {
		t.Errorf("a machine that does not share its memory: %v", err)
	}
	f(hypervisor.Machine{Extra: []string{"-cpu", "qemu64", "-accel", "tcg", "-vga", "none"}}, "-cpu qemu64 -accel tcg -vga none", "kvm")
	f(hypervisor.Machine{Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd", Cmdline: "quiet"}, "-kernel /boot/vmlinuz -initrd /boot/initrd -append quiet", "")
}

// TestHolderUnknown: a lock whose process the kernel does not tell is no process that may be killed.
func TestHolderUnknown(t *testing.T) {
	const ofdSetLock = 37 // F_OFD_SETLK: such a lock is of no process, and shows as pid -1
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, pidName))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.FcntlFlock(f.Fd(), ofdSetLock, &syscall.Flock_t{Type: syscall.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
	if pid, err := holder(dir); err == nil || pid != 0 {
		t.Errorf("process %d, %v", pid, err)
	}
}

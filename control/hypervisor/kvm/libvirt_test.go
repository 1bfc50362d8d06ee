package kvm

import (
	"bytes"
	"context"
	"errors"
	raster "image"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm/kvmtest"
)

// aLibvirt starts a libvirtd of the test's own, and returns a driver that keeps its files in a folder beside.
func aLibvirt(t *testing.T) *Libvirt {
	t.Helper()
	where := kvmtest.Libvirtd(t)
	l, err := NewLibvirt(where.Socket, where.URI, filepath.Join(t.TempDir(), "machines"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestLibvirt holds the driver to a real libvirtd, with real machines.
func TestLibvirt(t *testing.T) {
	l := aLibvirt(t)
	t.Run("life", func(t *testing.T) { domainLife(t, l) })
	t.Run("over vhost-user", func(t *testing.T) { domainOverVhost(t, l) })
	t.Run("limits", func(t *testing.T) { domainLimits(t, l) })
	t.Run("of others", func(t *testing.T) { domainEnds(t, l) })
}

// domainEnds turns domains of somebody else's off, and is told what says nothing of a guest.
func domainEnds(t *testing.T, l *Libvirt) {
	where := config.Hypervisor{URI: l.uri, Socket: l.socket}
	ctx := t.Context()
	disk := served(t)
	args, err := diskArguments(0, disk)
	if err != nil {
		t.Fatal(err)
	}
	serial := filepath.Join(t.TempDir(), "serial")
	described := "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>theirs</name><memory>32768</memory><os><type>hvm</type></os>" +
		"<features><acpi/></features><devices><serial type='file'><source path='" + serial + "'/></serial></devices><qemu:commandline>"
	for _, a := range args {
		described += "<qemu:arg value='" + a + "'/>"
	}
	described += "</qemu:commandline></domain>"
	for _, how := range []hypervisor.How{hypervisor.Gracefully, hypervisor.ByForce} {
		os.Remove(serial)
		name := "theirs-" + string(how)
		runs := kvmtest.Domain(t, where, strings.Replace(described, "theirs", name, 1))
		until(t, "the guest says HELLO", func() bool { p, _ := os.ReadFile(serial); return string(p) == "HELLO\n" })
		if off, err := MayEndDomain(ctx, where, name, how); err != nil || off == runs() {
			t.Errorf("it may be ended: %v; it runs: %v", err, runs())
		}
		for _, before := range []bool{false, true} { // it may be asked again
			if was, err := EndDomain(ctx, where, name, how); err != nil || runs() || was != before {
				t.Errorf("%s: it runs: %v, was off: %v, %v", how, runs(), was, err)
			}
		}
	}
	f := func(name, want string) {
		t.Helper()
		if _, err := EndDomain(ctx, where, name, hypervisor.Gracefully); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s was ended: %v; want %q", name, err, want)
		}
		if _, err := MayEndDomain(ctx, where, name, hypervisor.Gracefully); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s may be ended: %v; want %q", name, err, want)
		}
	}
	f("nobody", "does not have it")
	transient := strings.Replace(described, "theirs", "passing", 1)
	if err := l.with(ctx, func(c *libvirt.Libvirt) error { _, err := c.DomainCreateXML(transient, 0); return err }); err != nil {
		t.Fatal(err)
	}
	f("passing", "it is transient")
	if err := l.with(ctx, func(c *libvirt.Libvirt) error {
		d, err := c.DomainLookupByName("passing")
		if err == nil {
			err = c.DomainDestroy(d)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	where.Socket = filepath.Join(t.TempDir(), "none")
	f("theirs", "no such file")
}

// TestMayEnd: what EndDomain would refuse is known before.
func TestMayEnd(t *testing.T) {
	f := func(state libvirt.DomainState, reason libvirt.DomainShutoffReason, how hypervisor.How, want string) {
		t.Helper()
		if err := mayEnd(state, reason, how); (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("state %d, reason %d, %s: %v, want %q", state, reason, how, err, want)
		}
	}
	f(libvirt.DomainRunning, 0, hypervisor.Gracefully, "")
	f(libvirt.DomainShutoff, libvirt.DomainShutoffShutdown, hypervisor.Gracefully, "")
	f(libvirt.DomainShutoff, libvirt.DomainShutoffMigrated, hypervisor.ByForce, "moved to another host")
	f(libvirt.DomainPaused, 0, hypervisor.Gracefully, "is paused")
	f(libvirt.DomainPmsuspended, 0, hypervisor.Gracefully, "is paused")
	f(libvirt.DomainPaused, 0, hypervisor.ByForce, "")
}

// TestIsOff: a domain that went to another host is not off.
func TestIsOff(t *testing.T) {
	f := func(state libvirt.DomainState, reason libvirt.DomainShutoffReason, want string) {
		t.Helper()
		if err := isOff(state, reason); (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("state %d, reason %d: %v, want %q", state, reason, err, want)
		}
	}
	f(libvirt.DomainShutoff, libvirt.DomainShutoffShutdown, "")
	f(libvirt.DomainShutoff, libvirt.DomainShutoffDestroyed, "")
	f(libvirt.DomainShutoff, libvirt.DomainShutoffMigrated, "moved to another host")
	f(libvirt.DomainRunning, 0, "started again")
}

// domainLife takes a machine through its life, each call twice, and by two drivers that know nothing of
// one another; a domain that somebody else defined is seen, and left alone.
func domainLife(t *testing.T, l *Libvirt) {
	disk := served(t)
	again := *l
	m := hypervisor.Machine{Name: "web1", MemoryBytes: 32 << 20, CPUs: 1, Firmware: hypervisor.BIOS, Disks: []hypervisor.Disk{disk},
		Networks: []hypervisor.Network{{MAC: "52:54:00:00:00:01", Forward: []string{"127.0.0.1:0=10.0.2.15:80"}}}}
	ctx := t.Context()
	each := func(what string, do func(l *Libvirt) error) {
		t.Helper()
		for _, l := range []*Libvirt{l, &again} {
			if err := do(l); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
	state := func(want hypervisor.State) {
		t.Helper()
		each("state", func(l *Libvirt) error {
			got, err := l.State(ctx, "web1")
			if err == nil && got != want {
				t.Errorf("it is %s, want %s", got, want)
			}
			return err
		})
	}
	start := func(l *Libvirt) error { return l.Start(ctx, "web1") }
	stop := func(how hypervisor.How) func(l *Libvirt) error {
		return func(l *Libvirt) error { return l.Stop(ctx, "web1", how) }
	}
	others := `<domain type='qemu'><name>web1</name><memory>32768</memory><vcpu>2</vcpu><os><type>hvm</type></os><devices>
		<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/disks/web1.qcow2'/><target dev='sda' bus='sata'/></disk>
		<disk type='file' device='cdrom'><target dev='sdb' bus='sata'/></disk>
		<interface type='user'><mac address='52:54:00:00:00:99'/></interface></devices></domain>`
	if err := l.with(ctx, func(c *libvirt.Libvirt) error { _, err := c.DomainDefineXML(others); return err }); err != nil {
		t.Fatal(err)
	}
	state(hypervisor.Absent)
	each("stop what is not there", stop(hypervisor.ByForce))
	if err := start(l); !errors.Is(err, hypervisor.ErrAbsent) {
		t.Errorf("started what is not there: %v", err)
	}
	each("define", func(l *Libvirt) error { return l.Define(ctx, m) })
	state(hypervisor.Off)
	if p, err := l.Serial(ctx, "web1", 0); err != nil || p != nil {
		t.Errorf("before it was started it said %q, %v", p, err)
	}
	t.Cleanup(func() { l.Stop(context.Background(), "web1", hypervisor.ByForce) })
	each("start", start)
	state(hypervisor.Running)
	said := func() string { p, _ := again.Serial(ctx, "web1", 0); return string(p) }
	until(t, "the guest says HELLO", func() bool { return said() == "HELLO\n" })
	shot, err := l.Screenshot(ctx, "web1")
	if err != nil {
		t.Fatal(err)
	}
	if picture, err := png.Decode(bytes.NewReader(shot)); err != nil || picture.Bounds().Dx() < 320 {
		t.Errorf("a picture of %d bytes: %v", len(shot), err)
	}
	other := m
	other.CPUs = 2
	if err := l.Define(ctx, other); err == nil || !strings.Contains(err.Error(), "another definition") {
		t.Errorf("defined anew while it runs: %v", err)
	}
	each("define what runs", func(l *Libvirt) error { return l.Define(ctx, m) })
	if err := l.Undefine(ctx, "web1"); err == nil || !strings.Contains(err.Error(), "not off") {
		t.Errorf("undefined while it runs: %v", err)
	}
	if err := l.domain(ctx, "web1", func(c *libvirt.Libvirt, d libvirt.Domain) error { return c.DomainSuspend(d) }); err != nil {
		t.Fatal(err)
	}
	state(hypervisor.Paused)
	if err := l.Stop(ctx, "web1", hypervisor.Gracefully); err == nil || !strings.Contains(err.Error(), "would not hear") {
		t.Errorf("stopped gracefully while paused: %v", err)
	}
	each("start what is paused", start)
	state(hypervisor.Running)
	each("stop gracefully", stop(hypervisor.Gracefully))
	state(hypervisor.Off)
	if _, err := l.Screenshot(ctx, "web1"); err == nil {
		t.Error("a picture of a machine that is off")
	}
	other.CPUs = 1
	other.MemoryBytes = 48 << 20
	each("define anew", func(l *Libvirt) error { return l.Define(ctx, other) })
	each("start again", start)
	until(t, "the guest says HELLO again", func() bool { return said() == "HELLO\nHELLO\n" })
	all, err := l.Inventory(ctx)
	if err != nil {
		t.Fatal(err)
	}
	checkInventory(t, all, l.uuid("web1"))
	socket, _, err := exportOf(disk)
	if err != nil {
		t.Fatal(err)
	}
	onto := hypervisor.Disk{Volume: "data", File: filepath.Join(filepath.Dir(socket), "disk"), Bytes: 1 << 20}
	setDisk := func(l *Libvirt) error { return errors.Join(l.MaySetDisk(ctx, "web1"), l.SetDisk(ctx, "web1", onto)) }
	on := func(driver string) {
		t.Helper()
		mon, err := l.monitor(ctx, "web1")
		if err != nil {
			t.Fatal(err)
		}
		g, err := Look(ctx, mon)
		if err != nil || len(g.Disks) != 1 || g.Disks[0].Root.Driver != driver || g.Disks[0].Root.Bytes != 1<<20 {
			t.Errorf("it is on %+v: %v; want %s", g.Disks, err, driver)
		}
	}
	on("nbd")
	small := onto
	small.File += ".small"
	if err := os.WriteFile(small.File, make([]byte, 1<<19), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{small.File, onto.File + ".none"} {
		if err := l.SetDisk(ctx, "web1", hypervisor.Disk{Volume: "data", File: file, Bytes: 1 << 20}); err == nil || !strings.Contains(err.Error(), "while it is off, too") {
			t.Errorf("onto %s while it runs: %v", file, err)
		}
		on("nbd")
	}
	each("onto a file while it runs", setDisk)
	on("raw")
	each("and back", func(l *Libvirt) error {
		return l.SetDisk(ctx, "web1", hypervisor.Disk{Volume: "data", NBD: disk.NBD, Bytes: 1 << 20})
	})
	on("nbd")
	each("stop it, and onto a file while it is off", func(l *Libvirt) error { return errors.Join(stop(hypervisor.ByForce)(l), setDisk(l)) })
	each("and back while it is off", func(l *Libvirt) error {
		return l.SetDisk(ctx, "web1", hypervisor.Disk{Volume: "data", NBD: disk.NBD, Bytes: 1 << 20})
	})
	each("start it there", start)
	until(t, "the guest says HELLO where it was", func() bool { return strings.Count(said(), "HELLO\n") == 3 })
	each("onto a file while it runs again", setDisk)
	if err := l.domain(ctx, "web1", func(c *libvirt.Libvirt, d libvirt.Domain) error { return c.DomainManagedSave(d, 0) }); err != nil {
		t.Fatal(err)
	}
	state(hypervisor.Off)
	if err := l.MaySetDisk(ctx, "web1"); err == nil || !strings.Contains(err.Error(), "it was saved") {
		t.Errorf("a domain that was saved with its disks: %v", err)
	}
	if err := l.domain(ctx, "web1", func(c *libvirt.Libvirt, d libvirt.Domain) error { return c.DomainManagedSaveRemove(d, 0) }); err != nil {
		t.Fatal(err)
	}
	if err := l.MaySetDisk(ctx, "web1"); err != nil {
		t.Error(err)
	}
	each("stop by force", stop(hypervisor.ByForce))
	state(hypervisor.Off)
	if err := os.Remove(socket); err != nil { // nobody serves it any more
		t.Fatal(err)
	}
	each("start on the file", start)
	until(t, "the guest says HELLO on the file", func() bool { return strings.Count(said(), "HELLO\n") == 4 })
	each("onto the file where it is", func(l *Libvirt) error { return l.SetDisk(ctx, "web1", onto) })
	each("stop it there", stop(hypervisor.ByForce))
	if err := l.SetDisk(ctx, "web1", hypervisor.Disk{Volume: "log", File: onto.File}); err == nil || !strings.Contains(err.Error(), "none of that volume") {
		t.Errorf("a disk that it has not: %v", err)
	}
	if err := l.MaySetDisk(ctx, "web2"); !errors.Is(err, hypervisor.ErrAbsent) {
		t.Errorf("a machine that is none: %v", err)
	}
	each("undefine", func(l *Libvirt) error { return l.Undefine(ctx, "web1") })
	state(hypervisor.Absent)
	if all, err = l.Inventory(ctx); err != nil || len(all) != 1 {
		t.Errorf("left: %+v, %v", all, err)
	}
}

// domainOverVhost: a domain boots from the first of two disks over vhost-user, goes on when who serves them is killed and comes back, and is said to move onto files,
// and back, without a stop: in what it is started from, unless QEMU cannot open a file or that has another size. Off, it moves too.
func domainOverVhost(t *testing.T, l *Libvirt) {
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	first, second := overMemory(t, "data", "HELLO\n"), overMemory(t, "log", "WRONG\n")
	m := hypervisor.Machine{Name: "web2", MemoryBytes: 32 << 20, CPUs: 2, Firmware: hypervisor.BIOS, VhostUser: true, Disks: []hypervisor.Disk{first.disk(), second.disk()}}
	must(l.Check(m))
	must(l.Shares(ctx))
	must(l.Define(ctx, m))
	t.Cleanup(func() { l.Stop(context.Background(), "web2", hypervisor.ByForce) })
	said := func() string { p, _ := l.Serial(ctx, "web2", 0); return string(p) }
	// comes resets the guest, which finds the disk that it boots from.
	command := func(c Command, out any) {
		t.Helper()
		mon, err := l.monitor(ctx, "web2")
		if err == nil {
			err = mon.Do(ctx, c, out)
		}
		must(err)
	}
	times := 0
	boots := func(what string, how func()) {
		t.Helper()
		times++
		how()
		until(t, what, func() bool { return said() == strings.Repeat("HELLO\n", times) })
	}
	start := func() { t.Helper(); must(l.Start(ctx, "web2")) }
	stop := func() { t.Helper(); must(l.Stop(ctx, "web2", hypervisor.ByForce)) }
	reset := func() { t.Helper(); command(Command{Execute: "system_reset"}, nil) }
	// finds says how many of its disks are over vhost-user, as it runs, and as it is started.
	finds := func(wantNow, wantThen int) {
		t.Helper()
		for _, f := range []struct {
			flags libvirt.DomainXMLFlags
			want  int
		}{{0, wantNow}, {libvirt.DomainXMLInactive, wantThen}} {
			must(l.domain(ctx, "web2", func(c *libvirt.Libvirt, d libvirt.Domain) error {
				text, err := c.DomainGetXMLDesc(d, f.flags)
				if n := strings.Count(text, "<disk type='vhostuser'"); n != f.want {
					t.Errorf("%d disks are over vhost-user, want %d: %s", n, f.want, text)
				}
				return err
			}))
		}
	}
	boots("it boots", start)
	finds(2, 2)
	if _, err := l.Screenshot(ctx, "web2"); err != nil {
		t.Error(err)
	}
	first.kill()
	first.serve(t)
	until(t, "QEMU comes back to its disk", func() bool {
		var all []struct{ Filename string }
		command(Command{Execute: "query-chardev"}, &all)
		return !slices.ContainsFunc(all, func(c struct{ Filename string }) bool { return strings.HasPrefix(c.Filename, "disconnected:") })
	})
	boots("it reads there again", reset)

	both := func(do func(d *memoryDisk) hypervisor.Disk) {
		t.Helper()
		for range 2 {
			for _, d := range []*memoryDisk{first, second} {
				must(l.MaySetDisk(ctx, "web2"))
				must(l.SetDisk(ctx, "web2", do(d)))
			}
		}
	}
	onto := func(d *memoryDisk) hypervisor.Disk {
		return hypervisor.Disk{Volume: d.volume, File: d.file, Bytes: 1 << 20}
	}
	back := func(d *memoryDisk) hypervisor.Disk {
		return hypervisor.Disk{Volume: d.volume, NBD: "nbd+unix:///" + d.volume + "?socket=/nowhere", VhostUser: d.socket, Bytes: 1 << 20}
	}
	small := filepath.Join(t.TempDir(), "small")
	must(os.WriteFile(small, make([]byte, 1<<19), 0o600))
	for file, want := range map[string]string{t.TempDir(): "open the file in QEMU", small: "see that it has the size", small + ".none": "no such file"} {
		if err := l.SetDisk(ctx, "web2", hypervisor.Disk{Volume: first.volume, File: file, Bytes: 1 << 20}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("onto %s: %v, want %q", file, err, want)
		}
	}
	finds(2, 2)
	both(onto)
	var nodes []struct{ File string }
	if command(Command{Execute: "query-named-block-nodes"}, &nodes); len(nodes) > 0 {
		t.Errorf("it has files open that were only tried: %+v", nodes)
	}
	finds(2, 0)
	boots("it goes on over vhost-user", reset)
	both(back)
	finds(2, 2)
	must(l.SetDisk(ctx, "web2", onto(first)))
	stop()
	boots("it starts with one disk of each kind, from the first", start)
	finds(1, 1)
	stop()
	both(onto)
	first.kill()
	second.kill()
	boots("it starts on files, with nobody serving", start)
	finds(0, 0)
	if err := l.SetDisk(ctx, "web2", back(first)); err == nil {
		t.Error("a disk that QEMU has itself came to where nobody serves")
	}
	finds(0, 0)
	stop()
	both(back)
	finds(2, 2)
	first.serve(t)
	second.serve(t)
	boots("it starts where it was", start)
	stop()
	must(l.Undefine(ctx, "web2"))
}

// memoryDisk is a disk of 1 MiB that is served over vhost-user.
type memoryDisk struct {
	volume, file, socket string
	at                   socket
	kill                 func()
}

// overMemory serves a disk that says so on the first serial port when it is booted from.
func overMemory(t *testing.T, volume, says string) *memoryDisk {
	t.Helper()
	if _, err := exec.LookPath("qemu-storage-daemon"); err != nil {
		t.Skip("qemu-storage-daemon is not there; install it: apt-get install qemu-system-x86")
	}
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d := &memoryDisk{volume: volume, file: filepath.Join(dir, "disk"), socket: filepath.Join(dir, "vhost")}
	if err := os.WriteFile(d.file, append(bytes.Replace(kvmtest.BootSector, []byte("HELLO\n"), []byte(says), 1), make([]byte, 1<<20-512)...), 0o600); err != nil {
		t.Fatal(err)
	}
	d.at = listening(t, d.socket)
	d.serve(t)
	return d
}

func (d *memoryDisk) serve(t *testing.T) {
	t.Helper()
	d.kill = d.at.serves(t, "qemu-storage-daemon", "--blockdev", "driver=raw,node-name=disk,file.driver=file,file.locking=off,file.filename="+d.file,
		"--export", "type=vhost-user-blk,id=disk,node-name=disk,writable=on,addr.type=fd,addr.str=3")
}

func (d *memoryDisk) disk() hypervisor.Disk {
	return hypervisor.Disk{Volume: d.volume, VhostUser: d.socket}
}

func checkInventory(t *testing.T, all []hypervisor.Found, id libvirt.UUID) {
	t.Helper()
	byName := map[string]hypervisor.Found{}
	for _, f := range all {
		byName[f.Name] = f
	}
	if want := (hypervisor.Found{Name: "web1", State: hypervisor.Off, MemoryBytes: 32 << 20, CPUs: 2, Firmware: hypervisor.BIOS,
		Disks:    []hypervisor.FoundDisk{{Name: "sda", Path: "/disks/web1.qcow2", Format: "qcow2"}},
		Networks: []hypervisor.FoundNetwork{{MAC: "52:54:00:00:00:99", Kind: "user"}}}); !reflect.DeepEqual(byName["web1"], want) {
		t.Errorf("of somebody else's is told %+v", byName["web1"])
	}
	ours := byName["web1-"+strings.ToLower(hexOf(id[:4]))]
	if len(all) != 2 || ours.State != hypervisor.Running || ours.MemoryBytes != 48<<20 {
		t.Errorf("there are %+v", all)
	}
}

func hexOf(p []byte) (s string) {
	for _, b := range p {
		s += strconv.FormatUint(uint64(b)+0x100, 16)[1:]
	}
	return s
}

// domainLimits: a guest that does not hear its power button is left to the caller when its time is over;
// what cannot be started is told, and so is a libvirt that is not there.
func domainLimits(t *testing.T, l *Libvirt) {
	disk := served(t)
	m := hypervisor.Machine{Name: "deaf", MemoryBytes: 32 << 20, CPUs: 1, Disks: []hypervisor.Disk{disk}}
	ctx := t.Context()
	if err := errors.Join(l.Define(ctx, m), l.Start(ctx, "deaf")); err != nil {
		t.Fatal(err)
	}
	defer l.Stop(context.Background(), "deaf", hypervisor.ByForce)
	// Before the boot sector has run nobody hears the button.
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := l.Stop(short, "deaf", hypervisor.Gracefully); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stopped: %v", err)
	}
	if err := l.Stop(ctx, "deaf", hypervisor.ByForce); err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(*hypervisor.Machine){
		func(m *hypervisor.Machine) { m.Disks[0].NBD = strings.Replace(disk.NBD, "data?", "other?", 1) },
		func(m *hypervisor.Machine) { m.Kernel = "/nowhere/kernel" },
	} {
		bad := m
		bad.Disks = []hypervisor.Disk{disk}
		change(&bad)
		if err := l.Define(ctx, bad); err != nil {
			t.Fatal(err)
		}
		if err := l.Start(ctx, "deaf"); err == nil {
			t.Errorf("%+v started", bad)
		}
	}
	gone, err := NewLibvirt(filepath.Join(t.TempDir(), "none"), "", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gone.State(ctx, "deaf"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a libvirt that is not there: %v", err)
	}
	if _, err := gone.Inventory(ctx); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its inventory: %v", err)
	}
	if err := l.Undefine(ctx, "deaf"); err != nil {
		t.Error(err)
	}
}

// TestDomain: a domain has what its definition names, and what cannot be had is refused.
func TestDomain(t *testing.T) {
	l := &Libvirt{dir: "/jobs/r1"}
	disk := hypervisor.Disk{Volume: "a-volume-with-a-long-name", NBD: "nbd+unix:///da%26ta?socket=/run/v1/d"}
	f := func(m hypervisor.Machine, want, not string) {
		t.Helper()
		m.Name, m.MemoryBytes, m.CPUs = "web1", 64<<20, 2
		if err := l.Check(m); err != nil {
			t.Error(err)
		}
		text, err := l.xml(m)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range strings.Split(want, "|") {
			if !strings.Contains(text, w) {
				t.Errorf("no %q in %s", w, text)
			}
		}
		if not != "" && strings.Contains(text, not) {
			t.Errorf("%q in %s", not, text)
		}
	}
	f(hypervisor.Machine{}, `<memory unit="b">67108864</memory>|<vcpu>2</vcpu>|<controller type="usb" model="none">|path="/jobs/r1/web1/serial"`, "<interface")
	f(hypervisor.Machine{Networks: []hypervisor.Network{{Forward: []string{"127.0.0.1:2222=10.0.2.15:22"}}}}, "user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:2222-10.0.2.15:22", "<interface")
	f(hypervisor.Machine{Networks: []hypervisor.Network{{Bridge: "br0", MAC: "52:54:00:00:00:01"}}}, `<interface type="bridge">|<source bridge="br0">|<mac address="52:54:00:00:00:01">`, "netdev")
	f(hypervisor.Machine{Disks: []hypervisor.Disk{disk, disk}}, `export&#34;:&#34;da\u0026ta&#34;|/run/v1/d|reconnect-delay&#34;:3600|disk1|a-volume-with-a-long&#34;|bootindex&#34;:2`, "")
	shared := hypervisor.Machine{VhostUser: true, Disks: []hypervisor.Disk{{Volume: "a", VhostUser: "/run/v1-1"}, {Volume: "b", VhostUser: "/run/v1-2"}}}
	f(shared, `<source type="memfd">|<access mode="shared">|<disk type="vhostuser" device="disk">|<source type="unix" path="/run/v1-2">|<reconnect enabled="yes" timeout="1">|<target dev="vdb" bus="virtio">|<boot order="2">`, "qemu:arg")
	isolated := []hypervisor.Network{{}, {}}
	f(hypervisor.Machine{Disks: []hypervisor.Disk{disk}, Networks: isolated}, "addr=0x1d|addr=0x1e|&#34;addr&#34;:&#34;0x1f&#34;", "memoryBacking")
	// A guest finds its disks in their order, and each at the same place however it is served.
	places := regexp.MustCompile(`(?:slot="|addr&#34;:&#34;|addr=)(0x\w+)`)
	for _, m := range []hypervisor.Machine{{Disks: []hypervisor.Disk{disk, disk}, Networks: isolated}, {VhostUser: true, Disks: []hypervisor.Disk{shared.Disks[0], disk}, Networks: isolated},
		{VhostUser: true, Disks: shared.Disks, Networks: isolated}} {
		m.Name, m.MemoryBytes, m.CPUs = "web1", 64<<20, 2
		text, err := l.xml(m)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, found := range places.FindAllStringSubmatch(text, -1) {
			got = append(got, found[1])
		}
		if want := []string{"0x1e", "0x1f", "0x1c", "0x1d"}; !slices.Equal(got, want) {
			t.Errorf("places %v, want %v", got, want)
		}
	}
	if _, err := l.xml(hypervisor.Machine{Name: "x", MemoryBytes: 1 << 20, CPUs: 1, Disks: slices.Repeat([]hypervisor.Disk{disk}, 25)}); err == nil {
		t.Error("25 disks find their places")
	}
	f(hypervisor.Machine{Kernel: "/boot/k", Initrd: "/boot/i", Cmdline: "a < b"}, "<kernel>/boot/k</kernel>|<cmdline>a &lt; b</cmdline>", "")
	f(hypervisor.Machine{Firmware: hypervisor.UEFI}, `<os firmware="efi">`, "")
	for _, m := range []hypervisor.Machine{{Name: "../x", MemoryBytes: 1 << 20, CPUs: 1}, {Name: "x", MemoryBytes: 1, CPUs: 1}, {Name: "x", MemoryBytes: 1 << 20},
		{Name: "x", MemoryBytes: 1 << 20, CPUs: 1, Extra: []string{"-cpu", "max"}}, {Name: "x", MemoryBytes: 1 << 20, CPUs: 1, Networks: []hypervisor.Network{{MAC: "x"}}}} {
		if err := l.Check(m); err == nil {
			t.Errorf("%+v is fine", m)
		}
	}
	if first, again := l.uuid("a"), l.uuid("a"); first == l.uuid("b") || first == (&Libvirt{dir: "/jobs/r2"}).uuid("a") || first != again {
		t.Error("two machines have one name, or one two")
	}
}

// TestShares: a libvirt that is too old for disks over vhost-user is known before.
func TestShares(t *testing.T) {
	for version, want := range map[uint64]string{9_000_000: "", 7_001_000: "", 7_000_002: "libvirt 7.0 knows no", 6_010_000: "libvirt 6.10 knows no"} {
		if err := shares(version); (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%d: %v, want %q", version, err, want)
		}
	}
}

// Pictures come as PNG or PPM; what is neither is refused.
func TestPicture(t *testing.T) {
	ppm := append([]byte("P6\n2 1\n255\n"), 255, 0, 0, 0, 0, 255)
	p, err := asPNG(ppm)
	if err != nil {
		t.Fatal(err)
	}
	picture, err := png.Decode(bytes.NewReader(p))
	if err != nil || picture.Bounds() != raster.Rect(0, 0, 2, 1) {
		t.Fatalf("%v, %v", picture, err)
	}
	if r, _, b, _ := picture.At(1, 0).RGBA(); r != 0 || b != 0xffff {
		t.Errorf("the second pixel is %v", picture.At(1, 0))
	}
	if same, err := asPNG(p); err != nil || !bytes.Equal(same, p) {
		t.Errorf("a PNG changed: %v", err)
	}
	for _, bad := range []string{"", "P5\n2 1\n255\n......", "P6\n2 1\n65535\n......", "P6\n0 1\n255\n", "P6\n2 1\n255\n.....", "P6\n2000000000 2000000000\n255\n"} {
		if _, err := asPNG([]byte(bad)); err == nil {
			t.Errorf("%q is a picture", bad)
		}
	}
}

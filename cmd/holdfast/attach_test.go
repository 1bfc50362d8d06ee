package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm"
	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/wire/record"
)

const attachBytes = 1 << 20

// shore is a disk, its filter, and a QEMU that has the disk open and runs no program.
type shore struct {
	t                        *testing.T
	dir, disk, file, monitor string
	filter                   *capture.Filter
	fs                       ioengine.FS // of the filter; nil: the system's
	stop                     context.CancelFunc
	done                     chan error
	qemu                     *exec.Cmd
}

func newShore(t *testing.T) *shore {
	dir, err := os.MkdirTemp("", "hf") // short: it holds sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &shore{t: t, dir: dir, disk: filepath.Join(dir, "disk"), file: filepath.Join(dir, "filter.yaml"), monitor: filepath.Join(dir, "qmp")}
	s.makeDisk(s.disk, attachBytes)
	s.write(s.file, fmt.Sprintf("run_dir: %s\ngroup: {name: g, id: \"0000000000000abc\"}\npool: 1MiB\npool_socket: %s\nvolumes:\n- {name: vol1, id: 1, path: %s, nbd: %s}\n",
		dir, s.at("pool"), s.disk, s.at("nbd")))
	t.Cleanup(s.endFilter)
	return s
}

func (s *shore) at(name string) string { return filepath.Join(s.dir, name) }

func (s *shore) write(path, text string) {
	s.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *shore) makeDisk(path string, bytes int64) {
	s.t.Helper()
	s.write(path, "")
	if err := os.Truncate(path, bytes); err != nil {
		s.t.Fatal(err)
	}
}

// startFilter does what vra-filter does with the file.
func (s *shore) startFilter() {
	s.t.Helper()
	c, err := config.LoadFilter(s.file)
	if err != nil {
		s.t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	s.filter, err = capture.OpenFilter(capture.FilterConfig{RunDir: c.RunDir, Group: record.GroupID(c.Group.ID), PoolBytes: int64(c.Pool), PoolSocket: c.PoolSocket,
		Volumes: []capture.FilterVolume{{ID: 1, Name: "vol1", Path: c.Volumes[0].Path, Mirror: int64(c.Volumes[0].Mirror), Writeback: c.Volumes[0].Writeback()}}, FS: cmp.Or(s.fs, ioengine.OS()), Log: log,
		Dial: func(ctx context.Context, uri, bitmap string) (capture.Source, error) {
			if bitmap != "" {
				return nbd.DialBitmap(ctx, uri, bitmap)
			}
			return nbd.Dial(ctx, uri)
		}})
	if err != nil {
		s.t.Fatal(err)
	}
	server := &nbd.Server{Log: log}
	if err := server.Add(nbd.Export{Name: "vol1", Device: s.filter.Device("vol1")}); err != nil {
		s.t.Fatal(err)
	}
	os.Remove(c.Volumes[0].NBD)
	l, err := net.Listen("unix", c.Volumes[0].NBD)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop, s.done = stop, make(chan error, 2)
	go func() { s.done <- s.filter.Run(ctx) }()
	go func() { s.done <- server.Serve(ctx, l) }()
	for s.past() < 0 { // its socket is there a moment later
		if s.t.Context().Err() != nil {
			s.t.Fatal("the filter does not answer")
		}
	}
}

func (s *shore) endFilter() {
	if s.filter == nil {
		return
	}
	s.stop()
	for range 2 {
		if err := <-s.done; err != nil {
			s.t.Error(err)
		}
	}
	if err := s.filter.Close(); err != nil {
		s.t.Error(err)
	}
	s.filter = nil
}

// past is what the filter says; -1 while it says nothing.
func (s *shore) past() int {
	p, err := (capture.Filtered{PoolSocket: s.at("pool"), Group: 0xabc, Volume: 1}).Past(s.t.Context())
	if err != nil {
		return -1
	}
	return int(p.Past)
}

// startQEMU starts a machine that runs nothing, and waits for its monitor.
func (s *shore) startQEMU(args ...string) {
	s.t.Helper()
	os.Remove(s.monitor)
	args = append([]string{"-M", "q35", "-accel", "tcg", "-m", "32", "-nodefaults", "-display", "none", "-S", "-qmp", "unix:" + s.monitor + ",server=on,wait=off"}, args...)
	s.qemu = exec.Command("qemu-system-x86_64", args...)
	s.qemu.Dir = s.dir // names of disks are its own
	var said bytes.Buffer
	s.qemu.Stderr = &said
	if err := s.qemu.Start(); err != nil {
		s.t.Fatalf("%v; install it: apt-get install qemu-system-x86", err)
	}
	q := s.qemu
	s.t.Cleanup(func() { s.endQEMU(q) })
	for late := time.Now().Add(time.Minute); ; {
		if m, err := kvm.Dial(s.t.Context(), s.monitor); err == nil {
			m.Close()
			return
		} else if time.Now().After(late) || q.ProcessState != nil {
			s.t.Fatalf("QEMU: %v\n%s", err, &said)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func (s *shore) endQEMU(q *exec.Cmd) {
	_ = q.Process.Kill() // it may have ended
	_ = q.Wait()
}

// cont lets the machine run its firmware, and waits until that has read the disk.
func (s *shore) cont() {
	s.t.Helper()
	m, err := kvm.Dial(s.t.Context(), s.monitor)
	if err != nil {
		s.t.Fatal(err)
	}
	defer m.Close()
	err = m.Do(s.t.Context(), kvm.Command{Execute: "cont"}, nil)
	for late := time.Now().Add(time.Minute); err == nil; <-time.After(5 * time.Millisecond) {
		var stats []struct {
			Stats struct {
				Reads int `json:"rd_operations"`
			}
		}
		if err = m.Do(s.t.Context(), kvm.Command{Execute: "query-blockstats"}, &stats); err == nil && stats[0].Stats.Reads > 0 {
			return
		}
		if time.Now().After(late) {
			err = fmt.Errorf("the firmware does not read: %+v", stats)
		}
	}
	s.t.Fatal(err)
}

// look is what QEMU says now.
func (s *shore) look() kvm.Guest {
	s.t.Helper()
	m, err := kvm.Dial(s.t.Context(), s.monitor)
	if err != nil {
		s.t.Fatal(err)
	}
	defer m.Close()
	g, err := kvm.Look(s.t.Context(), m)
	if err != nil {
		s.t.Fatal(err)
	}
	slices.SortFunc(g.Nodes, func(a, b kvm.Node) int { return strings.Compare(a.Name, b.Name) })
	return g
}

// qmp carries out a command of QEMU's.
func (s *shore) qmp(text string) error {
	s.t.Helper()
	var c kvm.Command
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		s.t.Fatal(err)
	}
	m, err := kvm.Dial(s.t.Context(), s.monitor)
	if err != nil {
		s.t.Fatal(err)
	}
	defer m.Close()
	return m.Do(s.t.Context(), c, nil)
}

// qemuIO does something to the guest's disk as its device would.
func (s *shore) qemuIO(what string) {
	s.t.Helper()
	m, err := kvm.Dial(s.t.Context(), s.monitor)
	if err != nil {
		s.t.Fatal(err)
	}
	defer m.Close()
	g := s.lookBy(m)
	var out string
	line := fmt.Sprintf("qemu-io -d %s \"%s\"", g.Disks[0].Device, what)
	if err := m.Do(s.t.Context(), kvm.Command{Execute: "human-monitor-command", Arguments: map[string]any{"command-line": line}}, &out); err != nil || out != "" {
		s.t.Fatalf("%s: %q, %v", what, out, err)
	}
}

func (s *shore) lookBy(m *kvm.Monitor) kvm.Guest {
	s.t.Helper()
	g, err := kvm.Look(s.t.Context(), m)
	if err != nil {
		s.t.Fatal(err)
	}
	return g
}

func (s *shore) run(args ...string) (code int, out, errs string) {
	var stdout, stderr bytes.Buffer
	code = run(s.t.Context(), append(args, "--filter", s.file), &stdout, &stderr, func(string) string { return "" })
	return code, stdout.String(), stderr.String()
}

// ok wants a command to succeed and to say what it changed.
func (s *shore) ok(changed bool, args ...string) attachResult {
	s.t.Helper()
	code, out, errs := s.run(append(args, "--qmp", s.monitor, "-o", "json")...)
	var r attachResult
	if code != 0 || json.Unmarshal([]byte(out), &r) != nil || r.Changed != changed || r.Volume != "vol1" || r.Disk != s.disk {
		s.t.Fatalf("%q: %d, %s%s", args, code, out, errs)
	}
	return r
}

// fails wants an error that says so, and everything as it was.
func (s *shore) fails(want string, args ...string) {
	s.t.Helper()
	before := s.look()
	code, out, errs := s.run(append(args, "--qmp", s.monitor)...)
	if code == 0 || out != "" || !strings.Contains(errs, want) {
		s.t.Errorf("%q: %d, %s%s; want %q", args, code, out, errs, want)
	}
	if after := s.look(); fmt.Sprint(before) != fmt.Sprint(after) {
		s.t.Errorf("%q changed %v to %v", args, before, after)
	}
}

// TestAttachKinds attaches and detaches disks of all the kinds that guests have, and finds each as it was.
func TestAttachKinds(t *testing.T) {
	s := newShore(t)
	s.startFilter()
	f := func(name, root string, args ...string) {
		t.Run(name, func(t *testing.T) {
			outer := s.t
			s.t = t
			defer func() { s.t = outer }()
			s.startQEMU(args...)
			defer s.endQEMU(s.qemu)
			if strings.HasPrefix(name, "running") {
				s.cont()
			}
			before := s.look()
			if s.past() != int(capture.PastSeen) {
				t.Errorf("a QEMU has the disk open, and the filter says %d", s.past())
			}
			dry := s.ok(true, "attach", "--dry-run")
			if after := s.look(); fmt.Sprint(before) != fmt.Sprint(after) || !dry.DryRun {
				t.Fatalf("a dry run changed %v to %v", before, after)
			}
			r := s.ok(true, "attach")
			if len(r.Steps) != len(dry.Steps) || *r.Node != "holdfast-1" || r.State != "attached" {
				t.Errorf("%+v", r)
			}
			if g := s.look(); g.Disks[0].Root.Driver != "nbd" || g.Disks[0].Root.DetectZeroes != before.Disks[0].Root.DetectZeroes {
				t.Errorf("attached, the guest's disk is %+v", g.Disks[0])
			}
			if s.past() != int(capture.PastNone) {
				t.Errorf("attached, and the filter says %d", s.past())
			}
			s.qemuIO("write -P 7 0 4096")
			s.ok(false, "attach")
			s.ok(true, "detach")
			if after := s.look(); fmt.Sprint(before) != fmt.Sprint(after) || after.Disks[0].Root.Driver != root {
				t.Errorf("detached, it is\n%v, and was\n%v", after, before)
			}
			if s.past() != int(capture.PastTold) {
				t.Errorf("detached, and the filter says %d", s.past())
			}
			s.qemuIO("read -P 7 0 4096")
			s.ok(false, "detach")
		})
		s.tell("attach") // for the next: no guest is left
	}
	f("drive", "raw", "-drive", "file=disk,format=raw,if=none,id=drive0,cache=none,discard=unmap,detect-zeroes=unmap", "-device", "virtio-blk-pci,drive=drive0")
	f("drive-virtio", "raw", "-drive", "file="+s.disk+",format=raw,if=virtio")
	f("named", "raw", "-blockdev", "driver=file,filename=disk,node-name=f0,cache.direct=on", "-blockdev", "driver=raw,node-name=r0,file=f0", "-device", "virtio-blk-pci,drive=r0,id=vd0")
	f("running", "raw", "-drive", "file=disk,format=raw,if=none,id=d0", "-device", "virtio-blk-pci,drive=d0,id=vd0")
	f("running-thread", "raw", "-object", "iothread,id=io0", "-blockdev", "driver=raw,file.driver=file,file.filename=disk,node-name=r0", "-device", "virtio-blk-pci,drive=r0,id=vd0,iothread=io0")
	f("file", "file", "-blockdev", "driver=file,filename=disk,node-name=f0", "-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=f0,id=sd0")
	f("nvme", "raw", "-drive", "file=disk,format=raw,if=none,id=n0", "-device", "nvme,drive=n0,serial=x,id=nv0")
}

// TestAttachDevice does the same with a block device, where one can be had.
func TestAttachDevice(t *testing.T) {
	s := newShore(t)
	out, err := exec.Command("losetup", "-f", "--show", s.disk).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device: %v\n%s", err, out)
	}
	device := strings.TrimSpace(string(out))
	defer func() {
		s.endFilter()
		if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}()
	text, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	s.write(s.file, strings.Replace(string(text), "path: "+s.disk, "path: "+device, 1))
	s.disk = device
	s.startFilter()
	// By another name, as QEMU may have it.
	if err := os.Symlink(device, s.at("web1")); err != nil {
		t.Fatal(err)
	}
	s.startQEMU("-drive", "file=web1,format=raw,if=none,id=d0,cache=none", "-device", "virtio-blk-pci,drive=d0,id=vd0")
	defer s.endQEMU(s.qemu)
	before := s.look()
	if s.past() != int(capture.PastSeen) {
		t.Errorf("a QEMU has the device open, and the filter says %d", s.past())
	}
	s.ok(true, "attach")
	s.qemuIO("write -P 5 4096 4096")
	s.ok(true, "detach")
	if after := s.look(); fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("it is\n%v, and was\n%v", after, before)
	}
	s.qemuIO("read -P 5 4096 4096")
}

// tell tells the filter alone.
func (s *shore) tell(what string) {
	s.t.Helper()
	for late := time.Now().Add(time.Minute); ; { // a QEMU that was killed has the disk a moment longer
		code, out, errs := s.run(what, "--no-guest", "--volume", "vol1")
		if code == 0 {
			return
		}
		if time.Now().After(late) {
			s.t.Fatalf("%s --no-guest: %s%s", what, out, errs)
		}
	}
}

// unsynced is a system whose disk takes no sync.
type unsynced struct {
	ioengine.FS
	disk string
}

func (u unsynced) Open(name string, flags ioengine.Flags) (ioengine.File, error) {
	f, err := u.FS.Open(name, flags)
	if name == u.disk && err == nil {
		f = unsyncedFile{f}
	}
	return f, err
}

type unsyncedFile struct{ ioengine.File }

func (unsyncedFile) Sync() error { return syscall.EIO }

// TestAttachAfterAFailedFlush: of a disk whose flush failed the filter is told by a word that is about that, and by no other.
func TestAttachAfterAFailedFlush(t *testing.T) {
	s := newShore(t)
	text, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	s.write(s.file, strings.Replace(string(text), "nbd: "+s.at("nbd"), "nbd: "+s.at("nbd")+", cache: writeback", 1))
	s.fs = unsynced{ioengine.OS(), s.disk}
	s.startFilter()
	c, err := nbd.Dial(t.Context(), nbd.URI{Network: "unix", Address: s.at("nbd"), Export: "vol1"}.String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(); err == nil {
		t.Fatal("a flush of a disk that takes none succeeds")
	}
	c.Close()
	s.endFilter()
	s.fs = nil
	s.startFilter()
	still := func() {
		t.Helper()
		if s.past() != int(capture.PastUnsynced) {
			t.Errorf("the filter says %d", s.past())
		}
	}
	still()
	if code, _, errs := s.run("detach", "--no-guest", "--volume", "vol1"); code == 0 || !strings.Contains(errs, "a flush of the disk failed") {
		t.Errorf("exit %d: %s", code, errs)
	}
	s.startQEMU("-drive", plainDisk, "-device", "virtio-blk-pci,drive=d0,id=vd0")
	s.fails("a flush of the disk failed", "attach")
	still()
	s.endQEMU(s.qemu)
	s.tell("attach")
	if s.past() != int(capture.PastNone) {
		t.Errorf("the filter says %d after it was told", s.past())
	}
}

const plainDisk = "file=disk,format=raw,if=none,id=d0"

// TestAttachRefuses: what cannot be attached is told, and nothing is changed.
func TestAttachRefuses(t *testing.T) {
	s := newShore(t)
	s.startFilter()
	s.makeDisk(s.at("other"), attachBytes)
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", s.at("cow"), "1M").CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	s.startQEMU("-drive", plainDisk, "-device", "virtio-blk-pci,drive=d0,id=vd0",
		"-drive", "file=other,format=raw,if=none,id=d1", "-device", "virtio-blk-pci,drive=d1,id=vd1",
		"-drive", "file=cow,format=qcow2,if=none,id=d2", "-device", "virtio-blk-pci,drive=d2,id=vd2",
		"-drive", "if=none,id=d3", "-device", "ide-cd,drive=d3,id=cd")
	s.fails(`no disk "nothing": those are vd0 (raw disk)`, "attach", "--device", "nothing")
	s.fails("no disk of the guest is that of a volume", "attach", "--device", "vd1")
	s.fails("vd2 is of driver qcow2: only raw disks", "attach", "--device", "vd2")
	s.fails("cd is empty", "attach", "--device", "cd")
	s.fails(`no filter serves a volume "vol9": those are vol1`, "attach", "--volume", "vol9")
	if err := s.qmp(`{"execute":"block-dirty-bitmap-add","arguments":{"node":"` + s.look().Disks[0].Root.Name + `","name":"backup7"}}`); err != nil {
		t.Fatal(err)
	}
	s.fails("has dirty bitmaps, which would miss what is written while it is attached: remove them first: backup7", "attach")
	s.endQEMU(s.qemu)

	s.startQEMU("-drive", plainDisk+",readonly=on", "-device", "virtio-blk-pci,drive=d0,id=vd0")
	s.fails("vd0 is read-only", "attach")
	s.endQEMU(s.qemu)

	s.startQEMU("-blockdev", "driver=file,filename=disk,node-name=f0", "-blockdev", "driver=raw,node-name=r0,file=f0,size=524288", "-device", "virtio-blk-pci,drive=r0,id=vd0")
	s.fails("524288", "attach", "--device", "vd0", "--volume", "vol1")
	s.endQEMU(s.qemu)

	share := ",share-rw=on"
	s.startQEMU("-drive", plainDisk+",file.locking=off", "-device", "virtio-blk-pci,drive=d0,id=vd0"+share,
		"-drive", "file=disk,format=raw,if=none,id=d1,file.locking=off", "-device", "virtio-blk-pci,drive=d1,id=vd1"+share)
	s.fails("several disks fit", "attach")
	s.fails("the guest has the disk twice: as vd1 and as vd0", "attach", "--device", "vd1")
	s.endQEMU(s.qemu)

	s.startQEMU("-drive", plainDisk, "-device", "virtio-blk-pci,drive=d0,id=vd0", "-blockdev", "driver=null-co,node-name=null0,size=1048576")
	if err := s.qmp(`{"execute":"blockdev-mirror","arguments":{"job-id":"j","device":"d0","target":"null0","sync":"none"}}`); err != nil {
		t.Fatal(err)
	}
	code, _, errs := s.run("attach", "--qmp", s.monitor)
	if code != exitFailed || !strings.Contains(errs, "block jobs run: wait for them or end them: mirror j") {
		t.Errorf("beside a job: %d, %s", code, errs)
	}
	s.endQEMU(s.qemu)

	s.startQEMU("-object", "iothread,id=io0", "-drive", plainDisk, "-device", "virtio-scsi-pci,iothread=io0", "-device", "scsi-hd,drive=d0,id=sd0")
	s.fails("sd0 is served by a thread of its controller's", "attach")
	s.endQEMU(s.qemu)

	s.endFilter()
	s.startQEMU("-drive", plainDisk, "-device", "virtio-blk-pci,drive=d0,id=vd0")
	s.fails("the filter of volume vol1 does not answer: start it first", "attach")
	if code, _, errs := s.run("attach", "--qmp", s.at("none")); code != exitFailed || !strings.Contains(errs, "no QEMU listens there") {
		t.Errorf("no monitor: %d, %s", code, errs)
	}
}

// TestAttachGoesBack: when a step fails, or the command was killed between two, everything is as it was, or ends as it should.
func TestAttachGoesBack(t *testing.T) {
	s := newShore(t)
	s.startFilter()
	// A second QEMU has the disk, too: the filter refuses, when the first has been moved.
	const shared = plainDisk + ",file.locking=on"
	s.startQEMU("-object", "iothread,id=io0", "-drive", shared, "-device", "virtio-blk-pci,drive=d0,id=vd0,share-rw=on,iothread=io0")
	s.cont()
	first, monitor := s.qemu, s.monitor
	s.monitor = s.at("qmp2")
	s.startQEMU("-drive", shared, "-device", "virtio-blk-pci,drive=d0,id=vd0,share-rw=on")
	second := s.qemu
	s.qemu, s.monitor = first, monitor
	s.fails("another process still has the disk open for writing", "attach")
	if s.past() != int(capture.PastTold) {
		t.Errorf("the filter says %d", s.past())
	}
	s.endQEMU(second)

	// Killed before the disk was moved: nodes are left behind.
	before := s.look()
	root := before.Disks[0].Root.Name
	for _, c := range []string{
		`{"execute":"blockdev-add","arguments":{"driver":"nbd","node-name":"holdfast-1","server":{"type":"unix","path":"` + s.at("nbd") + `"},"export":"vol1"}}`,
		`{"execute":"blockdev-add","arguments":{"driver":"raw","node-name":"holdfast-1-kept","file":"` + root + `","read-only":true}}`,
	} {
		if err := s.qmp(c); err != nil {
			t.Fatal(err)
		}
	}
	s.ok(true, "attach")
	// Killed before the filter was told.
	s.tell("detach")
	r := s.ok(true, "attach")
	if len(r.Steps) != 1 || s.past() != int(capture.PastNone) {
		t.Errorf("%+v; the filter says %d", r, s.past())
	}

	// Without the filter nothing is tried: QEMU would wait for it, and fail what is in flight.
	s.endFilter()
	s.fails("does not answer: start it first", "detach")
	s.startFilter()
	s.qemuIO("write -P 9 8192 4096") // QEMU has come back to it
	// A kept node that somebody took away is told.
	s.fails(`node "holdfast-1" is not there, or is not the disk of volume vol1`, "detach", "--node", "holdfast-1")
	s.ok(true, "detach")
	if after := s.look(); fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("it is\n%v, and was\n%v", after, before)
	}
	s.qemuIO("read -P 9 8192 4096")
}

func TestAttachArguments(t *testing.T) {
	s := newShore(t)
	f := func(want int, text string, args ...string) {
		t.Helper()
		if code, out, errs := s.run(args...); code != want || out != "" || !strings.Contains(errs, text) {
			t.Errorf("%q: %d, %s%s; want %d, %q", args, code, out, errs, want, text)
		}
	}
	f(exitUsage, "--qmp is missing", "attach")
	f(exitUsage, "there is a guest or there is none", "attach", "--qmp", "x", "--no-guest")
	f(exitUsage, "say of which --volume", "detach", "--no-guest")
	f(exitUsage, "--discard \"yes\": want ignore or unmap", "attach", "--qmp", "x", "--discard", "yes")
	f(exitUsage, "--reconnect-delay: want 1s to 720h", "attach", "--qmp", "x", "--reconnect-delay", "0s")
	f(exitUsage, "unexpected argument", "attach", "--qmp", "x", "vd0")
	f(exitFailed, "does not answer: start it first", "attach", "--no-guest", "--volume", "vol1")
	f(exitFailed, `no filter serves a volume "x": those are vol1`, "detach", "--no-guest", "--volume", "x")
	f(exitFailed, "stands in several files", "attach", "--qmp", "x", "--filter", s.file)
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"attach", "--qmp", "x"}, &out, &errs, func(string) string { return "" }); code != exitUsage {
		t.Errorf("no context: %d, %s", code, &errs)
	}
}

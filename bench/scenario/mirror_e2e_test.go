//go:build e2e

package scenario_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/bench/drive"
	"github.com/holdfast-dr/holdfast/control/config"
)

// mirrorFilter is a second vra-filter in the lab's group, whose one volume is a mirror target.
type mirrorFilter struct {
	l                  *lab
	binary, file, pool string
	cmd                *exec.Cmd
	said               bytes.Buffer
}

func (l *lab) mirrorFilter(image string, size int64) *mirrorFilter {
	l.t.Helper()
	first, err := config.LoadFilter(filepath.Join(l.Dir, "etc", "vra-filter.yaml"))
	l.must(err)
	dir := filepath.Dir(first.PoolSocket)
	second := *first
	second.PoolSocket = filepath.Join(dir, "late-pool.sock")
	second.Volumes = []config.FilterVolume{{Name: "late", ID: 77, Path: image, Mirror: config.Size(size), NBD: filepath.Join(dir, "late.sock")}}
	l.must(second.Validate())
	text, err := config.Marshal(&second)
	l.must(err)
	f := &mirrorFilter{l: l, file: filepath.Join(l.t.TempDir(), "late.yaml"), pool: second.PoolSocket}
	l.must(os.WriteFile(f.file, text, 0o600))
	pid, err := l.PID(l.t.Context(), "vra-filter")
	l.must(err)
	f.binary, err = os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	l.must(err)
	l.t.Cleanup(func() {
		f.kill()
		if l.t.Failed() {
			l.t.Logf("the mirror's filter:\n%s", f.said.String())
		}
	})
	return f
}

func (f *mirrorFilter) start() {
	f.l.t.Helper()
	f.cmd = exec.Command(f.binary, "--config", f.file)
	f.cmd.Stderr = &f.said
	f.l.must(f.cmd.Start())
}

func (f *mirrorFilter) kill() {
	_ = f.cmd.Process.Kill()
	_ = f.cmd.Wait()
}

// stop has the process get no time any more, and awaits that the kernel ends it.
func (f *mirrorFilter) stop() {
	f.l.t.Helper()
	f.l.must(f.cmd.Process.Signal(syscall.SIGSTOP))
	if err := f.cmd.Wait(); err == nil {
		f.l.t.Error("a filter that was stopped ended in order")
	}
}

// move attaches or detaches the guest whose monitor that is.
func (f *mirrorFilter) move(what, monitor string, more ...string) {
	f.l.t.Helper()
	from := time.Now()
	var r struct {
		State           string
		Changed, Mirror bool
	}
	f.l.must(f.l.JSON(f.l.t.Context(), &r, append([]string{what, "--qmp", monitor, "--filter", f.file}, more...)...))
	if !r.Changed || !r.Mirror || r.State != what+"ed" {
		f.l.t.Errorf("%s: %+v", what, r)
	}
	f.l.t.Logf("%s took %v", what, time.Since(from).Round(time.Millisecond))
}

// qmp has QEMU do something, and returns its answer.
func (l *lab) qmp(monitor, command string) string {
	l.t.Helper()
	c, err := net.Dial("unix", monitor)
	l.must(err)
	defer c.Close()
	l.must(c.SetDeadline(time.Now().Add(time.Minute)))
	in := bufio.NewScanner(c)
	in.Scan() // its greeting
	for _, name := range []string{`{"execute":"qmp_capabilities"}`, command} {
		_, err := fmt.Fprintln(c, name)
		l.must(err)
		for in.Scan() && !strings.HasPrefix(in.Text(), `{"return"`) {
			if strings.HasPrefix(in.Text(), `{"error"`) {
				l.t.Fatalf("%s: %s", name, in.Text())
			}
		}
	}
	l.must(in.Err())
	return in.Text()
}

// goesOn waits until the guest has written more.
func (l *lab) goesOn(monitor string) {
	l.t.Helper()
	written := func() (n int) {
		answer := l.qmp(monitor, `{"execute":"query-blockstats"}`)
		const key = `"wr_bytes": ` // the last is the device's own
		_, err := fmt.Sscanf(answer[max(0, strings.LastIndex(answer, key)):], key+"%d", &n)
		if err != nil {
			l.t.Fatalf("%v: %s", err, answer)
		}
		return n
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	from := time.Now()
	for before := written(); written() < before+(256<<10); <-tick.C {
		if time.Since(from) > time.Minute {
			l.t.Fatal("the guest does not go on writing")
		}
	}
}

const (
	qmpStop = `{"execute":"stop"}`
	qmpCont = `{"execute":"cont"}`
)

// TestGuestIsMirrored has a guest run from a qcow2 image that stays its own, and write without a pause while it is mirrored to a volume of a group, the
// filter of that is stopped and killed, it is mirrored again, and left alone. It sees no error; while it is not mirrored no checkpoint is listed; a checkpoint holds, byte
// for byte, what its QEMU says that its disk has; and what it knew to be safe another guest reads there.
func TestGuestIsMirrored(t *testing.T) {
	t.Parallel()
	vm := newHost(t)
	dir := t.TempDir()
	plain, image := filepath.Join(dir, "guest.raw"), filepath.Join(dir, "guest.qcow2")
	vm.makeDisk(plain)
	// Behind the guest's file system there is much that nobody changes.
	const still, stillBytes, size = 80 << 20, 32 << 20, 128 << 20
	disk, err := os.OpenFile(plain, os.O_RDWR, 0)
	if err == nil {
		for off := int64(0); err == nil && off < stillBytes; off += 1 << 20 {
			p := make([]byte, 1<<20)
			rand.Read(p)
			_, err = disk.WriteAt(p, still+off)
		}
		err = errors.Join(err, disk.Truncate(size), disk.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("qemu-img", "convert", "-O", "qcow2", plain, image).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	other := filepath.Join(dir, "other.raw")
	if err := os.WriteFile(other, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	const interval = time.Second
	l := up(t, "", nil, "--image", other, "--interval", interval.String(), "--link", "none")
	f := l.mirrorFilter(image, size)
	f.start()
	l.protected()
	l.must(l.JSON(t.Context(), nil, "group", "volume", "add", l.Group, "late", "--id", "77", "--pool-socket", f.pool))

	monitor := filepath.Join(vm.dir, "qmp")
	first := vm.boot("write", "-drive", "file="+image+",format=qcow2,if=none,id=d0", "-device", "virtio-blk-pci,drive=d0,id=vd0",
		"-qmp", "unix:"+monitor+",server=on,wait=off")
	safe := func(n int) { t.Helper(); first.says(fmt.Sprintf("SAFE %d", n)) }
	safe(0)
	f.move("attach", monitor, "--mirror")
	l.phase("late", "member")
	l.protected()
	safe(2)
	if sent := l.sent(); sent < stillBytes {
		t.Errorf("a disk with %d MiB of random bytes took %d bytes of the link: is it counted?", stillBytes>>20, sent)
	}
	// What a checkpoint holds is what the guest's disk has, while that stands still.
	same := func(tag string) {
		t.Helper()
		l.qmp(monitor, qmpStop)
		defer l.qmp(monitor, qmpCont)
		v := l.open(l.checkpoint(tag).ID)
		for _, w := range v.Volumes {
			if w.Name != "late" {
				continue
			}
			if out, err := exec.Command("qemu-img", "compare", "-f", "raw", "-F", "raw", "nbd+unix:///late?socket="+monitor+".nbd", w.NBD).CombinedOutput(); err != nil {
				t.Errorf("checkpoint %s is not what the guest's disk has: %v\n%s", tag, err, out)
			}
		}
		l.must(l.Close(t.Context(), v))
	}
	same("mirrored")

	for tag, end := range map[string]func(){"again": f.stop, "anew": f.kill} {
		end()
		l.must(l.Await(t.Context(), time.Minute, "error", func(s drive.Status) bool { return s.State == "error" }))
		before := l.newest()
		none := func() {
			t.Helper()
			if after := l.newest(); after != before {
				t.Errorf("%s: checkpoint %s was listed while the guest was not mirrored", tag, after)
			}
		}
		for dead := time.Now(); time.Since(dead) < 4*interval; {
			l.goesOn(monitor)
		}
		none()
		f.start()
		l.past("not mirrored")
		l.goesOn(monitor)
		none()
		f.move("attach", monitor, "--mirror")
		l.protected()
		same(tag)
	}

	// The guest stands still, so that nothing else travels.
	l.qmp(monitor, qmpStop)
	l.protected()
	sent := l.sent()
	f.kill()
	l.qmp(monitor, fmt.Sprintf(`{"execute":"human-monitor-command","arguments":{"command-line":"qemu-io -d /machine/peripheral/vd0/virtio-backend \"write -P 9 %d 64k\""}}`, still+(5<<20)))
	f.start()
	l.past("not mirrored")
	f.move("attach", monitor, "--mirror")
	l.protected()
	if sent := l.sent() - sent; sent >= 1<<20 {
		t.Errorf("%d bytes were sent after 64 KiB had changed", sent)
	} else {
		t.Logf("%d KiB were sent after 64 KiB had changed", sent>>10)
	}
	same("less")
	f.move("detach", monitor)
	l.past("not mirrored")
	l.goesOn(monitor)
	f.move("attach", monitor, "--mirror")
	safe(guestFiles - 1)
	l.protected()
	v := l.open(l.checkpoint("last").ID)
	first.kill()
	l.past("not mirrored")
	if said := first.out.said(); regexp.MustCompile(`(?i)error|remount|lost`).Match(said) {
		t.Errorf("the guest says:\n%s", said)
	}
	var late drive.Volume
	for _, w := range v.Volumes {
		if w.Name == "late" {
			late.NBD = w.NBD
		}
	}
	second := vm.boot("read", "-blockdev", "driver=nbd,node-name=disk,server.type=unix,server.path="+socketOf(late.NBD)+",export="+exportOf(late.NBD),
		"-device", "virtio-blk-pci,drive=disk")
	defer second.kill()
	if out := second.says("READ"); !strings.Contains(out, fmt.Sprintf("READ %d BAD 0", guestFiles)) {
		t.Errorf("the second guest says:\n%s", out)
	}
}

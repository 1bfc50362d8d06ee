//go:build e2e

package scenario_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// A real guest: Debian's kernel for virtual machines and busybox, under QEMU. Its processor is
// emulated where the machine's own cannot be lent.

// guestFiles is how many files it writes before it is killed.
const guestFiles = 10

// TestGuestComesBack has a guest boot from a protected disk and write; its filter is killed, and then
// the guest, while it writes. Another guest boots from the newest checkpoint and reads what the
// first knew to be safe.
func TestGuestComesBack(t *testing.T) {
	t.Parallel()
	wantBack(t, "vhost-user")
}

// TestNBDGuestComesBack is the same over NBD.
func TestNBDGuestComesBack(t *testing.T) {
	t.Parallel()
	wantBack(t, "nbd")
}

func wantBack(t *testing.T, over string) {
	t.Helper()
	if out := comesBack(t, over, "", nil); !strings.Contains(out, fmt.Sprintf("READ %d BAD 0", guestFiles)) {
		t.Errorf("the second guest says:\n%s", out)
	}
}

// TestGuestSeesAMissingSplit is the negative control: over a filter that splits nothing
// the second guest must miss files.
func TestGuestSeesAMissingSplit(t *testing.T) {
	t.Parallel()
	out := comesBack(t, "vhost-user", "planted", []string{"HOLDFAST_PLANTED=capture/no-split"})
	if !strings.Contains(out, "BAD 0") || !regexp.MustCompile(`READ \d+ BAD [1-9]`).MatchString(out) {
		t.Errorf("nothing was split, and the second guest says:\n%s", out)
	}
}

// comesBack returns what the second guest said.
func comesBack(t *testing.T, over, tags string, env []string) string {
	vm := newHost(t)
	image := filepath.Join(t.TempDir(), "guest.raw")
	vm.makeDisk(image)
	l := up(t, tags, env, "--image", image, "--interval", "1s", "--link", "none")

	disk := []string{"-blockdev", "driver=nbd,node-name=disk,server.type=unix,server.path=" + socketOf(l.Volumes[0].NBD) +
		",export=" + l.Volumes[0].Name + ",reconnect-delay=30,cache.direct=on", "-device", "virtio-blk-pci,drive=disk"}
	if over == "vhost-user" {
		disk = []string{"-chardev", "socket,id=disk,path=" + l.Volumes[0].VhostUser + ",reconnect=1", "-device", "vhost-user-blk-pci,chardev=disk,num-queues=1"}
	}
	first := vm.boot("write", disk...)
	first.says(fmt.Sprintf("SAFE %d", guestFiles/2))
	if tags == "" {
		l.kill("vra-filter")
	}
	first.says(fmt.Sprintf("SAFE %d", guestFiles-1))
	first.kill()
	l.protected()
	v := l.open(l.checkpoint("killed").ID)
	second := vm.boot("read", "-blockdev", "driver=nbd,node-name=disk,server.type=unix,server.path="+socketOf(v.Volumes[0].NBD)+
		",export="+exportOf(v.Volumes[0].NBD), "-device", "virtio-blk-pci,drive=disk")
	defer second.kill()
	return second.says("READ")
}

// socketOf and exportOf take a URI of ours apart: nbd+unix:///EXPORT?socket=PATH.
func socketOf(uri string) string {
	_, socket, _ := strings.Cut(uri, "?socket=")
	return socket
}

func exportOf(uri string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(uri, "nbd+unix:///"), "?")
	return name
}

// host is what guests are made of.
type host struct {
	t              *testing.T
	dir            string
	kernel, initrd string
	accelerator    string
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, dir: t.TempDir(), accelerator: "tcg,tb-size=256"}
	// A /dev/kvm that opens does not say that it runs a guest's kernel: the processor must be able to.
	if cpu, err := os.ReadFile("/proc/cpuinfo"); err == nil && regexp.MustCompile(`\b(vmx|svm)\b`).Match(cpu) {
		h.accelerator = "kvm"
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("../../tools/setup/kernel.sh", filepath.Join(cache, "holdfast", "guest-kernel")).Output()
	if err != nil {
		t.Fatalf("no kernel for a guest: %v\n%s", err, stderrOf(err))
	}
	root := strings.TrimSpace(string(out))
	h.kernel = h.only(filepath.Join(root, "boot", "vmlinuz-*"))
	h.initrd = filepath.Join(h.dir, "initrd")
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("busybox is not there; install it: apt-get install busybox-static")
	}
	var a archive
	a.folder("bin", "dev", "proc", "mod", "new")
	a.file("init", 0o755, h.read("testdata/guest/first"))
	a.file("bin/busybox", 0o755, h.read(busybox))
	for _, m := range []string{"virtio/virtio", "virtio/virtio_ring", "virtio/virtio_pci_modern_dev", "virtio/virtio_pci_legacy_dev", "virtio/virtio_pci", "block/virtio_blk"} {
		name := h.only(filepath.Join(root, "lib", "modules", "*", "kernel", "drivers", m+".ko"))
		a.file("mod/"+filepath.Base(name), 0o644, h.read(name))
	}
	if err := os.WriteFile(h.initrd, a.end(), 0o600); err != nil {
		t.Fatal(err)
	}
	return h
}

func stderrOf(err error) []byte {
	if e, ok := err.(*exec.ExitError); ok {
		return e.Stderr
	}
	return nil
}

func (h *host) only(pattern string) string {
	h.t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) != 1 {
		h.t.Fatalf("%s: %q, %v; want one", pattern, names, err)
	}
	return names[0]
}

func (h *host) read(name string) []byte {
	h.t.Helper()
	p, err := os.ReadFile(name)
	if err != nil {
		h.t.Fatal(err)
	}
	return p
}

// makeDisk makes the guest's disk: a file system with its programs.
func (h *host) makeDisk(name string) {
	h.t.Helper()
	root := filepath.Join(h.dir, "root")
	for _, d := range []string{"bin", "dev", "proc", "data", "sbin"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			h.t.Fatal(err)
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		h.t.Fatal(err)
	}
	for to, from := range map[string]string{"bin/busybox": busybox, "sbin/init": "testdata/guest/init"} {
		if err := os.WriteFile(filepath.Join(root, to), h.read(from), 0o755); err != nil {
			h.t.Fatal(err)
		}
	}
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Truncate(name, 64<<20); err != nil {
		h.t.Fatal(err)
	}
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", root, name).CombinedOutput(); err != nil {
		h.t.Fatalf("mke2fs: %v\n%s", err, out)
	}
}

// virtual is a machine that runs.
type virtual struct {
	t   *testing.T
	cmd *exec.Cmd
	out *serial
}

// serial is what a machine said, and who waits to hear something.
type serial struct {
	wake chan struct{}
	mu   chan struct{} // held while text is used
	text []byte
}

func (s *serial) Write(p []byte) (int, error) {
	s.mu <- struct{}{}
	s.text = append(s.text, p...)
	<-s.mu
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (s *serial) said() []byte {
	s.mu <- struct{}{}
	defer func() { <-s.mu }()
	return slices.Clone(s.text)
}

func (h *host) boot(job string, disk ...string) *virtual {
	h.t.Helper()
	args := []string{"-M", "pc,memory-backend=mem", "-accel", h.accelerator, "-cpu", "max", "-m", "192",
		"-object", "memory-backend-memfd,id=mem,size=192M,share=on", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
		"-kernel", h.kernel, "-initrd", h.initrd, "-append", fmt.Sprintf("console=ttyS0 panic=-1 quiet job=%s files=%d", job, guestFiles)}
	v := &virtual{h.t, exec.Command("qemu-system-x86_64", append(args, disk...)...), &serial{wake: make(chan struct{}, 1), mu: make(chan struct{}, 1)}}
	v.cmd.Stdout, v.cmd.Stderr = v.out, v.out
	if err := v.cmd.Start(); err != nil {
		h.t.Fatalf("%v; install it: apt-get install qemu-system-x86", err)
	}
	h.t.Cleanup(v.kill)
	return v
}

// says waits for a line that begins so, and returns all that was said.
func (v *virtual) says(line string) string {
	v.t.Helper()
	late := time.NewTimer(2 * time.Minute)
	defer late.Stop()
	for {
		text := v.out.said()
		if _, after, found := bytes.Cut(text, []byte(line)); found && bytes.Contains(after, []byte("\n")) {
			return string(text)
		}
		select {
		case <-v.out.wake:
		case <-late.C:
			v.t.Fatalf("the guest does not say %q:\n%s", line, text)
		}
	}
}

// kill ends the machine as a power cut would.
func (v *virtual) kill() {
	_ = v.cmd.Process.Kill() // it may have ended
	_ = v.cmd.Wait()
}

// archive is a cpio archive of the kind that kernels unpack ("newc").
type archive struct {
	bytes.Buffer
	inode int
}

func (a *archive) add(name string, mode int, p []byte) {
	a.inode++
	fmt.Fprintf(a, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, 1, 0, len(p), 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad()
	a.Write(p)
	a.pad()
}

func (a *archive) pad() { a.Write(make([]byte, -a.Len()&3)) }

func (a *archive) folder(names ...string) {
	for _, name := range names {
		a.add(name, 0o40755, nil)
	}
}

func (a *archive) file(name string, mode int, p []byte) { a.add(name, 0o100000|mode, p) }

func (a *archive) end() []byte {
	a.add("TRAILER!!!", 0, nil)
	return a.Bytes()
}

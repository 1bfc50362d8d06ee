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

	"github.com/holdfast-dr/holdfast/bench/guest"
	"github.com/holdfast-dr/holdfast/control/config"
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
		disk = vhostDisk(l.Volumes[0])
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
	*guest.Kit
	t           *testing.T
	dir         string
	accelerator string
	hypervisor  config.Hypervisor // runs the machines of files; plain QEMU by default
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, dir: t.TempDir(), accelerator: "tcg,tb-size=256"}
	// A /dev/kvm that opens does not say that it runs a guest's kernel: the processor must be able to.
	if cpu, err := os.ReadFile("/proc/cpuinfo"); err == nil && regexp.MustCompile(`\b(vmx|svm)\b`).Match(cpu) {
		h.accelerator = "kvm"
	}
	var err error
	if h.Kit, err = guest.New(h.dir, kernel(t)); err != nil {
		t.Fatal(err)
	}
	return h
}

// guestLab is a lab whose only volume is the disk of a guest.
func guestLab(t *testing.T) (*host, *lab) {
	t.Helper()
	vm, image := newHost(t), filepath.Join(t.TempDir(), "guest.raw")
	vm.makeDisk(image)
	return vm, up(t, "", nil, "--image", image, "--interval", "1s", "--link", "none")
}

// kernel is where the kernel of guests is unpacked.
func kernel(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("../../tools/setup/kernel.sh", filepath.Join(cache, "holdfast", "guest-kernel")).Output()
	if err != nil {
		t.Fatalf("no kernel for a guest: %v\n%s", err, stderrOf(err))
	}
	return strings.TrimSpace(string(out))
}

func stderrOf(err error) []byte {
	if e, ok := err.(*exec.ExitError); ok {
		return e.Stderr
	}
	return nil
}

// makeDisk makes the guest's disk: a file system with its programs.
func (h *host) makeDisk(name string) {
	h.t.Helper()
	if err := h.MakeDisk(name, 64<<20); err != nil {
		h.t.Fatal(err)
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

// boot starts a guest with a job, and further words behind it.
func (h *host) boot(job string, disk ...string) *virtual {
	h.t.Helper()
	job, more, _ := strings.Cut(job, " ")
	args := []string{"-M", "pc,memory-backend=mem", "-accel", h.accelerator, "-cpu", "max", "-m", "192",
		"-object", "memory-backend-memfd,id=mem,size=192M,share=on", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
		"-kernel", h.Kernel, "-initrd", h.Initrd, "-append", guest.Cmdline(guest.Job(job), guestFiles, more)}
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

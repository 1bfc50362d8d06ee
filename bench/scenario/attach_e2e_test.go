//go:build e2e

package scenario_test

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/bench/drive"
)

// TestGuestIsAttached has a guest boot from a disk past its filter, and write without a pause while
// it is attached, its filter is killed, it is detached, and attached again. It sees no error; while it
// writes past the filter no checkpoint is listed; and what it knew to be safe, by whatever way
// it was written, another guest reads from a checkpoint. QEMU has a thread for its disk.
func TestGuestIsAttached(t *testing.T) {
	t.Parallel()
	isAttached(t, func(disk string) []string {
		return []string{"-object", "iothread,id=io0", "-drive", "file=" + disk + ",format=raw,if=none,id=d0,cache=none,discard=unmap",
			"-device", "virtio-blk-pci,drive=d0,id=vd0,iothread=io0"}
	})
}

// TestPlainGuestIsAttached is the same with nodes that have names, and QEMU's main loop.
func TestPlainGuestIsAttached(t *testing.T) {
	t.Parallel()
	isAttached(t, func(disk string) []string {
		return []string{"-blockdev", "driver=file,filename=" + disk + ",node-name=f0", "-blockdev", "driver=raw,node-name=r0,file=f0", "-device", "virtio-blk-pci,drive=r0,id=vd0"}
	})
}

func isAttached(t *testing.T, device func(disk string) []string) {
	t.Helper()
	vm, l := guestLab(t)

	monitor := filepath.Join(vm.dir, "qmp")
	first := vm.boot("write", append(device(l.diskPath()), "-qmp", "unix:"+monitor+",server=on,wait=off")...)
	safe := func(n int) { t.Helper(); first.says(fmt.Sprintf("SAFE %d", n)) }
	safe(0)
	l.past("another process has the disk open for writing")
	l.move("attach", monitor)
	safe(2)
	l.kill("vra-filter")
	safe(4)
	l.protected()
	l.checkpoint("attached")
	l.move("detach", monitor)
	before := l.newest()
	safe(6)
	l.past("the guest is detached")
	if after := l.newest(); after != before {
		t.Errorf("checkpoint %s was listed while the guest wrote past the filter", after)
	}
	l.move("attach", monitor)
	safe(guestFiles - 1)
	l.protected()
	v := l.open(l.checkpoint("again").ID)
	first.kill()
	if said := first.out.said(); regexp.MustCompile(`(?i)error|remount|lost`).Match(said) {
		t.Errorf("the guest says:\n%s", said)
	}
	second := vm.boot("read", "-blockdev", "driver=nbd,node-name=disk,server.type=unix,server.path="+socketOf(v.Volumes[0].NBD)+
		",export="+exportOf(v.Volumes[0].NBD), "-device", "virtio-blk-pci,drive=disk")
	defer second.kill()
	if out := second.says("READ"); !strings.Contains(out, fmt.Sprintf("READ %d BAD 0", guestFiles)) {
		t.Errorf("the second guest says:\n%s", out)
	}
}

// move attaches or detaches the guest, and says how long that took.
func (l *lab) move(what, monitor string) {
	l.t.Helper()
	from := time.Now()
	var r struct {
		State   string
		Changed bool
	}
	l.must(l.JSON(l.t.Context(), &r, what, "--qmp", monitor))
	if !r.Changed || r.State != what+"ed" {
		l.t.Errorf("%s: %+v", what, r)
	}
	l.t.Logf("%s took %v", what, time.Since(from).Round(time.Millisecond))
}

// diskPath is where the filter has the lab's only disk.
func (l *lab) diskPath() string {
	l.t.Helper()
	var r struct{ Disk string }
	l.must(l.JSON(l.t.Context(), &r, "attach", "--no-guest", "--volume", l.Volumes[0].Name))
	return r.Disk
}

// past waits until the group is not protected, and says so.
func (l *lab) past(why string) {
	l.t.Helper()
	l.must(l.Await(l.t.Context(), time.Minute, "resync", func(s drive.Status) bool {
		return s.State == "resync" && strings.Contains(s.Reason, why)
	}))
}

// newest is the id of the newest checkpoint.
func (l *lab) newest() string {
	l.t.Helper()
	all, err := l.Checkpoints(l.t.Context())
	l.must(err)
	return all[len(all)-1].ID
}

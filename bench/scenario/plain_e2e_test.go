//go:build e2e

package scenario_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/bench/guest"
	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm/kvmtest"
	"github.com/holdfast-dr/holdfast/ioengine"
)

// TestGuestMovesOntoPlainDisks has a machine on NBD that took over write without a pause while its failover is committed, settles, and it moves onto
// the target's disk itself. The command and the target are killed at each step of that. Nothing stops the machine, and what it knew to be
// safe, before, meanwhile and after, stands in the disk when its power is cut.
func TestGuestMovesOntoPlainDisks(t *testing.T) {
	t.Parallel()
	vm, l := guestLab(t)
	l.protected()
	const most = 1000 // files, which it never comes to
	file := vm.machine(config.Machine{Disks: []string{l.Volumes[0].Name}, Front: config.FrontNBD, Cmdline: guest.Cmdline(guest.Write, most, ""), Wait: config.Wait{Kind: config.WaitSerial, What: "SAFE 2"}})
	ctx := t.Context()
	var r report
	l.must(l.JSON(ctx, &r, "failover", "live", "--machines", file, "--override-reason", "a drill"))
	machine := filepath.Join(l.Dir, "jobs", "r1", "machines", "web1")
	writesOn := func() { t.Helper(); l.writesOn(machine) }
	first := vm.process(machine)
	if err := l.JSON(ctx, &r, "failover", "plain", "r1"); err == nil || !strings.Contains(err.Error(), "commit") {
		t.Errorf("moved before it was committed: %v", err)
	}
	writesOn()
	l.must(l.JSON(ctx, &r, "failover", "commit", "r1"))

	args := []string{"failover", "plain", "r1"}
	for _, step := range []string{"settle", "onto", "let-go"} {
		l.killedAt("r2", `"began":{"do":"`+step+`"`, args...)
		l.kill("vra-target")
		writesOn()
		args = []string{"failover", "resume", "r2"}
	}
	l.must(l.JSON(ctx, &r, args...))
	if r.ID != "r2" || r.Verdict == nil || *r.Verdict != "passed" || r.Reason != nil {
		t.Errorf("%+v", r)
	}
	target := l.target()
	res, err := target.Recovery.Get(ctx, &holdfastv1.RecoveryServiceGetRequest{})
	l.must(err)
	if f := res.Failover; f.State != api.FailoverOnDisks || len(f.Disks) != 1 || f.View != nil {
		t.Fatalf("the target says %v", f)
	}
	disk := res.Failover.Disks[0].Path
	l.kill("vra-target") // which opens its files anew, beside the machine
	writesOn()
	await(t, 2*time.Minute, "the target is there again", func() bool {
		res, err := target.Recovery.Get(ctx, &holdfastv1.RecoveryServiceGetRequest{})
		return err == nil && res.Failover.State == api.FailoverOnDisks
	})
	if now := vm.process(machine); now != first {
		t.Errorf("the machine was started again: process %d, was %d", now, first)
	}
	knew := l.safe(machine)
	vm.cutPower(machine)
	second := vm.boot(fmt.Sprintf("read files=%d", knew), "-drive", "if=virtio,format=raw,file="+disk)
	defer second.kill()
	if out := second.says("READ"); !strings.Contains(out, fmt.Sprintf("READ %d BAD 0", knew)) {
		t.Errorf("of %d files that were safe the disk has:\n%s", knew, out)
	}
	t.Logf("%d files", knew)
}

// TestGuestComesBackFromPlainDisks has a machine that took over move onto plain disks, while it writes, and then be protected from there: its old disks are the
// replicas, what differs alone is sent, it comes onto a filter without a stop, also where the command and a vra are killed in the middle of that, and
// what it knew to be safe at a checkpoint its old site reads.
func TestGuestComesBackFromPlainDisks(t *testing.T) {
	t.Parallel()
	backFromPlainDisks(t, config.Hypervisor{}, config.FrontNBD)
}

// TestGuestComesBackFromPlainDisksOverVhost does the same with a machine whose disks are vhost-user-blk devices of whoever serves them: the target's vra, and then the filter.
func TestGuestComesBackFromPlainDisksOverVhost(t *testing.T) {
	t.Parallel()
	backFromPlainDisks(t, config.Hypervisor{}, config.FrontVhostUser)
}

// TestGuestComesBackFromPlainDisksOverVhostOfLibvirt does that with a machine of libvirt's.
func TestGuestComesBackFromPlainDisksOverVhostOfLibvirt(t *testing.T) {
	t.Parallel()
	backFromPlainDisks(t, kvmtest.Libvirtd(t), config.FrontVhostUser)
}

func backFromPlainDisks(t *testing.T, where config.Hypervisor, front string) {
	const size = 256 << 20 // which the machine does not come to fill
	vm, p, disks := guestPair(t, size)
	vm.hypervisor = where
	first := p.bootProtected(vm)
	first.kill()

	var r report
	p.front = front
	p.must(p.holdfast(&r, "failover", "live", "--machines", p.machines(vm, guestFiles, "more=1000", ""), "--override-reason", "a drill"))
	west := filepath.Join(p.dir, "jobs", r.ID, "machines", "web1")
	p.must(p.holdfast(&r, "failover", "commit", r.ID))
	pid := vm.process(west)
	safe := func() int {
		said, _ := os.ReadFile(filepath.Join(west, "serial"))
		return strings.Count(string(said), "SAFE ")
	}
	writesOn := func() {
		t.Helper()
		was := safe()
		await(t, 2*time.Minute, "the machine writes on", func() bool { return safe() >= was+3 })
	}
	p.must(p.holdfast(&r, "failover", "plain", r.ID))
	writesOn()
	p.stop("east-filter")
	to := p.sites[0].config.Target
	args := []string{"reverse", "--to", to.ListenControl + "," + to.ListenData, "--disk", "system=" + disks[0], "--disk", "data=" + disks[1], "--interval", "1s"}
	p.killedAt("r3", `"began":{"do":"attach"`, args...)
	p.kill(p.sites[1].name)
	writesOn()
	p.startVRA(1)
	writesOn() // and while somebody may write past the filter no checkpoint is listed
	if res, err := p.sites[0].client.Checkpoints.List(t.Context(), &holdfastv1.CheckpointsServiceListRequest{Group: pairGroup}); err != nil || len(res.Checkpoints) > 0 {
		t.Errorf("before all machines are on the filter: %v, %v", res, err)
	}
	p.must(p.holdfast(&r, "failover", "resume", "r3"))
	if r.Verdict == nil || *r.Verdict != "passed" {
		t.Errorf("reversed: %+v", r)
	}
	g := p.state(1, api.StateProtected)
	t.Logf("%d KiB of %d MiB were sent", g.PackRawBytesTotal>>10, 2*size>>20)
	if g.PackRawBytesTotal > 2*size/4 {
		t.Errorf("%d bytes were sent", g.PackRawBytesTotal)
	}
	writesOn()
	knew := guestFiles + safe()
	p.checkpoint(1, "back")
	if now := vm.process(west); now != pid {
		t.Errorf("the machine was started again: process %d, was %d", now, pid)
	}
	p.context(1)
	var proof report
	p.must(p.holdfast(&proof, "verify", "--machines", p.machines(vm, knew, "", ""), "--wait", fmt.Sprintf("serial:READ %d BAD 0", knew)))
	if *proof.Verdict != "passed" {
		t.Errorf("%+v", proof)
	}
	if said, err := os.ReadFile(filepath.Join(west, "serial")); err != nil || strings.Contains(strings.ToLower(string(said)), "i/o error") {
		t.Errorf("the guest saw an error (%v):\n%s", err, said)
	}
}

// guestPair is two sites and what guests are made of, and the disks of one at the first site: of its system, and of its files.
func guestPair(t *testing.T, size int64) (vm *host, p *pair, disks []string) {
	t.Helper()
	vm, p = newHost(t), newPair(t, size, "system", "data")
	disks = []string{filepath.Join(p.dir, "east", "disks", "system.raw"), filepath.Join(p.dir, "east", "disks", "data.raw")}
	p.must(vm.MakeDisk(disks[0], size))
	p.must(guest.MakeSecond(disks[1], size))
	return vm, p, disks
}

// bootProtected starts both sites and the guest of a guestPair, which goes on to write. There is a checkpoint that holds guestFiles of its files.
func (p *pair) bootProtected(vm *host) *virtual {
	p.t.Helper()
	p.startVRA(0)
	p.startVRA(1)
	p.start("east-filter", "vra-filter", filepath.Join(p.dir, "east", "filter.yaml"))
	p.await("the guest's disks", func() bool { _, err := os.Stat(filepath.Join(p.dir, "east", "data.sock")); return err == nil })
	first := vm.boot("write pause=0.2 disks=2", p.guestDisks("east")...)
	first.says(fmt.Sprintf("SAFE %d", guestFiles-1))
	p.state(0, api.StateProtected)
	p.checkpoint(0, "safe")
	return first
}

// said is what the machine of a folder has said.
func (l *lab) said(machine string) string {
	l.t.Helper()
	p, err := os.ReadFile(filepath.Join(machine, "serial"))
	l.must(err)
	return string(p)
}

// safe is how many files a machine knows to be safe.
func (l *lab) safe(machine string) int { l.t.Helper(); return strings.Count(l.said(machine), "SAFE ") }

func (l *lab) writesOn(machine string) {
	l.t.Helper()
	was := l.safe(machine)
	await(l.t, 2*time.Minute, "the machine writes on", func() bool { return l.safe(machine) >= was+3 })
}

// process is the QEMU of a machine, whoever has started it. It ends with the test.
func (h *host) process(machine string) (qemu int) {
	h.t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		h.t.Fatal(err)
	}
	for _, name := range all {
		of := filepath.Dir(filepath.Dir(name))
		if has, _ := os.Readlink(name); has != filepath.Join(machine, "serial") { // it may be gone
			continue
		}
		if who, _ := os.ReadFile(filepath.Join(of, "comm")); !strings.HasPrefix(string(who), "qemu-system") {
			continue
		}
		if qemu, err = strconv.Atoi(filepath.Base(of)); err != nil {
			h.t.Fatal(err)
		}
	}
	if qemu == 0 {
		h.t.Fatalf("nobody runs %s", machine)
	}
	p, err := os.FindProcess(qemu)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = p.Kill() }) // it may be gone
	return qemu
}

// cutPower ends a machine.
func (h *host) cutPower(machine string) {
	h.t.Helper()
	qemu := h.process(machine)
	if err := syscall.Kill(qemu, syscall.SIGKILL); err != nil {
		h.t.Fatal(err)
	}
	await(h.t, 2*time.Minute, "the machine is off", func() bool { return errors.Is(syscall.Kill(qemu, 0), syscall.ESRCH) })
}

// target connects to the target's vra.
func (l *lab) target() *api.Client {
	l.t.Helper()
	c, err := config.LoadContext(l.Context)
	l.must(err)
	v, ok := c.VRA(api.RoleTarget)
	if !ok {
		l.t.Fatal("the lab has no target")
	}
	client := api.DialUnix(v.Socket)
	l.t.Cleanup(client.Close)
	return client
}

// TestGuestOnVhostView has a guest that shares its memory with its disk's filter come up at the second site on a view that it shares its memory with, too.
// It goes on over a kill of the target and over the commit, and moves onto the plain disk while it runs. The command and the target are killed at each step of that.
// Nothing stops the machine; once its power was cut it comes up on its disk by itself, reads what it knew to be safe, and so does whoever looks at the disk.
func TestGuestOnVhostView(t *testing.T) {
	t.Parallel()
	onVhostView(t, config.Hypervisor{})
}

// TestGuestOnVhostViewOfLibvirt does the same with a machine of libvirt's.
func TestGuestOnVhostViewOfLibvirt(t *testing.T) {
	t.Parallel()
	onVhostView(t, kvmtest.Libvirtd(t))
}

func onVhostView(t *testing.T, where config.Hypervisor) {
	vm, l := guestLab(t)
	vm.hypervisor = where
	first := vm.boot("write pause=0.5", vhostDisk(l.Volumes[0])...)
	defer first.kill()
	first.says(fmt.Sprintf("SAFE %d", guestFiles-1))
	l.protected()
	l.checkpoint("written")
	first.kill()

	const most = 1000 // files, which it never comes to
	read := fmt.Sprintf("READ %d BAD 0", guestFiles)
	file := vm.machine(config.Machine{Disks: []string{l.Volumes[0].Name}, Cmdline: guest.Cmdline(guest.Stay, guestFiles, fmt.Sprintf("more=%d", most)),
		Wait: config.Wait{Kind: config.WaitSerial, What: read}})
	ctx := t.Context()
	var r report
	l.must(l.JSON(ctx, &r, "failover", "live", "--machines", file, "--override-reason", "a drill"))
	live := r.ID
	machine := filepath.Join(l.Dir, "jobs", live, "machines", "web1")
	started := vm.process(machine)
	l.kill("vra-target")
	l.writesOn(machine)
	l.must(l.JSON(ctx, &r, "failover", "commit", live))
	target := l.target()
	failover := func() *holdfastv1.Failover {
		t.Helper()
		res, err := target.Recovery.Get(ctx, &holdfastv1.RecoveryServiceGetRequest{})
		l.must(err)
		return res.Failover
	}
	await(t, 2*time.Minute, "the disk holds all", func() bool { return failover().OnDisksAlone })
	l.writesOn(machine)

	args := []string{"failover", "plain", live}
	for _, step := range []string{"settle", "onto", "let-go"} {
		l.killedAt("r2", `"began":{"do":"`+step+`"`, args...)
		l.kill("vra-target")
		l.writesOn(machine)
		args = []string{"failover", "resume", "r2"}
	}
	l.must(l.JSON(ctx, &r, args...))
	f := failover()
	if f.State != api.FailoverOnDisks || len(f.Disks) != 1 || f.View != nil {
		t.Fatalf("the target says %v", f)
	}
	disk := f.Disks[0].Path
	l.writesOn(machine)
	l.kill("vra-target")
	l.writesOn(machine)
	if err := ioengine.InUse(disk); !errors.Is(err, ioengine.ErrLocked) {
		t.Errorf("the machine has its disk, and who opens it is told %v", err)
	}
	if now := vm.process(machine); now != started {
		t.Errorf("the machine was started again: process %d, was %d", now, started)
	}
	knew := guestFiles + l.safe(machine)
	vm.cutPower(machine)
	await(t, 2*time.Minute, "the disk is let go", func() bool { return ioengine.InUse(disk) == nil })
	second := vm.boot(fmt.Sprintf("read files=%d", knew), "-drive", "if=virtio,format=raw,file="+disk)
	defer second.kill()
	if out := second.says("READ"); !strings.Contains(out, fmt.Sprintf("READ %d BAD 0", knew)) {
		t.Errorf("of %d files that were safe the disk has:\n%s", knew, out)
	}
	second.kill()
	l.must(l.JSON(ctx, nil, "failover", "resume", live))
	vm.process(machine)
	await(t, 2*time.Minute, "the machine is up on its disk", func() bool { return strings.Count(l.said(machine), read) == 2 })
	if strings.Contains(strings.ToLower(l.said(machine)), "i/o error") {
		t.Errorf("the guest saw an error:\n%s", l.said(machine))
	}
}

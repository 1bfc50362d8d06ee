//go:build e2e

package scenario_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/bench/drive"
	"github.com/holdfast-dr/holdfast/bench/guest"
	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/config"
)

// report is what the commands of recovery say of a job.
type report struct {
	ID, Kind, Checkpoint, State string
	Verdict, Reason, View       *string
	Ready                       *float64 `json:"ready_seconds"`
	Files                       []string
}

// killedAt runs a command that begins a job, and kills it once the job's events say so.
func (l *lab) killedAt(id, event string, args ...string) {
	l.t.Helper()
	ctx, kill := context.WithCancel(l.t.Context())
	defer kill()
	path := filepath.Join(l.Dir, "jobs", id, "events")
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			<-tick.C
			if text, err := os.ReadFile(path); err == nil && strings.Contains(string(text), event) {
				kill()
			}
		}
	}()
	_, err := l.Run(ctx, args...)
	if ctx.Err() == nil {
		l.t.Errorf("%q was not killed: %v", args, err)
	}
	kill()
	<-watched
}

// machines writes the file of a group whose machine boots from its only disk and reads what the first knew to be safe.
func (h *host) machines(volume, monitor string) string {
	h.t.Helper()
	return h.machine(config.Machine{Disks: []string{volume}, Cmdline: guest.Cmdline(guest.Stay, guestFiles, ""),
		Wait: config.Wait{Kind: config.WaitSerial, What: fmt.Sprintf("READ %d BAD", guestFiles)}, Source: config.MachineSource{QMP: monitor}})
}

// vhostDisk are QEMU's options for a guest's disk, over vhost-user.
func vhostDisk(v drive.Volume) []string {
	return []string{"-chardev", "socket,id=disk,path=" + v.VhostUser + ",reconnect=1", "-device", "vhost-user-blk-pci,chardev=disk,num-queues=1"}
}

// machine writes the file of a group of one machine, web1, whose kernel is the host's.
func (h *host) machine(m config.Machine) string {
	h.t.Helper()
	m.Name, m.Memory, m.Kernel, m.Initrd = "web1", 192<<20, h.Kernel, h.Initrd
	file := config.Machines{Hypervisor: h.hypervisor, Machines: []config.Machine{m}}
	text, err := config.Marshal(&file)
	if err != nil {
		h.t.Fatal(err)
	}
	name := filepath.Join(h.dir, "machines.yaml")
	if err := os.WriteFile(name, text, 0o600); err != nil {
		h.t.Fatal(err)
	}
	return name
}

// TestGuestFailsOver has a guest write while its group is brought up beside it at two checkpoints at once:
// the machines at the second site read what the guest knew to be safe then, protection goes on, and
// nothing is left once they are stopped. A command is killed while it starts a machine, and another carries on.
func TestGuestFailsOver(t *testing.T) {
	t.Parallel()
	vm, l := guestLab(t)
	volume := l.Volumes[0].Name
	first := vm.boot("write pause=0.5", vhostDisk(l.Volumes[0])...)
	defer first.kill()
	first.says(fmt.Sprintf("SAFE %d", guestFiles-1))
	l.protected()
	c := l.checkpoint("written")
	file := vm.machines(volume, "")

	l.killedAt("r1", `"do":"start"`, "failover", "test", "--checkpoint", "written", "--machines", file)
	var r report
	l.must(l.JSON(t.Context(), &r, "failover", "resume", "r1"))
	if r.ID != "r1" || r.State != "running" || r.Checkpoint != c.ID || r.Ready == nil {
		t.Errorf("%+v", r)
	}
	t.Logf("ready after %.2f s", *r.Ready)
	newest := l.newest()
	var proof report
	l.must(l.JSON(t.Context(), &proof, "verify", "--checkpoint", newest, "--machines", file, "--wait", fmt.Sprintf("serial:READ %d BAD 0", guestFiles)))
	if proof.ID != "r2" || proof.State != "over" || *proof.Verdict != "passed" || len(proof.Files) != 1 {
		t.Errorf("%+v", proof)
	}
	if _, err := l.Run(t.Context(), "verify", "--checkpoint", newest, "--machines", file, "--wait", "serial:it never says this", "--wait-time", "5s"); err == nil {
		t.Error("what never came proved a checkpoint")
	}
	if shot, err := os.ReadFile(filepath.Join(l.Dir, "jobs", "r3", "web1.png")); err != nil || !bytes.HasPrefix(shot, []byte("\x89PNG")) {
		t.Errorf("no picture of a machine that did not come up: %v", err)
	}
	if last := l.newest(); last == newest {
		t.Errorf("no checkpoint came after %s while machines were started beside", newest)
	}
	l.protected()
	l.must(l.JSON(t.Context(), &r, "failover", "test", "--stop", "r1", "--note", "all there"))
	if *r.Verdict != "passed" {
		t.Errorf("%+v", r)
	}
	said, err := os.ReadFile(filepath.Join(l.Dir, "jobs", "r1", "web1.serial"))
	if want := fmt.Sprintf("READ %d BAD 0", guestFiles); err != nil || !strings.Contains(string(said), want) {
		t.Errorf("the machine at the second site does not say %q (%v):\n%s", want, err, said)
	}
	restoresAFile(l, c.ID)
	var views []struct{ ID string }
	l.must(l.JSON(t.Context(), &views, "view", "list"))
	if left, _ := filepath.Glob(filepath.Join(l.Dir, "jobs", "*", "machines", "*")); len(views) > 0 || len(left) > 0 {
		t.Errorf("%v and %v are left", views, left)
	}
	var proved []struct{ ID, Proved string }
	l.must(l.JSON(t.Context(), &proved, "checkpoint", "list"))
	marked := 0
	for _, c := range proved {
		if c.Proved != "" {
			if marked++; c.ID != newest || c.Proved != "r2" {
				t.Errorf("%+v is marked", c)
			}
		}
	}
	if marked != 1 {
		t.Errorf("%d checkpoints are marked as proved", marked)
	}
}

// restoresAFile takes one file out of a checkpoint, without a mount: the disk is shown as a file.
func restoresAFile(l *lab, checkpoint string) {
	l.t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		l.t.Logf("no file is restored: %v", err)
		return
	}
	var v drive.View
	l.must(l.JSON(l.t.Context(), &v, "view", "open", "--checkpoint", checkpoint, "--read-only"))
	dir := l.t.TempDir()
	fuse := exec.Command("nbdfuse", "-r", filepath.Join(dir, "mnt", "disk"), v.Volumes[0].NBD)
	l.must(os.Mkdir(filepath.Join(dir, "mnt"), 0o700))
	l.must(fuse.Start())
	defer func() {
		if out, err := exec.Command("umount", filepath.Join(dir, "mnt")).CombinedOutput(); err != nil {
			l.t.Errorf("umount: %v: %s", err, out)
			fuse.Process.Kill()
		}
		fuse.Wait()
		l.must(l.Close(l.t.Context(), v))
	}()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for late := time.Now().Add(30 * time.Second); time.Now().Before(late); <-tick.C {
		if _, err := os.Stat(filepath.Join(dir, "mnt", "disk")); err == nil {
			break
		}
	}
	out, err := exec.Command("debugfs", "-R", "dump /data/f3 "+filepath.Join(dir, "f3"), filepath.Join(dir, "mnt", "disk")).CombinedOutput()
	got, rerr := os.ReadFile(filepath.Join(dir, "f3"))
	want := bytes.Repeat([]byte("file 3 of a protected guest\n"), 2000)[:4096+3*7919%300000]
	if err != nil || rerr != nil || !bytes.Equal(got, want) {
		l.t.Errorf("the file that was restored has %d bytes, want %d (%v, %v): %s", len(got), len(want), err, rerr, out)
	}
}

// TestMovedGuest has a protected guest move to the second site: it is stopped, and the machine there reads all
// that it knew to be safe, up to the last. That is rolled back. Then the site is gone, and
// what takes over with a stated reason is committed: it runs on, and the source stands by.
func TestMovedGuest(t *testing.T) {
	t.Parallel()
	vm, l := guestLab(t)
	monitor := filepath.Join(vm.dir, "qmp")
	first := vm.boot("write pause=0.5", append(vhostDisk(l.Volumes[0]), "-qmp", "unix:"+monitor+",server=on,wait=off")...)
	defer first.kill()
	first.says(fmt.Sprintf("SAFE %d", guestFiles-1))
	// What cannot begin stops nothing: the move below needs the guest's word that it is off.
	for _, args := range [][]string{{"move", "--source", "force"}, {"failover", "live", "--source", "force"}, {"failover", "live", "--dry-run"}} {
		if _, err := l.Run(t.Context(), append(args, "--machines", vm.machines("wev", monitor))...); err == nil || !strings.Contains(err.Error(), "has no volume wev") {
			t.Errorf("%q with a volume that is not there: %v", args, err)
		}
	}
	file := vm.machines(l.Volumes[0].Name, monitor)

	fine := func(r report, verdict string) {
		t.Helper()
		path := filepath.Join(l.Dir, "jobs", r.ID, "web1.serial")
		if r.State == "running" || verdict == "committed" {
			path = filepath.Join(l.Dir, "jobs", r.ID, "machines", "web1", "serial")
		}
		said, err := os.ReadFile(path)
		got := ""
		if r.Verdict != nil {
			got = *r.Verdict
		}
		if want := fmt.Sprintf("READ %d BAD 0", guestFiles); got != verdict || err != nil || !strings.Contains(string(said), want) {
			t.Errorf("%+v, verdict %q, want %q; %v; the machine says\n%s", r, got, verdict, err, said)
		}
	}
	var r report
	l.killedAt("r1", `"do":"begin"`, "move", "--machines", file, "--source", "force")
	l.must(l.JSON(t.Context(), &r, "failover", "resume", "r1"))
	fine(r, "")
	if last := l.newest(); r.Checkpoint != last {
		t.Errorf("it moved at checkpoint %s, and the last is %s", r.Checkpoint, last)
	}
	l.must(l.JSON(t.Context(), &r, "failover", "rollback", "r1"))
	fine(r, "rolled-back")
	l.protected()

	if _, err := l.Run(t.Context(), "failover", "live", "--machines", vm.machines(l.Volumes[0].Name, filepath.Join(vm.dir, "nowhere"))); err == nil || !strings.Contains(err.Error(), "--override-reason") {
		t.Errorf("a source that cannot be reached was not asked about: %v", err)
	}
	l.kill("vra-source")
	l.must(l.JSON(t.Context(), &r, "failover", "live", "--machines", file, "--override-reason", "the site burnt"))
	fine(r, "")
	l.must(l.JSON(t.Context(), &r, "failover", "commit", r.ID))
	fine(r, "committed")
	l.must(l.Await(t.Context(), time.Minute, "standing by", func(s drive.Status) bool { return s.State == api.StateStandby || s.State == api.StateRecovering }))
}

// TestScheduledGuest has a guest proved on a schedule by a process that is killed in the middle: the next one takes back what it
// left, proves the checkpoint, says so to monitoring, and ends when it is asked to.
func TestScheduledGuest(t *testing.T) {
	t.Parallel()
	vm, l := guestLab(t)
	first := vm.boot("write pause=0.5", vhostDisk(l.Volumes[0])...)
	first.says(fmt.Sprintf("SAFE %d", guestFiles-1))
	l.protected()
	l.checkpoint("written")
	first.kill()
	file := vm.machines(l.Volumes[0].Name, "")
	c, err := config.LoadMachines(file)
	l.must(err)
	c.Verify = config.Verify{Every: config.Duration(time.Hour)}
	text, err := config.Marshal(c)
	l.must(err)
	l.must(os.WriteFile(file, text, 0o600))
	metrics := filepath.Join(t.TempDir(), "proofs.prom")
	args := []string{"verify", "--scheduled", "--machines", file, "--metrics", metrics}

	l.killedAt("r1", `"do":"start"`, args...)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { _, err := l.Run(ctx, args...); ended <- err }()
	var st struct {
		Last, Passed *report
		Missed       int
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for late := time.Now().Add(2 * time.Minute); st.Passed == nil; <-tick.C {
		if time.Now().After(late) {
			t.Fatalf("nothing is proved: %+v", st)
		}
		_ = l.JSON(ctx, &st, "verify", "--show", "--machines", file) // it fails where something was missed
	}
	stop()
	<-ended
	if st.Last.ID != "r2" || st.Passed.ID != "r2" || st.Missed != 0 {
		t.Errorf("%+v", st)
	}
	var r report
	l.must(l.JSON(t.Context(), &r, "failover", "report", "r1"))
	if r.State != "over" || r.Verdict == nil || *r.Verdict != "cancelled" {
		t.Errorf("what was left is %+v", r)
	}
	if text, err := os.ReadFile(metrics); err != nil || !strings.Contains(string(text), `holdfast_proof_passed{group="lab"} 1`) {
		t.Errorf("%v:\n%s", err, text)
	}
	if left, _ := filepath.Glob(filepath.Join(l.Dir, "jobs", "*", "machines", "*")); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
}

// TestGentlyMovedGuest has a live failover and a move press the power button of a protected guest, which hears it: it writes a last file,
// says so, and goes off before anything is begun. After the move that last file is there; the failover, at a checkpoint of before, does not
// have it.
func TestGentlyMovedGuest(t *testing.T) {
	t.Parallel()
	vm, l := guestLab(t)
	monitor := filepath.Join(vm.dir, "qmp")
	file := vm.machines(l.Volumes[0].Name, monitor)
	boot := func() *virtual {
		t.Helper()
		v := vm.boot("write pause=0.3", append(vhostDisk(l.Volumes[0]), "-qmp", "unix:"+monitor+",server=on,wait=off")...)
		v.says(fmt.Sprintf("SAFE %d", guestFiles-1))
		l.protected()
		return v
	}
	off := func(v *virtual) {
		t.Helper()
		if said := v.out.said(); !bytes.Contains(said, []byte("BYE")) {
			t.Errorf("the source's guest did not hear that it was to go off:\n%s", said)
		}
		if err := v.cmd.Wait(); err != nil {
			t.Errorf("its QEMU: %v", err)
		}
	}
	found := func(r report, orderly bool) {
		t.Helper()
		said, err := os.ReadFile(filepath.Join(l.Dir, "jobs", r.ID, "machines", "web1", "serial"))
		if want := fmt.Sprintf("READ %d BAD 0", guestFiles); err != nil || r.State != "running" || !strings.Contains(string(said), want) || strings.Contains(string(said), "ORDERLY") != orderly {
			t.Errorf("%+v, %v; want %q, orderly %v; the machine says\n%s", r, err, want, orderly, said)
		}
	}
	first := boot()
	l.checkpoint("before")
	var r report
	l.must(l.JSON(t.Context(), &r, "failover", "live", "--machines", file, "--checkpoint", "before"))
	off(first)
	found(r, false)
	l.must(l.JSON(t.Context(), &r, "failover", "rollback", r.ID))
	l.protected()
	second := boot()
	l.must(l.JSON(t.Context(), &r, "move", "--machines", file))
	off(second)
	found(r, true)
	l.must(l.JSON(t.Context(), &r, "failover", "commit", r.ID))
}

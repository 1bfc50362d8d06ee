//go:build e2e

package scenario_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/bench/guest"
	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
)

// TestGuestMovesOntoPlainDisks has a machine that took over write without a pause while its failover is committed, settles, and it moves onto
// the target's disk itself. The command and the target are killed at each step of that. Nothing stops the machine, and what it knew to be
// safe, before, meanwhile and after, stands in the disk when its power is cut.
func TestGuestMovesOntoPlainDisks(t *testing.T) {
	t.Parallel()
	vm := newHost(t)
	image := filepath.Join(t.TempDir(), "guest.raw")
	vm.makeDisk(image)
	l := up(t, "", nil, "--image", image, "--interval", "1s", "--link", "none")
	l.protected()
	const most = 1000 // files, which it never comes to
	file := vm.machinesThat(l.Volumes[0].Name, "", guest.Cmdline(guest.Write, most, ""), "SAFE 2")
	ctx := t.Context()
	var r report
	l.must(l.JSON(ctx, &r, "failover", "live", "--machines", file, "--override-reason", "a drill"))
	machine := filepath.Join(l.Dir, "jobs", "r1", "machines", "web1")
	await := func(what string, done func() bool) {
		t.Helper()
		tick, late := time.NewTicker(50*time.Millisecond), time.Now().Add(2*time.Minute)
		defer tick.Stop()
		for !done() {
			if <-tick.C; time.Now().After(late) {
				t.Fatalf("not within 2 minutes: %s", what)
			}
		}
	}
	// safe is how many files the machine knows to be safe.
	safe := func() (n int) {
		t.Helper()
		said, err := os.ReadFile(filepath.Join(machine, "serial"))
		l.must(err)
		return bytes.Count(said, []byte("SAFE "))
	}
	writesOn := func() {
		t.Helper()
		was := safe()
		await("the machine writes on", func() bool { return safe() >= was+3 })
	}
	pid := func() string {
		p, err := os.ReadFile(filepath.Join(machine, "pid"))
		l.must(err)
		return string(p)
	}
	first := pid()
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
	c, err := config.LoadContext(l.Context)
	l.must(err)
	v, ok := c.VRA(api.RoleTarget)
	if !ok {
		t.Fatal("the lab has no target")
	}
	target := api.DialUnix(v.Socket)
	defer target.Close()
	res, err := target.Recovery.Get(ctx, &holdfastv1.RecoveryServiceGetRequest{})
	l.must(err)
	if f := res.Failover; f.State != api.FailoverOnDisks || len(f.Disks) != 1 || f.View != nil {
		t.Fatalf("the target says %v", f)
	}
	disk := res.Failover.Disks[0].Path
	l.kill("vra-target") // which opens its files anew, beside the machine
	writesOn()
	await("the target is there again", func() bool {
		res, err := target.Recovery.Get(ctx, &holdfastv1.RecoveryServiceGetRequest{})
		return err == nil && res.Failover.State == api.FailoverOnDisks
	})
	if now := pid(); now != first {
		t.Errorf("the machine was started again: process %s, was %s", now, first)
	}
	knew := safe()
	var qemu int
	_, err = fmt.Sscan(first, &qemu)
	l.must(err)
	l.must(syscall.Kill(qemu, syscall.SIGKILL))
	await("the machine is off", func() bool { return errors.Is(syscall.Kill(qemu, 0), syscall.ESRCH) })
	second := vm.boot(fmt.Sprintf("read files=%d", knew), "-drive", "if=virtio,format=raw,file="+disk)
	defer second.kill()
	if out := second.says("READ"); !strings.Contains(out, fmt.Sprintf("READ %d BAD 0", knew)) {
		t.Errorf("of %d files that were safe the disk has:\n%s", knew, out)
	}
	t.Logf("%d files", knew)
}

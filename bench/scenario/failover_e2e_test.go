//go:build e2e

package scenario_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/bench/drive"
	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
)

// A live failover with real processes: the source site dies, the target serves the disks and is killed
// under them, the source comes back and stands by; a rollback brings both back to where they were, a
// commit does not.
func TestFailoverOfALab(t *testing.T) {
	l := up(t, "", nil, "--volumes", "1", "--size", "64MiB")
	l.protected()
	ctx := t.Context()
	disk, err := nbd.Dial(ctx, l.Volumes[0].NBD)
	l.must(err)
	defer disk.Close()
	put := func(c *nbd.Client, off int64, b byte) {
		t.Helper()
		_, err := c.WriteAt(bytes.Repeat([]byte{b}, 64<<10), off)
		l.must(err)
		l.must(c.Flush())
	}
	put(disk, 0, 0x11)
	first := l.checkpoint("first")
	put(disk, 0, 0x22)
	second := l.checkpoint("second")

	vra := func(role string) *api.Client {
		t.Helper()
		c, err := config.LoadContext(l.Context)
		l.must(err)
		v, ok := c.VRA(role)
		if !ok {
			t.Fatalf("the lab has no %s", role)
		}
		client := api.DialUnix(v.Socket)
		t.Cleanup(client.Close)
		return client
	}
	target, source := vra(api.RoleTarget), vra(api.RoleSource)
	state := func(c *api.Client, want string) {
		t.Helper()
		var last *holdfastv1.Group
		tick, deadline := time.NewTicker(100*time.Millisecond), time.Now().Add(time.Minute)
		defer tick.Stop()
		for ; time.Now().Before(deadline); <-tick.C {
			res, err := c.Status.Get(ctx, &holdfastv1.StatusServiceGetRequest{})
			if err != nil || len(res.Groups) != 1 {
				continue // it is being restarted
			}
			if last = res.Groups[0]; last.State == want {
				t.Logf("%s: %s", last.State, last.Reason)
				return
			}
		}
		t.Fatalf("the state is not %s: %v", want, last)
	}
	begin := func(id, checkpoint string) *holdfastv1.Failover {
		t.Helper()
		began := time.Now()
		res, err := target.Recovery.Begin(ctx, &holdfastv1.RecoveryServiceBeginRequest{Id: id, Checkpoint: checkpoint, Note: "nobody answers there"})
		l.must(err)
		t.Logf("failover to checkpoint %s began in %s", checkpoint, time.Since(began))
		return res.Failover
	}

	l.link("down")
	l.kill("vra-source")
	f := begin("one", first.ID)
	q := openQEMU(t, f.View.Volumes[0].Nbd, f.View.Volumes[0].Name)
	q.do("read -P 0x11 0 65536", "read 65536")
	q.do("write -f -P 0x41 4096 65536", "wrote 65536")
	put(disk, 1<<20, 0x33) // guests of the source site may still run
	state(target, api.StateRecovering)
	l.kill("vra-target")
	q.do("read -P 0x41 4096 65536", "read 65536")
	q.do("read -P 0x11 0 4096", "read 4096")
	l.link("up")
	state(source, api.StateStandby)
	put(disk, 2<<20, 0x44)
	res, err := target.Recovery.Get(ctx, &holdfastv1.RecoveryServiceGetRequest{})
	l.must(err)
	if g := res.Failover; g.State != api.FailoverRecovering || g.View.GetId() != f.View.Id || g.Reason != "" {
		t.Fatalf("after it was killed: %v", g)
	}

	_, err = target.Recovery.Rollback(ctx, &holdfastv1.RecoveryServiceRollbackRequest{Id: "one"})
	l.must(err)
	l.protected()
	last := l.checkpoint("back")
	for _, c := range []struct {
		drive.Checkpoint
		want map[int64]byte
	}{{first, map[int64]byte{0: 0x11, 1 << 20: 0}}, {second, map[int64]byte{0: 0x22, 1 << 20: 0}}, {last, map[int64]byte{0: 0x22, 1 << 20: 0x33, 2 << 20: 0x44}}} {
		v := l.open(c.ID)
		l.must(holds(t, v, c.want))
		l.must(l.Close(ctx, v))
	}

	f = begin("two", last.ID)
	q = openQEMU(t, f.View.Volumes[0].Nbd, f.View.Volumes[0].Name)
	q.do("write -f -P 0x51 4096 4096", "wrote 4096")
	_, err = target.Recovery.Commit(ctx, &holdfastv1.RecoveryServiceCommitRequest{Id: "two"})
	l.must(err)
	l.kill("vra-target")
	q.do("write -f -P 0x52 8192 4096", "wrote 4096")
	settled := func() {
		t.Helper()
		await(t, time.Minute, "the replicas get what the machines see", func() bool {
			res, err := target.Recovery.Get(ctx, &holdfastv1.RecoveryServiceGetRequest{})
			return err == nil && res.Failover.State == api.FailoverPassing && res.Failover.View.ScratchBytes == 0
		})
	}
	settled()
	l.kill("vra-target")
	q.do("read -P 0x52 8192 4096", "read 4096")
	q.do("read -P 0x51 4096 4096", "read 4096")
	q.do("read -P 0x44 2097152 4096", "read 4096")
	state(source, api.StateStandby)
	state(target, api.StateRecovering)
}

// holds says where a view's first volume is not what it should be.
func holds(t *testing.T, v drive.View, want map[int64]byte) error {
	c, err := nbd.Dial(t.Context(), v.Volumes[0].NBD)
	if err != nil {
		return err
	}
	defer c.Close()
	p := make([]byte, 4096)
	for off, b := range want {
		if _, err := c.ReadAt(p, off); err != nil || !bytes.Equal(p, bytes.Repeat([]byte{b}, len(p))) {
			return fmt.Errorf("at %d it has %#x, want %#x (%v)", off, p[0], b, err)
		}
	}
	return nil
}

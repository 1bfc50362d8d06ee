package journal

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/journal/retain"
	"github.com/holdfast-dr/holdfast/journal/view"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// inFailover is a store in a failover, with what its machines see.
func inFailover(t *testing.T) (s *source, disk *faultdisk.Disk, images map[record.VolumeID][]byte) {
	t.Helper()
	s, disk = viewWorld(t)
	w, err := openTarget(disk)
	ok(t, err)
	at := w.numbers()[1]
	_, err = w.group.Pin(w.numbers()[0], "audit")
	ok(t, err)
	i, err := w.group.BeginFailover(failoverTo(at))
	ok(t, err)
	images = map[record.VolumeID][]byte{1: bytes.Clone(s.images[at][1]), 2: bytes.Clone(s.images[at][2])}
	ok(t, scribble(i.View.View, images, 1))
	ok(t, w.store.Close())
	return s, disk, images
}

// scribble writes to the view, over lines and in parts of blocks, and flushes.
func scribble(v *view.View, images map[record.VolumeID][]byte, mark byte) error {
	for id, image := range images {
		d, _ := v.Device(id)
		for _, at := range []struct{ off, n int64 }{{100, 50}, {8192, 12288}, {30000, 9000}, {volumeBytes - 300, 300}} {
			p := bytes.Repeat([]byte{mark + byte(id)}, int(at.n))
			if err := d.WriteAt(p, at.off+int64(mark)*4096%8192); err != nil && at.off < volumeBytes-8192 {
				return err
			} else if err == nil {
				copy(image[at.off+int64(mark)*4096%8192:], p)
			}
		}
		if err := d.Zero(65536, 8192); err != nil {
			return err
		}
		clear(image[65536:][:8192])
		if err := d.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// sees compares the view of the group's failover.
func (t *target) sees(images map[record.VolumeID][]byte) error {
	i := t.group.Failover()
	if i.View.View == nil || i.Err != nil {
		return fmt.Errorf("it is %s and shows nothing: %w", i.State, i.Err)
	}
	return t.viewShows(images)
}

// viewShows is sees for a view that may have failed.
func (t *target) viewShows(images map[record.VolumeID][]byte) error {
	i := t.group.Failover()
	for id, image := range images {
		d, _ := i.View.View.Device(id)
		p := make([]byte, len(image))
		if err := d.ReadAt(p, 0); err != nil {
			return err
		}
		if !bytes.Equal(p, image) {
			return fmt.Errorf("it is %s: volume %d: %w at %d", i.State, id, errDiffers, firstDifference(p, image))
		}
	}
	return nil
}

// holds compares the replicas, by their sums as long as they count.
func (t *target) replicasHold(images map[record.VolumeID][]byte) error {
	for id, image := range images {
		p := make([]byte, len(image))
		read := t.group.volumes[id].replica.ReadAt
		if t.group.failoverNow().State.Plain() {
			read = t.group.volumes[id].replica.Plain().ReadAt
		}
		if err := read(p, 0); err != nil {
			return err
		}
		if !bytes.Equal(p, image) {
			return fmt.Errorf("replica %d: %w at %d", id, errDiffers, firstDifference(p, image))
		}
	}
	return nil
}

// ends commits the failover, settles it and holds the replicas against what machines saw.
func (t *target) ends(images map[record.VolumeID][]byte) error {
	if _, err := t.group.CommitFailover(""); err != nil {
		return err
	}
	if err := t.group.settle(noPace); err != nil {
		return err
	}
	i := t.group.Failover()
	if i.State != failover.Passing || i.View.ScratchBytes != 0 || !i.View.View.Passed() {
		return fmt.Errorf("it is %s with %d bytes in scratch", i.State, i.View.ScratchBytes)
	}
	if !slices.Equal(t.numbers(), []uint64{i.Checkpoint}) {
		return fmt.Errorf("%v are listed, not %d alone", t.numbers(), i.Checkpoint)
	}
	return errors.Join(t.replicasHold(images), t.sees(images))
}

// After a commit the replicas come to hold what the machines see, while these write on, and over
// restarts; nobody else looks at them meanwhile.
func TestSettle(t *testing.T) {
	_, disk, images := inFailover(t)
	w, err := openTarget(disk)
	ok(t, err)
	ok(t, w.sees(images))
	at := w.group.Failover().Checkpoint
	trial, err := w.group.KeepView(at, scratchOptions(0))
	ok(t, err)
	live, err := w.group.KeepView(at, ViewOptions{Live: true})
	ok(t, err)
	if _, err := w.group.CommitFailover(""); err != nil {
		t.Fatal(err)
	}
	if _, err := w.group.KeepView(at, ViewOptions{}); !errors.Is(err, ErrInUse) {
		t.Errorf("another view: %v", err)
	}
	if err := w.group.settle(noPace); !errors.Is(err, ErrInUse) {
		t.Errorf("beside view %d: %v", live.Number, err)
	}
	select {
	case <-trial.View.Ended():
	default:
		t.Error("a test view goes on")
	}
	ok(t, w.group.CloseView(live.Number))
	ok(t, w.ends(images))
	if err := w.group.promote(at, noPace); !errors.Is(err, ErrInUse) { // as one that waited would
		t.Errorf("promotion goes over it: %v", err)
	}
	ok(t, w.replicasHold(images))
	ok(t, scribble(w.group.Failover().View.View, images, 2))
	ok(t, w.sees(images))
	ok(t, w.store.Close())
	w, err = openTarget(disk)
	ok(t, err)
	ok(t, w.sees(images))
	ok(t, w.replicasHold(images)) // what was written went there
	ok(t, w.ends(images))
	if _, err := w.group.RollBackFailover(""); !errors.Is(err, failover.ErrCommitted) {
		t.Errorf("rollback: %v", err)
	}
	ok(t, w.store.Close())
}

// It begins by itself, and goes on with what the machines write later.
func TestSettlesByItself(t *testing.T) {
	_, disk, images := inFailover(t)
	w, err := openTarget(disk)
	ok(t, err)
	_, err = w.group.CommitFailover("")
	ok(t, err)
	for mark := byte(2); mark < 4; mark++ {
		ok(t, w.group.PassFailover(0))
		w.group.upkeepSettled()
		ok(t, w.replicasHold(images))
		ok(t, scribble(w.group.Failover().View.View, images, mark))
	}
	ok(t, w.sees(images))
	ok(t, w.store.Close())
}

// upkeepSettled waits until nobody settles the group.
func (g *Group) upkeepSettled() {
	for now := true; now; {
		g.settling.Lock() // whoever settles has it
		g.mu.Lock()
		now = g.settlesNow
		g.mu.Unlock()
		g.settling.Unlock()
	}
}

// puts is a view.Below that is durable at once.
type puts func([]view.Part) error

func (f puts) Put(parts []view.Part) error { return f(parts) }
func (puts) Sync() error                   { return nil }

// A block that is written while it is settled stays in scratch, as it is written last.
func TestSettleBesideWrites(t *testing.T) {
	_, disk, images := inFailover(t)
	w, err := openTarget(disk)
	ok(t, err)
	v := w.group.Failover().View.View
	d, _ := v.Device(1)
	p := bytes.Repeat([]byte{0x77}, 4096)
	first := true
	moved, err := v.Settle(1, 64<<10, 1<<20, puts(func(parts []view.Part) error {
		if first = false; len(parts) == 0 {
			t.Error("nothing is to be settled")
		}
		return d.WriteAt(p, 12288)
	}))
	ok(t, err)
	if moved == 0 || first {
		t.Errorf("%d blocks were settled", moved)
	}
	got := make([]byte, 4096)
	ok(t, d.ReadAt(got, 12288))
	if !bytes.Equal(got, p) {
		t.Error("a write is lost")
	}
	_ = images
	ok(t, w.store.Close())
}

// Power fails, or the process is killed, at every operation of a commit and what follows it.
func TestSettleCrashAtEveryOperation(t *testing.T) {
	_, disk, images := inFailover(t)
	w, err := openTarget(disk)
	ok(t, err)
	rng := seeded(4)
	points := 0
	var failed error
	again := func(disk *faultdisk.Disk) error {
		w, err := openTarget(disk)
		if err != nil {
			return err
		}
		defer w.store.Close()
		if err := w.sees(images); err != nil {
			return err
		}
		return w.ends(images)
	}
	disk.OnOp(func(op faultdisk.Op, name string) {
		if failed != nil || disk.Ops()%stride(7) != 0 {
			return
		}
		for _, keep := range keeps {
			points++
			if err := again(disk.Crash(rng, keep)); err != nil && failed == nil {
				failed = fmt.Errorf("operation %d (%#x of %s), keep %d: %w", disk.Ops(), op, name, keep, err)
			}
		}
		if err := again(disk.Kill()); err != nil && failed == nil {
			failed = fmt.Errorf("operation %d (%#x of %s), killed: %w", disk.Ops(), op, name, err)
		}
	})
	ok(t, w.ends(images))
	disk.OnOp(nil)
	ok(t, failed)
	ok(t, w.store.Close())
	t.Logf("%d crashes", points)
}

// Every operation of that fails once. What the machines see is right, then, after a crash, and when
// it was tried again.
func TestSettleErrorAtEveryOperation(t *testing.T) {
	_, whole, images := inFailover(t)
	fired := 0
	for _, ops := range []faultdisk.Op{faultdisk.OpAny, faultdisk.OpSync | faultdisk.OpSyncDir} {
		for at := 1; ; at += stride(5) {
			disk := whole.Kill()
			w, err := openTarget(disk)
			ok(t, err)
			var seen atomic.Int64
			disk.Inject(faultdisk.Fault{Ops: ops, Err: syscall.EIO, At: at, Only: func(string) bool { seen.Add(1); return true }})
			if err := w.ends(images); err == nil && seen.Load() < int64(at) {
				ok(t, w.store.Close())
				break
			}
			fired++
			disk.Heal()
			for what, disk := range map[string]*faultdisk.Disk{"crash": disk.Crash(seeded(at), keeps[at%len(keeps)]), "kill": disk.Kill()} {
				again, err := openTarget(disk)
				ok(t, err)
				if again.group.Failover().View.State == ViewFailed { // a failed sync is final: it may be read
					ok(t, errors.Join(again.viewShows(images), again.store.Close()))
					continue
				}
				if err := errors.Join(again.sees(images), again.ends(images), again.store.Close()); err != nil {
					t.Fatalf("the %d-th of %#x fails, then a %s: %v", at, ops, what, err)
				}
			}
			w.store.Close() // may fail, as a view may have
		}
	}
	t.Logf("%d errors", fired)
}

// While the view of a failover does not open, or its checkpoint is bad, no checkpoint is given up: not by who settles a
// commit, and time does not commit it. Once it is there again, all goes on.
func TestSettleNeedsTheView(t *testing.T) {
	_, disk := viewWorld(t)
	now := retain.Instant{Boot: [16]byte{1}, Mono: time.Hour, Wall: int64(time.Hour)}
	open := func() *target {
		cfg := config(disk)
		cfg.Clock = func() retain.Instant { return now }
		w, err := openWith(cfg)
		ok(t, err)
		return w
	}
	w := open()
	all := w.numbers()
	r := failoverTo(all[1])
	r.Then = failover.Commit
	i, err := w.group.BeginFailover(r)
	ok(t, err)
	d, _ := i.View.View.Device(1)
	ok(t, errors.Join(d.WriteAt([]byte{1, 2, 3}, 5000), d.Flush()))
	broken := func() *target {
		ok(t, w.store.Close())
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpOpen, Err: syscall.EIO, Ever: true, At: 1, Only: func(name string) bool { return strings.Contains(name, "/scratch/") }})
		defer disk.Heal()
		w := open()
		if i := w.group.Failover(); i.View.State != ViewBroken {
			t.Fatalf("its view is there: %+v", i)
		}
		return w
	}
	w = broken()
	now.Mono += 2 * time.Hour
	ok(t, w.group.PassFailover(0))
	if i := w.group.Failover(); i.State != failover.Recovering || i.Remains != 0 || i.Err == nil || !strings.Contains(i.Err.Error(), "its timer has run down, and it is not committed") {
		t.Errorf("%s, %v", i.State, i.Err)
	}
	_, err = w.group.CommitFailover("") // somebody says so
	ok(t, err)
	for range 2 {
		if err := w.group.settle(noPace); err == nil || !slices.Equal(w.numbers(), all) {
			t.Errorf("%v of %v are left: %v", w.numbers(), all, err)
		}
	}
	if i := w.group.Failover(); i.State != failover.Committed || i.Err == nil {
		t.Errorf("%s, %v", i.State, i.Err)
	}
	ok(t, w.store.Close())
	w = open()
	ok(t, w.group.settle(noPace))
	if i := w.group.Failover(); i.State != failover.Passing || !slices.Equal(w.numbers(), all[1:2]) {
		t.Errorf("%s: %v of %v are left", i.State, w.numbers(), all)
	}
	ok(t, w.store.Close())
}

package journal

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// passingWorld is a failover whose view passes to its disks, and whose machines have written on since.
func passingWorld(t *testing.T) (disk *faultdisk.Disk, images map[record.VolumeID][]byte) {
	t.Helper()
	disk, images = settledWorld(t)
	w, err := openTarget(disk)
	ok(t, err)
	ok(t, w.ends(images))
	ok(t, scribble(w.group.Failover().View.View, images, 3))
	ok(t, w.replicasHold(images))
	ok(t, w.store.Close())
	return disk, images
}

// onDisks looks at a group whose machines have moved onto its disks, in a store that was opened since.
func (t *target) onDisks(disk *faultdisk.Disk, images map[record.VolumeID][]byte) error {
	if s := t.group.Failover().State; s != failover.OnDisks || len(t.store.Groups()) != 1 {
		return fmt.Errorf("it is %s, one of %d groups", s, len(t.store.Groups()))
	}
	disks, err := t.group.LetGo("")
	if err != nil || len(disks) != len(images) {
		return fmt.Errorf("let go again: %v, %w", disks, err)
	}
	for _, d := range disks {
		if err := diskHolds(disk, d, images[d.ID]); err != nil {
			return err
		}
	}
	if err := t.group.PassFailover(0); err != nil {
		return err
	}
	if _, err := t.store.OpenGroup(GroupInfo{ID: testGroup, Name: "group", Lineage: testLineage}); !errors.Is(err, ErrFenced) || !strings.Contains(err.Error(), "on plain disks") {
		return fmt.Errorf("its old source hears %w", err)
	}
	if _, granted := t.group.Grant(); granted {
		return errors.New("its old source is granted an epoch")
	}
	if _, err := t.store.RemoveGroup(testGroup, RemoveOptions{Checkpoint: 1, Keep: true}, nil); !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("it is removed as of a checkpoint that is gone: %w", err)
	}
	if _, err := t.store.RemoveGroup(testGroup, RemoveOptions{Try: true}, nil); err != nil {
		return fmt.Errorf("it cannot be removed: %w", err)
	}
	names, err := disk.List(t.group.logDir())
	if err != nil || len(names) != 0 || len(t.group.Views()) != 0 {
		return fmt.Errorf("its log stays: %v, with %d views, %w", names, len(t.group.Views()), err)
	}
	return nil
}

// Once its machines have moved onto the disks the view is gone, and nobody else writes to them.
func TestLetGo(t *testing.T) {
	disk, images := settledWorld(t)
	w, err := openTarget(disk)
	ok(t, err)
	if _, err := w.group.LetGo(""); !errors.Is(err, failover.ErrUnsettled) {
		t.Errorf("let go while the view keeps sums: %v", err)
	}
	ok(t, w.ends(images))
	ok(t, scribble(w.group.Failover().View.View, images, 3))
	if _, err := w.group.LetGo("another"); !errors.Is(err, failover.ErrOther) {
		t.Errorf("another's: %v", err)
	}
	v := w.group.Failover().View.View
	disks, err := w.group.LetGo("a")
	ok(t, err)
	d, _ := v.Device(1)
	if err := d.WriteAt([]byte{1}, 0); err == nil {
		t.Error("the view is written to beside the machines")
	}
	for i, disk := range []ioengine.FS{disk, disk} { // a machine that writes to its own disk, while the store is there
		f, err := disk.Open(disks[i].Path, 0)
		ok(t, err)
		copy(images[disks[i].ID][5000:], "written by the machine itself")
		_, err = f.WriteAt([]byte("written by the machine itself"), 5000)
		ok(t, errors.Join(err, f.Sync(), f.Close()))
	}
	ok(t, w.group.PassFailover(1))
	ok(t, w.group.settle(noPace))
	if w.group.settled() {
		t.Error("its disks are held against sums")
	}
	ok(t, w.store.Close())
	for range 2 { // the second time nothing is left to remove
		w, err = openStore(disk)
		ok(t, err)
		ok(t, w.onDisks(disk, images))
		ok(t, w.store.Close())
	}
	w, err = openStore(disk)
	ok(t, err)
	_, err = w.group.Release("")
	ok(t, err)
	if !w.group.Released() || len(w.store.Groups()) != 0 {
		t.Errorf("released, it is %s", w.group.Failover().State)
	}
	if _, err := w.group.LetGo(""); !errors.Is(err, failover.ErrReleased) {
		t.Errorf("let go after that: %v", err)
	}
	ok(t, w.store.Close())
	w, err = openStore(disk)
	ok(t, err)
	ok(t, w.givenAway(disk, images))
	ok(t, w.store.Close())
}

// A group whose machines have moved onto its disks is removed, in the run in which they did or later: its disks stay where they
// stand, whatever was asked, are never touched again, and its old source stays out.
func TestRemoveOnDisks(t *testing.T) {
	for _, again := range []bool{false, true} {
		disk, images := passingWorld(t)
		w, err := openTarget(disk)
		ok(t, err)
		disks, err := w.group.LetGo("a")
		ok(t, err)
		if again {
			ok(t, w.store.Close())
			w, err = openStore(disk)
			ok(t, err)
		}
		began := w.group.Failover().Checkpoint
		if _, err := w.store.RemoveGroup(testGroup, RemoveOptions{Try: true}, nil); err != nil || len(w.store.Groups()) != 1 {
			t.Fatalf("tried alone: %v, %d groups", err, len(w.store.Groups()))
		}
		r, err := w.store.RemoveGroup(testGroup, RemoveOptions{Keep: again}, nil)
		ok(t, err)
		if r.Checkpoint != began || len(r.Disks) != len(images) || r.Disks[0].File != disks[0].Path || r.Left != nil {
			t.Errorf("removed: %+v", r)
		}
		stands := func(s *Store) {
			t.Helper()
			s.removals.Wait()
			for _, d := range disks {
				ok(t, diskHolds(disk, d, images[d.ID]))
			}
			if names, err := s.leftOf(s.removedNow(testGroup)); err != nil || len(names) > 0 || len(s.Groups()) > 0 {
				t.Errorf("%v is left, of %d groups: %v", names, len(s.Groups()), err)
			}
			names, err := disk.List(path.Dir(disks[0].Path))
			if err != nil || len(names) != len(disks) {
				t.Errorf("%v stand with the disks: %v", names, err)
			}
			if _, err := s.OpenGroup(GroupInfo{ID: testGroup, Name: "group", Lineage: testLineage}); !errors.Is(err, ErrRemoved) {
				t.Errorf("its old source hears %v", err)
			}
			ok(t, s.Close())
		}
		stands(w.store)
		for range 2 {
			s, err := Open(config(disk))
			ok(t, err)
			stands(s)
		}
		f, err := disk.Open(disks[0].Path, 0) // a machine's disk has any size that it likes
		ok(t, err)
		ok(t, errors.Join(f.Truncate(512), f.Close()))
		ok(t, disk.Remove(disks[len(disks)-1].Path)) // and its owner may take it away
		s, err := Open(config(disk))
		ok(t, err)
		s.removals.Wait()
		if r := s.removedNow(testGroup); r.Left != nil {
			t.Error(r.Left)
		}
		ok(t, s.Close())
	}
}

// A crash or an error at any operation of that leaves the machines' disks as they are.
func TestRemoveOnDisksAtEveryOperation(t *testing.T) {
	whole, images := passingWorld(t)
	w, err := openTarget(whole)
	ok(t, err)
	disks, err := w.group.LetGo("a")
	ok(t, errors.Join(err, w.store.Close()))
	survives := func(disk *faultdisk.Disk) (gone bool, err error) {
		s, err := Open(config(disk))
		if err != nil {
			return false, err
		}
		s.removals.Wait()
		for _, d := range disks {
			err = errors.Join(err, diskHolds(disk, d, images[d.ID]))
		}
		return len(s.Groups()) == 0, errors.Join(err, s.Close())
	}
	for at := 1; ; at++ {
		disk := whole.Kill()
		s, err := Open(config(disk))
		ok(t, err)
		s.removals.Wait()
		seen := 0
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, Err: syscall.EIO, At: at, Only: func(string) bool { seen++; return true }})
		_, err = s.RemoveGroup(testGroup, RemoveOptions{}, nil)
		s.removals.Wait()
		for _, keep := range keeps {
			gone, e := survives(disk.Crash(seeded(at), keep))
			if e != nil || err == nil && !gone {
				t.Fatalf("operation %d, keep %d: gone is %v, %v", at, keep, gone, e)
			}
		}
		disk.Heal()
		_ = s.Close()
		if seen < at {
			ok(t, err)
			t.Logf("%d errors", at-1)
			return
		}
	}
}

// That the disks hold all is said when they do: not for zeros that take no space in scratch, nor for a view that is not there.
func TestOnDisksAlone(t *testing.T) {
	disk, _ := settledWorld(t)
	w, err := openTarget(disk)
	ok(t, err)
	says := func(want bool) {
		t.Helper()
		if i := w.group.Failover(); i.OnDisksAlone() != want || i.View.ScratchBytes != 0 {
			t.Errorf("it is %s with %d bytes in scratch, and that the disks hold all: %v", i.State, i.View.ScratchBytes, i.OnDisksAlone())
		}
	}
	w.settlesOnly(t)
	says(false)
	v := w.group.Failover().View
	d, _ := v.View.Device(1)
	ok(t, d.Zero(0, 8192))
	ok(t, w.group.stateWhile(failover.Verified{}))
	w.group.passes(v.View)
	says(false)
	ok(t, w.group.settle(noPace))
	says(true)
	name := w.group.viewFile(v.Number)
	ok(t, w.store.Close())
	whole := disk.Kill()
	ok(t, errors.Join(disk.Remove(name), disk.SyncDir(path.Dir(name))))
	w, err = openTarget(disk)
	ok(t, err)
	says(false)
	ok(t, w.store.Close())
	w, err = openTarget(whole)
	ok(t, errors.Join(err, w.group.settle(noPace)))
	says(true)
	_, err = w.group.LetGo("")
	ok(t, err)
	says(true)
	_, err = w.group.Release("")
	ok(t, err)
	says(false)
	ok(t, w.store.Close())
}

// A view that passes is handed over as one that does not.
func TestReleaseOfPassing(t *testing.T) {
	disk, images := passingWorld(t)
	w, err := openTarget(disk)
	ok(t, err)
	ok(t, w.sees(images))
	_, err = w.group.Release("")
	ok(t, err)
	ok(t, w.store.Close())
	w, err = openStore(disk)
	ok(t, err)
	ok(t, w.givenAway(disk, images))
	ok(t, w.store.Close())
}

// survivesLetGo opens what a crash left: the machines' disks are there either way.
func survivesLetGo(disk *faultdisk.Disk, images map[record.VolumeID][]byte) (err error) {
	w, err := openStore(disk)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.store.Close()) }()
	if w.group.Failover().State == failover.OnDisks {
		return w.onDisks(disk, images)
	}
	if i := w.group.Failover(); i.View.State == ViewFailed { // a sync of it failed, and it is only read from then on
		return errors.Join(w.viewShows(images), w.replicasHold(images))
	}
	return errors.Join(w.sees(images), w.replicasHold(images))
}

func TestLetGoCrashAtEveryOperation(t *testing.T) {
	disk, images := passingWorld(t)
	crashGivingUp(t, disk, images, func(g *Group) error { _, err := g.LetGo(""); return err }, survivesLetGo, (*target).onDisks)
}

func TestLetGoErrorAtEveryOperation(t *testing.T) {
	whole, images := passingWorld(t)
	for at := 1; ; at++ {
		disk := whole.Kill()
		w, err := openTarget(disk)
		ok(t, err)
		seen := 0
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, Err: syscall.EIO, At: at, Only: func(string) bool { seen++; return true }})
		_, err = w.group.LetGo("")
		if err != nil && w.group.Failover().State == failover.OnDisks {
			t.Fatalf("operation %d: it is let go, and says %v", at, err)
		}
		if seen < at {
			ok(t, err)
			ok(t, w.store.Close())
			t.Logf("%d errors", at-1)
			return
		}
		ok(t, survivesLetGo(disk.Crash(seeded(at), keeps[at%len(keeps)]), images))
		disk.Heal()
		_ = w.store.Close()
		ok(t, survivesLetGo(disk, images))
	}
}

// Once machines have begun to move onto the disks these are not given away any more, whoever asks, also after a restart; all else is as before.
func TestMoveOn(t *testing.T) {
	disk, images := settledWorld(t)
	w, err := openTarget(disk)
	ok(t, err)
	if _, err := w.group.MoveOn(""); !errors.Is(err, failover.ErrUnsettled) {
		t.Errorf("before the view passes: %v", err)
	}
	ok(t, w.ends(images))
	if _, err := w.group.MoveOn("another"); !errors.Is(err, failover.ErrOther) {
		t.Errorf("another's: %v", err)
	}
	i, err := w.group.MoveOn("a")
	if err != nil || i.State != failover.Moving || !i.OnDisksAlone() || i.View.View == nil {
		t.Fatalf("%v: %+v", err, i)
	}
	for n := range 2 {
		ok(t, scribble(w.group.Failover().View.View, images, byte(n+3)))
		ok(t, w.group.settle(noPace))
		ok(t, errors.Join(w.sees(images), w.replicasHold(images)))
		if _, err := w.group.Release(""); !errors.Is(err, failover.ErrMoving) {
			t.Errorf("given away: %v", err)
		}
		_, err = w.group.MoveOn("")
		ok(t, errors.Join(err, w.store.Close()))
		w, err = openTarget(disk)
		ok(t, err)
	}
	if why := w.group.WhyFenced(); !strings.Contains(why, "was committed") {
		t.Error(why)
	}
	_, err = w.group.LetGo("a")
	ok(t, err)
	for range 2 {
		if i, err := w.group.MoveOn("a"); err != nil || i.State != failover.OnDisks {
			t.Errorf("again: %v, %s", err, i.State)
		}
		ok(t, w.store.Close())
		w, err = openStore(disk)
		ok(t, err)
		ok(t, w.onDisks(disk, images))
	}
	ok(t, w.store.Close())
}

// rotDisk changes a byte of a block that the machines have not written; twice: it is whole again.
func rotDisk(t *testing.T, disk *faultdisk.Disk, name string) {
	t.Helper()
	const off = 20 * 4096
	f, err := disk.Open(name, 0)
	ok(t, err)
	p := make([]byte, 1)
	_, err = f.ReadAt(p, off)
	ok(t, err)
	_, err = f.WriteAt([]byte{p[0] ^ 1}, off)
	ok(t, errors.Join(err, f.Close()))
}

// A run that fails leaves nothing behind for the next: once the cause is gone the view passes, and as long as it is there the reason stays what it is.
func TestSettleFailsAndGoesOn(t *testing.T) {
	disk, images := settledWorld(t)
	run := func(w *target) string {
		t.Helper()
		ok(t, w.group.PassFailover(0))
		w.group.upkeepSettled()
		i := w.group.Failover()
		return fmt.Sprintf("%s: %v", i.State, i.Err)
	}
	never := func(w *target) (first string) {
		t.Helper()
		first = run(w)
		for range 9 {
			if again := run(w); again != first || !strings.Contains(first, "the failover does not settle") {
				t.Fatalf("it says:\n%s\nand then:\n%s", first, again)
			}
		}
		return first
	}
	rotten := disk.Kill()
	w, err := openTarget(disk)
	ok(t, err)
	name := w.group.Disks()[0].Path
	disk.Inject(faultdisk.Fault{Ops: faultdisk.OpOpen, Err: syscall.EIO, Ever: true, Only: func(n string) bool { return n == name }})
	never(w)
	disk.Heal()
	for range 2 {
		if now := run(w); now != "passing: <nil>" {
			t.Errorf("its disks are mended, and it is %s", now)
		}
	}
	ok(t, w.sees(images))
	ok(t, w.store.Close())

	w, err = openTarget(rotten)
	ok(t, err)
	rotDisk(t, rotten, name)
	if says := never(w); !strings.Contains(says, "machines stay on the view") {
		t.Errorf("of a disk that has rotted it says %s", says)
	}
	ok(t, w.store.Close())
}

// Disks of which something does not verify are none for a machine: the view stays as it is, and says why. It is read back
// anew when the store is opened again. Who wants the disks for something else does not wait until they were read back.
func TestPassReadsBack(t *testing.T) {
	disk, images := settledWorld(t)
	w, err := openTarget(disk)
	ok(t, err)
	name := w.group.Disks()[0].Path
	rot := func() { t.Helper(); rotDisk(t, disk, name) }
	w.group.hurried.Add(1)
	ok(t, w.group.settle(noPace))
	if s := w.group.Failover().State; s != failover.Settled {
		t.Errorf("somebody waits, and it is %s", s)
	}
	w.group.hurried.Add(-1)
	disk.Inject(faultdisk.Fault{Ops: faultdisk.OpOpen, Err: syscall.EIO, Only: func(n string) bool { return n == name }})
	if err := w.group.settle(noPace); !errors.Is(err, syscall.EIO) {
		t.Errorf("read back from a disk that does not open: %v", err)
	}
	disk.Heal()
	rot()
	for range 2 {
		if err := w.group.settle(noPace); err == nil || !strings.Contains(err.Error(), "machines stay on the view") {
			t.Errorf("passes to a disk that has rotted: %v", err)
		}
	}
	ok(t, w.group.PassFailover(0))
	w.group.upkeepSettled()
	if i := w.group.Failover(); i.State != failover.Settled || i.Err == nil || !strings.Contains(i.Err.Error(), "machines stay on the view") {
		t.Errorf("it is %s: %v", i.State, i.Err)
	}
	rot() // it is whole again
	if err := w.group.settle(noPace); err == nil {
		t.Error("read back once more, without anybody's word")
	}
	ok(t, w.store.Close())
	w, err = openTarget(disk)
	ok(t, err)
	ok(t, w.ends(images))
	ok(t, w.store.Close())
}

// A view that passes reads its disks by a loop, too.
func TestReadByPassing(t *testing.T) {
	s := newSource(11)
	s.script()
	w, err := openWith(machineConfig(filepath.Join(t.TempDir(), "store")))
	ok(t, err)
	for _, r := range s.records {
		ok(t, w.group.admitFor(r))
		ok(t, w.send([]record.Record{r}, 1))
	}
	numbers := w.numbers()
	at := numbers[len(numbers)-1]
	_, err = w.group.BeginFailover(failoverTo(at))
	ok(t, err)
	images := map[record.VolumeID][]byte{}
	for id, image := range s.images[at] {
		images[id] = bytes.Clone(image)
	}
	_, err = w.group.CommitFailover("")
	ok(t, err)
	ok(t, scribble(w.group.Failover().View.View, images, 1))
	ok(t, w.group.settle(noPace))
	v := w.group.Failover().View.View
	ok(t, scribble(v, images, 2))
	if !v.Passed() {
		t.Fatalf("it is %s, with %d bytes in scratch", w.group.Failover().State, v.ScratchBytes())
	}
	for id, image := range images {
		d, _ := v.Device(id)
		l := newLooped(t, d)
		failed, err := l.holds(image, int(id))
		l.loop.Close()
		if failed != nil || err != nil || l.begun == 0 {
			t.Errorf("volume %d: %d reads by the loop: %v, %v", id, l.begun, failed, err)
		}
	}
	ok(t, w.store.Close())
}

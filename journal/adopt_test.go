package journal

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// diskHolds compares a disk that somebody else has now.
func diskHolds(fs ioengine.FS, d Disk, image []byte) error {
	f, err := fs.Open(d.Path, ioengine.ReadOnly)
	if err != nil {
		return err
	}
	defer f.Close()
	p := make([]byte, len(image))
	if _, err := f.ReadAt(p, 0); err != nil {
		return err
	}
	if !bytes.Equal(p, image) {
		return fmt.Errorf("disk %s: %w at %d", d.Path, errDiffers, firstDifference(p, image))
	}
	return nil
}

// settledWorld is a settled failover whose machines have written on since.
func settledWorld(t *testing.T) (disk *faultdisk.Disk, images map[record.VolumeID][]byte) {
	t.Helper()
	_, disk, images = inFailover(t)
	w, err := openTarget(disk)
	ok(t, err)
	_, err = w.group.Release("")
	if !errors.Is(err, failover.ErrNotCommitted) {
		t.Errorf("released before it was committed: %v", err)
	}
	_, err = w.group.CommitFailover("")
	ok(t, err)
	if _, err := w.group.Release(""); !errors.Is(err, failover.ErrUnsettled) {
		t.Errorf("released before it was settled: %v", err)
	}
	w.settlesOnly(t)
	ok(t, scribble(w.group.Failover().View.View, images, 2))
	ok(t, w.store.Close())
	return disk, images
}

// settlesOnly settles a failover whose view is not to pass to its disks as long as the store is open.
func (t *target) settlesOnly(tt *testing.T) {
	tt.Helper()
	t.group.settling.Lock()
	t.group.unsound = errNotPlain
	t.group.settling.Unlock()
	if err := t.group.settle(noPace); !errors.Is(err, errNotPlain) {
		tt.Fatal(err)
	}
}

var errNotPlain = errors.New("to be read back another time")

// openStore opens the store without asking anything of the group.
func openStore(disk *faultdisk.Disk) (*target, error) {
	store, err := Open(config(disk))
	if err != nil {
		return nil, err
	}
	g, found := store.Group(testGroup)
	if !found {
		return nil, errors.Join(errors.New("the group is gone"), store.Close())
	}
	return &target{store: store, group: g}, nil
}

// givenAway looks at a group that was released, in a store that was opened since.
func (t *target) givenAway(disk *faultdisk.Disk, images map[record.VolumeID][]byte) error {
	if !t.group.Released() || len(t.store.Groups()) != 0 {
		return fmt.Errorf("it is %s, one of %d groups", t.group.Failover().State, len(t.store.Groups()))
	}
	disks, err := t.group.Release("")
	if err != nil || len(disks) != len(images) {
		return fmt.Errorf("released again: %v, %w", disks, err)
	}
	for _, d := range disks {
		if err := diskHolds(disk, d, images[d.ID]); err != nil {
			return err
		}
	}
	if _, err := t.store.OpenGroup(GroupInfo{ID: testGroup, Name: "group", Lineage: testLineage}); !errors.Is(err, ErrFenced) {
		return fmt.Errorf("its old source hears %w", err)
	}
	if _, granted := t.group.Grant(); granted {
		return errors.New("its old source is granted an epoch")
	}
	names, err := disk.List(t.group.logDir())
	if err != nil || len(names) != 0 {
		return fmt.Errorf("its log stays: %v, %w", names, err)
	}
	return nil
}

// After a release the disks are the caller's, with all that the machines wrote; the space of the rest is given back.
func TestRelease(t *testing.T) {
	disk, images := settledWorld(t)
	w, err := openTarget(disk)
	ok(t, err)
	if _, err := w.group.Release("another"); !errors.Is(err, failover.ErrOther) {
		t.Errorf("another's: %v", err)
	}
	disks, err := w.group.Release("a")
	ok(t, err)
	for _, d := range disks {
		ok(t, diskHolds(disk, d, images[d.ID]))
	}
	if len(w.group.Views()) != 0 || w.group.ViewInUse(1) && w.group.Failover().State.Shows() {
		t.Errorf("%d views stay", len(w.group.Views()))
	}
	if _, err := w.group.Admit(testStream, 1, 1); !errors.Is(err, ErrFenced) {
		t.Errorf("its old source hears %v", err)
	}
	ok(t, w.store.Close())
	for range 2 { // the second time nothing is left to remove
		w, err = openStore(disk)
		ok(t, err)
		ok(t, w.givenAway(disk, images))
		ok(t, w.store.Close())
	}
}

// diskSizes tells how long the disks are.
func diskSizes(t *testing.T, fs ioengine.FS, disks []Disk) (sizes []int64) {
	t.Helper()
	for _, d := range disks {
		f, err := fs.Open(d.Path, ioengine.ReadOnly)
		ok(t, err)
		size, err := f.Size()
		ok(t, errors.Join(err, f.Close()))
		sizes = append(sizes, size)
	}
	return sizes
}

func resizeDisk(t *testing.T, fs ioengine.FS, d Disk, bytes int64) {
	t.Helper()
	f, err := fs.Open(d.Path, 0)
	ok(t, err)
	ok(t, errors.Join(f.Truncate(bytes), f.Sync(), f.Close()))
}

// Disks that were given away are as long as their volumes once the store was opened again, and as long as their owner makes them from then on;
// what the store could not do it does the next time.
func TestReleasedDisksGrow(t *testing.T) {
	disk, _ := settledWorld(t)
	w, err := openTarget(disk)
	ok(t, err)
	disks, err := w.group.Release("a")
	ok(t, errors.Join(err, w.store.Close()))
	whole := replica.ImageBytes(volumeBytes)
	grown := whole + 1<<20
	reopen := func(want ...int64) {
		t.Helper()
		w, err := openStore(disk)
		ok(t, err)
		ok(t, w.store.Close())
		if sizes := diskSizes(t, disk, disks); !slices.Equal(sizes, want) {
			t.Errorf("the disks have %d bytes, not %d", sizes, want)
		}
	}
	resizeDisk(t, disk, disks[0], grown) // before the store was opened again
	disk.Inject(faultdisk.Fault{Ops: faultdisk.OpOpen, Err: syscall.EIO, Ever: true, Only: func(n string) bool { return n == disks[1].Path }})
	w, err = openStore(disk)
	ok(t, errors.Join(err, w.store.Close()))
	disk.Heal()
	reopen(grown, volumeBytes)
	resizeDisk(t, disk, disks[1], whole) // as the store would have made it
	reopen(grown, whole)
}

// A disk that a removed group had adopted is as long as its volume, and then as long as its owner makes it, whoever asks again.
func TestRemovedDisksGrow(t *testing.T) {
	disk, a, _, w := adoptedWorld(t)
	check := func(want ...int64) {
		t.Helper()
		if sizes := diskSizes(t, disk, a.Disks); !slices.Equal(sizes, want) {
			t.Errorf("the disks have %d bytes, not %d", sizes, want)
		}
	}
	remove := func() {
		t.Helper()
		r, err := w.store.RemoveGroup(newGroup, RemoveOptions{Keep: true}, nil)
		ok(t, errors.Join(err, r.Left))
		w.store.removals.Wait()
	}
	whole := replica.ImageBytes(volumeBytes)
	grown := whole + 1<<20
	check(whole, whole)
	remove()
	check(volumeBytes, volumeBytes)
	resizeDisk(t, disk, a.Disks[0], grown)
	resizeDisk(t, disk, a.Disks[1], whole)
	remove()
	check(grown, whole)
	ok(t, w.store.Close())
	store, err := Open(config(disk))
	ok(t, err)
	store.removals.Wait()
	ok(t, store.Close())
	check(grown, whole)
}

// What is written to the view after all was settled is not left behind.
func TestReleaseRefusesWriters(t *testing.T) {
	disk, images := settledWorld(t)
	w, err := openTarget(disk)
	ok(t, err)
	w.settlesOnly(t)
	ok(t, w.group.emptied())
	ok(t, scribble(w.group.Failover().View.View, images, 3))
	if err := w.group.emptied(); !errors.Is(err, ErrInUse) {
		t.Errorf("written to: %v", err)
	}
	ok(t, w.store.Close())
}

// survivesRelease opens what a crash in a release left: the machines' disks are there either way.
func survivesRelease(disk *faultdisk.Disk, images map[record.VolumeID][]byte) (err error) {
	w, err := openStore(disk)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.store.Close()) }()
	if w.group.Released() {
		return w.givenAway(disk, images)
	}
	if i := w.group.Failover(); i.View.State == ViewFailed { // a sync of it failed, and it is only read from then on
		return w.viewShows(images)
	}
	return w.sees(images)
}

func TestReleaseCrashAtEveryOperation(t *testing.T) {
	disk, images := settledWorld(t)
	crashGivingUp(t, disk, images, func(g *Group) error { _, err := g.Release(""); return err }, survivesRelease, (*target).givenAway)
}

// crashGivingUp has a group give its disks up, and the store opened again, which removes the rest of the group, with a crash at every
// operation of the disk.
func crashGivingUp(t *testing.T, disk *faultdisk.Disk, images map[record.VolumeID][]byte, giveUp func(*Group) error,
	survives func(*faultdisk.Disk, map[record.VolumeID][]byte) error, over func(*target, *faultdisk.Disk, map[record.VolumeID][]byte) error) {
	t.Helper()
	w, err := openTarget(disk)
	ok(t, err)
	var failed error
	points, rng := 0, seeded(5)
	disk.OnOp(func(op faultdisk.Op, name string) {
		for _, keep := range keeps {
			points++
			if err := survives(disk.Crash(rng, keep), images); err != nil && failed == nil {
				failed = fmt.Errorf("operation %d (%#x of %s), keep %d: %w", disk.Ops(), op, name, keep, err)
			}
		}
	})
	ok(t, giveUp(w.group))
	ok(t, w.store.Close())
	w, err = openStore(disk) // the removal
	ok(t, err)
	disk.OnOp(nil)
	ok(t, failed)
	ok(t, over(w, disk, images))
	ok(t, w.store.Close())
	t.Logf("%d crashes", points)
}

func TestReleaseErrorAtEveryOperation(t *testing.T) {
	whole, images := settledWorld(t)
	for _, fault := range []faultdisk.Fault{{Ops: faultdisk.OpAny, Err: syscall.EIO}, {Ops: faultdisk.OpMutating, Err: syscall.ENOSPC, Ever: true}} {
		for at := 1; ; at++ {
			disk := whole.Kill()
			w, err := openTarget(disk)
			ok(t, err)
			seen := 0
			fault.At, fault.Only = at, func(string) bool { seen++; return true }
			disk.Inject(fault)
			_, err = w.group.Release("")
			if err != nil && w.group.Released() {
				t.Fatalf("operation %d: it is released, and says %v", at, err)
			}
			if seen < at {
				ok(t, err)
				ok(t, w.store.Close())
				break
			}
			ok(t, survivesRelease(disk.Crash(seeded(at), keeps[at%len(keeps)]), images))
			disk.Heal()
			_ = w.store.Close() // a sync that failed is final
			w, err = openTarget(disk)
			if errors.Is(err, ErrFenced) {
				w, err = openStore(disk)
			}
			ok(t, err)
			failed := w.group.Failover().View.State == ViewFailed
			_, err = w.group.Release("") // asked again
			if err != nil && !failed {
				t.Fatalf("operation %d: asked again, with a view that failed (%v): %v", at, failed, err)
			}
			ok(t, w.store.Close())
			ok(t, survivesRelease(disk, images))
		}
	}
}

const newGroup = record.GroupID(8)

// oldDisks are disks of two volumes as an old source left them, and what they hold.
func oldDisks(t *testing.T) (disk *faultdisk.Disk, a Adoption, images map[record.VolumeID][]byte) {
	t.Helper()
	disk = faultdisk.New(512)
	ok(t, disk.Mkdir("/old"))
	ok(t, disk.SyncDir("/"))
	images = map[record.VolumeID][]byte{}
	a = Adoption{Group: GroupInfo{ID: newGroup, Name: "group", Lineage: testLineage}, Stream: testStream, Read: func(int64) error { return nil }}
	for _, v := range testVolumes {
		d := Disk{v, path.Join("/old", v.Name)}
		f, err := disk.Open(d.Path, ioengine.Create)
		ok(t, err)
		image := make([]byte, v.Bytes)
		for i := range image[20000:60000] {
			image[20000+i] = byte(i*int(v.ID) + i>>8)
		}
		ok(t, f.Truncate(v.Bytes))
		_, err = f.WriteAt(image[16384:61440], 16384) // a hole on both sides
		ok(t, err)
		ok(t, f.Sync())
		ok(t, f.Close())
		a.Disks, images[v.ID] = append(a.Disks, d), image
	}
	ok(t, disk.SyncDir("/old"))
	return disk, a, images
}

// The source sends the difference alone; checkpoints show the old disk and that, which stays as it was until one is promoted.
func TestAdopt(t *testing.T) {
	disk, a, images := oldDisks(t)
	store, err := Open(config(disk))
	ok(t, err)
	var told []int64
	a.Read = func(n int64) error { told = append(told, n); return nil }
	g, err := store.Adopt(a)
	ok(t, err)
	if len(told) == 0 || told[len(told)-1] != 2*volumeBytes {
		t.Errorf("told of %v", told)
	}
	again, err := store.Adopt(a)
	ok(t, err)
	if again != g {
		t.Error("adopted twice")
	}
	other := a
	other.Disks = a.Disks[:1]
	if _, err := store.Adopt(other); !errors.Is(err, ErrLineage) {
		t.Errorf("with other disks: %v", err)
	}
	ok(t, store.Close())

	open := func() *target {
		store, err := Open(config(disk))
		ok(t, err)
		w := &target{store: store}
		w.group, err = store.OpenGroup(a.Group)
		ok(t, err)
		ok(t, w.group.SetVolumes(testVolumes))
		return w
	}
	w := open()
	st, err := w.group.Admit(testStream, 1, 2)
	ok(t, err)
	if st.Durable != adoptedSeq || st.Incarnation != 1 || !st.NeedOpen {
		t.Fatalf("it stands at %+v", st)
	}
	s := newSource(9)
	s.id.Seq, s.id.Incarnation = adoptedSeq, 2
	for id, image := range images {
		copy(s.volumes[id], image)
	}
	s.open(true) // said so or not: its history is the log's
	s.write(12)
	s.close()
	first := s.checkpoint()
	ok(t, w.send(s.records, 3))
	ok(t, w.settle(life{1, 2}))
	ok(t, w.compare(first, s.images[first]))
	for _, d := range a.Disks {
		ok(t, diskHolds(disk, d, images[d.ID]))
	}
	had := len(s.records)
	s.write(5)
	second := s.checkpoint()
	ok(t, w.send(s.records[had:], 3))
	ok(t, w.settle(life{1, 2}))
	ok(t, w.group.promote(second, noPace))
	for _, d := range a.Disks {
		ok(t, diskHolds(disk, d, s.images[second][d.ID]))
	}
	ok(t, w.store.Close())
	w = open()
	ok(t, w.compare(second, s.images[second]))
	ok(t, w.store.Close())
}

// adoptedWorld is a store whose group has adopted its disks, and a source of it that has sent two checkpoints since.
func adoptedWorld(t *testing.T) (disk *faultdisk.Disk, a Adoption, s *source, w *target) {
	t.Helper()
	disk, a, images := oldDisks(t)
	store, err := Open(config(disk))
	ok(t, err)
	w = &target{store: store}
	w.group, err = store.Adopt(a)
	ok(t, errors.Join(err, w.group.SetVolumes(testVolumes)))
	_, err = w.group.Admit(testStream, 1, 2)
	ok(t, err)
	s = newSource(9)
	s.id.Seq, s.id.Incarnation = adoptedSeq, 2
	for id, image := range images {
		copy(s.volumes[id], image)
	}
	s.open(true)
	s.write(12)
	s.close()
	s.checkpoint()
	s.write(5)
	s.checkpoint()
	ok(t, w.send(s.records, 3))
	ok(t, w.settle(life{1, 2}))
	return disk, a, s, w
}

// A group that adopted its disks is removed: they stay where they are, as they were at the checkpoint where they are to be kept, each as long
// as its volume; a crash at any operation leaves that, or the group.
func TestRemoveAdopted(t *testing.T) {
	disk, a, s, w := adoptedWorld(t)
	if !w.group.HoldsDisk(a.Disks[0].ID) {
		t.Error("a disk that stands elsewhere is not held")
	}
	numbers := slices.Sorted(maps.Keys(s.images))
	at := numbers[len(numbers)-1]
	kept := func(disk *faultdisk.Disk, r *Removed) error {
		if r.Checkpoint != at || len(r.Disks) != len(a.Disks) {
			return fmt.Errorf("kept are %+v", r)
		}
		for i, d := range r.Disks {
			if d.File != a.Disks[i].Path || !d.Elsewhere {
				return fmt.Errorf("the disk of volume %d stands at %s, and it was %s", d.ID, d.File, a.Disks[i].Path)
			}
			if err := diskHolds(disk, a.Disks[i], s.images[at][d.ID]); err != nil {
				return err
			}
		}
		return nil
	}
	var failed error
	points, rng := 0, seeded(7)
	disk.OnOp(func(op faultdisk.Op, name string) {
		if points++; failed != nil {
			return
		}
		crashed := disk.Crash(rng, keeps[points%len(keeps)])
		failed = func() error {
			store, err := Open(config(crashed))
			if err != nil {
				return err
			}
			store.removals.Wait()
			r := store.removedNow(newGroup)
			_, there := store.Group(newGroup)
			switch err := store.Close(); {
			case err != nil:
				return err
			case there == (r != nil):
				return fmt.Errorf("the group is there: %v, and removed: %+v", there, r)
			case r == nil:
				return nil
			case r.Left != nil:
				return r.Left
			}
			return kept(crashed, r)
		}()
		if failed != nil {
			failed = fmt.Errorf("operation %d (%#x of %s): %w", disk.Ops(), op, name, failed)
		}
	})
	r, err := w.store.RemoveGroup(newGroup, RemoveOptions{Keep: true}, nil)
	ok(t, err)
	w.store.removals.Wait()
	disk.OnOp(nil)
	ok(t, failed)
	ok(t, kept(disk, &r))
	ok(t, w.store.Close())
	t.Logf("%d crashes", points)

	// And without: the disks are nobody's but their owner's.
	disk, a, _, w = adoptedWorld(t)
	r, err = w.store.RemoveGroup(newGroup, RemoveOptions{}, nil)
	ok(t, err)
	w.store.removals.Wait()
	ok(t, w.store.Close())
	for _, d := range a.Disks {
		f, err := disk.Open(d.Path, ioengine.ReadOnly)
		ok(t, err)
		ok(t, f.Close())
	}
	if len(r.Disks) > 0 || r.Left != nil {
		t.Errorf("%+v", r)
	}

	// What was removed does not come back, by its disks either.
	store, err := Open(config(disk))
	ok(t, err)
	if g, err := store.Adopt(a); !errors.Is(err, ErrRemoved) {
		t.Errorf("a removed group is adopted: %v, %v", g, err)
	}
	if gs := store.Groups(); len(gs) > 0 {
		t.Errorf("it has %d groups", len(gs))
	}
	ok(t, store.Close())
}

// adoptedOrNot opens what a crash in an adoption left: the old disks are as they were, and the group is not there
// or is whole.
func adoptedOrNot(disk *faultdisk.Disk, a Adoption, images map[record.VolumeID][]byte) (err error) {
	for _, d := range a.Disks {
		if err := diskHolds(disk, d, images[d.ID]); err != nil {
			return err
		}
	}
	store, err := Open(config(disk))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	g, err := store.Adopt(a)
	if err != nil {
		return err
	}
	for id, image := range images {
		p := make([]byte, len(image))
		if err := g.volumes[id].replica.ReadAt(p, 0); err != nil || !bytes.Equal(p, image) {
			return fmt.Errorf("replica %d: %w, differs at %d", id, err, firstDifference(p, image))
		}
	}
	return nil
}

func TestAdoptCrashAtEveryOperation(t *testing.T) {
	disk, a, images := oldDisks(t)
	store, err := Open(config(disk))
	ok(t, err)
	var failed error
	points, rng := 0, seeded(5)
	disk.OnOp(func(op faultdisk.Op, name string) {
		for _, keep := range keeps {
			points++
			if err := adoptedOrNot(disk.Crash(rng, keep), a, images); err != nil && failed == nil {
				failed = fmt.Errorf("operation %d (%#x of %s), keep %d: %w", disk.Ops(), op, name, keep, err)
			}
		}
	})
	_, err = store.Adopt(a)
	ok(t, err)
	disk.OnOp(nil)
	ok(t, failed)
	ok(t, store.Close())
	ok(t, adoptedOrNot(disk, a, images))
	t.Logf("%d crashes", points)
}

func TestAdoptErrorAtEveryOperation(t *testing.T) {
	whole, a, images := oldDisks(t)
	for at := 1; ; at++ {
		disk := whole.Kill()
		store, err := Open(config(disk))
		ok(t, err)
		seen := 0
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, Err: syscall.EIO, At: at, Only: func(string) bool { seen++; return true }})
		_, err = store.Adopt(a)
		if seen < at {
			ok(t, err)
			ok(t, store.Close())
			break
		}
		ok(t, adoptedOrNot(disk.Crash(seeded(at), keeps[at%len(keeps)]), a, images))
		disk.Heal()
		_, err = store.Adopt(a)
		ok(t, err)
		ok(t, store.Close())
		ok(t, adoptedOrNot(disk, a, images))
	}
}

func TestAdoptRefuses(t *testing.T) {
	disk, a, _ := oldDisks(t)
	store, err := Open(config(disk))
	ok(t, err)
	f := func(why string, change func(*Adoption)) {
		t.Helper()
		b := a
		b.Disks = append([]Disk(nil), a.Disks...)
		change(&b)
		if _, err := store.Adopt(b); err == nil {
			t.Errorf("adopted %s", why)
		}
		if len(store.Groups()) != 0 {
			t.Fatalf("%s: the group is there", why)
		}
	}
	f("without a stream", func(b *Adoption) { b.Stream = 0 })
	f("without disks", func(b *Adoption) { b.Disks = nil })
	f("without a name", func(b *Adoption) { b.Group.Name = "" })
	f("a relative path", func(b *Adoption) { b.Disks[0].Path = "old/one" })
	f("one volume twice", func(b *Adoption) { b.Disks[1].ID = b.Disks[0].ID })
	f("a volume of no size", func(b *Adoption) { b.Disks[0].Bytes = 0 })
	f("a disk of another size", func(b *Adoption) { b.Disks[0].Bytes += 4096 })
	f("a disk that is not there", func(b *Adoption) { b.Disks[0].Path = "/old/three" })
	f("in spite of its caller", func(b *Adoption) { b.Read = func(int64) error { return errors.New("enough") } })
	ok(t, store.Close())
}

// What is left of a group whose disks were given away is removed when the store is opened; what fails of that is
// tried again the next time, and the disks are there.
func TestReleasedErrorAtEveryOperation(t *testing.T) {
	whole, images := settledWorld(t)
	w, err := openTarget(whole)
	ok(t, err)
	_, err = w.group.Release("")
	ok(t, err)
	ok(t, w.store.Close())
	for at := 1; ; at++ {
		disk, seen := whole.Kill(), 0
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, Err: syscall.EIO, At: at, Only: func(string) bool { seen++; return true }})
		if w, err := openStore(disk); err == nil {
			_ = w.store.Close()
		}
		disk.Heal()
		w, err := openStore(disk)
		ok(t, err)
		ok(t, w.givenAway(disk, images))
		ok(t, w.store.Close())
		if seen < at {
			break
		}
	}
}

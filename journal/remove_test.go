package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/journal/view"
)

// removedWorld is a store with a group of some history, to be removed.
type removedWorld struct {
	s    *source
	disk *faultdisk.Disk
}

func newRemovedWorld(t *testing.T) removedWorld {
	t.Helper()
	rw := removedWorld{story(2, 5), faultdisk.New(512)}
	w, err := openSmall(rw.disk)
	ok(t, err)
	ok(t, w.feed(rw.s, 3))
	ok(t, w.store.Close())
	return rw
}

// store opens the store alone: a removed group is in no need to be there.
func (rw removedWorld) store(disk *faultdisk.Disk) (*Store, error) { return Open(smallSegments(disk)) }

// gone says why a removed group is not quite gone: what of it is left on the disk, and whether the disks
// that are kept are those of the source at the checkpoint.
func (rw removedWorld) gone(disk *faultdisk.Disk, keep uint64) error {
	s, err := rw.store(disk)
	if err != nil {
		return err
	}
	s.removals.Wait()
	if _, err := s.OpenGroup(GroupInfo{ID: testGroup, Name: "group", Lineage: testLineage}); !errors.Is(err, ErrRemoved) {
		return fmt.Errorf("it was let in again: %w", err)
	}
	r := s.removedNow(testGroup)
	if err := s.Close(); err != nil {
		return err
	}
	names, err := disk.List(path.Join("/store/groups", testGroup.String()))
	if err != nil || r.Left == nil && !slices.Equal(names, []string{removedName}) {
		return fmt.Errorf("its folder holds %v (%w), left %w", names, err, r.Left)
	}
	if r.Left != nil {
		return r.Left
	}
	return rw.kept(disk, r, keep)
}

func (rw removedWorld) kept(disk *faultdisk.Disk, r *Removed, keep uint64) error {
	if r.Checkpoint != keep || keep != 0 && len(r.Disks) != len(testVolumes) {
		return fmt.Errorf("kept are %+v of checkpoint %d, want %d", r.Disks, r.Checkpoint, keep)
	}
	for _, d := range r.Disks {
		f, err := disk.Open(d.File, ioengine.ReadOnly)
		if err != nil {
			return err
		}
		got, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		if want := rw.s.images[keep][d.ID]; !bytes.Equal(got, want) {
			return fmt.Errorf("%s: %w at %d of %d", d.File, errDiffers, firstDifference(got, want), len(got))
		}
	}
	return nil
}

func (rw removedWorld) newest() uint64 { return slices.Max(slices.Collect(maps.Keys(rw.s.images))) }

// A group is removed, with its disks and without: it is gone, in this life and in the next; its id does not come
// back, and another group of the store feels nothing. What is asked again is told the same.
func TestRemoveGroup(t *testing.T) {
	for _, keep := range []string{"nothing", "newest", "older"} {
		t.Run(keep, func(t *testing.T) {
			rw := newRemovedWorld(t)
			w, err := openSmall(rw.disk)
			ok(t, err)
			other, err := w.store.OpenGroup(GroupInfo{ID: 8, Name: "other", Lineage: 1})
			ok(t, errors.Join(err, other.SetVolumes(testVolumes)))
			cps, err := w.group.Checkpoints(0, 100)
			ok(t, err)
			o, at := RemoveOptions{Keep: keep != "nothing"}, uint64(0)
			switch keep {
			case "newest":
				at = rw.newest()
			case "older":
				o.Checkpoint = cps[2].Number
				at = o.Checkpoint
				_, err := w.group.Pin(cps[0].Number, "for ever")
				ok(t, err)
			}
			tried := o
			tried.Try = true
			if r, err := w.store.RemoveGroup(testGroup, tried, nil); err != nil || r.ID != 0 {
				t.Fatalf("a trial: %+v, %v", r, err)
			}
			ok(t, w.group.Stays())
			r, err := w.store.RemoveGroup(testGroup, o, nil)
			ok(t, err)
			ok(t, rw.kept(rw.disk, &r, at))
			if _, there := w.store.Group(testGroup); there || r.Name != "group" || r.Lineage != testLineage {
				t.Fatalf("still there: %v; %+v", there, r)
			}
			if err := w.group.Append(rw.s.records[0], nil); !errors.Is(err, ErrClosed) {
				t.Fatalf("it takes records: %v", err)
			}
			again, err := w.store.RemoveGroup(testGroup, RemoveOptions{}, nil)
			ok(t, err)
			if fmt.Sprint(again.Disks) != fmt.Sprint(r.Disks) || again.Checkpoint != at || len(w.store.Removed()) != 1 {
				t.Fatalf("asked again it says %+v, before %+v", again, r)
			}
			if _, err := w.store.OpenGroup(GroupInfo{ID: testGroup, Name: "group", Lineage: testLineage}); !errors.Is(err, ErrRemoved) {
				t.Fatalf("it comes back: %v", err)
			}
			_, err = other.Admit(testStream+1, 1, 1)
			ok(t, err)
			w.store.removals.Wait()
			ok(t, w.store.Close())
			ok(t, rw.gone(rw.disk, at))
			if _, err := w.store.RemoveGroup(testGroup, o, nil); !errors.Is(err, ErrClosed) {
				t.Fatalf("a closed store: %v", err)
			}
		})
	}
}

// Who stands on a group keeps it from being removed, and it goes on as before.
func TestRemoveRefused(t *testing.T) {
	rw := newRemovedWorld(t)
	w, err := openSmall(rw.disk)
	ok(t, err)
	refused := func(what string, o RemoveOptions, want error) {
		t.Helper()
		if _, err := w.store.RemoveGroup(testGroup, o, nil); !errors.Is(err, want) || err == nil {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
		ok(t, w.group.Stays())
	}
	v, err := w.group.KeepView(rw.newest(), scratchOptions(0))
	ok(t, err)
	refused("a view", RemoveOptions{}, ErrInUse)
	ok(t, w.group.CloseView(v.Number))
	passing, err := w.group.OpenView(rw.newest(), ViewOptions{Options: view.Options{}})
	ok(t, err)
	refused("a view that is not kept", RemoveOptions{Keep: true}, ErrInUse)
	ok(t, passing.Close())
	_, err = w.group.BeginFailover(FailoverRequest{ID: "f", Checkpoint: rw.newest(), Then: failover.Rollback})
	ok(t, err)
	refused("a failover", RemoveOptions{}, ErrInUse)
	if _, err := w.store.RemoveGroup(testGroup, RemoveOptions{}, nil); err == nil || !strings.Contains(err.Error(), "live failover at checkpoint") {
		t.Errorf("a failover: %v", err)
	}
	_, err = w.group.RollBackFailover("")
	ok(t, err)
	refused("no such checkpoint", RemoveOptions{Keep: true, Checkpoint: rw.newest() + 7}, ErrNotFound)
	if _, err := w.store.RemoveGroup(99, RemoveOptions{}, nil); !errors.Is(err, ErrNoGroup) {
		t.Errorf("no such group: %v", err)
	}
	ok(t, w.group.leave(true))
	if _, err := w.group.OpenView(rw.newest(), ViewOptions{}); !errors.Is(err, ErrRemoved) {
		t.Errorf("a group that leaves opens views: %v", err)
	}
	if _, err := w.group.BeginFailover(FailoverRequest{ID: "g", Checkpoint: rw.newest(), Then: failover.Rollback}); !errors.Is(err, ErrRemoved) {
		t.Errorf("a group that leaves begins a failover: %v", err)
	}
	if _, err := w.group.Admit(testStream, 9, 99); !errors.Is(err, ErrRemoved) {
		t.Errorf("a group that leaves admits: %v", err)
	}
	if err := w.group.promote(rw.newest(), noPace); !errors.Is(err, ErrRemoved) {
		t.Errorf("a group that leaves is promoted by others: %v", err)
	}
	ok(t, w.group.leave(false))
	numbers, err := w.check(rw.s)
	if err != nil || len(numbers) != len(rw.s.images) {
		t.Errorf("after all that %v are listed: %v", numbers, err)
	}
	ok(t, w.store.Close())
}

// A disk that is kept is read back before its history goes: one that is damaged is not handed out.
func TestRemoveKeepsWhatIsWhole(t *testing.T) {
	rw := newRemovedWorld(t)
	w, err := openSmall(rw.disk)
	ok(t, err)
	ok(t, w.group.promote(rw.newest(), noPace))
	name := path.Join("/store/groups", testGroup.String(), "replica", "00000001.raw")
	at, n, err := func() (int64, int64, error) {
		f, err := rw.disk.Open(name, ioengine.ReadOnly)
		if err != nil {
			return 0, 0, err
		}
		defer f.Close()
		return f.NextData(0)
	}()
	if err != nil || n == 0 {
		t.Fatalf("no data in the replica: %v", err)
	}
	ok(t, rw.disk.Rot(name, at+n/2, 3))
	if _, err := w.store.RemoveGroup(testGroup, RemoveOptions{Keep: true}, nil); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("a damaged disk is kept: %v", err)
	}
	ok(t, w.group.Stays())
	if _, err := w.store.RemoveGroup(testGroup, RemoveOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	ok(t, w.store.Close())
	ok(t, rw.gone(rw.disk, 0))
}

// A group that does not open because it is damaged can be removed; one that an error of the disk keeps shut cannot.
func TestRemoveDamagedGroup(t *testing.T) {
	rw := newRemovedWorld(t)
	folder := path.Join("/store/groups", testGroup.String())
	rw.disk.Inject(faultdisk.Fault{Ops: faultdisk.OpRead, Err: syscall.EIO, Only: func(name string) bool { return strings.HasSuffix(name, manifestName) }, Ever: true})
	s, err := rw.store(rw.disk)
	ok(t, err)
	if _, err := s.RemoveGroup(testGroup, RemoveOptions{}, nil); err == nil {
		t.Fatal("a group that does not open now was removed")
	}
	ok(t, s.Close())
	rw.disk.Heal()
	ok(t, rw.disk.Rot(path.Join(folder, manifestName), 0, 64))
	s, err = rw.store(rw.disk)
	ok(t, err)
	if _, err := s.RemoveGroup(testGroup, RemoveOptions{Keep: true}, nil); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("disks of a damaged group are kept: %v", err)
	}
	_, err = s.RemoveGroup(testGroup, RemoveOptions{}, nil)
	ok(t, err)
	ok(t, s.Close())
	ok(t, rw.gone(rw.disk, 0))
}

// removes removes the group on the disk, and closes the store.
func (rw removedWorld) removes(disk *faultdisk.Disk, keep bool) (r Removed, err error) {
	s, err := rw.store(disk)
	if err != nil {
		return r, err
	}
	r, err = s.RemoveGroup(testGroup, RemoveOptions{Keep: keep}, nil)
	s.removals.Wait()
	return r, errors.Join(err, s.Close())
}

// wholeOrGone opens what a crash or an error left: the group is there, with its newest checkpoint at least, or gone for
// good. Then it is removed, once more or at last, and is gone.
func (rw removedWorld) wholeOrGone(disk *faultdisk.Disk, keep bool, said bool) error {
	s, err := rw.store(disk)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	g, there := s.Group(testGroup)
	if there && said {
		return errors.New("it was said to be removed, and is there")
	}
	if there {
		w := &target{store: s, group: g}
		numbers, err := w.check(rw.s)
		if err != nil || !slices.Contains(numbers, rw.newest()) {
			return fmt.Errorf("it is there, and of its checkpoints are listed %v: %w", numbers, err)
		}
	}
	at := uint64(0)
	if keep {
		at = rw.newest()
	}
	if _, err := s.RemoveGroup(testGroup, RemoveOptions{Keep: keep}, nil); err != nil {
		return fmt.Errorf("once more: %w", err)
	}
	if err := s.Close(); err != nil {
		return err
	}
	return rw.gone(disk, at)
}

// Power fails, or the process is killed, at every operation of a removal.
func TestRemoveCrash(t *testing.T) {
	for _, keep := range []bool{false, true} {
		rw := newRemovedWorld(t)
		rng, points := rand.New(rand.NewPCG(1, 2)), 0
		var failed atomic.Pointer[error]
		var said atomic.Bool
		rw.disk.OnOp(func(op faultdisk.Op, name string) {
			if failed.Load() != nil || op&faultdisk.OpMutating == 0 {
				return
			}
			if points++; points%stride(5) != 0 {
				return
			}
			for _, k := range append(keeps, 99) {
				crashed := rw.disk.Kill()
				if k != 99 {
					crashed = rw.disk.Crash(rng, k)
				}
				if err := rw.wholeOrGone(crashed, keep, said.Load()); err != nil {
					err = fmt.Errorf("keep %v, crash %d at %#x of %s: %w", keep, k, op, name, err)
					failed.CompareAndSwap(nil, &err)
				}
			}
		})
		s, err := rw.store(rw.disk)
		ok(t, err)
		_, err = s.RemoveGroup(testGroup, RemoveOptions{Keep: keep}, nil)
		said.Store(true)
		ok(t, err)
		s.removals.Wait()
		ok(t, s.Close())
		rw.disk.OnOp(nil)
		if err := failed.Load(); err != nil {
			t.Fatal(*err)
		}
		t.Logf("keep %v: %d operations", keep, points)
	}
}

// Every operation of a removal fails once. What is asked again then is done.
func TestRemoveErrors(t *testing.T) {
	for _, keep := range []bool{false, true} {
		at := 1
		for ; ; at += stride(7) {
			rw := newRemovedWorld(t)
			s, err := rw.store(rw.disk)
			ok(t, err)
			var seen atomic.Int64
			rw.disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, At: at, Err: syscall.EIO, Only: func(string) bool { seen.Add(1); return true }})
			_, err = s.RemoveGroup(testGroup, RemoveOptions{Keep: keep}, nil)
			s.removals.Wait()
			if seen.Load() < int64(at) {
				ok(t, errors.Join(err, s.Close()))
				break
			}
			rw.disk.Heal()
			if g, there := s.Group(testGroup); there && g.Stays() == nil {
				w := &target{store: s, group: g}
				if numbers, err := w.check(rw.s); err != nil || !slices.Contains(numbers, rw.newest()) {
					t.Fatalf("keep %v, error at %d: it stays, with %v: %v", keep, at, numbers, err)
				}
			}
			s.Close() // may fail, as everything may
			if err := rw.wholeOrGone(rw.disk.Crash(seeded(at), keeps[at%len(keeps)]), keep, err == nil); err != nil {
				t.Fatalf("keep %v, error at %d: %v", keep, at, err)
			}
		}
		t.Logf("keep %v: %d operations", keep, at)
	}
}

// The same for each place that calls the disk, whatever the order its calls fall in.
func TestRemoveErrorAtEveryCallSite(t *testing.T) {
	once := faultdisk.OncePerSite{Folder: "journal"}
	n := once.Each(faultdisk.Fault{Ops: faultdisk.OpAny, Err: syscall.EIO, At: 1}, func(fault faultdisk.Fault) {
		rw := newRemovedWorld(t)
		rw.disk.Inject(fault)
		_, err := rw.removes(rw.disk, true)
		rw.disk.Heal()
		if err := rw.wholeOrGone(rw.disk.Crash(seeded(1), keeps[0]), true, err == nil); err != nil {
			t.Fatalf("place %d: %v", once.Found(), err)
		}
	})
	t.Logf("%d places", n)
}

// Where neither the file can be written nor what there is of it be taken back, nobody knows whether the group is
// there after a crash: it takes nothing more.
func TestRemoveIsNotTakenBack(t *testing.T) {
	rw := newRemovedWorld(t)
	s, err := rw.store(rw.disk)
	ok(t, err)
	var began atomic.Bool
	rw.disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, Err: syscall.EIO, Ever: true, At: 1, Only: func(name string) bool {
		if strings.HasPrefix(path.Base(name), removedName) {
			began.Store(true)
		}
		return began.Load()
	}})
	if _, err := s.RemoveGroup(testGroup, RemoveOptions{}, nil); !errors.Is(err, syscall.EIO) {
		t.Errorf("removed: %v", err)
	}
	rw.disk.Heal()
	if g, there := s.Group(testGroup); !there || g.Stays() == nil {
		t.Errorf("it takes writes: %v", there)
	}
	s.Close() // may fail, as everything may
	ok(t, rw.wholeOrGone(rw.disk.Crash(seeded(1), keeps[0]), false, false))
}

// The file of every version is read; one that is damaged, or newer, says so, and the group stays shut.
func TestRemovedFile(t *testing.T) {
	golden, err := os.ReadFile(filepath.Join("testdata", "v1.removed"))
	ok(t, err)
	r, err := parseRemoved(golden)
	ok(t, err)
	if r.ID != 7 || r.Name != "erp" || r.Checkpoint != 41 || len(r.Disks) != 2 || r.Disks[1].Bytes != 12345 || r.views != 9 || !bytes.Equal(r.encode(), golden) {
		t.Fatalf("%+v is read, and encodes to\n%s", r, r.encode())
	}
	for i := range golden {
		bad := bytes.Clone(golden)
		bad[i] ^= 4
		if _, err := parseRemoved(bad); err == nil {
			t.Fatalf("byte %d was changed, and is believed: %s", i, bad)
		}
	}
	newer := []byte(`{"format":4}` + "\n")
	newer = append(fmt.Appendf(nil, "%08x\n", checksum(newer)), newer...)
	if _, err := parseRemoved(newer); !errors.Is(err, ErrFormat) {
		t.Fatalf("a newer one: %v", err)
	}
	golden2, err := os.ReadFile(filepath.Join("testdata", "v2.removed"))
	ok(t, err)
	r.Disks[1].File, r.Disks[1].Elsewhere = "/images/db1.raw", true
	if r2, err := parseRemoved(golden2); err != nil || fmt.Sprint(r2) != fmt.Sprint(r) || !bytes.Equal(r.encode(), golden2) {
		t.Fatalf("%v: %+v is read, and %+v encodes to\n%s", err, r2, r, r.encode())
	}
	golden3, err := os.ReadFile(filepath.Join("testdata", "v3.removed"))
	ok(t, err)
	r.Disks[0].File, r.Disks[0].Elsewhere, r.machines = "/store/groups/7/replica/1.raw", true, true
	if r3, err := parseRemoved(golden3); err != nil || fmt.Sprint(r3) != fmt.Sprint(r) || !bytes.Equal(r.encode(), golden3) {
		t.Fatalf("%v: %+v is read, and %+v encodes to\n%s", err, r3, r, r.encode())
	}
	rw := newRemovedWorld(t)
	f, err := rw.disk.Open(path.Join("/store/groups", testGroup.String(), removedName), ioengine.Create)
	ok(t, err)
	_, err = f.WriteAt(golden[:30], 0)
	ok(t, errors.Join(err, f.Close()))
	s, err := rw.store(rw.disk)
	ok(t, err)
	g, there := s.Group(testGroup)
	if !there || !errors.Is(g.opened(), ErrFailed) {
		t.Fatalf("a file that says perhaps that the group is removed: %v", there)
	}
	ok(t, s.Close())
}

func FuzzRemoved(f *testing.F) {
	golden, err := os.ReadFile(filepath.Join("testdata", "v1.removed"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden)
	golden2, err := os.ReadFile(filepath.Join("testdata", "v2.removed"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden2)
	golden3, err := os.ReadFile(filepath.Join("testdata", "v3.removed"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden3)
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > 9 { // the checksum keeps nobody from trying
			p = append(fmt.Appendf(nil, "%08x\n", checksum(p[9:])), p[9:]...)
		}
		if r, err := parseRemoved(p); err == nil {
			if again, err := parseRemoved(r.encode()); err != nil || fmt.Sprint(again) != fmt.Sprint(r) {
				t.Errorf("%q reads as %+v, and that as %+v (%v)", p, r, again, err)
			}
		}
	})
}

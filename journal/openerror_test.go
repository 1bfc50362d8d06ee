package journal

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// lived is a store that has all that a store can have on disk: checkpoints, some of them
// promoted, one tagged, ages, what a scrub knows, a view that was written to, one that was
// closed, and what a crash left of one more.
type lived struct {
	s      *source
	disk   *faultdisk.Disk
	newest uint64
	first  uint64
	image  []byte // of the view
}

const livedTag, livedText = "kept", "written to the view"

func newLived(t *testing.T) *lived {
	t.Helper()
	l := &lived{s: story(1, 5), disk: faultdisk.New(512), first: 3}
	cfg := smallSegments(l.disk)
	cfg.Boot = [16]byte{1}
	w, err := openWith(cfg)
	ok(t, err)
	ok(t, w.feed(l.s, 3))
	ok(t, w.group.promote(l.first, noPace))
	cps, err := w.group.Checkpoints(0, 100)
	ok(t, err)
	l.newest = cps[len(cps)-1].Number
	_, err = w.group.Tag(l.newest, livedTag)
	ok(t, err)
	kept, err := w.group.KeepView(l.newest, scratchOptions(0))
	ok(t, err)
	gone, err := w.group.KeepView(l.newest, scratchOptions(0))
	ok(t, err)
	ok(t, w.group.CloseView(gone.Number))
	d, _ := kept.View.Device(1)
	ok(t, errors.Join(d.WriteAt([]byte(livedText), 5000), d.Flush()))
	l.image = bytes.Clone(l.s.images[l.newest][1])
	copy(l.image[5000:], livedText)
	w.store.retainer.save()
	ok(t, w.store.Close())
	left, err := l.disk.Open(path.Join("/store/groups", testGroup.String(), "views", "v9"+viewSuffix+".new"), ioengine.Create)
	ok(t, errors.Join(err, left.Close()))
	return l
}

// opened opens the store in the same boot, and says whether its group is there.
func (l *lived) opened(disk *faultdisk.Disk) (*target, error) {
	cfg := smallSegments(disk)
	cfg.Boot = [16]byte{1}
	return openWith(cfg)
}

// whole says what of it is missing.
func (l *lived) whole(w *target) error {
	cps, err := w.group.Checkpoints(0, 100)
	if err != nil {
		return err
	}
	for _, cp := range cps {
		if cp.Number == l.newest && cp.Tag != livedTag {
			return fmt.Errorf("checkpoint %+v is not tagged %q", cp, livedTag)
		}
		if err := w.compare(cp.Number, l.s.images[cp.Number]); err != nil {
			return err
		}
	}
	if len(cps) != int(l.newest-l.first)+1 {
		return fmt.Errorf("%d checkpoints are listed", len(cps))
	}
	infos := w.group.Views()
	i := slices.IndexFunc(infos, func(i ViewInfo) bool { return i.Number == 1 })
	if i < 0 {
		return fmt.Errorf("the view is gone: %+v", infos)
	}
	got, err := viewBytes(infos[i])
	if err != nil {
		return err
	}
	if !bytes.Equal(got, l.image) {
		return fmt.Errorf("the view %w at %d", errDiffers, firstDifference(got, l.image))
	}
	return nil
}

// Every operation of opening a store that has all there is fails once. What the opening says
// it has, it has; whatever is done in that life, the next one finds all again.
func TestErrorAtEveryOperationOfOpening(t *testing.T) {
	l := newLived(t)
	opened, points := 0, 0
	for at := 1; ; at += stride(9) {
		seen, where := 0, ""
		came, fired := l.openedWithFault(t, faultdisk.Fault{Ops: faultdisk.OpAny, At: at, Err: syscall.EIO, Only: func(name string) bool {
			if seen++; seen == at {
				where = name
			}
			return true
		}}, func() (string, bool) { return fmt.Sprintf("error at %d (%s)", at, where), seen >= at })
		if came {
			opened++
		}
		if !fired {
			break
		}
		points++
	}
	if opened < 5 && !testing.Short() {
		t.Errorf("%d openings came to their end", opened)
	}
	t.Logf("%d errors, %d openings came to their end", points, opened)
}

// openedWithFault opens a store that has all there is with a fault in it, and again without;
// told says where the fault fell once it did. It returns whether the first opening came to
// its end, and whether there was a fault.
func (l *lived) openedWithFault(t *testing.T, fault faultdisk.Fault, told func() (string, bool)) (came, fired bool) {
	t.Helper()
	disk := l.disk.Kill()
	disk.Inject(fault)
	w, err := l.opened(disk)
	disk.Heal()
	where, fired := told()
	if err != nil && (!fired || !errors.Is(err, syscall.EIO)) {
		t.Fatalf("%s: %v", where, err)
	}
	if came = err == nil; came {
		err := l.whole(w)
		if !fired {
			ok(t, err)
		}
		if errors.Is(err, errDiffers) {
			t.Fatalf("%s: %v", where, err)
		}
		// A view that comes takes nothing of those that there were.
		if more, err := w.group.KeepView(l.newest, scratchOptions(0)); err == nil {
			if more.Number <= 2 {
				t.Fatalf("%s: number %d is drawn again", where, more.Number)
			}
			d, _ := more.View.Device(1)
			if err := d.WriteAt([]byte("another"), 5000); err != nil {
				t.Fatalf("%s, then a new view: %v", where, err)
			}
		}
		w.store.Close() // may fail
	}
	if w, err = l.opened(disk.Kill()); err == nil {
		err = errors.Join(l.whole(w), w.store.Close())
	}
	if err != nil {
		t.Fatalf("%s, then none: %v", where, err)
	}
	return came, fired
}

// The same for each place that calls the disk.
func TestErrorAtEveryCallSiteOfOpening(t *testing.T) {
	l := newLived(t)
	once := faultdisk.OncePerSite{Folder: "journal"}
	n := once.Each(faultdisk.Fault{Ops: faultdisk.OpAny, Err: syscall.EIO}, func(fault faultdisk.Fault) {
		found := once.Found()
		l.openedWithFault(t, fault, func() (string, bool) { return fmt.Sprintf("place %d", found), once.Found() > found })
	})
	t.Logf("%d places", n)
}

// The same for each operation on views and ages alone, which are always in the same order.
func TestErrorWhileOneFileIsOpened(t *testing.T) {
	l := newLived(t)
	for _, suffix := range []string{viewSuffix, viewSuffix + ".new", "/views", "/" + agesName} {
		points := 0
		for at, fired := 1, true; fired; at++ {
			disk, seen := l.disk.Kill(), 0
			disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, At: at, Err: syscall.EIO, Only: func(name string) bool {
				if !strings.HasSuffix(name, suffix) {
					return false
				}
				seen++
				return true
			}})
			w, err := l.opened(disk)
			disk.Heal()
			if fired = seen >= at; fired {
				points++
			}
			if err == nil {
				w.store.Close() // may fail
			} else if !errors.Is(err, syscall.EIO) {
				t.Fatalf("%s, error at %d: %v", suffix, at, err)
			}
			if w, err = l.opened(disk.Kill()); err == nil {
				err = errors.Join(l.whole(w), w.store.Close())
			}
			if err != nil {
				t.Fatalf("%s, error at %d, then none: %v", suffix, at, err)
			}
		}
		if points == 0 {
			t.Errorf("%s: no errors", suffix)
		}
	}
}

// What a crash left of a view cannot be removed: it stays, and is in nobody's way.
func TestLeftoverOfAViewStays(t *testing.T) {
	l := newLived(t)
	disk := l.disk.Kill()
	tried := 0
	disk.Inject(faultdisk.Fault{Ops: faultdisk.OpMutating, Ever: true, Err: syscall.EIO, Only: func(name string) bool {
		left := strings.HasSuffix(name, viewSuffix+".new")
		if left {
			tried++
		}
		return left
	}})
	w, err := l.opened(disk)
	ok(t, err)
	ok(t, l.whole(w))
	disk.Heal()
	if tried == 0 {
		t.Error("nobody tried to remove it")
	}
	ok(t, w.store.Close())
}

// What cannot be asked of the disk is said to be unknown.
func TestSpaceIsNotKnown(t *testing.T) {
	disk := faultdisk.New(512)
	w, err := openTarget(disk)
	ok(t, err)
	defer w.store.Close()
	disk.Inject(faultdisk.Fault{Ops: faultdisk.OpRead, Err: syscall.EIO, Ever: true, Only: func(name string) bool { return strings.HasSuffix(name, "/store") }})
	if u := w.store.Usage(); u.Free != -1 {
		t.Errorf("usage %+v", u)
	}
	if d := w.store.space(); d.free != -1 || d.short {
		t.Errorf("space %+v", d)
	}
	if err := w.store.onFullDisk(syscall.ENOSPC); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("full, nobody knows how much: %v", err)
	}
}

// The sync that all groups share fails, and then another, of those that a group makes by
// itself when it goes on elsewhere, or all of them: the source is told, nothing counts
// that was not synced, and it is sent again.
func TestFailedSyncTwice(t *testing.T) {
	told := 0
	for second := range 7 { // 0: all after the first
		s := newSource(2)
		s.script()
		disk := faultdisk.New(512)
		w, err := openTarget(disk)
		ok(t, err)
		syncs := 0
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpSync, Ever: true, Err: syscall.EIO, Only: func(name string) bool {
			if second > 0 && !strings.Contains(name, "/log/") {
				return false // those of a replica are final for it
			}
			syncs++
			return syncs == 1 || second == 0 || syncs == second+1
		}})
		err = w.feed(s, 2)
		if err != nil && !errors.Is(err, syscall.EIO) || err == nil && second == 0 {
			t.Fatalf("sync %d fails too: %v", second, err)
		}
		if err != nil {
			told++
		}
		acked, listed := w.promised()
		if second == 0 && acked > 0 {
			t.Fatalf("no sync succeeds, and seq %d was acknowledged", acked)
		}
		crashed := disk.Crash(seeded(second), faultdisk.KeepNone)
		crashed.Heal()
		ok(t, survives(s, crashed, acked, listed))
		disk.Heal()
		if err := w.feed(s, 2); err != nil {
			t.Fatalf("sync %d failed too, and the disk is well again: %v", second, err)
		}
		acked, listed = w.promised()
		ok(t, w.store.Close())
		ok(t, survives(s, disk.Crash(seeded(1), faultdisk.KeepNone), acked, listed))
	}
	if told < 2 {
		t.Errorf("the source was told %d times", told)
	}
}

// Every operation of opening the first view that is kept fails once, with all that it makes:
// it is told, and the next try is whole, also after a crash.
func TestErrorWhileTheFirstViewIsKept(t *testing.T) {
	for at := 1; ; at++ {
		s := story(1, 2)
		disk := faultdisk.New(512)
		cfg := smallSegments(disk)
		cfg.Boot = [16]byte{1}
		w, err := openWith(cfg)
		ok(t, err)
		ok(t, w.feed(s, 3))
		seen := 0
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpMutating, At: at, Err: syscall.EIO, Only: func(string) bool { seen++; return true }})
		_, err = w.group.KeepView(1, scratchOptions(0))
		disk.Heal()
		if seen < at {
			ok(t, err)
			ok(t, w.store.Close())
			return
		}
		if err != nil && !errors.Is(err, syscall.EIO) {
			t.Fatalf("error at %d: %v", at, err)
		}
		v, err := w.group.KeepView(1, scratchOptions(0))
		if err != nil {
			t.Fatalf("error at %d, again: %v", at, err)
		}
		d, _ := v.View.Device(1)
		ok(t, errors.Join(d.WriteAt([]byte(livedText), 0), d.Flush()))
		cfg.FS = disk.Crash(seeded(at), faultdisk.KeepNone)
		_ = w.store.Close() // of the disk before the crash
		w, err = openWith(cfg)
		ok(t, err)
		found := false
		for _, i := range w.group.Views() {
			if i.Number != v.Number {
				continue
			}
			got, err := viewBytes(i)
			ok(t, err)
			found = bytes.HasPrefix(got, []byte(livedText))
		}
		if !found {
			t.Fatalf("error at %d: view %d is not there after a crash", at, v.Number)
		}
		ok(t, w.store.Close())
	}
}

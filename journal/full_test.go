package journal

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// told returns a disk that holds the whole story.
func told(t *testing.T, s *source) *faultdisk.Disk {
	t.Helper()
	disk := faultdisk.New(512)
	w, err := openTarget(disk)
	ok(t, err)
	ok(t, w.feed(s, 3))
	ok(t, w.store.Close())
	return disk
}

// The disk says that it is full at every operation of an opening, once or from then on:
// whatever that opening could not do, the next one finds all.
func TestFullAtEveryOperationOfOpening(t *testing.T) {
	s := newSource(21)
	s.script()
	disk := told(t, s)
	for _, ever := range []bool{false, true} {
		opened, at := 0, 1
		for ; ; at += stride(4) {
			d := disk.Kill()
			d.Inject(faultdisk.Fault{At: at, Ever: ever, Err: syscall.ENOSPC, Short: true})
			w, err := openTarget(d)
			fired := err != nil
			if err == nil {
				opened++
				numbers, bad := w.check(s)
				if bad != nil || len(numbers) != len(s.images) {
					t.Fatalf("full at %d of opening: %v are listed: %v", at, numbers, bad)
				}
				fired = w.group.State().Err != nil
				if _, err := w.group.Admit(testStream, 1, 2); ever && fired && !errors.Is(err, syscall.ENOSPC) {
					t.Fatalf("full at %d of opening, and a source is let in: %v", at, err)
				}
				ok(t, w.store.Close())
			} else if !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("full at %d of opening: %v", at, err)
			}
			d.Heal()
			if err := survives(s, d.Crash(seeded(at), keeps[at%len(keeps)]), record.Seq(len(s.records)), nil); err != nil {
				t.Fatalf("full at %d of opening, then a crash: %v", at, err)
			}
			if !fired && at > 40 {
				break
			}
		}
		if opened < 5/stride(4) { // how many operations it takes before it only writes what can wait depends on the rounds
			t.Errorf("ever %v: %d openings came to their end", ever, opened)
		}
		t.Logf("ever %v: %d points", ever, at)
	}
}

// While the space for the next opening is not set aside nobody is let in, the state
// says why, and what there was is shown; once there is space it is taken, asked for or
// not.
func TestReserve(t *testing.T) {
	s := newSource(22)
	s.script()
	disk := told(t, s)
	reserve := func(name string) bool { return strings.HasSuffix(name, "/"+reserveName) }
	synctest.Test(t, func(t *testing.T) {
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAllocate, Only: reserve, Ever: true, Err: syscall.ENOSPC})
		w, err := openTarget(disk)
		ok(t, err)
		numbers, err := w.check(s)
		if err != nil || len(numbers) != len(s.images) {
			t.Errorf("on a full disk %v are listed: %v", numbers, err)
		}
		for range 2 {
			if err := w.group.State().Err; !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("state on a full disk: %v", err)
			}
			if _, err := w.group.Admit(testStream, 1, 2); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("admitted on a full disk: %v", err)
			}
		}
		if _, err := w.store.OpenGroup(GroupInfo{ID: 9, Name: "other", Lineage: 1}); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("a group is made on a full disk: %v", err)
		}
		disk.Heal()
		time.Sleep(2 * retryAfter) // nobody asks
		if err := w.group.State().Err; err != nil {
			t.Errorf("state with space again: %v", err)
		}
		ok(t, w.settle(life{1, 2}))
		ok(t, w.store.Close())

		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAllocate, Only: reserve, At: 1, Err: syscall.ENOSPC})
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAllocate, Only: reserve, At: 3, Err: syscall.ENOSPC})
		w, err = openTarget(disk)
		ok(t, err)
		ok(t, w.settle(life{1, 2})) // asked for
		ok(t, w.store.Close())
	})
}

// A round of the log never holds more than an opening has the space to copy.
func TestRoundsAreBounded(t *testing.T) {
	f := func(want int, verdict verdict, sizes ...int) {
		t.Helper()
		var items []item
		for _, n := range sizes {
			items = append(items, item{verdict: verdict, rec: record.Record{Header: record.Header{Size: n}}})
		}
		g := &Group{queue: slices.Clone(items)}
		if taken, more := g.take(nil, maxRound); len(taken) != want || more != (want < len(items)) {
			t.Errorf("of %v are taken %d, want %d; more: %v", sizes, len(taken), want, more)
		}
		if g := (&Group{queue: items, staged: make([]item, 1), stagedBytes: maxRound}); verdict == toLog {
			if taken, _ := g.take(nil, maxRound); len(taken) != 0 {
				t.Errorf("a round that is full takes %d more", len(taken))
			}
		}
	}
	f(1, toLog, 100)
	f(3, toLog, maxRound/2, maxRound/4, maxRound/4)
	f(2, toLog, maxRound/2, maxRound/4, maxRound/4+1)
	f(1, toLog, maxRound+1, 1)
	f(2, toReplica, maxRound, maxRound)
	f(2, barrier, 0, 0)
	if record.MaxRecordBytes > maxRound || reserveGroup < 2*maxRound+maxManifest {
		t.Error("the reserve does not cover what an opening writes")
	}
}

// A real file system, full to its last page: the store opens again and again, shows all
// it had, and takes no data; with space again it goes on.
func TestFullFileSystem(t *testing.T) {
	mount := t.TempDir()
	if err := syscall.Mount("tmpfs", mount, "tmpfs", 0, "size=48m"); err != nil {
		t.Logf("no file system of its own (%v): only what needs none", err)
		return
	}
	// Detached, for a catalogue that was left on a full disk keeps its files until the process ends.
	t.Cleanup(func() { ok(t, syscall.Unmount(mount, syscall.MNT_DETACH)) })
	dir, ballast := filepath.Join(mount, "store"), filepath.Join(mount, "ballast")
	fill := func() {
		t.Helper()
		f, err := os.OpenFile(ballast, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		ok(t, err)
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		ok(t, f.Close())
	}
	s := newSource(23)
	s.script()
	w, err := openWith(machineConfig(dir))
	ok(t, err)
	ok(t, w.feed(s, 3))
	fill()
	for range 40 {
		s.write(6)
	}
	s.checkpoint()
	if err := w.feed(s, 1); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("a full disk took all: %v", err)
	}
	if err := w.group.State().Err; !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("state on a full disk: %v", err)
	}
	acked, listed := w.promised()
	ok(t, w.store.Close())
	refused := 0
	for i := range 6 {
		if i == 2 { // as if an older release, without a reserve, had filled the disk
			ok(t, os.Remove(filepath.Join(dir, reserveName)))
		}
		fill()
		if i == 2 {
			size, err := os.Stat(ballast)
			ok(t, err)
			ok(t, os.Truncate(ballast, size.Size()-2<<20))
		}
		w, err = openWith(machineConfig(dir))
		if err != nil {
			t.Fatalf("opening %d on a full disk: %v", i, err)
		}
		if have := w.group.Durable(testStream); have < acked {
			t.Fatalf("opening %d: %d was acknowledged, %d is durable", i, acked, have)
		}
		numbers, err := w.check(s)
		if err != nil || len(numbers) < len(listed) {
			t.Errorf("opening %d on a full disk: listed %v, want %v: %v", i, numbers, listed, err)
		}
		err = w.feed(s, 1)
		if i >= 2 && errors.Is(err, errReserve) {
			refused++
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("opening %d on a full disk takes all: %v", i, err)
		}
		acked = max(acked, w.acked)
		ok(t, w.store.Close())
	}
	if refused != 4 {
		t.Errorf("%d openings of 4 without a whole reserve let nobody in", refused)
	}
	w, err = openWith(machineConfig(dir))
	ok(t, err)
	ok(t, os.Remove(ballast))
	ok(t, w.feed(s, 2))
	numbers, err := w.check(s)
	if err != nil || len(numbers) != len(s.images) || w.group.State().Err != nil {
		t.Errorf("with space again: listed %v, state %v: %v", numbers, w.group.State().Err, err)
	}
	ok(t, w.store.Close())
}

// On a disk without any space a pass borrows for its notes from what is set aside for the next
// opening, and what it drops makes that whole again. Meanwhile no source is let in.
func TestReserveIsLent(t *testing.T) {
	s := newSource(23)
	s.script()
	disk := told(t, s)
	w, err := openTarget(disk)
	ok(t, err)
	r := &w.store.reserve
	whole := r.held()
	numbers, err := w.check(s)
	ok(t, err)
	newest := numbers[len(numbers)-1]
	full := func(only func(name string) bool) {
		disk.Heal()
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpWrite, Ever: true, Err: syscall.ENOSPC, Only: only})
	}
	manifest := func(name string) bool { return strings.Contains(name, "manifest") }

	// For what a pass writes beside its notes nothing is lent.
	full(func(name string) bool { return strings.Contains(name, "/replica/") })
	if err := w.group.promote(newest, noPace); !errors.Is(err, syscall.ENOSPC) || r.held() != whole || r.missing() != nil {
		t.Errorf("a replica without space: %v; %d of %d bytes are set aside, %v", err, r.held(), whole, r.missing())
	}

	// Where a loan does not help the error is the disk's, and what was lent is set aside again.
	full(manifest)
	if err := w.group.promote(newest, noPace); !errors.Is(err, syscall.ENOSPC) || r.held() != whole {
		t.Errorf("on a disk that stays full: %v, %d bytes set aside", err, r.held())
	}
	// Nor is anything lost where it cannot be lent.
	for _, op := range []faultdisk.Op{faultdisk.OpTruncate, faultdisk.OpOpen} {
		full(manifest)
		disk.Inject(faultdisk.Fault{Ops: op, Ever: true, Err: syscall.EIO, Only: func(name string) bool { return strings.HasSuffix(name, reserveName) }})
		if err := w.group.promote(newest, noPace); !errors.Is(err, syscall.ENOSPC) || r.missing() != nil {
			t.Errorf("%v fails: %v, %v", op, err, r.missing())
		}
	}
	// What others took of it meanwhile is lent once, and not again with each try.
	full(manifest)
	disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAllocate, Ever: true, Err: syscall.ENOSPC, Only: func(name string) bool { return strings.HasSuffix(name, reserveName) }})
	for range 3 {
		if err := w.group.promote(newest, noPace); !errors.Is(err, syscall.ENOSPC) || r.held() != whole-reserveLent {
			t.Errorf("on a disk that stays full, %d of %d bytes set aside: %v", r.held(), whole, err)
		}
	}
	if err := w.group.State().Err; !errors.Is(err, errReserve) {
		t.Errorf("state while it is lent: %v", err)
	}
	disk.Heal()
	ok(t, w.store.mayTake())

	full(func(name string) bool { return manifest(name) && r.held() == whole })
	ok(t, w.group.promote(newest, noPace))
	if err := w.group.State().Err; err != nil || r.held() != whole {
		t.Errorf("then: %v, %d of %d bytes", err, r.held(), whole)
	}
	disk.Heal()
	ok(t, w.store.Close())
}

// What is enough for fewer groups than were asked for before is whole.
func TestReserveForFewer(t *testing.T) {
	r := &reserve{fs: faultdisk.New(512), name: "/" + reserveName, log: slog.New(slog.DiscardHandler)}
	ok(t, r.hold(2))
	if !r.lend() {
		t.Fatal("nothing is lent")
	}
	ok(t, r.hold(1))
	if err := r.missing(); err != nil {
		t.Error(err)
	}
}

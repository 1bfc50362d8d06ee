package journal

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

var keeps = []faultdisk.Keep{faultdisk.KeepNone, faultdisk.KeepSome, faultdisk.KeepTorn}

// stride returns how far apart the points of a loop are: with -short (under the race
// detector) a few of them do.
func stride(n int) int {
	if testing.Short() {
		return n
	}
	return 1
}

// survives opens a crashed disk and holds it against what was promised before: nothing
// acknowledged is gone, whatever was listed still is and restores byte for byte, and
// nothing is listed that no source ever cut outside a resync. Then the story goes on
// to its end, which must be whole too.
func survives(s *source, disk *faultdisk.Disk, acked record.Seq, listed []uint64) error {
	w, err := openTarget(disk)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer w.store.Close()
	durable := w.group.Durable(testStream)
	if durable < acked {
		return fmt.Errorf("seq %d was acknowledged, %d is durable", acked, durable)
	}
	if int(durable) > len(s.records) {
		return fmt.Errorf("seq %d is durable and was never sent", durable)
	}
	numbers, err := w.check(s)
	if err != nil {
		return err
	}
	for _, n := range listed {
		if !slices.Contains(numbers, n) {
			return fmt.Errorf("checkpoint %d was listed; now %v are", n, numbers)
		}
	}
	if err := w.feed(s, 4); err != nil {
		return fmt.Errorf("going on: %w", err)
	}
	if numbers, err = w.check(s); err != nil {
		return fmt.Errorf("at the end: %w", err)
	}
	if len(numbers) != len(s.images) {
		return fmt.Errorf("at the end %v are listed, want %d", numbers, len(s.images))
	}
	return nil
}

// live runs a story on a disk and calls at with what was promised, at each operation.
// at may run on the store's goroutines, so it returns its error; after the first one
// it is not called again.
func live(t *testing.T, s *source, disk *faultdisk.Disk, size int, at func(acked record.Seq, listed []uint64) error) {
	t.Helper()
	var w atomic.Pointer[target]
	var failed atomic.Pointer[error]
	disk.OnOp(func(op faultdisk.Op, name string) {
		var acked record.Seq
		var listed []uint64
		if w := w.Load(); w != nil {
			acked, listed = w.promised()
		}
		if failed.Load() != nil {
			return
		}
		if err := at(acked, listed); err != nil {
			err = fmt.Errorf("operation %d (%#x of %s): %w", disk.Ops(), op, name, err)
			failed.CompareAndSwap(nil, &err)
		}
	})
	opened, err := openTarget(disk)
	ok(t, err)
	w.Store(opened)
	ok(t, opened.feed(s, size))
	ok(t, opened.store.Close())
	disk.OnOp(nil)
	if err := failed.Load(); err != nil {
		t.Fatal(*err)
	}
}

// Power fails at every operation of a whole story, leaving nothing unsynced, any part,
// or a torn last write (I2, I3, I7, I8); and the process is killed there, opened again,
// and then power fails.
func TestCrashAtEveryOperation(t *testing.T) {
	points := 0
	for seed := range 2 {
		s, rng := newSource(seed), seeded(seed)
		s.script()
		disk := faultdisk.New(512)
		live(t, s, disk, 1+seed*2, func(acked record.Seq, listed []uint64) error {
			if disk.Ops()%stride(15) != 0 {
				return nil
			}
			for _, keep := range keeps {
				points++
				if err := survives(s, disk.Crash(rng, keep), acked, listed); err != nil {
					return fmt.Errorf("crash, keep %d: %w", keep, err)
				}
			}
			killed := disk.Kill()
			if err := opens(killed); err != nil {
				return fmt.Errorf("kill: %w", err)
			}
			if err := survives(s, killed.Crash(rng, faultdisk.KeepNone), acked, listed); err != nil {
				return fmt.Errorf("kill, open, crash: %w", err)
			}
			return nil
		})
	}
	t.Logf("%d crashes", points)
}

// opens opens a disk and lets go of it without a word.
func opens(disk *faultdisk.Disk) error {
	w, err := openTarget(disk)
	if err != nil {
		return err
	}
	return w.store.Close()
}

// Power fails at every operation of a recovery, at some points of a story.
func TestCrashInRecovery(t *testing.T) {
	s, rng := newSource(5), seeded(5)
	s.script()
	disk := faultdisk.New(512)
	points := 0
	live(t, s, disk, 2, func(acked record.Seq, listed []uint64) (failed error) {
		if disk.Ops()%(17*stride(9)) != 0 {
			return nil
		}
		crashed := disk.Crash(rng, keeps[rng.IntN(len(keeps))])
		crashed.OnOp(func(op faultdisk.Op, name string) {
			points++
			err := survives(s, crashed.Crash(rng, keeps[rng.IntN(len(keeps))]), acked, listed)
			if failed == nil && err != nil {
				failed = fmt.Errorf("then %d (%#x of %s) of the recovery: %w", crashed.Ops(), op, name, err)
			}
		})
		return errors.Join(opens(crashed), failed)
	})
	t.Logf("%d crashes", points)
}

// Every operation of a story fails once, or from then on. Nothing acknowledged is lost
// nor wrong, in this life or after a crash at the end of it; and once the fault is gone
// and the store was opened again, the story comes to its end.
func TestErrorAtEveryOperation(t *testing.T) {
	s := newSource(3)
	s.script()
	for _, fault := range []faultdisk.Fault{
		{Ops: faultdisk.OpAny, Err: syscall.EIO},
		{Ops: faultdisk.OpMutating, Err: syscall.ENOSPC, Short: true},
		{Ops: faultdisk.OpMutating, Err: syscall.ENOSPC, Ever: true},
		{Ops: faultdisk.OpSync | faultdisk.OpSyncDir, Err: syscall.EIO},
	} {
		for at := 1; ; at += stride(25) {
			fault.At = at
			fired, err := errorAt(s, fault)
			if err != nil {
				t.Fatalf("fault %+v: %v", fault, err)
			}
			if !fired {
				t.Logf("operations %#x, ever %v: errors up to the %d-th", fault.Ops, fault.Ever, at-1)
				break
			}
		}
	}
}

// The same for each place that calls the disk, whatever the order its calls fall in.
func TestErrorAtEveryCallSite(t *testing.T) {
	s := newSource(3)
	s.script()
	once := faultdisk.OncePerSite{Folder: "journal"}
	n := once.Each(faultdisk.Fault{Ops: faultdisk.OpAny, Err: syscall.EIO, At: 1}, func(fault faultdisk.Fault) {
		if _, err := errorAt(s, fault); err != nil {
			t.Fatalf("place %d: %v", once.Found(), err)
		}
	})
	t.Logf("%d places", n)
}

// errorAt runs a story with one fault, sending again what was refused.
func errorAt(s *source, fault faultdisk.Fault) (fired bool, err error) {
	disk := faultdisk.New(512)
	var seen atomic.Int64
	fault.Only = func(string) bool { seen.Add(1); return true }
	disk.Inject(fault)
	var acked record.Seq
	var listed []uint64
	w, err := openTarget(disk)
	if err == nil {
		for range 2 { // a source tries again when its session ended
			if err = w.feed(s, 2); err == nil {
				break
			}
		}
		acked, listed = w.promised()
		numbers, bad := w.check(s)
		if err == nil && (bad != nil || len(numbers) != len(s.images)) && !fault.Ever && fault.Ops&faultdisk.OpRead == 0 {
			return true, fmt.Errorf("all went well, and %v are listed (%w)", numbers, bad)
		}
		w.store.Close() // may fail, as everything may
	}
	fired = seen.Load() >= int64(fault.At)
	if !fired && err != nil {
		return false, err
	}
	keep := keeps[fault.At%len(keeps)]
	if err := survives(s, disk.Crash(seeded(fault.At), keep), acked, listed); err != nil {
		return fired, fmt.Errorf("then a crash, keep %d: %w", keep, err)
	}
	return fired, nil
}

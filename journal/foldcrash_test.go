package journal

import (
	"fmt"
	"slices"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// The checkpoints of a story that thinning leaves.
var foldKeeps = []uint64{1, 4, 7}

// foldStory is a disk with a history whose checkpoints are to be thinned down to foldKeeps
// and the last.
func foldStory(t *testing.T, seed int) (*source, *faultdisk.Disk) {
	s := story(seed, 8)
	disk := faultdisk.New(512)
	w, err := openSmall(disk)
	ok(t, err)
	ok(t, w.feed(s, 3))
	ok(t, w.settled())
	ok(t, w.store.Close())
	return s, disk
}

// foldSurvives opens a disk on which thinning and folding were under way, and does both
// again.
func foldSurvives(s *source, disk *faultdisk.Disk) error {
	w, err := openSmall(disk)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer w.store.Close()
	if durable := w.group.Durable(testStream); int(durable) != len(s.records) {
		return fmt.Errorf("%d is durable, of %d", durable, len(s.records))
	}
	numbers, err := w.check(s)
	if err != nil {
		return err
	}
	for _, n := range append(foldKeeps, s.cut) {
		if !slices.Contains(numbers, n) {
			return fmt.Errorf("checkpoint %d is not listed; %v are", n, numbers)
		}
	}
	if err := w.keepOnly(foldKeeps...); err != nil {
		return fmt.Errorf("again: %w", err)
	}
	if err := w.foldAll(); err != nil {
		return fmt.Errorf("again: %w", err)
	}
	if err := w.shows(s, append(foldKeeps, s.cut)...); err != nil {
		return fmt.Errorf("again: %w", err)
	}
	return nil
}

// Power fails at every operation of thinning and folding, and at some of each recovery: no
// checkpoint that stays is touched, and what is done again is whole.
func TestFoldCrashAtEveryOperation(t *testing.T) {
	s, disk := foldStory(t, 1)
	rng := seeded(1)
	w, err := openSmall(disk)
	ok(t, err)
	points := 0
	var failed error
	disk.OnOp(func(op faultdisk.Op, name string) {
		if failed != nil || disk.Ops()%stride(11) != 0 {
			return
		}
		for _, keep := range keeps {
			points++
			crashed := disk.Crash(rng, keep)
			nested := crashed.Kill()
			if err := foldSurvives(s, crashed); err != nil {
				failed = fmt.Errorf("operation %d (%#x of %s), keep %d: %w", disk.Ops(), op, name, keep, err)
				return
			}
			if points%7 != 0 {
				continue
			}
			at := nested.Ops() + rng.IntN(200)
			var again *faultdisk.Disk
			nested.OnOp(func(faultdisk.Op, string) {
				if again == nil && nested.Ops() >= at {
					again = nested.Crash(rng, keep)
				}
			})
			_ = foldSurvives(s, nested)
			if again == nil {
				continue
			}
			if err := foldSurvives(s, again); err != nil {
				failed = fmt.Errorf("operation %d (%#x of %s), keep %d, then %d of the recovery: %w", disk.Ops(), op, name, keep, at, err)
				return
			}
		}
	})
	before := w.group.State().Bytes
	ok(t, w.keepOnly(foldKeeps...))
	ok(t, w.foldAll())
	disk.OnOp(nil)
	ok(t, failed)
	ok(t, w.shows(s, append(foldKeeps, s.cut)...))
	if after := w.group.State().Bytes; after >= before {
		t.Errorf("the log had %d bytes and has %d", before, after)
	}
	ok(t, w.store.Close())
	t.Logf("%d crashes", points)
}

// Every operation of thinning and folding fails once, or from then on: what stays reads
// right all the time and after a crash, and the work is done when it is tried again.
func TestFoldErrorAtEveryOperation(t *testing.T) {
	s, filled := foldStory(t, 2)
	for _, fault := range []faultdisk.Fault{
		{Ops: faultdisk.OpAny, Err: syscall.EIO},
		{Ops: faultdisk.OpMutating, Err: syscall.ENOSPC, Short: true},
		{Ops: faultdisk.OpMutating, Err: syscall.EIO, Ever: true},
	} {
		run := func(fault faultdisk.Fault) (failed error) {
			disk := filled.Kill()
			w, err := openSmall(disk)
			ok(t, err)
			ok(t, w.settled())
			where := fmt.Sprintf("operations %#x, error at %d, once %v", fault.Ops, fault.At, fault.Once != nil)
			disk.Inject(fault)
			failed = w.keepOnly(foldKeeps...)
			for did := true; failed == nil && did; {
				did, failed = w.group.foldLog(noPace)
			}
			disk.Heal()
			numbers, err := w.check(s)
			if err != nil {
				t.Fatalf("%s (%v): %v are listed: %v", where, failed, numbers, err)
			}
			if failed == nil && fault.At > 100 {
				ok(t, w.store.Close())
				return nil
			}
			if err := foldSurvives(s, disk.Crash(seeded(fault.At), keeps[fault.At%len(keeps)])); err != nil {
				t.Fatalf("%s (%v), crash: %v", where, failed, err)
			}
			w.store.Close() // a manifest or an index may have failed for good
			if err := foldSurvives(s, disk); err != nil {
				t.Fatalf("%s (%v), again: %v", where, failed, err)
			}
			return failed
		}
		points := 0
		for fault.At = 1; ; fault.At += stride(19) {
			if run(fault) == nil && fault.At > 100 {
				break
			}
			points++
		}
		once := faultdisk.OncePerSite{Folder: "journal"}
		fault.At = 1
		once.Each(fault, func(fault faultdisk.Fault) { _ = run(fault) })
		t.Logf("operations %#x: %d errors, and %d places", fault.Ops, points, once.Found())
	}
}

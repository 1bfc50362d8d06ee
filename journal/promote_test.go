package journal

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/retain"
	"github.com/holdfast-dr/holdfast/wire/record"
)

func noPace(int64) error { return nil }

// story is a source with a history of checkpoints, in a log of several segments.
func story(seed, checkpoints int) *source {
	s := newSource(seed)
	s.open(true)
	s.write(6)
	s.close()
	for i := range checkpoints {
		for range 3 {
			s.write(6)
		}
		if i == checkpoints/2 { // in a new life, after a resync
			s.newLife()
			s.open(false)
			s.write(5)
			s.close()
		}
		s.limit = s.checkpoint() // the next one knows of it
	}
	return s
}

func smallSegments(disk *faultdisk.Disk) Config {
	cfg := config(disk)
	cfg.SegmentBytes, cfg.IndexMemory = 8<<10, 0 // the limits of these tests are too low for an index in many small runs
	return cfg
}

func openSmall(disk *faultdisk.Disk) (*target, error) { return openWith(smallSegments(disk)) }

// holds says whether all checkpoints of the source from one on are listed and equal.
func (t *target) holds(s *source, from uint64) error {
	numbers, err := t.check(s)
	if err != nil {
		return err
	}
	for n := range s.images {
		if n >= from && !slices.Contains(numbers, n) {
			return fmt.Errorf("checkpoint %d is not listed; %v are", n, numbers)
		}
	}
	if len(numbers) > 0 && numbers[0] < from {
		return fmt.Errorf("checkpoints %v are listed, and those below %d are gone", numbers, from)
	}
	return nil
}

// Promotion from checkpoint to checkpoint: those that are left restore byte for byte,
// before and after an opening, the log gets shorter, and it goes on.
func TestPromote(t *testing.T) {
	for seed := range 4 {
		s := story(seed, 8)
		disk := faultdisk.New(512)
		w, err := openSmall(disk)
		ok(t, err)
		ok(t, w.feed(s, 3))
		ok(t, w.holds(s, 1))
		before := w.group.State().Bytes
		for _, to := range []uint64{2, 3, 7, 8} {
			ok(t, w.group.promote(to, noPace))
			ok(t, w.holds(s, to))
			if _, err := w.group.OpenView(to-1, ViewOptions{}); !errors.Is(err, ErrNotFound) {
				t.Errorf("a checkpoint that is gone opens: %v", err)
			}
			ok(t, w.store.Close())
			w, err = openSmall(disk)
			ok(t, err)
			ok(t, w.holds(s, to))
		}
		if after := w.group.State().Bytes; after > before/2 {
			t.Errorf("the log had %d bytes and has %d", before, after)
		}
		s.write(4)
		s.limit = s.checkpoint()
		ok(t, w.feed(s, 3))
		ok(t, w.group.promote(9, noPace))
		ok(t, w.holds(s, 9))
		ok(t, w.store.Close())
		w, err = openSmall(disk.Crash(seeded(seed), faultdisk.KeepNone))
		ok(t, err)
		ok(t, w.holds(s, 9))
		ok(t, w.store.Close())
	}
}

// Passes of one process follow each other: none writes again what the one before wrote,
// though the log begins before that, and none misses anything.
func TestPromoteFollows(t *testing.T) {
	less := false
	for seed := range 4 {
		s := story(seed, 8)
		pass := func(w *target, to uint64) int64 {
			before := w.group.Retention().Promoted
			ok(t, w.group.promote(to, noPace))
			ok(t, w.holds(s, to))
			return w.group.Retention().Promoted - before
		}
		disk := faultdisk.New(512)
		w, err := openSmall(disk)
		ok(t, err)
		ok(t, w.feed(s, 3))
		pass(w, 2)
		again, err := openSmall(disk.Kill()) // which does not know how far the pass was
		ok(t, err)
		// The same where a segment begins at that cut, as chance has it: both know that.
		all, rest := pass(again, 3), pass(w, 3)
		if rest > all {
			t.Errorf("seed %d: a pass after another wrote %d bytes, and by itself %d", seed, rest, all)
		}
		less = less || rest < all
		ok(t, again.store.Close())
		for _, to := range []uint64{4, 7, 8} {
			pass(w, to)
		}
		ok(t, w.store.Close())
	}
	if !less {
		t.Error("no pass after another wrote less than by itself")
	}
}

// promoteSurvives opens a disk on which a pass to a checkpoint was under way, and makes
// it again.
func promoteSurvives(s *source, disk *faultdisk.Disk, to uint64) error {
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
	for n := range s.images {
		if n >= to && !slices.Contains(numbers, n) {
			return fmt.Errorf("checkpoint %d is not listed; %v are", n, numbers)
		}
	}
	if err := w.group.promote(to, noPace); err != nil {
		return fmt.Errorf("again: %w", err)
	}
	if err := w.holds(s, to); err != nil {
		return fmt.Errorf("again: %w", err)
	}
	return nil
}

// Power fails at every operation of two passes, and at some of each recovery: no
// checkpoint that stays is touched, and the pass made again is whole.
func TestPromoteCrashAtEveryOperation(t *testing.T) {
	points := 0
	for seed := range 2 {
		s, rng := story(seed, 5), seeded(seed)
		disk := faultdisk.New(512)
		w, err := openSmall(disk)
		ok(t, err)
		ok(t, w.feed(s, 3))
		for _, to := range []uint64{3, 5} {
			var failed error
			disk.OnOp(func(op faultdisk.Op, name string) {
				if failed != nil || disk.Ops()%stride(11) != 0 {
					return
				}
				for _, keep := range keeps {
					points++
					crashed := disk.Crash(rng, keep)
					nested := crashed.Kill()
					if err := promoteSurvives(s, crashed, to); err != nil {
						failed = fmt.Errorf("seed %d, to %d, operation %d (%#x of %s), keep %d: %w", seed, to, disk.Ops(), op, name, keep, err)
						return
					}
					if points%9 != 0 {
						continue
					}
					at := nested.Ops() + rng.IntN(60)
					var again *faultdisk.Disk
					nested.OnOp(func(faultdisk.Op, string) {
						if again == nil && nested.Ops() >= at {
							again = nested.Crash(rng, keep)
						}
					})
					_ = promoteSurvives(s, nested, to)
					if again == nil {
						continue
					}
					if err := promoteSurvives(s, again, to); err != nil {
						failed = fmt.Errorf("seed %d, to %d, operation %d (%#x of %s), keep %d, then %d of the recovery: %w", seed, to, disk.Ops(), op, name, keep, at, err)
						return
					}
				}
			})
			ok(t, w.group.promote(to, noPace))
			disk.OnOp(nil)
			ok(t, failed)
			ok(t, w.holds(s, to))
		}
		ok(t, w.store.Close())
	}
	t.Logf("%d crashes", points)
}

// Every operation of a pass fails once, or from then on: all checkpoints that stay read
// right all the time, and the pass is whole when it is made again: by this process, or
// the next where a sync of a replica failed.
func TestPromoteErrorAtEveryOperation(t *testing.T) {
	s := story(1, 4)
	filled := faultdisk.New(512)
	w, err := openSmall(filled)
	ok(t, err)
	ok(t, w.feed(s, 3))
	ok(t, w.store.Close())
	for _, fault := range []faultdisk.Fault{
		{Ops: faultdisk.OpAny, Err: syscall.EIO},
		{Ops: faultdisk.OpMutating, Err: syscall.ENOSPC, Short: true},
		{Ops: faultdisk.OpMutating, Err: syscall.EIO, Ever: true},
	} {
		points := 0
		for at := 1; ; at += stride(17) {
			disk := filled.Kill()
			w, err := openSmall(disk)
			ok(t, err)
			where := fmt.Sprintf("operations %#x, error at %d", fault.Ops, at)
			fault.At = at
			disk.Inject(fault)
			failed := w.group.promote(3, noPace)
			disk.Heal()
			numbers, err := w.check(s)
			if err != nil || !slices.Contains(numbers, 3) || !slices.Contains(numbers, 4) {
				t.Fatalf("%s: %v are listed: %v", where, numbers, err)
			}
			if failed == nil && at > 40 {
				ok(t, w.store.Close())
				break
			}
			points++
			if err := promoteSurvives(s, disk.Crash(seeded(at), faultdisk.KeepSome), 3); err != nil {
				t.Fatalf("%s, crash: %v", where, err)
			}
			if err := w.group.promote(3, noPace); err != nil {
				ok(t, w.store.Close())
				w, err = openSmall(disk)
				if err == nil {
					err = w.group.promote(3, noPace)
				}
				if err != nil {
					t.Fatalf("%s, open, again: %v", where, err)
				}
			}
			if err := w.holds(s, 3); err != nil {
				t.Fatalf("%s, again: %v", where, err)
			}
			ok(t, w.store.Close())
		}
		if points < 40/stride(17) {
			t.Errorf("operations %#x: %d errors", fault.Ops, points)
		}
		t.Logf("operations %#x: %d errors", fault.Ops, points)
	}
}

// Views that stand at or above the checkpoint of a pass read right bytes beside it, and
// one of an older checkpoint is not opened any more.
func TestViewsBesidePromotion(t *testing.T) {
	s := story(3, 12)
	w, err := openSmall(faultdisk.New(512))
	ok(t, err)
	defer w.store.Close()
	ok(t, w.feed(s, 3))
	var stop atomic.Bool
	var reading sync.WaitGroup
	for _, n := range []uint64{10, 11, 12} {
		v, err := w.group.OpenView(n, ViewOptions{})
		ok(t, err)
		for vol, image := range s.images[n] {
			d, _ := v.Device(vol)
			reading.Go(func() {
				rng := seeded(int(n))
				for !stop.Load() {
					off := rng.Int64N(volumeBytes)
					p := make([]byte, 1+rng.Int64N(volumeBytes-off))
					if err := d.ReadAt(p, off); err != nil {
						t.Errorf("checkpoint %d: %v", n, err)
						return
					}
					if string(p) != string(image[off:off+int64(len(p))]) {
						t.Errorf("checkpoint %d, volume %d at %d: wrong bytes", n, vol, off)
						return
					}
				}
			})
		}
		defer v.Close()
	}
	for to := uint64(2); to <= 10; to++ {
		ok(t, w.group.promote(to, noPace))
	}
	if err := w.group.promote(11, noPace); !errors.Is(err, errBelow) {
		t.Errorf("promoted past a view: %v", err)
	}
	stop.Store(true)
	reading.Wait()
}

// A pin stands in the way, whatever the plan said.
func TestPromoteStopsAtPins(t *testing.T) {
	s := story(3, 4)
	w, err := openSmall(faultdisk.New(512))
	ok(t, err)
	defer w.store.Close()
	ok(t, w.feed(s, 3))
	ok(t, w.group.manifest.put(true, entry{kind: entryPin, number: 2, pinned: true}))
	if err := w.group.promote(3, noPace); !errors.Is(err, errBelow) {
		t.Errorf("promoted past a pin: %v", err)
	}
	ok(t, w.group.promote(2, noPace))
	ok(t, w.holds(s, 2))
}

// What of the log is damaged when it is promoted reads as damage afterwards, and only
// that; it is no more once it was overwritten.
func TestPromoteDamage(t *testing.T) {
	s := story(5, 6)
	disk := faultdisk.New(512)
	w, err := openSmall(disk)
	ok(t, err)
	ok(t, w.feed(s, 3))
	rotten := 0
	cp, err := w.group.Checkpoint(4)
	ok(t, err)
	for _, seg := range w.group.segments.Segments() { // the first may hold nothing that stays: it depends on the rounds
		ok(t, w.group.index.Walk(1, 0, volumeBytes, w.group.index.Vector(cp), 0, func(p index.Piece) error {
			if p.In == index.InLog && p.Pos >= seg.First && p.Pos < seg.End && rotten < 3 {
				at := int64(p.Pos-seg.First) + 4096 + int64(p.Block.At) + 3
				ok(t, disk.Rot(fmt.Sprintf("/store/groups/%s/log/%016d.seg", testGroup, seg.Number), at, 1))
				rotten++
			}
			return nil
		}))
		if rotten > 0 {
			break
		}
	}
	if rotten == 0 {
		t.Fatal("the checkpoint needs nothing of the log")
	}
	ok(t, w.group.promote(4, noPace))
	for round := range 2 {
		for n := uint64(4); n <= 6; n++ {
			if err := w.compare(n, s.images[n]); err != nil && !isDamage(err) {
				t.Fatalf("round %d, %d places of rot, checkpoint %d: %v", round, rotten, n, err)
			}
			cp, err := w.group.Checkpoint(n)
			ok(t, err)
			if err := w.compare(n, s.images[n]); (err == nil) != (cp.State == "good") {
				t.Errorf("round %d: checkpoint %d is %s (%s), and reads: %v", round, n, cp.State, cp.Reason, err)
			}
		}
		ok(t, w.store.Close())
		w, err = openSmall(disk)
		ok(t, err)
	}
	// Everything is written anew: there is no damage left in what follows.
	b := record.NewBatch(record.Limits{})
	for _, v := range testVolumes {
		s.ticket++
		b.Add(record.Piece{Volume: v.ID, Len: v.Bytes, Ticket: s.ticket})
		clear(s.volumes[v.ID])
	}
	id, now := s.next()
	s.add(b.Seal(nil, id, now, record.NewCompressor()))
	s.checkpoint()
	s.limit = s.checkpoint()
	ok(t, w.feed(s, 3))
	ok(t, w.group.promote(8, noPace))
	ok(t, w.holds(s, 8))
	if err := w.group.State().Err; err != nil {
		t.Errorf("all is whole again: %v", err)
	}
	ok(t, w.store.Close())
}

// A group's own policy outlives an opening, and going back to the store's does.
func TestRetentionPolicyIsKept(t *testing.T) {
	disk := faultdisk.New(512)
	w, err := openSmall(disk)
	ok(t, err)
	want := retain.Policy{History: 3 * retain.MinHistory, Limit: 1 << 30, WarnPercent: 50}
	ok(t, w.group.SetRetention(want))
	if err := w.group.SetRetention(retain.Policy{History: 1}); !errors.Is(err, retain.ErrPolicy) {
		t.Errorf("a policy without sense: %v", err)
	}
	for _, own := range []bool{true, false} {
		ok(t, w.store.Close())
		w, err = openSmall(disk.Crash(seeded(1), faultdisk.KeepNone))
		ok(t, err)
		r := w.group.Retention()
		if r.Own != own || own && !r.Policy.Equal(want) || !own && !r.Policy.Equal(retain.Default()) {
			t.Errorf("own %v: %+v", own, r)
		}
		ok(t, w.group.ClearRetention())
		disk = w.store.cfg.FS.(*faultdisk.Disk)
	}
	ok(t, w.store.Close())
}

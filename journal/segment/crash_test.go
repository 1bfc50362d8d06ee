package segment

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

var keeps = []faultdisk.Keep{faultdisk.KeepNone, faultdisk.KeepSome, faultdisk.KeepTorn}

// Power fails at every operation of a life, each time leaving nothing unsynced, any
// part, or a torn last write; and power fails again during the recovery. What was committed is there, and nothing else but whole rounds.
func TestCrashAtEveryOperation(t *testing.T) { crashEverywhere(t, 3, 14, false) }

// The same where the log's beginning is dropped as it goes, and its files used again.
func TestCrashWhileDropping(t *testing.T) { crashEverywhere(t, 2, 20, true) }

func crashEverywhere(t *testing.T, seeds, steps int, drops bool) {
	if testing.Short() {
		seeds = 1
	}
	points, nested := 0, 0
	defer func() { slowOpen = false }()
	for seed := range seeds {
		slowOpen = seed%2 == 1
		rng := seeded(seed)
		disk := faultdisk.New(512)
		m := &model{}
		f := &life{model: m}
		disk.OnOp(func(op faultdisk.Op, name string) {
			if disk.Ops()%sample != 0 {
				return
			}
			for _, keep := range keeps {
				points++
				where := fmt.Sprintf("seed %d, operation %d (%#x of %s), keep %d", seed, disk.Ops(), op, name, keep)
				depth := 0
				if disk.Ops()%len(keeps) == int(keep) { // each operation with one of them
					depth = 1
				}
				nested += crashAndRecover(t, where, f.model.clone(), disk.Crash(rng, keep), depth, rng)
			}
			killed := disk.Kill()
			if next, _, _, err := f.model.recovered(killed); err != nil {
				t.Fatalf("seed %d, operation %d, kill: %v", seed, disk.Ops(), err)
			} else if _, _, _, err := next.recovered(killed.Crash(rng, faultdisk.KeepNone)); err != nil {
				t.Fatalf("seed %d, operation %d, kill, recovery, crash: %v", seed, disk.Ops(), err)
			}
		})
		started, err := start(disk, m, seeded(seed), 1)
		ok(t, err)
		*f = *started
		f.drops = drops
		ok(t, f.run(steps, 0))
		disk.OnOp(nil)
		ok(t, f.finish(disk))
	}
	t.Logf("%d crashes, %d of them during a recovery", points+nested, nested)
}

// inPoolAndLog returns a segment whose file is among the spare ones too.
func inPoolAndLog(t *testing.T, disk *faultdisk.Disk) string {
	t.Helper()
	headers := map[string]bool{}
	for _, dir := range []string{testSpare, testDir} {
		names, err := disk.List(dir)
		ok(t, err)
		for _, name := range names {
			f, err := disk.Open(path.Join(dir, name), ioengine.ReadOnly)
			ok(t, err)
			page := make([]byte, 64)
			_, err = f.ReadAt(page, 0)
			if ok(t, f.Close()); err == nil && dir == testDir && headers[string(page)] && !bytes.Equal(page, make([]byte, len(page))) {
				return name
			}
			headers[string(page)] = true
		}
	}
	return ""
}

// nestedSample is 1 of how many operations of a recovery a second crash comes at, drawn
// anew for each: there are hundreds of recoveries much like each other.
const nestedSample = 4

// crashAndRecover opens a crashed disk; depth times more it crashes at operations of
// doing so, which rng draws. It returns how many crashes that made.
func crashAndRecover(t *testing.T, where string, m *model, disk *faultdisk.Disk, depth int, rng *rand.Rand) int {
	t.Helper()
	crashes := 0
	if depth > 0 {
		disk.OnOp(func(op faultdisk.Op, name string) {
			if rng.IntN(nestedSample) != 0 {
				return
			}
			crashes++
			keep := keeps[rng.IntN(len(keeps))]
			again := fmt.Sprintf("%s; then operation %d (%#x of %s) of the recovery, keep %d", where, disk.Ops(), op, name, keep)
			crashAndRecover(t, again, m, disk.Crash(rng, keep), depth-1, rng)
		})
	}
	next, l, _, err := m.recovered(disk)
	if err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	disk.OnOp(nil)
	// The log goes on: one more record, and it outlives one more crash.
	f := &life{model: next, l: l}
	rec := sealed(9999, 700, seeded(1))
	if err := errors.Join(f.append(rec), f.commit()); err != nil {
		t.Fatalf("%s: going on: %v", where, err)
	}
	if _, _, _, err := f.recovered(disk.Crash(seeded(2), faultdisk.KeepNone)); err != nil {
		t.Fatalf("%s: one more record, one more crash: %v", where, err)
	}
	return crashes
}

// Every operation of a life fails once, reads too; the log is taken on, and nothing
// that was committed is lost: not in this life, nor to the next process, nor to the
// next boot, whenever power fails after.
func TestErrorAtEveryOperation(t *testing.T) { errorEverywhere(t, 14, false) }

func TestErrorWhileDropping(t *testing.T) { errorEverywhere(t, 18, true) }

func errorEverywhere(t *testing.T, steps int, drops bool) {
	for _, fault := range []faultdisk.Fault{
		{Ops: faultdisk.OpAny, Err: syscall.EIO},
		{Ops: faultdisk.OpMutating, Err: syscall.ENOSPC, Short: true},
		{Ops: faultdisk.OpSync | faultdisk.OpSyncDir, Err: syscall.EIO},
	} {
		step := sample
		if testing.Short() {
			step *= 3
		}
		for at := 1; ; at += step {
			fault.At = at
			if !errorAt(t, fault, at, steps, drops) {
				t.Logf("operations %#x: %d errors", fault.Ops, at-1)
				break
			}
		}
	}
}

// errorAt runs a life with one fault; false when the life ended before it.
func errorAt(t *testing.T, fault faultdisk.Fault, seed, steps int, drops bool) bool {
	t.Helper()
	disk := faultdisk.New(512)
	seen, fired := 0, false
	fault.Only = func(string) bool { // sees each operation that counts
		seen++
		fired = seen >= fault.At
		return true
	}
	disk.Inject(fault)
	m := &model{}
	f, err := start(disk, m, seeded(3), 2)
	if err != nil {
		t.Fatalf("fault %+v: start: %v", fault, err)
	}
	f.drops = drops
	rng := seeded(seed)
	disk.OnOp(func(op faultdisk.Op, name string) {
		if fired && rng.IntN(6) == 0 {
			if _, _, _, err := f.recovered(disk.Crash(rng, keeps[rng.IntN(len(keeps))])); err != nil {
				t.Fatalf("error at %d, crash at %d (%#x of %s): %v", fault.At, disk.Ops(), op, name, err)
			}
		}
	})
	if err := f.run(steps, 3); err != nil {
		t.Fatalf("error at %d: the life ended: %v", fault.At, err)
	}
	disk.OnOp(nil)
	disk.Heal()
	if err := f.finish(disk); err != nil {
		t.Fatalf("error at %d: %v", fault.At, err)
	}
	return fired
}

// From some operation on everything fails. Then the disk is well again, and the
// same process, the next one and the next boot find what was committed.
func TestErrorFromEveryOperationOn(t *testing.T) {
	for at := 1; ; at += sample {
		disk := faultdisk.New(512)
		m := &model{}
		f, err := start(disk, m, seeded(3), 1)
		ok(t, err)
		disk.Inject(faultdisk.Fault{At: at, Ever: true, Err: syscall.EIO, Short: true})
		err = f.run(14, 1)
		if err == nil {
			t.Logf("%d points", at-1)
			return
		}
		if ferr := f.finish(disk.Kill()); ferr != nil {
			t.Fatalf("errors from %d on: %v", at, ferr)
		}
		disk.Heal()
		if f.l.usable() != nil {
			if err := f.again(); err != nil {
				t.Fatalf("errors from %d on, then none: %v", at, err)
			}
		}
		if err := f.run(3, 0); err != nil {
			t.Fatalf("errors from %d on, then none: %v", at, err)
		}
		if err := f.finish(disk); err != nil {
			t.Fatalf("errors from %d on, then none: %v", at, err)
		}
	}
}

// Opening fails at each of its operations, and leaves the disk as good as it was.
func TestErrorWhileOpening(t *testing.T) {
	disk := faultdisk.New(512)
	f, err := start(disk, &model{}, seeded(5), 1)
	ok(t, err)
	ok(t, f.run(14, 0))
	for at := 1; ; at += sample {
		d := disk.Crash(seeded(at), faultdisk.KeepSome)
		d.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, At: at, Err: syscall.EIO})
		_, _, _, err := f.recovered(d)
		d.Heal()
		if _, _, _, err := f.recovered(d.Crash(seeded(at), faultdisk.KeepNone)); err != nil {
			t.Fatalf("error at %d of opening, then a crash: %v", at, err)
		}
		next, _, _, err2 := f.recovered(d)
		if err2 != nil {
			t.Fatalf("error at %d of opening, then again: %v", at, err2)
		}
		if _, _, _, err := next.recovered(d.Crash(seeded(at), faultdisk.KeepNone)); err != nil {
			t.Fatalf("error at %d of opening, again, then a crash: %v", at, err)
		}
		if err == nil && at > 60 {
			return
		}
		if err != nil && !errors.Is(err, syscall.EIO) {
			t.Fatalf("error at %d of opening: %v, want EIO", at, err)
		}
	}
}

// A recycled file has three names one after the other. Whatever of the changes of names a
// crash leaves, in any order, no file is found under two of them and written under one.
func TestCrashBetweenNames(t *testing.T) {
	disk := faultdisk.New(512)
	m := &model{}
	f, err := start(disk, m, seeded(1), 1)
	ok(t, err)
	rng, points := seeded(2), 0
	disk.OnOp(func(op faultdisk.Op, name string) {
		if op&(faultdisk.OpRename|faultdisk.OpSyncDir|faultdisk.OpRemove) == 0 {
			return
		}
		for range 3 * len(keeps) / sample {
			points++
			where := fmt.Sprintf("operation %d (%#x of %s)", disk.Ops(), op, name)
			crashAndRecover(t, where, m.clone(), disk.Crash(rng, faultdisk.KeepSome), 1, rng)
		}
		for range 200 / sample { // what few crashes show, and an opening does not at once
			if twice := inPoolAndLog(t, disk.Crash(rng, faultdisk.KeepSome)); twice != "" {
				t.Fatalf("operation %d (%#x of %s): a crash leaves %s in the pool too", disk.Ops(), op, name, twice)
			}
		}
	})
	f.drops = true
	ok(t, f.run(30, 0))
	disk.OnOp(nil)
	t.Logf("%d crashes", points)
}

package index

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// pendingFold is a fold that the log has and the index may not have.
type pendingFold struct {
	from, to segment.Pos
	with     []placedRecord
}

// refold does a fold again, as a journal does that finds it in its manifest.
func (l *tableLife) refold() error {
	f := l.pending
	if f == nil || f.to > l.covered || f.to <= l.first {
		return nil
	}
	return l.t.Fold(f.from, f.to, func(add func(segment.Pos, record.Record) error) error {
		for _, p := range f.with {
			if err := add(p.pos, p.r); err != nil {
				return err
			}
		}
		return nil
	})
}

// recovered opens the disk as the next process does and checks it.
func (l *tableLife) recovered(disk *faultdisk.Disk, seed int) error {
	m := l.told.clone()
	n := &tableLife{d: rand.New(rand.NewPCG(uint64(seed), 9)), cfg: testTable(disk), told: m, pending: l.pending}
	var damaged error
	n.cfg.Damaged = func(err error) { damaged = err }
	if err := n.open(); err != nil {
		return err
	}
	if n.covered < l.covered && n.covered != 0 || n.covered == 0 && l.covered != 0 && !l.forgiving {
		return fmt.Errorf("%s was flushed, %s is left", l.covered, n.covered)
	}
	if err := errors.Join(n.refold(), n.check(3), n.flush(), n.check(1)); err != nil {
		return err
	}
	names, err := disk.List(n.cfg.Dir)
	if err != nil {
		return err
	}
	if runs := n.t.Stats().Runs; len(names) > runs+1 {
		return fmt.Errorf("%d runs, and files %v", runs, names)
	}
	return errors.Join(damaged, n.t.Close())
}

// Power fails at every operation of a table's life, and again at every operation of the
// opening after. What was flushed stays flushed, and every answer is right.
func TestTableCrash(t *testing.T) {
	seeds := 3
	if testing.Short() {
		seeds = 1
	}
	points := 0
	for seed := range seeds {
		disk := faultdisk.New(512)
		l := &tableLife{d: rand.New(rand.NewPCG(uint64(seed), 4)), cfg: testTable(disk), told: &told{}}
		must(t, l.open())
		rng := rand.New(rand.NewPCG(uint64(seed), 5))
		keeps := []faultdisk.Keep{faultdisk.KeepNone, faultdisk.KeepSome, faultdisk.KeepTorn}
		disk.OnOp(func(op faultdisk.Op, name string) {
			if testing.Short() && disk.Ops()%4 != 0 {
				return
			}
			for _, keep := range keeps {
				points++
				where := fmt.Sprintf("seed %d, operation %d (%#x of %s), keep %d", seed, disk.Ops(), op, name, keep)
				crashed := disk.Crash(rng, keep)
				crashed.OnOp(func(op faultdisk.Op, name string) {
					if rng.IntN(4) > 0 {
						return
					}
					points++
					if err := l.recovered(crashed.Crash(rng, keeps[rng.IntN(3)]), points); err != nil {
						t.Fatalf("%s; then operation %d (%#x of %s) of the opening: %v", where, crashed.Ops(), op, name, err)
					}
				})
				if err := l.recovered(crashed, points); err != nil {
					t.Fatalf("%s: %v", where, err)
				}
			}
			if err := l.recovered(disk.Kill(), points); err != nil {
				t.Fatalf("seed %d, operation %d (%#x of %s), kill: %v", seed, disk.Ops(), op, name, err)
			}
		})
		for step := range 45 {
			if err := l.step(); err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
		}
		disk.OnOp(nil)
		must(t, l.t.Close())
	}
	t.Logf("%d crashes", points)
}

// Every operation of a life fails once. No answer is wrong, then or in the next life; an
// error of reading is an error of the lookup, or an index that is made again.
func TestTableErrors(t *testing.T) {
	for _, fault := range []faultdisk.Fault{
		{Ops: faultdisk.OpAny, Err: syscall.EIO},
		{Ops: faultdisk.OpMutating, Err: syscall.ENOSPC, Short: true},
		{Ops: faultdisk.OpMutating, Err: syscall.EIO, Ever: true},
	} {
		step := 1
		if testing.Short() {
			step = 11
		}
		for at := 1; ; at += step {
			fault.At = at
			fired := errorAt(t, fault)
			if !fired {
				t.Logf("operations %#x: %d errors", fault.Ops, at-1)
				break
			}
		}
	}
}

func errorAt(t *testing.T, fault faultdisk.Fault) (fired bool) {
	t.Helper()
	disk := faultdisk.New(512)
	seen := 0
	fault.Only = func(string) bool {
		seen++
		fired = seen >= fault.At
		return true
	}
	l := &tableLife{d: rand.New(rand.NewPCG(1, 6)), cfg: testTable(disk), told: &told{}, forgiving: true}
	must(t, l.open())
	disk.Inject(fault)
	for range 60 {
		err := l.step()
		if err != nil && !fired {
			t.Fatalf("%+v: %v", fault, err)
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, fault.Err) && !errors.Is(err, errTableClosed) {
			t.Fatalf("error at %d: %v", fault.At, err)
		}
		disk.Heal()
		if l.t == nil || errors.Is(err, errTableClosed) {
			must(t, l.open())
		}
		if err := l.refold(); err != nil {
			t.Fatalf("error at %d, fold again: %v", fault.At, err)
		}
	}
	disk.Heal()
	if l.t == nil {
		must(t, l.open())
	}
	if err := errors.Join(l.refold(), l.check(3), l.flush(), l.check(3), l.recovered(disk.Kill(), 1),
		l.recovered(disk.Crash(rand.New(rand.NewPCG(1, 1)), faultdisk.KeepNone), 2)); err != nil {
		t.Fatalf("error at %d: %v", fault.At, err)
	}
	return fired
}

// Whichever byte of a file is another: no lookup gives a wrong piece.
func TestFlip(t *testing.T) {
	disk := faultdisk.New(512)
	l := &tableLife{d: rand.New(rand.NewPCG(3, 3)), cfg: testTable(disk), told: &told{}}
	must(t, l.open())
	for range 3 {
		for range 12 {
			must(t, l.add())
		}
		must(t, l.flush())
	}
	must(t, l.t.Close())
	names, err := disk.List(l.cfg.Dir)
	must(t, err)
	flips, told, absent := 0, 0, 0
	for _, name := range names {
		name = l.cfg.Dir + "/" + name
		size := sizeOf(t, disk, name)
		for off := int64(0); off < size; off++ {
			// All pages are alike: the heads of the first and of the last, and of the others every so often.
			page, in := off/pageBytes, off%pageBytes
			dense := in < 64 && (page == 0 || page == size/pageBytes-1)
			if strings.Contains(name, "run-") && !dense && off%61 != page%61 || testing.Short() && in > 8 && off%17 > 0 {
				continue
			}
			flips++
			copied := disk.Kill()
			flip(t, copied, name, off)
			n := &tableLife{d: rand.New(rand.NewPCG(uint64(off), 9)), cfg: testTable(copied), told: l.told}
			damaged := false
			n.cfg.Damaged = func(error) { damaged = true }
			must(t, n.open())
			if n.covered == 0 {
				absent++
			}
			if err := n.check(4); errors.Is(err, ErrCorrupt) {
				told++
				if !damaged {
					t.Errorf("byte %d of %s: Damaged was not told of %v", off, name, err)
				}
				must(t, n.t.Reset())
				for _, p := range n.records {
					must(t, n.t.Add(p.pos, p.r))
				}
				err = n.check(4)
				if err != nil {
					t.Fatalf("byte %d of %s, after Reset: %v", off, name, err)
				}
			} else if err != nil {
				t.Fatalf("byte %d of %s: %v", off, name, err)
			}
			must(t, n.t.Close())
		}
	}
	if told == 0 || absent == 0 {
		t.Errorf("of %d flips %d were told by lookups, %d by opening", flips, told, absent)
	}
	t.Logf("%d flips: %d told by lookups, %d by opening", flips, told, absent)
}

func sizeOf(t *testing.T, disk *faultdisk.Disk, name string) int64 {
	t.Helper()
	f, err := disk.Open(name, ioengine.ReadOnly)
	must(t, err)
	n, err := f.Size()
	must(t, errors.Join(err, f.Close()))
	return n
}

func flip(t *testing.T, disk *faultdisk.Disk, name string, off int64) {
	t.Helper()
	f, err := disk.Open(name, 0)
	must(t, err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, off)
	b[0] ^= 1 << (off % 8)
	if err == nil || off >= 0 {
		_, err = f.WriteAt(b, off)
	}
	must(t, errors.Join(err, f.Close()))
}

// What is folded while a merge of the same records runs is folded in what it makes too.
func TestFoldBesideMerge(t *testing.T) {
	l := &tableLife{d: rand.New(rand.NewPCG(8, 8)), cfg: testTable(faultdisk.New(512)), told: &told{}}
	var later func()
	l.cfg.Go = func(f func()) { later = f }
	must(t, l.open())
	paced := false
	l.t.cfg.Pace = func(int) {
		if later == nil && !paced { // the merge reads: fold under it
			paced = true
			l.t.cfg.Pace = nil
			must(t, l.fold())
			must(t, l.fold())
		}
	}
	pace := l.t.cfg.Pace
	l.t.cfg.Pace = nil
	for range mergeLeast {
		for range 8 {
			must(t, l.add())
		}
		must(t, l.flush())
	}
	run := later
	later = nil
	l.t.cfg.Pace = pace
	run()
	if !paced || l.t.Stats().Merges == 0 {
		t.Fatal("nothing was folded beside a merge")
	}
	must(t, l.check(60))
	must(t, l.t.Close())
}

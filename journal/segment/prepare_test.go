package segment

import (
	"errors"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// untilFull commits records until the next one begins a segment.
func untilFull(t *testing.T, l *Log, seq record.Seq) record.Seq {
	t.Helper()
	for ; !l.Full(); seq++ {
		_, err := l.Append(sealed(seq, 3000, seeded(int(seq))))
		ok(t, errors.Join(err, l.Commit()))
	}
	return seq
}

// A segment that was made ready begins at the cost of a write: nothing is made, named or
// synced for it before the sync of its first round, which is the only one.
func TestToBeginCostsAWrite(t *testing.T) {
	disk := faultdisk.New(512)
	l, _, _, err := openStore(disk)
	ok(t, err)
	seq := untilFull(t, l, 1)
	if l.Ready() != l.segmentBytes() {
		t.Errorf("%d bytes are ready, want %d", l.Ready(), l.segmentBytes())
	}
	made := l.path(2)
	var seen []faultdisk.Op
	disk.OnOp(func(op faultdisk.Op, name string) {
		if !strings.HasPrefix(name, made) { // it keeps the name that it was opened by
			t.Errorf("operation %#x of %s", op, name)
		}
		seen = append(seen, op)
	})
	_, err = l.Append(sealed(seq, 300, seeded(1)))
	ok(t, err)
	if infos := l.Segments(); len(infos) != 1 || infos[0].State != StateOpen {
		t.Errorf("before its first round is durable: %+v", infos)
	}
	file, err := l.Write()
	ok(t, err)
	ok(t, file.Sync())
	disk.OnOp(nil)
	ok(t, l.Synced(nil))
	seen = slices.DeleteFunc(seen, func(op faultdisk.Op) bool { return op == faultdisk.OpAllocate }) // of more space, without a spare file
	if want := []faultdisk.Op{faultdisk.OpWrite, faultdisk.OpWrite, faultdisk.OpSync}; !slices.Equal(seen, want) {
		t.Errorf("operations %#x, want %#x", seen, want)
	}
	if infos := l.Segments(); len(infos) != 2 || infos[0].State != StateVerified || infos[1].Records != 1 || l.Ready() != 0 {
		t.Errorf("after it: %+v, %d bytes ready", infos, l.Ready())
	}
	ok(t, l.Close())
}

// What was made ready and not begun is gone after the next opening, and takes nothing with it.
func TestReadyAndNotBegun(t *testing.T) {
	disk := faultdisk.New(512)
	l, _, _, err := openStore(disk)
	ok(t, err)
	untilFull(t, l, 1)
	end := l.Durable()
	ok(t, l.Close())
	if names, _ := disk.List(testDir); len(names) != 2 {
		t.Fatalf("files %q", names)
	}
	alone := disk.Kill()
	ok(t, alone.Remove(l.path(1)))
	if _, _, _, err := openStore(alone); !errors.Is(err, ErrCorrupt) {
		t.Errorf("the segment before it is gone: %v, want ErrCorrupt", err)
	}
	twice := disk.Kill() // one that is not the newest
	p := fileBytes(t, disk, l.path(2))
	ok(t, writeFile(twice, path.Join(testDir, fileName(3)), p))
	if _, _, _, err := openStore(twice); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another one behind it: %v, want ErrCorrupt", err)
	}
	first := true
	disk.OnOp(func(op faultdisk.Op, name string) { // its space is free before any is needed
		if first && op&(faultdisk.OpWrite|faultdisk.OpAllocate) != 0 && strings.HasPrefix(name, testDir) {
			first = false
			if names, _ := disk.Kill().List(testDir); slices.Contains(names, fileName(2)) {
				t.Errorf("operation %#x of %s, and it is there", op, name)
			}
		}
	})
	l, _, found, err := openStore(disk)
	ok(t, err)
	disk.OnOp(nil)
	if l.Durable() != end || len(found) == 0 {
		t.Errorf("durable up to %s, was %s", l.Durable(), end)
	}
	ok(t, l.Close())
}

// Without what it takes to make a segment ready the log goes on, and no file stays behind.
func TestNothingMadeReady(t *testing.T) {
	disk := faultdisk.New(512)
	l, _, _, err := openStore(disk)
	ok(t, err)
	l.opt.Ahead = func(work func()) {
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAllocate | faultdisk.OpWrite, Err: syscall.ENOSPC, Ever: true})
		work()
		disk.Heal()
		if names, _ := disk.List(testDir); len(names) != 1 {
			t.Errorf("files %q", names)
		}
	}
	seq := untilFull(t, l, 1)
	l.opt.Ahead = func(work func()) { work() }
	untilFull(t, l, seq)
	_, err = l.Append(sealed(1000, 300, seeded(1)))
	ok(t, errors.Join(err, l.Commit()))
	if infos := l.Segments(); len(infos) < 2 {
		t.Errorf("segments %+v", infos)
	}
	ok(t, l.Close())
}

// What makes a segment ready too late makes none: the log began it, or was taken on, meanwhile.
func TestMadeReadyTooLate(t *testing.T) {
	disk := faultdisk.New(512)
	m := &model{}
	f, err := start(disk, m, seeded(1), 1)
	ok(t, err)
	var late []func()
	f.l.opt.Ahead = func(work func()) { late = append(late, work) }
	ok(t, f.run(20, 0))
	if len(late) < 2 || len(f.l.Segments()) < 3 {
		t.Fatalf("%d segments, %d to be made ready", len(f.l.Segments()), len(late))
	}
	disk.OnOp(func(op faultdisk.Op, name string) { t.Errorf("operation %#x of %s", op, name) })
	for _, work := range late[:len(late)-1] {
		work()
	}
	disk.OnOp(nil)
	late[len(late)-1]()
	ok(t, f.finish(disk))
	ok(t, f.l.Close())
}

// Segments are made ready beside the appends, by goroutines of their own.
func TestMadeReadyBeside(t *testing.T) {
	disk := faultdisk.New(512)
	f, err := start(disk, &model{}, seeded(2), 1)
	ok(t, err)
	f.l.opt.Ahead = nil
	ok(t, f.run(60, 0))
	ok(t, f.commit())
	ok(t, f.l.Close())
	f.l, _, _, err = openStore(disk)
	ok(t, err)
	ok(t, f.finish(disk))
	ok(t, f.l.Close())
}

// A round that fails is no first round: the segment that it was to begin is made anew, and the
// one before it stays the last until that is durable.
func TestFirstRoundFails(t *testing.T) {
	disk := faultdisk.New(512)
	f, err := start(disk, &model{}, seeded(1), 1)
	ok(t, err)
	for !f.l.Full() {
		ok(t, f.append(sealed(f.next, 3000, f.rng)))
		ok(t, f.commit())
		f.next++
	}
	disk.Inject(faultdisk.Fault{Ops: faultdisk.OpSync, Err: syscall.EIO})
	ok(t, f.append(sealed(f.next, 3000, f.rng)))
	if err := f.commit(); !errors.Is(err, ErrFailed) {
		t.Fatalf("Commit: %v, want ErrFailed", err)
	}
	if infos := f.l.Segments(); len(infos) != 1 || infos[0].State != StateOpen {
		t.Errorf("the segment that did not begin: %+v", infos)
	}
	f.first = f.l.Durable()
	ok(t, f.raise(0))
	ok(t, f.l.Drop(f.first))
	if _, _, _, err := f.recovered(disk.Crash(seeded(1), faultdisk.KeepNone)); err != nil {
		t.Errorf("dropped up to its end: %v", err)
	}
	ok(t, f.again())
	if infos := f.l.Segments(); len(infos) != 2 || infos[0].State != StateVerified || infos[1].Number != infos[0].Number+1 {
		t.Errorf("taken on: %+v", infos)
	}
	ok(t, f.finish(disk))
}

// Power fails as a segment begins, in a new file and in one that was used before: its header,
// written over the one that said it was ready, is there or not, whatever of the write is.
func TestCrashAsASegmentBegins(t *testing.T) {
	disk := faultdisk.New(512)
	m := &model{}
	f, err := start(disk, m, seeded(4), 1)
	ok(t, err)
	rng, points, recycled := seeded(5), 0, 0
	for range 8 {
		for !f.l.Full() {
			ok(t, f.append(sealed(f.next, 3000, f.rng)))
			ok(t, f.commit())
			f.next++
		}
		next := f.l.path(f.l.cur.Number + 1)
		disk.OnOp(func(op faultdisk.Op, name string) {
			for range 8 {
				for _, keep := range keeps[1:] {
					points++
					d := disk.Crash(rng, keep)
					if h := headerOf(t, d, next); h.First == 0 && !h.Prepared {
						t.Errorf("operation %#x of %s, keep %d: a header is neither", op, name, keep)
					}
					if _, _, _, err := f.recovered(d); err != nil {
						t.Fatalf("operation %#x of %s, keep %d: %v", op, name, keep, err)
					}
				}
			}
		})
		ok(t, f.append(sealed(f.next, 12000, f.rng)))
		ok(t, f.commit())
		f.next++
		disk.OnOp(nil)
		if f.l.cur.Recycled {
			recycled++
		}
		f.first = f.l.cur.First
		ok(t, f.raise(0))
		ok(t, f.l.Drop(f.first))
	}
	if recycled < 4 {
		t.Errorf("%d segments were begun in used files", recycled)
	}
	t.Logf("%d crashes", points)
	ok(t, f.finish(disk))
}

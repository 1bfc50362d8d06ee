package segment

import (
	"errors"
	"fmt"
	"path"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// untidy is a store that a process left in the middle of its work: a segment below the
// watermark is still there, so are files that were to become segments, and more spare ones
// than are kept.
func untidy(t *testing.T) (*life, *faultdisk.Disk) {
	t.Helper()
	disk := faultdisk.New(512)
	f, err := start(disk, &model{}, seeded(5), 1)
	ok(t, err)
	for len(f.l.Segments()) < 4 {
		ok(t, f.run(3, 0))
	}
	f.first = f.l.Segments()[1].First
	ok(t, f.raise(0))
	names := []string{path.Join(testDir, fileName(90)+newSuffix), path.Join(testDir, fileName(91)+repairSuffix)}
	for i := range 5 {
		names = append(names, fmt.Sprintf("store/spare/%016d%s", 70+i, spareSuffix))
	}
	for _, name := range names {
		file, err := disk.Open(name, ioengine.Create)
		ok(t, err)
		ok(t, errors.Join(file.Allocate(0, 24<<10), file.Sync(), file.Close(), disk.SyncDir(path.Dir(name))))
	}
	return f, disk
}

// Opening an untidy store fails at each of its operations, in both ways to open it: it says
// so or goes on without, and leaves the disk as good as it was.
func TestErrorWhileClearingUp(t *testing.T) {
	defer func() { slowOpen = false }()
	f, base := untidy(t)
	for _, slowOpen = range []bool{false, true} {
		for at := 1; ; at++ {
			disk, seen := base.Kill(), 0
			disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, At: at, Err: syscall.EIO, Only: func(string) bool { seen++; return true }})
			_, _, _, err := f.recovered(disk)
			disk.Heal()
			if err != nil && !errors.Is(err, syscall.EIO) || err != nil && seen < at {
				t.Fatalf("error at %d: %v", at, err)
			}
			if _, _, _, err := f.recovered(disk.Crash(seeded(at), faultdisk.KeepSome)); err != nil {
				t.Fatalf("error at %d, then a crash: %v", at, err)
			}
			if seen < at {
				break
			}
		}
	}
}

// Spare files that cannot be removed are counted on.
func TestShrinkErrors(t *testing.T) {
	_, disk := untidy(t)
	p, err := OpenPool(disk, "store/spare", 3)
	ok(t, err)
	files, bytes := p.Spare()
	disk.Inject(faultdisk.Fault{Ops: faultdisk.OpRemove, At: 2, Err: syscall.EIO})
	freed, err := p.Shrink(0)
	if left, _ := p.Spare(); !errors.Is(err, syscall.EIO) || files != 3 || left != 2 || freed != 24<<10 {
		t.Errorf("%d files of %d left, %d bytes freed: %v", left, files, freed, err)
	}
	if more, err := p.Shrink(0); err != nil || freed+more != bytes {
		t.Errorf("again: %d of %d bytes: %v", freed+more, bytes, err)
	}
}

// Where there is no space for a segment, and what was taken in vain cannot be given back,
// the log has failed as at any other error, and goes on when the disk is well.
func TestSpaceNotGivenBack(t *testing.T) {
	disk := faultdisk.New(512)
	f, err := start(disk, &model{}, seeded(2), 1)
	ok(t, err)
	disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAllocate, Ever: true, Err: syscall.ENOSPC})
	disk.Inject(faultdisk.Fault{Ops: faultdisk.OpTruncate, Err: syscall.EIO})
	if err := f.run(20, 0); !errors.Is(err, syscall.EIO) {
		t.Fatalf("no space, and none given back: %v", err)
	}
	disk.Heal()
	ok(t, f.again())
	ok(t, f.run(5, 0))
	ok(t, f.finish(disk))
}

// A block that cannot be read while damage is looked for is told as what it is.
func TestLocateErrors(t *testing.T) {
	disk := faultdisk.New(512)
	l, recs := sealedLog(t, disk, 2)
	s := l.Segments()[0]
	first := recs[0]
	ok(t, disk.Rot(l.path(s.Number), offset(s.First, first.pos+Pos(len(first.rec)))-9, 1))
	for at := 1; ; at++ {
		seen := 0
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpRead, At: at, Err: syscall.EIO, Only: func(string) bool { seen++; return true }})
		damage, err := l.Verify(s.Number, nil)
		disk.Heal()
		if err == nil {
			t.Fatalf("error at %d: damage is not found", at)
		}
		if seen < at {
			if len(damage) != 1 || damage[0].From < first.pos || damage[0].To > first.pos+Pos(len(first.rec)) {
				t.Errorf("damage %v, want within the first record", damage)
			}
			return
		}
	}
}

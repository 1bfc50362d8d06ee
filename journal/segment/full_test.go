package segment

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// tight is a disk without space for a whole segment: Allocate fails, and leaves behind
// what it could take, as file systems do.
type tight struct {
	*faultdisk.Disk
	taken map[string]bool // names that hold what a failed Allocate took
}

func (d tight) Open(name string, flags ioengine.Flags) (ioengine.File, error) {
	f, err := d.Disk.Open(name, flags)
	if err != nil {
		return nil, err
	}
	return tightFile{f, d, name}, nil
}

func (d tight) Remove(name string) error {
	delete(d.taken, name)
	return d.Disk.Remove(name)
}

type tightFile struct {
	ioengine.File
	disk tight
	name string
}

func (f tightFile) Allocate(off, n int64) error {
	if err := f.File.Allocate(off, n/2); err != nil {
		return err
	}
	f.disk.taken[f.name] = true
	return fmt.Errorf("allocate %s: %w", f.name, syscall.ENOSPC)
}

func (f tightFile) Truncate(size int64) error {
	delete(f.disk.taken, f.name)
	return f.File.Truncate(size)
}

// A disk with less space than a segment takes records as long as it has any, and keeps
// nothing that it does not use. Power fails at every operation: sizes that grow with
// each round are as durable as what they hold.
func TestGrowsWithoutSpaceForASegment(t *testing.T) {
	points := 0
	for seed := range 3 {
		rng := seeded(seed)
		disk := faultdisk.New(512)
		small := tight{disk, map[string]bool{}}
		m := &model{}
		f := &life{model: m}
		disk.OnOp(func(op faultdisk.Op, name string) {
			if disk.Ops()%sample != 0 {
				return
			}
			for _, keep := range keeps {
				points++
				where := fmt.Sprintf("seed %d, operation %d (%#x of %s), keep %d", seed, disk.Ops(), op, name, keep)
				crashAndRecover(t, where, f.model.clone(), disk.Crash(rng, keep), 0, rng)
			}
		})
		started, err := start(small, m, seeded(seed), 1)
		ok(t, err)
		*f = *started
		if err := f.run(14, 0); err != nil {
			t.Fatalf("without space for a whole segment: %v", err)
		}
		disk.OnOp(nil)
		if len(small.taken) != 0 {
			t.Errorf("seed %d: %v keep what a failed Allocate took", seed, small.taken)
		}
		ok(t, f.finish(disk))
	}
	t.Logf("%d crashes", points)
}

// The disk is full and then is not: the same log goes on, and loses nothing.
func TestFullAndFreed(t *testing.T) {
	disk := faultdisk.New(512)
	f, err := start(disk, &model{}, seeded(2), 1)
	ok(t, err)
	for range 5 {
		ok(t, f.run(4, 0))
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpWrite | faultdisk.OpAllocate | faultdisk.OpCreate, Ever: true, Err: syscall.ENOSPC, Short: true})
		if err := errors.Join(f.run(3, 1), f.commit()); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("full: %v", err)
		}
		disk.Heal()
		ok(t, f.again())
	}
	ok(t, f.finish(disk))
}

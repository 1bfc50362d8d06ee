package replica

import (
	"bytes"
	"math"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// A large pass into holes sets space aside first, over what was written it does not; and
// where that cannot be done the pass goes on without.
func TestSpaceIsSetAside(t *testing.T) {
	const size = 2 << 20
	rng := seeded(7)
	after := make([]byte, size)
	for i := range after {
		after[i] = byte(rng.Uint32())
	}
	var changes []Change
	for off := int64(0); off < size; off += 16 * BlockBytes {
		changes = append(changes, Change{Off: off, Len: 14 * BlockBytes, Data: after[off : off+14*BlockBytes]})
		clear(after[off+14*BlockBytes : off+16*BlockBytes])
	}
	for _, c := range []struct {
		name  string
		fault faultdisk.Fault
		made  int // allocations tried in the first pass
	}{
		{"well", faultdisk.Fault{}, len(changes)},
		{"no space is set aside", faultdisk.Fault{Ops: faultdisk.OpAllocate, Err: syscall.ENOSPC, Ever: true}, 1},
		{"holes are not told", faultdisk.Fault{Ops: faultdisk.OpRead, Err: syscall.EIO, Ever: true}, len(changes)},
	} {
		disk := newDisk(t)
		v, err := Create(disk, "/r", placeOf(0), size)
		must(t, err)
		p, err := OpenPromoter(disk, "/r", 7, func(record.VolumeID) *Volume { return v })
		must(t, err)
		allocations := 0
		disk.OnOp(func(op faultdisk.Op, _ string) {
			if op == faultdisk.OpAllocate {
				allocations++
			}
		})
		for again := range 2 {
			if c.fault.Ops != 0 {
				disk.Inject(c.fault)
			}
			found, err := p.Apply(v, changes)
			if err != nil || len(found) > 0 {
				t.Fatalf("%s: %v, %v", c.name, found, err)
			}
			must(t, p.Finish())
			disk.Heal()
			if again == 0 && allocations != c.made {
				t.Errorf("%s: space was set aside %d times, not %d", c.name, allocations, c.made)
			}
			must(t, compare(v, after))
		}
		if c.fault.Ops == 0 && allocations != c.made {
			t.Errorf("%s: space was set aside over what was written", c.name)
		}
		if c.fault.Ops == 0 { // and again where it was given back
			must(t, v.Zero(0, size))
			_, err := p.Apply(v, changes)
			must(t, err)
			if allocations != 2*c.made {
				t.Errorf("%s: space was set aside %d times after it was given back, not %d", c.name, allocations-c.made, c.made)
			}
		}
		must(t, p.Close())
		must(t, v.Close())
	}
}

// In a replica without holes the system is asked once where they are, however many places are written.
func TestHolesAreAskedForOnce(t *testing.T) {
	const size = 4 << 20
	disk := newDisk(t)
	v, err := Create(disk, "/r", placeOf(0), size)
	must(t, err)
	some := bytes.Repeat([]byte{9}, size)
	must(t, v.Write(some, 0))
	p, err := OpenPromoter(disk, "/r", 7, func(record.VolumeID) *Volume { return v })
	must(t, err)
	var changes []Change
	for off := int64(0); off < size; off += 4 * BlockBytes {
		changes = append(changes, Change{Off: off, Len: 3 * BlockBytes, Data: some[:3*BlockBytes]})
	}
	reads := 0
	disk.Inject(faultdisk.Fault{Ops: faultdisk.OpRead, Err: syscall.EIO, At: math.MaxInt, Only: func(string) bool { reads++; return true }})
	for range 3 {
		_, err := p.Apply(v, changes)
		must(t, err)
	}
	if reads != 1 {
		t.Errorf("%d times", reads)
	}
	must(t, p.Close())
	must(t, v.Close())
}

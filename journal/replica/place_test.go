package replica

import (
	"bytes"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// A pass so large that several writers are at work. An error of any of their operations
// is told, and the pass made again is whole; so is one after a crash that came before its
// end.
func TestLargePass(t *testing.T) {
	const size = 2 << 20
	rng := seeded(6)
	base, after := make([]byte, size), make([]byte, size)
	for i := range base {
		base[i] = byte(rng.Uint32())
	}
	copy(after, base)
	var changes []Change
	for off := int64(0); off < size; {
		n := min(BlockBytes*(1+rng.Int64N(24)), size-off)
		c := Change{Off: off, Len: n}
		if rng.IntN(12) > 0 {
			c.Data = make([]byte, n)
			for i := range c.Data {
				c.Data[i] = byte(rng.Uint32())
			}
			copy(after[off:], c.Data)
		} else {
			clear(after[off : off+n])
		}
		changes = append(changes, c)
		off += n
		if rng.IntN(4) == 0 {
			off += BlockBytes
		}
	}
	open := func(disk *faultdisk.Disk) (*Volume, *Promoter) {
		v, err := Open(disk, "/r", placeOf(0), size)
		must(t, err)
		p, err := OpenPromoter(disk, "/r", 7, func(record.VolumeID) *Volume { return v })
		must(t, err)
		return v, p
	}
	pass := func(v *Volume, p *Promoter) error {
		if found, err := p.Apply(v, changes); err != nil || len(found) > 0 {
			return fmt.Errorf("%d damages: %w", len(found), err)
		}
		return p.Finish()
	}
	whole := func(v *Volume) {
		t.Helper()
		must(t, compare(v, after))
	}
	first := newDisk(t)
	v, err := Create(first, "/r", placeOf(0), size)
	must(t, err)
	must(t, v.Write(base, 0))
	must(t, v.Sync())
	must(t, v.Close())
	errors := 0
	for at := 1; ; at += 2 * sample {
		disk := first.Crash(rng, faultdisk.KeepNone)
		v, p := open(disk)
		seen := 0
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpMutating, Err: syscall.EIO, Short: at%2 > 0, At: at, Only: func(string) bool { seen++; return true }})
		err := pass(v, p)
		disk.Heal()
		if seen < at {
			must(t, err)
			whole(v)
			break
		}
		if err == nil {
			t.Fatalf("the error of operation %d is not told", at)
		}
		errors++
		crashed, q := open(disk.Crash(rng, faultdisk.KeepSome))
		for off := int64(0); off < size; off += BlockBytes { // untouched ones are whole
			covered := false
			for _, c := range changes {
				covered = covered || off >= c.Off && off < c.Off+c.Len
			}
			got := make([]byte, BlockBytes)
			if err := crashed.ReadAt(got, off); !covered && (err != nil || !bytes.Equal(got, base[off:off+BlockBytes])) {
				t.Fatalf("operation %d: what no change covers at %d: %v", at, off, err)
			}
		}
		must(t, pass(crashed, q))
		whole(crashed)
		if v.failed == nil {
			must(t, pass(v, p))
			whole(v)
			lasting, _ := open(disk.Crash(rng, faultdisk.KeepNone))
			whole(lasting)
		}
	}
	if errors < 10/sample {
		t.Errorf("only %d errors", errors)
	}
}

// backFS tells of what is written back, of files that are synced.
type backFS struct {
	ioengine.FS
	wrote func(off, n int64)
}

func (b backFS) Open(name string, flags ioengine.Flags) (ioengine.File, error) {
	f, err := b.FS.Open(name, flags)
	return backFile{f, b.wrote}, err
}

type backFile struct {
	ioengine.File
	wrote func(off, n int64)
}

func (f backFile) WriteBack(off, n int64) { f.wrote(off, n) }

// Sums are written back half a megabyte at a time before they are synced, all of them, each once, and with a rest after each.
func TestSumsAreWrittenBack(t *testing.T) {
	const size = 2 << 30 // two megabytes of sums
	end, most, rests, rested := int64(0), int64(0), 0, int64(0)
	fs := backFS{newDisk(t), func(off, n int64) {
		if off != end {
			t.Errorf("%d is written back after %d", off, end)
		}
		end, most = off+n, max(most, n)
	}}
	v, err := Create(fs, "/r", placeOf(0), size)
	must(t, err)
	p, err := OpenPromoter(fs, "/r", 7, func(record.VolumeID) *Volume { return v })
	must(t, err)
	p.Rest = func(n int64) error { rests++; rested += n; return nil }
	some := bytes.Repeat([]byte{9}, BlockBytes)
	_, err = p.Apply(v, []Change{{Off: 0, Len: BlockBytes, Data: some}})
	must(t, err)
	must(t, p.Finish())
	if end != sumAt(v.blocks()) || rests != 1 || rested != BlockBytes {
		t.Errorf("after one write %d bytes are looked at, with %d rests, of %d bytes", end, rests, rested)
	}
	_, err = p.Apply(v, []Change{{Off: 0, Len: BlockBytes, Data: some}})
	must(t, err)
	end, most, rests, rested, p.behind = 0, 0, 0, 0, syncWrites-1
	must(t, p.Finish())
	if all := sumAt(v.blocks()); end != all || most > writeBackBytes || rests != int(all/writeBackBytes)+1 || rested > all || rested < all*9/10 {
		t.Errorf("%d of %d bytes are written back, at most %d at once, with %d rests of %d bytes in all", end, all, most, rests, rested)
	}
	stop := errors.New("stop")
	_, err = p.Apply(v, []Change{{Off: 0, Len: BlockBytes, Data: some}})
	must(t, err)
	end, p.Rest = 0, func(int64) error { return stop }
	if err := p.Finish(); !errors.Is(err, stop) {
		t.Errorf("a rest failed: %v", err)
	}
}

// What Finish was not called for is durable at the latest after so many writes.
func TestPassesAreSynced(t *testing.T) {
	disk := newDisk(t)
	const size = 1 << 20
	v, err := Create(disk, "/r", placeOf(0), size)
	must(t, err)
	p, err := OpenPromoter(disk, "/r", 7, func(record.VolumeID) *Volume { return v })
	must(t, err)
	some := bytes.Repeat([]byte{9}, BlockBytes)
	p.behind = syncWrites - 20
	syncs := 0
	disk.OnOp(func(op faultdisk.Op, _ string) {
		if op == faultdisk.OpSync {
			syncs++
		}
	})
	for i := range int64(10) { // two writes each: blocks that are apart, and what is neither
		if syncs > 0 {
			t.Fatalf("synced after %d of 10", i)
		}
		at := 8 * i * BlockBytes
		_, err := p.Apply(v, []Change{{Off: at, Len: BlockBytes, Data: some}, {Off: at + 2*BlockBytes, Len: BlockBytes}})
		must(t, err)
	}
	if syncs != 2 || p.behind != 0 { // the image and its sums
		t.Errorf("%d syncs, %d behind", syncs, p.behind)
	}
}

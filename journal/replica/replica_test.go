package replica

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

var update = flag.Bool("update", false, "write golden files anew")

var testPlace = Place{Group: 7, Volume: 3}

const (
	testBytes = 40*BlockBytes + 512 // the last block is not whole
	rawName   = "/r/00000003.raw"
	sumName   = "/r/00000003.sum"
)

func newDisk(t *testing.T) *faultdisk.Disk {
	t.Helper()
	disk := faultdisk.New(512)
	must(t, disk.Mkdir("/r"))
	must(t, disk.SyncDir("/"))
	return disk
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// change makes one random change in the volume and in what it should be.
func change(rng *rand.Rand, v *Volume, image []byte) error {
	off := rng.Int64N(int64(len(image)))
	n := min(1+rng.Int64N(9*BlockBytes), int64(len(image))-off)
	if rng.IntN(3) == 0 { // often whole sectors or blocks
		off, n = off/512*512, min((n+511)/512*512, int64(len(image))-off/512*512)
	}
	if rng.IntN(4) == 0 {
		clear(image[off : off+n])
		return v.Zero(off, n)
	}
	for i := off; i < off+n; i++ {
		image[i] = byte(rng.Uint32())
	}
	return v.Write(image[off:off+n], off)
}

func compare(v *Volume, image []byte) error {
	got := make([]byte, len(image))
	if err := v.ReadAt(got, 0); err != nil {
		return err
	}
	for i := range got {
		if got[i] != image[i] {
			return fmt.Errorf("byte %d is %#x, want %#x", i, got[i], image[i])
		}
	}
	return nil
}

// Random changes, reads of every shape between, and the same image after a crash that
// keeps only what was synced.
func TestReplica(t *testing.T) {
	disk := newDisk(t)
	rng := rand.New(rand.NewPCG(1, 1))
	v, err := Create(disk, "/r", testPlace, testBytes)
	must(t, err)
	image := make([]byte, testBytes)
	must(t, compare(v, image))
	for i := range 300 {
		must(t, change(rng, v, image))
		off := rng.Int64N(testBytes)
		p := make([]byte, rng.Int64N(testBytes-off)+1)
		must(t, v.ReadAt(p, off))
		if !bytes.Equal(p, image[off:off+int64(len(p))]) {
			t.Fatalf("change %d: read of %d at %d differs", i, len(p), off)
		}
		if i%50 == 49 {
			must(t, v.Sync())
			again, err := Open(disk.Crash(rng, faultdisk.KeepNone), "/r", testPlace, testBytes)
			must(t, err)
			must(t, compare(again, image))
		}
	}
	if err := v.Write(make([]byte, 2), testBytes-1); err == nil {
		t.Error("a write beyond the end was taken")
	}
	if err := v.ReadAt(make([]byte, 2), testBytes-1); err == nil {
		t.Error("a read beyond the end was answered")
	}
	must(t, v.Grow(2*testBytes))
	image = append(image, make([]byte, testBytes)...)
	must(t, compare(v, image))
	must(t, change(rng, v, image))
	must(t, v.Sync())
	v, err = Open(disk.Crash(rng, faultdisk.KeepNone), "/r", testPlace, 2*testBytes)
	must(t, err)
	must(t, compare(v, image))
	must(t, v.Close())
}

// Whatever a crash leaves of unsynced writes, once the same writes have come again all
// is right: that is how an initial sync goes on.
func TestWritesAgainAfterCrash(t *testing.T) {
	for seed := range uint64(40) {
		disk := newDisk(t)
		v, err := Create(disk, "/r", testPlace, testBytes)
		must(t, err)
		image := make([]byte, testBytes)
		must(t, change(rand.New(rand.NewPCG(seed, 9)), v, image))
		must(t, v.Sync())
		rng := rand.New(rand.NewPCG(seed, 1))
		before := bytes.Clone(image)
		for range 6 {
			must(t, change(rng, v, image))
		}
		keep := []faultdisk.Keep{faultdisk.KeepSome, faultdisk.KeepTorn}[seed%2]
		v, err = Open(disk.Crash(rng, keep), "/r", testPlace, testBytes)
		must(t, err)
		rng = rand.New(rand.NewPCG(seed, 1))
		for range 6 {
			must(t, change(rng, v, before))
		}
		if err := compare(v, image); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// A flipped bit in either file, blocks in each other's places and files of another
// volume are errors, and the other blocks read on.
func TestDamage(t *testing.T) {
	disk := newDisk(t)
	v, err := Create(disk, "/r", testPlace, testBytes)
	must(t, err)
	image := make([]byte, testBytes)
	rng := rand.New(rand.NewPCG(2, 2))
	for i := range image[:30*BlockBytes] { // the rest stays zeros
		image[i] = byte(rng.Uint32())
	}
	must(t, v.Write(image, 0))
	must(t, v.Sync())
	f := func(what string, damage func(*faultdisk.Disk), blocks ...int64) {
		t.Helper()
		d := disk.Kill()
		damage(d)
		v, err := Open(d, "/r", testPlace, testBytes)
		if err != nil {
			if len(blocks) != 0 || !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: %v", what, err)
			}
			return
		}
		bad := map[int64]bool{}
		for _, b := range blocks {
			bad[b] = true
		}
		for b := range v.blocks() {
			p := make([]byte, min(BlockBytes, testBytes-b*BlockBytes))
			err := v.ReadAt(p, b*BlockBytes)
			if bad[b] != errors.Is(err, ErrCorrupt) || err == nil && !bytes.Equal(p, image[b*BlockBytes:b*BlockBytes+int64(len(p))]) {
				t.Errorf("%s: block %d: %v", what, b, err)
			}
		}
	}
	rot := func(name string, off int64) func(*faultdisk.Disk) {
		return func(d *faultdisk.Disk) { must(t, d.Rot(name, off, 1)) }
	}
	f("data", rot(rawName, 5*BlockBytes+77), 5)
	f("a zero", rot(rawName, 35*BlockBytes), 35)
	f("a sum", rot(sumName, sumAt(6)+2), 6)
	f("the sum of zeros", rot(sumName, sumAt(39)), 39)
	f("the header", rot(sumName, 9))
	f("two blocks and their sums swapped", func(d *faultdisk.Disk) {
		swap(t, d, rawName, 3*BlockBytes, 8*BlockBytes, BlockBytes)
		swap(t, d, sumName, sumAt(3), sumAt(8), sumBytes)
	}, 3, 8)
	f("the last write lost", func(d *faultdisk.Disk) { swap(t, d, rawName, 3*BlockBytes, 36*BlockBytes, BlockBytes) }, 3, 36)
	f("cut short", func(d *faultdisk.Disk) {
		file, err := d.Open(rawName, 0)
		must(t, err)
		must(t, file.Truncate(BlockBytes))
	})
	d := disk.Kill()
	must(t, d.Rename(sumName, "/r/00000004.sum"))
	must(t, d.Rename(rawName, "/r/00000004.raw"))
	if _, err := Open(d, "/r", Place{Group: 7, Volume: 4}, testBytes); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another volume's files: %v", err)
	}
}

func swap(t *testing.T, d *faultdisk.Disk, name string, a, b int64, n int) {
	t.Helper()
	f, err := d.Open(name, 0)
	must(t, err)
	x, y := make([]byte, n), make([]byte, n)
	_, errX := f.ReadAt(x, a)
	_, errY := f.ReadAt(y, b)
	_, errA := f.WriteAt(y, a)
	_, errB := f.WriteAt(x, b)
	must(t, errors.Join(errX, errY, errA, errB, f.Sync()))
}

// A failed sync is final.
func TestFailedSync(t *testing.T) {
	disk := newDisk(t)
	v, err := Create(disk, "/r", testPlace, testBytes)
	must(t, err)
	must(t, v.Write([]byte("x"), 0))
	disk.Inject(faultdisk.Fault{Ops: faultdisk.OpSync, Err: syscall.EIO})
	for range 2 {
		if err := v.Sync(); !errors.Is(err, syscall.EIO) {
			t.Errorf("sync: %v", err)
		}
	}
	if err := v.Write([]byte("x"), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("write after a failed sync: %v", err)
	}
}

// What was never written or given back is a hole, to the block, and holes cost nothing.
func TestExtents(t *testing.T) {
	disk := newDisk(t)
	v, err := Create(disk, "/r", testPlace, testBytes)
	must(t, err)
	rng := rand.New(rand.NewPCG(3, 3))
	image := make([]byte, testBytes)
	for range 4 {
		must(t, change(rng, v, image))
	}
	must(t, v.Zero(4*BlockBytes, 12*BlockBytes))
	clear(image[4*BlockBytes : 16*BlockBytes])
	for range 100 {
		off := rng.Int64N(testBytes)
		n := 1 + rng.Int64N(testBytes-off)
		at, holes := off, int64(0)
		must(t, v.Extents(off, n, func(n int64, hole bool) bool {
			if hole {
				holes += n
				if !allZero(image[at : at+n]) {
					t.Errorf("[%d, %d) is told to be a hole", at, at+n)
				}
			}
			at += n
			return true
		}))
		if at != off+n {
			t.Fatalf("extents of [%d, %d) end at %d", off, off+n, at)
		}
		if off <= 4*BlockBytes && off+n >= 16*BlockBytes && holes < 12*BlockBytes {
			t.Errorf("%d bytes of holes in [%d, %d)", holes, off, off+n)
		}
	}
	must(t, v.Extents(0, testBytes, func(int64, bool) bool { return false }))
}

func TestGolden(t *testing.T) {
	disk := newDisk(t)
	v, err := Create(disk, "/r", testPlace, 3*BlockBytes)
	must(t, err)
	must(t, v.Write([]byte("golden"), BlockBytes+5))
	for _, ext := range []string{"raw", "sum"} {
		file, err := disk.Open("/r/00000003."+ext, ioengine.ReadOnly)
		must(t, err)
		size, err := file.Size()
		must(t, err)
		got := make([]byte, size)
		_, err = file.ReadAt(got, 0)
		must(t, err)
		goldenFile(t, "testdata/v1."+ext, got)
	}
}

func goldenFile(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		must(t, os.WriteFile(name, got, 0o666))
	}
	want, err := os.ReadFile(name)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("%s changed", name)
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(appendHeader(nil, testPlace))
	f.Fuzz(func(t *testing.T, p []byte) {
		if err := parseHeader(p, testPlace); err == nil && !bytes.Equal(appendHeader(nil, testPlace), p[:headerBytes]) {
			t.Fatalf("header %x is taken", p)
		}
	})
}

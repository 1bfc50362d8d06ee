package capture

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
)

// TestUnalignedDisk writes, zeroes and reads any bytes of a disk that takes aligned
// blocks alone, and holds all of it against plain memory.
func TestUnalignedDisk(t *testing.T) {
	for _, align := range []int{1, 512, 4096} {
		t.Run(fmt.Sprintf("align=%d", align), func(t *testing.T) {
			m := newModel(t, align, mib, "d")
			unaligned(t, m, "d", align)
		})
	}
}

// TestUnalignedOn4K does the same on a disk of 4096-byte sectors: a loop device where
// we may make one, else a file that is opened past the page cache.
func TestUnalignedOn4K(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, mib), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", "--sector-size", "4096", "--direct-io=on", path).Output()
	if loop := strings.TrimSpace(string(out)); err == nil {
		t.Cleanup(func() {
			if err := exec.Command("losetup", "--detach", loop).Run(); err != nil {
				t.Error(err)
			}
		})
		path = loop
	} else {
		t.Logf("no loop device (%v): on a plain file", err)
	}
	d, err := openDisk(ioengine.OS(), path, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s is aligned to %d", path, d.align)
	if err := d.file.Close(); err != nil {
		t.Fatal(err)
	}
	unaligned(t, ioengine.OS(), path, int(d.align))
}

func unaligned(t *testing.T, fs ioengine.FS, path string, align int) {
	d, err := openDisk(fs, path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer d.file.Close()
	if d.align != int64(align) {
		t.Fatalf("aligned to %d, want %d", d.align, align)
	}
	rng := rand.New(rand.NewPCG(7, uint64(align)))
	want := make([]byte, mib)
	for i := range 400 {
		n := 1 + rng.Int64N([]int64{512, 9000, 600_000}[i%3])
		if i%4 == 0 {
			n = (n + 511) / 512 * 512
		}
		off := rng.Int64N(mib - n + 1)
		if i%5 == 0 {
			off, n = off/4096*4096, max(n/4096*4096, 4096)
		}
		off = min(off, mib-n)
		switch i % 7 {
		case 0:
			err = d.zero(off, n, i%2 == 0)
			clear(want[off : off+n])
		case 1: // runs as slots are: whole ones, and a last one
			mem := buf.Aligned(int(n) + SlotBytes)
			noise(rng, mem)
			cut := min(int64(SlotBytes), n)
			runs := [][]byte{mem[:cut]}
			if n > cut {
				runs = append(runs, mem[SlotBytes:SlotBytes+n-cut])
			}
			err = d.writeRuns(runs, off)
			copy(want[off:], bytes.Join(runs, nil))
		default:
			p := make([]byte, n)
			noise(rng, p)
			err = d.writeAt(p, off)
			copy(want[off:], p)
		}
		if err != nil {
			t.Fatalf("operation %d of %d bytes at %d: %v", i, n, off, err)
		}
		lo := rng.Int64N(mib)
		got := make([]byte, rng.Int64N(min(mib-lo, 700_000))+1)
		if err := d.readAt(got, lo); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want[lo:lo+int64(len(got))]) {
			t.Fatalf("after operation %d (%d bytes at %d): [%d, +%d) differs", i, n, off, lo, len(got))
		}
	}
}

// noise fills p at the price of a copy, also under the race detector.
func noise(rng *rand.Rand, p []byte) {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], rng.Uint64())
	_, _ = rand.NewChaCha8(seed).Read(p) // never fails
}

func TestOpenDisk(t *testing.T) {
	f := func(align int, size int64, want int64, ok bool) {
		t.Helper()
		d, err := openDisk(newModel(t, align, size, "d"), "d", false)
		if (err == nil) != ok || err == nil && d.align != want {
			t.Errorf("align %d, size %d: %+v, %v", align, size, d, err)
		}
	}
	f(512, mib, 512, true)
	f(4096, mib, 4096, true)
	f(4096, mib+512, 1, true) // its last sector cannot be written alone past the page cache
	f(512, mib+100, 0, false)
	f(512, 0, 0, false)
}

func TestDeviceRefusesWhatIsOutside(t *testing.T) {
	r := newRig(t, 512, mib, mib, 1).open()
	v := r.vol(0)
	f := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	_, err := v.BeginWrite(mib-511, 512)
	f("a write across the end", err)
	_, err = v.BeginWrite(-512, 512)
	f("a write before the beginning", err)
	_, err = v.BeginWrite(0, 0)
	f("an empty write", err)
	f("a read across the end", v.ReadAt(make([]byte, 513), mib-512))
	f("a zeroing across the end", v.Zero(512, mib, true, false))
	f("a trim across the end", v.Trim(1<<62, 1<<62, false))
	f("extents across the end", v.Extents(0, mib+1, nil))
	w, err := v.BeginWrite(0, 20_000)
	if err != nil {
		t.Fatal(err)
	}
	w.Abort()
	within(t, "an aborted write's slots are home", v.pool.allHome)
}

func TestExtents(t *testing.T) {
	r := newRig(t, 512, mib, mib, 1)
	copy(r.model.disks["vol1"].data[8192:], fill(4096, 1))
	copy(r.model.disks["vol1"].data[mib-4096:], fill(4096, 1))
	r.open()
	f := func(off, n int64, want string) {
		t.Helper()
		got := ""
		err := r.vol(0).Extents(off, n, func(n int64, hole bool) bool {
			got += fmt.Sprintf("%d:%v ", n, hole)
			return true
		})
		if got = strings.TrimSpace(got); err != nil || got != want {
			t.Errorf("extents of [%d, +%d): %q, %v; want %q", off, n, got, err, want)
		}
	}
	f(0, mib, "8192:true 4096:false 1032192:true 4096:false")
	f(8192, 4096, "4096:false")
	f(9000, 100, "100:false")
	f(0, 4096, "4096:true")
	f(100, 9000, "8092:true 908:false")
}

package capture

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
	"github.com/holdfast-dr/holdfast/datapath/internal/testsocket"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// TestPlain serves a disk, in a file that is longer, to a machine: by loops where there are any. It is what the file holds, no byte behind its end is touched, and
// nobody else has it meanwhile.
func TestPlain(t *testing.T) {
	for name, system := range map[string]ioengine.FS{"loops": ioengine.OS(), "threads": ioengine.Threads()} {
		t.Run(name, func(t *testing.T) {
			const bytesOf, more = 8*mib - 512, 512
			path := filepath.Join(t.TempDir(), "disk.raw")
			model := fill(bytesOf+more, 1)
			if err := os.WriteFile(path, model, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := OpenPlain(system, path, bytesOf+more+512, false); err == nil {
				t.Error("a disk that is longer than its file")
			}
			d, err := OpenPlain(system, path, bytesOf, false)
			if err != nil {
				t.Fatal(err)
			}
			for _, held := range []bool{false, true} {
				if _, err := OpenPlain(system, path, bytesOf, held); !errors.Is(err, ioengine.ErrLocked) {
					t.Errorf("opened twice, held %v: %v", held, err)
				}
			}
			if err := ioengine.InUse(path); !errors.Is(err, ioengine.ErrLocked) {
				t.Errorf("it is in use: %v", err)
			}
			for _, bad := range []error{d.ReadAt(make([]byte, 512), bytesOf), d.Zero(bytesOf, 512, false, false), d.Trim(-1, 1, false), d.Extents(0, bytesOf+1, nil)} {
				if bad == nil {
					t.Error("behind the end")
				}
			}
			if _, err := d.BeginWrite(bytesOf-511, 512); err == nil {
				t.Error("a write behind the end")
			}
			throughGuest(t, d, model[:bytesOf])
			oddly(t, d, model[:bytesOf])
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			got, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(got, model) {
				t.Errorf("the file is not what the machine wrote: %v", err)
			}
			if d, err = OpenPlain(system, path, bytesOf, false); err != nil {
				t.Fatalf("given back: %v", err)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	if _, err := OpenPlain(ioengine.OS(), filepath.Join(t.TempDir(), "none"), 512, false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no disk: %v", err)
	}
}

// throughGuest has a machine change the disk, and the model of it.
func throughGuest(t *testing.T, d front.Device, model []byte) {
	t.Helper()
	socket, end := testsocket.Serve(t, (&vhostuser.Server{Device: d}).Serve)
	g, err := guest.New(guest.Options{Queues: 2, Slots: 8, SlotBytes: 1 << 20, Scatter: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Connect(socket); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	const each = 2 * mib
	for w := range int64(4) {
		wg.Go(func() {
			part := model[w*each : min((w+1)*each, int64(len(model)))]
			if err := change(g, int(w%2), w*each, part, rand.New(rand.NewPCG(uint64(w), 9))); err != nil {
				t.Errorf("%d: %v", w, err)
			}
		})
	}
	wg.Wait()
	got := make([]byte, len(model))
	for off := 0; off < len(got); off += mib {
		if err := g.Read(0, got[off:min(off+mib, len(got))], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, model) {
		t.Error("it reads something else")
	}
	if err := errors.Join(g.Disconnect(), g.Close()); err != nil {
		t.Error(err)
	}
	end()
}

// change writes, zeroes and reads a part of the disk, from base on.
func change(g *guest.Guest, queue int, base int64, part []byte, r *rand.Rand) error {
	for range 120 {
		n := (1 + r.Int64N(64)) * 512
		off := r.Int64N(int64(len(part))-n) &^ 511
		if r.IntN(2) == 0 && n > 4096 {
			off, n = off&^4095, n&^4095
		}
		p := part[off : off+n]
		var err error
		switch r.IntN(6) {
		case 0:
			clear(p)
			err = g.WriteZeroes(queue, r.IntN(2) == 0, guest.Range{Off: base + off, Len: n})
		case 1:
			err = g.Flush(queue)
		case 2:
			got := make([]byte, n)
			if err = g.Read(queue, got, base+off); err == nil && !bytes.Equal(got, p) {
				err = fmt.Errorf("%d bytes at %d differ", n, off)
			}
		default:
			copy(p, fill(int(n), byte(r.Uint32())))
			err = g.Write(queue, p, base+off)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// oddly asks what no machine over vhost-user does.
func oddly(t *testing.T, d *Plain, model []byte) {
	t.Helper()
	put := func(off int64, p []byte, fua bool) {
		t.Helper()
		w, err := d.BeginWrite(off, len(p))
		if err != nil {
			t.Fatal(err)
		}
		copy(w.Buffers()[0], p)
		if err := w.Commit(fua); err != nil {
			t.Fatal(err)
		}
		copy(model[off:], p)
	}
	put(100, fill(3000, 2), true)
	put(5000, fill(longPrivateBytes+13, 3), false)
	w, err := d.BeginWrite(0, 10)
	if err != nil {
		t.Fatal(err)
	}
	w.Abort()
	if err := errors.Join(d.Zero(10, 20, false, true), d.Trim(mib+10, 3*4096, true), d.Flush()); err != nil {
		t.Fatal(err)
	}
	clear(model[10:30])
	clear(model[mib+10:][:3*4096])
	p := make([]byte, 777)
	if err := d.ReadAt(p, 99); err != nil || !bytes.Equal(p, model[99:][:777]) {
		t.Errorf("unaligned: %v", err)
	}
	if err := d.Zero(mib, mib, true, false); err != nil {
		t.Fatal(err)
	}
	clear(model[mib:][:mib])
	told := int64(0)
	if err := d.Extents(0, d.Size(), func(n int64, _ bool) bool { told += n; return true }); err != nil || told != d.Size() {
		t.Errorf("extents of %d bytes: %v", told, err)
	}
}

// plainOn is a disk with sectors of 4 KiB.
func plainOn(t *testing.T) (*Plain, *faultdisk.Disk) {
	t.Helper()
	fd := faultdisk.New(4096)
	f, err := fd.Open("/disk", ioengine.Create)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(1<<20), f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	d := &Plain{path: "/disk", bytes: 1 << 20}
	if d.disk, err = openDisk(fd, "/disk", false); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, fd
}

// TestPlainEdges: two who write parts of one sector of the disk at a time both have it.
func TestPlainEdges(t *testing.T) {
	d, _ := plainOn(t)
	var wg sync.WaitGroup
	for w := range int64(8) {
		wg.Go(func() {
			for i := range 300 {
				p := fill(512, byte(i+1))
				fw, err := d.BeginWrite(w*512, len(p))
				if err == nil {
					copy(fw.Buffers()[0], p)
					err = fw.Commit(false)
				}
				got := make([]byte, len(p))
				if err = errors.Join(err, d.ReadAt(got, w*512)); err != nil || !bytes.Equal(got, p) {
					t.Errorf("%d: write %d is lost: %v", w, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestPlainErrors: what the disk says the machine is told, a full disk as such.
func TestPlainErrors(t *testing.T) {
	for _, want := range []error{syscall.EIO, syscall.ENOSPC} {
		d, fd := plainOn(t)
		fd.Inject(faultdisk.Fault{Err: want, Ops: faultdisk.OpAny, Ever: true})
		for name, do := range map[string]func() error{
			"read": func() error { return d.ReadAt(make([]byte, 4096), 0) },
			"write": func() error {
				w, err := d.BeginWrite(0, 4096)
				if err != nil {
					return err
				}
				return w.Commit(true)
			},
			"zero":    func() error { return d.Zero(0, 8192, false, false) },
			"extents": func() error { return d.Extents(0, 4096, func(int64, bool) bool { return true }) },
			"flush":   d.Flush,
		} {
			if err := do(); !errors.Is(err, want) || name != "extents" && errors.Is(err, front.ErrNoSpace) != (want == syscall.ENOSPC) {
				t.Errorf("%s: %v, want %v", name, err, want)
			}
		}
		fd.Heal()
	}
}

package ioengine_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// All file systems must keep the same promises: each test runs on each.
func onBoth(t *testing.T, test func(t *testing.T, fsys ioengine.FS, dir string)) {
	t.Run("os", func(t *testing.T) { test(t, ioengine.OS(), t.TempDir()) })
	t.Run("threads", func(t *testing.T) { test(t, ioengine.Threads(), t.TempDir()) })
	t.Run("faultdisk", func(t *testing.T) { test(t, faultdisk.New(512), "") })
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, fsys ioengine.FS, name string, flags ioengine.Flags) ioengine.File {
	t.Helper()
	f, err := fsys.Open(name, flags)
	ok(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestNames(t *testing.T) {
	onBoth(t, func(t *testing.T, fsys ioengine.FS, dir string) {
		in := func(name string) string { return filepath.Join(dir, name) }
		is := func(err, want error) {
			t.Helper()
			var pe *fs.PathError
			var le *os.LinkError
			if !errors.Is(err, want) || !errors.As(err, &pe) && !errors.As(err, &le) {
				t.Errorf("error %v, want %v with a name", err, want)
			}
		}
		_, err := fsys.Open(in("absent"), 0)
		is(err, fs.ErrNotExist)
		_, err = fsys.Open(in("no/such"), ioengine.Create)
		is(err, fs.ErrNotExist)
		ok(t, fsys.Mkdir(in("d")))
		ok(t, fsys.Mkdir(in("d")))
		is(fsys.Mkdir(in("x/y")), fs.ErrNotExist)
		open(t, fsys, in("d/b"), ioengine.Create)
		open(t, fsys, in("d/a"), ioengine.Create|ioengine.Exclusive)
		is(fsys.Mkdir(in("d/a")), fs.ErrExist)
		_, err = fsys.Open(in("d/a"), ioengine.Create|ioengine.Exclusive)
		is(err, fs.ErrExist)
		is(fsys.Remove(in("d")), unix.ENOTEMPTY)
		ok(t, fsys.Rename(in("d/a"), in("d/c")))
		ok(t, fsys.Rename(in("d/c"), in("d/b")))
		is(fsys.Rename(in("d/a"), in("d/c")), fs.ErrNotExist)
		names, err := fsys.List(in("d"))
		ok(t, err)
		if !slices.Equal(names, []string{"b"}) {
			t.Errorf("List = %q", names)
		}
		ok(t, fsys.SyncDir(in("d")))
		ok(t, fsys.Remove(in("d/b")))
		is(fsys.Remove(in("d/b")), fs.ErrNotExist)
		ok(t, fsys.Remove(in("d")))
		is(fsys.SyncDir(in("d")), fs.ErrNotExist)
		_, err = fsys.List(in("d"))
		is(err, fs.ErrNotExist)
	})
}

func TestLock(t *testing.T) {
	onBoth(t, func(t *testing.T, fsys ioengine.FS, dir string) {
		name := filepath.Join(dir, "lock")
		l, err := fsys.Lock(name)
		ok(t, err)
		if _, err := fsys.Lock(name); !errors.Is(err, ioengine.ErrLocked) {
			t.Fatalf("second Lock: %v, want ErrLocked", err)
		}
		ok(t, l.Close())
		l, err = fsys.Lock(name)
		ok(t, err)
		ok(t, l.Close())
	})
}

// One seeded run of operations against a plain byte slice, buffered and direct.
func TestFileAgainstModel(t *testing.T) {
	for _, flags := range []ioengine.Flags{0, ioengine.Direct} {
		t.Run(fmt.Sprintf("flags=%d", flags), func(t *testing.T) {
			onBoth(t, func(t *testing.T, fsys ioengine.FS, dir string) {
				f := open(t, fsys, filepath.Join(dir, "f"), ioengine.Create|flags)
				runModel(t, f, rand.New(rand.NewPCG(1, uint64(flags))))
			})
		})
	}
}

func runModel(t *testing.T, f ioengine.File, rng *rand.Rand) {
	const limit = 256 << 10
	align := max(f.Align(), 1)
	pick := func() (int, int) { // off, n: aligned
		off := rng.IntN(limit/align) * align
		return off, min((1+rng.IntN(40))*align*(1+rng.IntN(1+4096/align)), limit-off)
	}
	var model []byte
	grow := func(n int) {
		if n > len(model) {
			model = append(model, make([]byte, n-len(model))...)
		}
	}
	mem := buf.Aligned(limit)
	for step := range 600 {
		off, n := pick()
		switch rng.IntN(8) {
		case 0, 1, 2:
			noise(rng, mem[:n])
			_, err := f.WriteAt(mem[:n], int64(off))
			ok(t, err)
			grow(off + n)
			copy(model[off:], mem[:n])
		case 3:
			ok(t, f.Zero(int64(off), int64(n)))
			if off < len(model) {
				clear(model[off:min(off+n, len(model))])
			}
		case 4:
			if rng.IntN(8) == 0 {
				ok(t, f.Truncate(int64(off)))
				grow(off)
				model = model[:off]
			}
		case 5:
			if rng.IntN(8) == 0 {
				ok(t, f.Allocate(int64(off), int64(n)))
				grow(off + n)
			}
		case 6:
			ok(t, f.Sync())
		case 7:
			at, c, err := f.NextData(int64(off))
			ok(t, err)
			end := at
			if c == 0 {
				at, end = int64(len(model)), int64(len(model))
			}
			if off < len(model) && at > int64(off) && !allZero(model[off:at]) {
				t.Fatalf("step %d: NextData(%d) = %d+%d passes over data", step, off, at, end)
			}
			if f, is := f.(interface{ DataFrom(int64) (int64, error) }); is {
				from, err := f.DataFrom(int64(off))
				ok(t, err)
				if c > 0 && from != at || c == 0 && from >= int64(off) {
					t.Fatalf("step %d: DataFrom(%d) = %d, and NextData %d+%d", step, off, from, at, c)
				}
			}
		}
		got, err := f.ReadAt(mem[:n], int64(off))
		want := []byte(nil)
		if off < len(model) {
			want = model[off:min(off+n, len(model))]
		}
		if wantEOF := len(want) < n; wantEOF != errors.Is(err, io.EOF) || !wantEOF && err != nil {
			t.Fatalf("step %d: ReadAt(%d, %d) of %d bytes: %v", step, off, n, len(model), err)
		}
		if !bytes.Equal(mem[:got], want) {
			t.Fatalf("step %d: ReadAt(%d, %d) differs", step, off, n)
		}
		if size, err := f.Size(); err != nil || size != int64(len(model)) {
			t.Fatalf("step %d: Size = %d, %v; want %d", step, size, err, len(model))
		}
	}
}

// noise fills p at the price of a copy, also under the race detector.
func noise(rng *rand.Rand, p []byte) {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], rng.Uint64())
	_, _ = rand.NewChaCha8(seed).Read(p) // never fails
}

func allZero(p []byte) bool { return len(bytes.TrimLeft(p, "\x00")) == 0 }

func TestClosedFile(t *testing.T) {
	onBoth(t, func(t *testing.T, fsys ioengine.FS, dir string) {
		f, err := fsys.Open(filepath.Join(dir, "f"), ioengine.Create)
		ok(t, err)
		ok(t, f.Close())
		if err := f.Close(); err == nil {
			t.Error("the second Close succeeds")
		}
		if _, err := f.WriteAt([]byte("x"), 0); err == nil {
			t.Error("a write to a closed file succeeds")
		}
		if _, err := f.ReadAt(make([]byte, 1), 0); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("a read of a closed file: %v", err)
		}
		if err := f.Sync(); err == nil {
			t.Error("a sync of a closed file succeeds")
		}
	})
}

func TestReadOnly(t *testing.T) {
	onBoth(t, func(t *testing.T, fsys ioengine.FS, dir string) {
		name := filepath.Join(dir, "f")
		open(t, fsys, name, ioengine.Create)
		f := open(t, fsys, name, ioengine.ReadOnly)
		if _, err := f.WriteAt([]byte("x"), 0); err == nil {
			t.Error("a write to a file opened for reading succeeds")
		}
		if err := f.Truncate(1); err == nil {
			t.Error("a truncation of a file opened for reading succeeds")
		}
	})
}

// The disk under the tests takes direct I/O; where it does not, Align says 1 and
// the model above has run through the page cache.
func TestDirectIsDirect(t *testing.T) {
	f := open(t, ioengine.OS(), filepath.Join(t.TempDir(), "f"), ioengine.Create|ioengine.Direct)
	if f.Align() == 1 {
		t.Log("this file system takes no direct I/O: Align is 1")
		return
	}
	mem := buf.Aligned(8192)
	if _, err := f.WriteAt(mem[1:4097], 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a write from an odd address: %v, want EINVAL: is the file direct?", err)
	}
}

func TestFree(t *testing.T) {
	onBoth(t, func(t *testing.T, fsys ioengine.FS, dir string) {
		if n, err := fsys.Free(filepath.Join(dir, ".")); err != nil || n <= 0 {
			t.Errorf("Free = %d, %v", n, err)
		}
		if _, err := fsys.Free(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Free of a folder that is not there: %v", err)
		}
	})
	disk := faultdisk.New(512)
	disk.SetFree(4096)
	if n, err := disk.Free("/"); n != 4096 || err != nil {
		t.Errorf("Free = %d, %v; was set to 4096", n, err)
	}
	disk.Inject(faultdisk.Fault{Ops: faultdisk.OpRead, Err: unix.EIO})
	if _, err := disk.Free("/"); !errors.Is(err, unix.EIO) {
		t.Errorf("Free of a disk that fails: %v", err)
	}
}

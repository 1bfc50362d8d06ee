package ioengine_test

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
)

// Many writes in flight at once, direct and buffered, of one part or several, land where they belong.
func TestStartedWrites(t *testing.T) {
	for _, flags := range []ioengine.Flags{0, ioengine.Direct} {
		t.Run(fmt.Sprintf("flags=%d", flags), func(t *testing.T) {
			onBoth(t, func(t *testing.T, fsys ioengine.FS, dir string) {
				f := open(t, fsys, filepath.Join(dir, "f"), ioengine.Create|flags)
				const n, count = 16 << 10, 700 // more than a ring takes
				var wg sync.WaitGroup
				var mu sync.Mutex
				var all error
				want := make([]byte, n*count)
				for i := range count {
					p := buf.Aligned(n)
					for j := 0; j < n; j += 512 {
						copy(p[j:], bytes.Repeat([]byte{byte(i + j/512)}, 512))
					}
					copy(want[i*n:], p)
					wg.Add(1)
					f.WriteStart(divided(p, i%4), int64(i)*n, func(err error) {
						defer wg.Done()
						mu.Lock()
						defer mu.Unlock()
						all = errors.Join(all, err)
					})
				}
				wg.Wait()
				ok(t, all)
				ok(t, f.Sync())
				got := buf.Aligned(n * count)
				if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
					t.Errorf("reads back other bytes (%v)", err)
				}
			})
		})
	}
}

// divided returns p in 1 to MaxParts parts of whole sectors, one of them empty.
func divided(p []byte, how int) (parts [][]byte) {
	switch how {
	case 0:
		return [][]byte{p}
	case 1:
		return [][]byte{p[:512], nil, p[512:]}
	case 2:
		return [][]byte{p[:4096], p[4096:8192], p[8192:]}
	}
	for n := len(p) / 512; n > 0; n-- {
		parts = append(parts, p[:512])
		p = p[512:]
	}
	return append(parts, make([][]byte, ioengine.MaxParts-len(parts))...)
}

// A write of several parts is all of them, in order, and fails whole.
func TestWriteParts(t *testing.T) {
	for _, flags := range []ioengine.Flags{0, ioengine.Direct} {
		t.Run(fmt.Sprintf("flags=%d", flags), func(t *testing.T) {
			dir := t.TempDir()
			f := open(t, ioengine.OS(), filepath.Join(dir, "f"), ioengine.Create|flags)
			const n, count = 16 << 10, 8
			want := make([]byte, n*count)
			for i := range count {
				p := buf.Aligned(n)
				for j := 0; j < n; j += 512 {
					copy(p[j:], bytes.Repeat([]byte{byte(i + j/512)}, 512))
				}
				copy(want[i*n:], p)
				ok(t, f.WriteParts(divided(p, i%4), int64(i)*n))
			}
			got := buf.Aligned(n * count)
			if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
				t.Errorf("reads back other bytes (%v)", err)
			}
			readOnly := open(t, ioengine.OS(), filepath.Join(dir, "f"), ioengine.ReadOnly)
			for how := range 2 {
				if err := readOnly.WriteParts(divided(got[:n], how), 0); !errors.Is(err, unix.EBADF) {
					t.Errorf("to a file that is only read: %v", err)
				}
			}
			ok(t, f.Close())
			if err := f.WriteParts(divided(got[:n], 1), 0); !errors.Is(err, unix.EBADF) {
				t.Errorf("to a closed file: %v", err)
			}
		})
	}
}

func TestStartedWriteFails(t *testing.T) {
	onBoth(t, func(t *testing.T, fsys ioengine.FS, dir string) {
		name := filepath.Join(dir, "f")
		f := open(t, fsys, name, ioengine.Create)
		start := func(f ioengine.File, p []byte, off int64) error {
			done := make(chan error, 1)
			f.WriteStart([][]byte{p}, off, func(err error) { done <- err })
			return <-done
		}
		ok(t, start(f, []byte("x"), 0))
		ok(t, start(f, nil, 0))
		if err := start(f, []byte("x"), -1); !errors.Is(err, unix.EINVAL) {
			t.Errorf("at a negative offset: %v, want EINVAL", err)
		}
		r := open(t, fsys, name, ioengine.ReadOnly)
		if err := start(r, []byte("x"), 0); !errors.Is(err, unix.EBADF) {
			t.Errorf("to a file opened for reading: %v, want EBADF", err)
		}
		c, err := fsys.Open(name, 0)
		ok(t, err)
		ok(t, c.Close())
		if start(c, []byte("x"), 0) == nil {
			t.Error("to a closed file it succeeds")
		}
	})
}

// Close waits for what is in flight, so that no write reaches another file that was
// given the descriptor.
func TestCloseWaitsForStartedWrites(t *testing.T) {
	onBoth(t, func(t *testing.T, fsys ioengine.FS, dir string) {
		p := buf.Aligned(1 << 20)
		for i := range p {
			p[i] = 0xAA
		}
		for i := range 20 {
			f, err := fsys.Open(filepath.Join(dir, fmt.Sprint(i)), ioengine.Create|ioengine.Direct)
			ok(t, err)
			var mu sync.Mutex
			var errs []error
			for j := range 8 {
				f.WriteStart([][]byte{p[:64<<10]}, int64(j)*64<<10, func(err error) {
					mu.Lock()
					defer mu.Unlock()
					errs = append(errs, err)
				})
			}
			ok(t, f.Close())
			other := open(t, fsys, filepath.Join(dir, fmt.Sprint("other", i)), ioengine.Create)
			if size, err := other.Size(); err != nil || size != 0 {
				t.Fatalf("another file has %d bytes (%v)", size, err)
			}
			f = open(t, fsys, filepath.Join(dir, fmt.Sprint(i)), 0)
			if size, err := f.Size(); err != nil || size != 8*64<<10 {
				t.Fatalf("after Close the file has %d bytes (%v)", size, err)
			}
			mu.Lock()
			ok(t, errors.Join(errs...))
			mu.Unlock()
		}
	})
}

func TestSyncFiles(t *testing.T) {
	onBoth(t, func(t *testing.T, fsys ioengine.FS, dir string) {
		ok(t, fsys.SyncFiles(nil))
		var files []ioengine.File
		for i := range 50 {
			f := open(t, fsys, filepath.Join(dir, fmt.Sprint(i)), ioengine.Create)
			if _, err := f.WriteAt([]byte("some"), 0); err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
		ok(t, fsys.SyncFiles(files[:1]))
		ok(t, fsys.SyncFiles(append(files, files[3], files[4])))
		ok(t, files[7].Close())
		if err := fsys.SyncFiles(files); err == nil {
			t.Fatal("with a closed file among them it succeeds")
		}
		for i, f := range files {
			if f.Sync() == nil {
				t.Errorf("file %d syncs after a SyncFiles over it failed", i)
			}
		}
	})
}

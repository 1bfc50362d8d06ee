package ioengine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/ioengine/buf"
)

// Reads beside others give what a read alone does: at the end of the file, behind it, of a
// closed file, while the ring takes nothing, and by whatever it waits.
func TestReadsBeside(t *testing.T) {
	t.Run("direct", func(t *testing.T) { testReadsBeside(t, Direct) })
	t.Run("through the page cache", func(t *testing.T) { testReadsBeside(t, 0) })
}

func testReadsBeside(t *testing.T, flags Flags) {
	name := filepath.Join(t.TempDir(), "f")
	rng := rand.New(rand.NewPCG(1, 1))
	const size = 40*4096 + 100
	want := make([]byte, size)
	for i := range want {
		want[i] = byte(rng.Uint32())
	}
	if err := os.WriteFile(name, want, 0o600); err != nil {
		t.Fatal(err)
	}
	fsys := OS()
	file, err := fsys.Open(name, ReadOnly|flags)
	if err != nil {
		t.Fatal(err)
	}
	f := file.(*osFile)
	forget := func() { // what the page cache holds of the file
		if err := unix.Fdatasync(f.fd); err != nil {
			t.Error(err)
		}
		if err := unix.Fadvise(f.fd, 0, 0, unix.FADV_DONTNEED); err != nil {
			t.Error(err)
		}
	}
	one := func(rng *rand.Rand) error {
		if rng.IntN(4) == 0 {
			forget()
		}
		off, p := rng.Int64N(44)*4096, buf.Aligned(4096*(1+rng.IntN(8)))
		clear(p)
		n := max(0, min(int(size-off), len(p)))
		got, err := f.ReadAt(p, off)
		if (n < len(p)) != errors.Is(err, io.EOF) || n == len(p) && err != nil || got != n || n > 0 && !bytes.Equal(p[:n], want[off:][:n]) {
			return fmt.Errorf("%d bytes at %d: %d, %v", len(p), off, got, err)
		}
		return nil
	}
	many := func(what string) {
		t.Helper()
		f.fs.reading.Add(1) // somebody else reads
		defer f.fs.reading.Add(-1)
		var wg sync.WaitGroup
		errs := make([]error, 16)
		for i := range errs {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(i), 2))
				for range 50 {
					errs[i] = errors.Join(errs[i], one(rng))
				}
			})
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	many("beside others")
	if r := f.reads.ring; r != nil {
		if r.polled == nil {
			t.Error("the ring of the readers is not polled")
		}
		p := buf.Aligned(4096)
		forget()
		if n := f.readByRing(p, 8192); n != len(p) || !bytes.Equal(p, want[8192:][:4096]) {
			t.Errorf("the ring reads %d bytes", n)
		}
		fd, polled := r.fd, r.polled
		r.mu.Lock()
		r.fd = -1 // it refuses
		r.mu.Unlock()
		many("refused")
		r.mu.Lock()
		r.fd, r.polled = fd, nil
		r.mu.Unlock()
		many("waited for in the kernel")
		r.mu.Lock()
		r.polled = polled
		r.mu.Unlock()
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := f.ReadAt(buf.Aligned(4096), 0); err == nil {
		t.Error("a closed file reads")
	}
	if f.fs.readers.ring != nil || f.fs.readers.users != 0 {
		t.Errorf("with no file open %d use the ring", f.fs.readers.users)
	}
}

package ioengine

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// ringFile returns a file that writes through io_uring; nil where there is none.
func ringFile(t *testing.T) *osFile {
	t.Helper()
	fsys := OS()
	if e := Engine(fsys); e != "io_uring" {
		t.Logf("%s: nothing to test", e)
		return nil
	}
	file, err := fsys.Open(filepath.Join(t.TempDir(), "f"), Create)
	if err != nil {
		t.Fatal(err)
	}
	return file.(*osFile)
}

func (f *osFile) writeStarted(p []byte, off int64) error {
	done := make(chan error, 1)
	f.WriteStart([][]byte{p}, off, func(err error) { done <- err })
	return <-done
}

// What the kernel may answer to a write: all of it lands all the same, once it can.
func TestAnswersOfTheRing(t *testing.T) {
	file, err := Threads().Open(filepath.Join(t.TempDir(), "f"), Create)
	if err != nil {
		t.Fatal(err)
	}
	f := file.(*osFile)
	defer f.Close()
	for i, res := range []int32{8192, 4096, 3000, 1, 0, -int32(unix.EAGAIN), -int32(unix.EINTR), -int32(unix.ECANCELED), -int32(unix.EIO), -int32(unix.ENOSPC)} {
		p := bytes.Repeat([]byte{byte(i + 1)}, 8192)
		off := int64(i) * 8192
		if res > 0 { // as the kernel says, so it did
			if _, err := f.WriteAt(p[:res], off); err != nil {
				t.Fatal(err)
			}
		}
		done := make(chan error, 1)
		w := newStartedWrite(f, [][]byte{p[:3000], p[3000:3001], nil, p[3001:]}, off, func(err error) { done <- err })
		f.open.RLock()
		w.ended(&w.op, res)
		err := <-done
		if failed := res == -int32(unix.EIO) || res == -int32(unix.ENOSPC); failed != (err != nil) {
			t.Errorf("answer %d: %v", res, err)
			continue
		}
		got := make([]byte, len(p))
		if _, err2 := f.ReadAt(got, off); err == nil && (err2 != nil || !bytes.Equal(got, p)) {
			t.Errorf("answer %d: other bytes (%v)", res, err2)
		}
	}
}

// A kernel that takes nothing for a while costs speed alone.
func TestRingRefuses(t *testing.T) {
	f := ringFile(t)
	if f == nil {
		return
	}
	defer f.Close()
	if err := f.writeStarted([]byte("a"), 0); err != nil {
		t.Fatal(err)
	}
	r := f.usesRing()
	r.mu.Lock()
	fd := r.fd
	r.fd = -1 // it refuses
	r.mu.Unlock()
	for i := range 600 {
		if err := f.writeStarted([]byte("b"), int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.fs.SyncFiles([]File{f, f.again(t)}); err != nil {
		t.Error(err)
	}
	r.mu.Lock()
	r.fd = fd
	free := len(r.free)
	r.mu.Unlock()
	if free != ringEntries {
		t.Errorf("%d of %d places are free with nothing in flight", free, ringEntries)
	}
	if err := f.writeStarted([]byte("c"), 1); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 3)
	if _, err := f.ReadAt(got, 0); err != nil || string(got) != "bcb" {
		t.Errorf("the file begins with %q (%v)", got, err)
	}
}

// again opens the file once more.
func (f *osFile) again(t *testing.T) File {
	t.Helper()
	g, err := f.fs.Open(f.name, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// The ring is gone with the last file that uses it.
func TestRingEnds(t *testing.T) {
	f := ringFile(t)
	if f == nil {
		return
	}
	if err := f.writeStarted([]byte("a"), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if f.fs.engine.ring != nil || f.fs.engine.users != 0 {
		t.Errorf("with no file open %d use the ring", f.fs.engine.users)
	}
}

// go test ./ioengine -run '^$' -bench SyncFiles
//
// Each file has one page written into space that was set aside, or that was written
// before, as recycled segments are.
func BenchmarkSyncFiles(b *testing.B) {
	for _, n := range []int{1, 30, 300} {
		for name, fsys := range map[string]FS{"ring": OS(), "threads": Threads()} {
			for _, fresh := range []bool{true, false} {
				b.Run(fmt.Sprintf("files=%d/%s/fresh=%v", n, name, fresh), func(b *testing.B) {
					benchSyncFiles(b, fsys.(*osFS), n, fresh)
				})
			}
		}
	}
}

func benchSyncFiles(b *testing.B, fsys *osFS, n int, fresh bool) {
	dir, page := b.TempDir(), alignedZeros(4096)
	var files []File
	for i := range n {
		f, err := fsys.Open(filepath.Join(dir, fmt.Sprint(i)), Create|Direct)
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
		if err := f.Allocate(0, 16<<20); err != nil {
			b.Fatal(err)
		}
	}
	at := int64(0)
	write := func() {
		for _, f := range files {
			if _, err := f.WriteAt(page, at); err != nil {
				b.Fatal(err)
			}
		}
	}
	write()
	for b.Loop() {
		b.StopTimer()
		if fresh {
			at = (at + 4096) % (16 << 20)
		}
		write()
		b.StartTimer()
		if err := fsys.SyncFiles(files); err != nil {
			b.Fatal(err)
		}
	}
}

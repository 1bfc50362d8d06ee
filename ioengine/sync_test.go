package ioengine

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/ioengine/buf"
)

// A kernel reports lost pages once: the file must remember.
func TestFailedSyncStaysFailed(t *testing.T) {
	file, err := OS().Open(filepath.Join(t.TempDir(), "f"), Create)
	if err != nil {
		t.Fatal(err)
	}
	f := file.(*osFile)
	pipe := make([]int, 2) // a descriptor that cannot be synced
	if err := unix.Pipe(pipe); err != nil {
		t.Fatal(err)
	}
	good := f.fd
	f.fd = pipe[0]
	if f.Sync() == nil {
		t.Fatal("the sync of a pipe succeeds")
	}
	f.fd = good
	if f.Sync() == nil {
		t.Error("after a failed sync another one succeeds")
	}
	for _, fd := range pipe {
		unix.Close(fd)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func TestNoDirectFileSystem(t *testing.T) {
	f, err := OS().Open("/proc/self/status", ReadOnly|Direct)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Align() != 1 {
		t.Errorf("Align = %d on a file system without direct I/O", f.Align())
	}
	if n, err := f.ReadAt(make([]byte, 7), 0); n != 7 || err != nil {
		t.Errorf("ReadAt = %d, %v", n, err)
	}
}

// What is said to be read soon is read as before, of whatever file it is said.
func TestWillRead(t *testing.T) {
	name := t.TempDir() + "/f"
	want := bytes.Repeat([]byte("0123456789abcdef"), 1024)
	if err := os.WriteFile(name, want, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, flags := range []Flags{ReadOnly, ReadOnly | Direct} {
		f, err := OS().Open(name, flags)
		if err != nil {
			t.Fatal(err)
		}
		for _, off := range []int64{0, 8192, 1 << 40, -1} {
			f.WillRead(off, 4096)
			f.WriteBack(off, 4096)
		}
		got := buf.Aligned(4096)
		if _, err := f.ReadAt(got, 8192); err != nil || !bytes.Equal(got, want[8192:8192+4096]) {
			t.Errorf("flags %d: it reads otherwise: %v", flags, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		f.WillRead(0, 4096)
		f.WriteBack(0, 4096)
	}
}

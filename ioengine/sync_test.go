package ioengine

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
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

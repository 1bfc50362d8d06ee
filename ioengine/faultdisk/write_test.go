package faultdisk

import (
	"bytes"
	"errors"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
)

func start(f ioengine.File, p []byte, off int64) <-chan error {
	done := make(chan error, 1)
	f.WriteStart([][]byte{p}, off, func(err error) { done <- err })
	return done
}

func holds(t *testing.T, d *Disk, name string, n int) []byte {
	t.Helper()
	f, err := d.Open(name, ioengine.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, n)
	got, _ := f.ReadAt(p, 0)
	return p[:got]
}

// A sync covers no write that has not ended, whenever it comes to its end after.
func TestSyncCoversWhatHasLanded(t *testing.T) {
	d := New(1)
	f, _ := d.Open("f", ioengine.Create)
	stall := make(chan struct{})
	d.Inject(Fault{Ops: OpWrite, At: 1, Stall: stall})
	flying := start(f, []byte("late"), 4)
	if err := <-start(f, []byte("soon"), 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), d.SyncDir("/")); err != nil {
		t.Fatal(err)
	}
	if got := holds(t, d.Crash(seeded(1), KeepNone), "f", 8); string(got) != "soon" {
		t.Errorf("after a crash %q, want what had landed before the sync", got)
	}
	if got := holds(t, d.Kill(), "f", 8); string(got) != "soonlate" {
		t.Errorf("after a kill %q: what the kernel was given is written", got)
	}
	kept := 0
	for i := range 40 {
		if got := holds(t, d.Crash(seeded(i), KeepSome), "f", 8); string(got) == "soonlate" {
			kept++
		}
	}
	if kept == 0 || kept == 40 {
		t.Errorf("a write in flight was there after %d of 40 crashes", kept)
	}
	close(stall)
	if err := errors.Join(<-flying, f.Sync()); err != nil {
		t.Fatal(err)
	}
	if got := holds(t, d.Crash(seeded(1), KeepNone), "f", 8); string(got) != "soonlate" {
		t.Errorf("after the second sync and a crash %q", got)
	}
}

// Who changes the memory of a write in flight has spoiled the file.
func TestMemoryOfAWriteInFlight(t *testing.T) {
	d := New(1)
	f, _ := d.Open("f", ioengine.Create)
	stall := make(chan struct{})
	d.Inject(Fault{Ops: OpWrite, Stall: stall})
	p := []byte("right")
	flying := start(f, p, 0)
	copy(p, "wrong")
	close(stall)
	if err := errors.Join(<-flying, f.Sync(), d.SyncDir("/")); err != nil {
		t.Fatal(err)
	}
	if got := holds(t, d.Crash(seeded(1), KeepNone), "f", 5); string(got) != "wrong" {
		t.Errorf("the file holds %q", got)
	}
}

func TestFaultsOfStartedWrites(t *testing.T) {
	d := New(512)
	f, _ := d.Open("f", ioengine.Create)
	d.Inject(Fault{Ops: OpWrite, Err: syscall.ENOSPC, Short: true})
	p := bytes.Repeat([]byte{7}, 4096)
	if err := <-start(f, p, 0); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a started write: %v, want ENOSPC", err)
	}
	if got := holds(t, d, "f", 4096); len(got) != 2048 {
		t.Errorf("a short write left %d bytes", len(got))
	}
}

// One file of many does not sync: none of them is to be trusted.
func TestSyncFilesFails(t *testing.T) {
	d := New(1)
	var files []ioengine.File
	for _, name := range []string{"a", "b", "c"} {
		f, _ := d.Open(name, ioengine.Create)
		if _, err := f.WriteAt([]byte("x"), 0); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	d.Inject(Fault{Ops: OpSync, At: 2, Err: syscall.EIO})
	if err := d.SyncFiles(files); !errors.Is(err, syscall.EIO) {
		t.Fatalf("SyncFiles: %v, want EIO", err)
	}
	for _, f := range files {
		if f.Sync() == nil {
			t.Error("a file of a failed SyncFiles syncs again")
		}
	}
}

package ioengine

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestInUse: a lock as QEMU's on a file is seen, and an owner of a device; a disk that nobody has is free, and one that is not there is an error.
func TestInUse(t *testing.T) {
	name := filepath.Join(t.TempDir(), "disk.raw")
	if err := InUse(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no disk: %v", err)
	}
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	if err := InUse(name); err != nil {
		t.Errorf("nobody has it: %v", err)
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 101, Len: 1}); err != nil {
		t.Fatal(err)
	}
	if err := InUse(name); !errors.Is(err, ErrLocked) {
		t.Errorf("QEMU writes to it: %v", err)
	}
	out, err := exec.Command("losetup", "--find", "--show", name).Output()
	if err != nil {
		t.Skip("no block device can be made here")
	}
	device := strings.TrimSpace(string(out))
	defer func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	}()
	if err := InUse(device); err != nil {
		t.Errorf("nobody has the device: %v", err)
	}
	owner, err := os.OpenFile(device, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := InUse(device); !errors.Is(err, ErrLocked) {
		t.Errorf("the device has an owner: %v", err)
	}
	owner.Close()
}

// TestUse: a disk that is used is seen to be, and is not used by another; one that QEMU writes to is not used either.
func TestUse(t *testing.T) {
	name := filepath.Join(t.TempDir(), "disk.raw")
	if _, err := Use(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no disk: %v", err)
	}
	if err := os.WriteFile(name, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	used, err := Use(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := InUse(name); !errors.Is(err, ErrLocked) {
		t.Errorf("it is used: %v", err)
	}
	if _, err := Use(name); !errors.Is(err, ErrLocked) {
		t.Errorf("used twice: %v", err)
	}
	if err := used.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 101, Len: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := Use(name); !errors.Is(err, ErrLocked) {
		t.Errorf("QEMU writes to it: %v", err)
	}
	f.Close()
	if used, err = Use(name); err != nil {
		t.Fatal(err)
	}
	used.Close()
}

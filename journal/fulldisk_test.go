package journal

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/journal/retain"
)

// smallDisk is an ext4 of 160 MiB. Its image lies in memory if that can be: it is filled
// again and again, and the disk below would be most of what a test waits for.
func smallDisk(t *testing.T) (mount string, err error) {
	folder, mount := t.TempDir(), t.TempDir()
	if syscall.Mount("tmpfs", folder, "tmpfs", 0, "size=192m") == nil {
		t.Cleanup(func() { ok(t, syscall.Unmount(folder, syscall.MNT_DETACH)) })
	}
	image := filepath.Join(folder, "image")
	if _, err := exec.Command("mkfs.ext4", "-q", "-F", image, "160M").Output(); err != nil {
		return "", err
	}
	if _, err := exec.Command("mount", "-o", "loop", image, mount).Output(); err != nil {
		return "", err
	}
	t.Cleanup(func() { ok(t, syscall.Unmount(mount, syscall.MNT_DETACH)) })
	return mount, nil
}

// On a small ext4 of its own: while the disk is almost full history gets shorter, when it
// is full intake stops and says so, and with space again all goes on. Nothing that is
// listed meanwhile is touched.
func TestHistoryGivesWayOnAFullDisk(t *testing.T) {
	mount, err := smallDisk(t)
	if err != nil {
		t.Logf("no file system of its own (%v): only what needs none", err)
		return
	}
	ballast := filepath.Join(mount, "ballast")
	fill := func(leave int64) {
		t.Helper()
		f, err := os.OpenFile(ballast, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		ok(t, err)
		for err == nil {
			_, err = f.Write(make([]byte, 64<<10))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		info, err := f.Stat()
		ok(t, err)
		ok(t, f.Truncate(info.Size()-leave))
		ok(t, f.Close())
	}
	cfg := machineConfig(filepath.Join(mount, "store"))
	cfg.SegmentBytes = 64 << 10
	w, err := openWith(cfg)
	ok(t, err)
	look := func() retain.Level {
		r := &w.store.retainer
		r.look(r.passed())
		for r.isBusy(w.group) { // with a pass, of this look or of the store's own
			runtime.Gosched()
		}
		return w.group.Retention().Level
	}
	s := newSource(31)
	s.open(true)
	s.write(6)
	s.close()
	grow := func(n int) error {
		for range n {
			for range 4 {
				s.write(6)
			}
			s.limit = s.checkpoint()
		}
		return w.feed(s, 3)
	}
	ok(t, grow(30))
	if level := look(); level != retain.Plenty {
		t.Fatalf("with all the space there is: %s", level)
	}
	ok(t, w.holds(s, 1))

	fill(40 << 20)
	rest := func() (oldest uint64) { // until nothing more is given up
		t.Helper()
		for same := 0; same < 3; same++ {
			look()
			if now := w.oldest(); now != oldest {
				oldest, same = now, 0
			}
		}
		return oldest
	}
	oldest := rest()
	if r := w.group.Retention(); r.Level != retain.Shortened {
		t.Fatalf("on a disk that is almost full: %+v", r)
	}
	if oldest < 20 {
		t.Errorf("the oldest checkpoint is still %d", oldest)
	}
	ok(t, w.holds(s, oldest))
	ok(t, grow(3))
	ok(t, w.holds(s, rest()))

	fill(0)
	var full error
	for range 40 {
		if full = grow(2); full != nil {
			break
		}
	}
	if !errors.Is(full, syscall.ENOSPC) {
		t.Fatalf("a full disk takes data: %v", full)
	}
	rest()
	if r := w.group.Retention(); r.Level < retain.Shortened || r.Reason == "" {
		t.Errorf("on a full disk: %+v", r)
	}
	for range 2 {
		numbers, err := w.check(s)
		if err != nil || len(numbers) == 0 {
			t.Fatalf("on a full disk %v are listed: %v", numbers, err)
		}
		ok(t, w.store.Close())
		w, err = openWith(cfg)
		ok(t, err)
	}

	ok(t, os.Remove(ballast))
	ok(t, w.feed(s, 3))
	for range 3 {
		look()
	}
	if level := look(); level != retain.Plenty {
		t.Errorf("with space again: %s", level)
	}
	ok(t, grow(3))
	ok(t, w.holds(s, w.oldest()))
	ok(t, w.store.Close())
}

package replica

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// aDisk is a disk that somebody left, with holes, and what it holds.
func aDisk(t *testing.T) (d *faultdisk.Disk, image []byte) {
	t.Helper()
	d = faultdisk.New(512)
	must(t, errors.Join(d.Mkdir("/r"), d.Mkdir("/old"), d.SyncDir("/")))
	f, err := d.Open("/old/disk", ioengine.Create)
	must(t, err)
	image = make([]byte, testBytes)
	for i := range 5*BlockBytes + 100 {
		image[3*BlockBytes+i] = byte(i*7 + 1)
	}
	must(t, f.Truncate(testBytes))
	_, err = f.WriteAt(image[3*BlockBytes:9*BlockBytes], 3*BlockBytes)
	must(t, errors.Join(err, f.Sync(), f.Close(), d.SyncDir("/old")))
	return d, image
}

func noWord(int64) error { return nil }

// adopted holds the replica against what the disk held.
func adopted(v *Volume, image []byte) error {
	found, err := v.Verify(0, v.Bytes(), nil)
	for _, d := range found {
		err = errors.Join(err, d.Err)
	}
	return errors.Join(err, compare(v, image))
}

func TestAdoptAtEveryOperation(t *testing.T) {
	_, image := aDisk(t)
	failEach(t, func() *faultdisk.Disk { d, _ := aDisk(t); return d }, func(d *faultdisk.Disk) (failed, wrong error) {
		v, failed := Adopt(d, "/r", "/old/disk", testPlace, testBytes, noWord)
		if failed == nil {
			failed = errors.Join(adopted(v, image), v.Close())
		}
		d.Heal()
		// Tried again it is there, and the disk holds what it held.
		v, wrong = Adopt(d, "/r", "/old/disk", testPlace, testBytes, noWord)
		if wrong == nil {
			wrong = errors.Join(adopted(v, image), v.Write([]byte("new"), 100), v.Sync(), v.Close())
		}
		if wrong == nil {
			want := bytes.Clone(image)
			copy(want[100:], "new")
			if v, wrong = OpenAt(d, "/r", "/old/disk", testPlace, testBytes); wrong == nil {
				wrong = errors.Join(adopted(v, want), v.Close())
			}
		}
		return failed, wrong
	})
}

// What is on the disk when Adopt returns is there after a crash; before it the disk is as it was.
func TestAdoptCrash(t *testing.T) {
	d, image := aDisk(t)
	v, err := Adopt(d, "/r", "/old/disk", testPlace, testBytes, noWord)
	must(t, err)
	crashed := d.Crash(seeded(1), faultdisk.KeepNone)
	must(t, v.Close())
	v, err = OpenAt(crashed, "/r", "/old/disk", testPlace, testBytes)
	must(t, err)
	must(t, errors.Join(adopted(v, image), v.Close()))
}

func TestAdoptRefuses(t *testing.T) {
	d, _ := aDisk(t)
	if _, err := Adopt(d, "/r", "/old/disk", testPlace, testBytes+BlockBytes, noWord); err == nil {
		t.Error("a disk of another size")
	}
	if _, err := Adopt(d, "/r", "/old/none", testPlace, testBytes, noWord); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a disk that is not there: %v", err)
	}
	if _, err := Adopt(d, "/r", "/old/disk", testPlace, testBytes, func(int64) error { return syscall.EINTR }); !errors.Is(err, syscall.EINTR) {
		t.Errorf("its caller wants it to end: %v", err)
	}
}

// A disk that somebody serves is not adopted, and one that was adopted nobody else gets.
func TestAdoptLocks(t *testing.T) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	must(t, os.WriteFile(disk, make([]byte, 2*BlockBytes), 0o600))
	fs := ioengine.OS()
	f, err := fs.Open(disk, 0)
	must(t, err)
	must(t, f.(ioengine.Holder).Hold())
	if _, err := Adopt(fs, dir, disk, testPlace, 2*BlockBytes, noWord); !errors.Is(err, ioengine.ErrLocked) {
		t.Errorf("it is served: %v", err)
	}
	must(t, f.Close())
	v, err := Adopt(fs, dir, disk, testPlace, 2*BlockBytes, noWord)
	must(t, err)
	must(t, v.Close())
	v, err = OpenAt(fs, dir, disk, testPlace, 2*BlockBytes)
	must(t, err)
	f, err = fs.Open(disk, 0)
	must(t, err)
	if err := f.(ioengine.Holder).Hold(); !errors.Is(err, ioengine.ErrLocked) {
		t.Errorf("it is a replica: %v", err)
	}
	must(t, errors.Join(f.Close(), v.Close()))
}

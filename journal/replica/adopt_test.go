package replica

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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

// An adopted disk that cannot be made larger, as a device cannot, is used as far as its owner has enlarged it, whatever
// that part holds; until then the error names it.
func TestAdoptedDiskGrows(t *testing.T) {
	_, image := aDisk(t)
	image = append(image, make([]byte, grownBytes-testBytes)...)
	device := faultdisk.Fault{Ops: faultdisk.OpTruncate, Only: func(name string) bool { return name == "/old/disk" }, Ever: true, Err: syscall.EINVAL}
	for what, owner := range map[string]int64{"as large": ImageBytes(grownBytes), "larger": ImageBytes(grownBytes) + 3*BlockBytes, "a file": 0} {
		failEach(t, func() *faultdisk.Disk {
			d, _ := aDisk(t)
			v, err := Adopt(d, "/r", "/old/disk", testPlace, testBytes, noWord)
			must(t, err)
			must(t, v.Close())
			if owner > 0 {
				f, err := d.Open("/old/disk", 0)
				must(t, err)
				_, err = f.WriteAt(bytes.Repeat([]byte("junk"), int(owner-ImageBytes(testBytes))/4), ImageBytes(testBytes))
				must(t, errors.Join(err, f.Sync(), f.Close()))
			}
			return d
		}, func(d *faultdisk.Disk) (failed, wrong error) {
			if owner > 0 {
				d.Inject(device)
			}
			grow := func() error {
				v, err := OpenAt(d, "/r", "/old/disk", testPlace, testBytes)
				if err == nil {
					err = v.Grow(grownBytes)
					if err == nil {
						err = adopted(v, image)
					}
					err = errors.Join(err, v.Close())
				}
				return err
			}
			if failed = grow(); failed != nil {
				d.Heal()
				if owner > 0 {
					d.Inject(device)
				}
				if wrong = grow(); wrong != nil {
					return failed, fmt.Errorf("%s: %w", what, wrong)
				}
			}
			d.Heal()
			v, wrong := OpenAt(d.Crash(seeded(1), faultdisk.KeepNone), "/r", "/old/disk", testPlace, grownBytes)
			if wrong == nil {
				wrong = errors.Join(adopted(v, image), v.Close())
			}
			return failed, wrong
		})
	}

	d, image := aDisk(t)
	v, err := Adopt(d, "/r", "/old/disk", testPlace, testBytes, noWord)
	must(t, err)
	d.Inject(device)
	if err := v.Grow(grownBytes); !errors.Is(err, syscall.EINVAL) || !strings.Contains(err.Error(), "/old/disk has ") || !strings.Contains(err.Error(), "enlarge it") {
		t.Errorf("a device that is too small: %v", err)
	}
	must(t, errors.Join(adopted(v, image), v.Close()))
}

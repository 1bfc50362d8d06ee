package faultdisk

import (
	"errors"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
)

// Each operation of a file system that lies over another fails where it is told to, and
// else does what that one does.
func TestOver(t *testing.T) {
	run := func(o *Over) error {
		for _, do := range []func() error{
			func() error { return o.Mkdir("/d") },
			func() error { return o.SyncDir("/") },
			func() error { _, err := o.List("/"); return err },
			func() error { _, err := o.Free("/"); return err },
			func() error { c, err := o.Lock("/d/lock"); return errors.Join(err, closeIf(c, err)) },
			func() error { return o.Remove("/d/lock") },
		} {
			if err := do(); err != nil {
				return err
			}
		}
		f, err := o.Open("/d/a", ioengine.Create)
		if err != nil {
			return err
		}
		defer f.Close()
		started := make(chan error, 1)
		for _, do := range []func() error{
			func() error { _, err := f.WriteAt([]byte("abc"), 0); return err },
			func() error {
				f.WriteStart([][]byte{[]byte("d")}, 3, func(err error) { started <- err })
				return <-started
			},
			func() error { return f.Allocate(0, 100) },
			func() error { return f.Truncate(50) },
			func() error { return f.Zero(10, 5) },
			func() error { _, err := f.Size(); return err },
			func() error { _, _, err := f.NextData(0); return err },
			func() error { return f.Sync() },
			func() error { return o.SyncFiles([]ioengine.File{f}) },
			func() error { return o.Rename("/d/a", "/d/b") },
		} {
			if err := do(); err != nil {
				return err
			}
		}
		p := make([]byte, 4)
		if _, err = f.ReadAt(p, 0); err == nil && string(p) != "abcd" {
			return errors.New("other bytes")
		}
		return err
	}
	for at := 1; ; at++ {
		o, seen := NewOver(New(1)), 0
		o.Inject(Fault{Ops: OpAny, At: at, Err: syscall.EIO, Only: func(string) bool { seen++; return true }})
		err := run(o)
		if seen < at {
			if err != nil || at != 19 {
				t.Errorf("%d operations: %v", at-1, err)
			}
			return
		}
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("error at %d: %v", at, err)
		}
		o.Heal()
		if o.Remove("/nothing") == nil {
			t.Error("what fails beneath does not fail")
		}
	}
}

func closeIf(c interface{ Close() error }, err error) error {
	if err != nil {
		return nil
	}
	return c.Close()
}

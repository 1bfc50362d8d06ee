package replica

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// plainDisk is a replica that was written to, as a disk of its own, and what it holds.
func plainDisk(t *testing.T) (d *faultdisk.Disk, v *Volume, image []byte) {
	t.Helper()
	d = faultdisk.New(512)
	must(t, d.Mkdir("/r"))
	must(t, d.SyncDir("/"))
	v, err := Create(d, "/r", testPlace, testBytes)
	must(t, err)
	image = make([]byte, testBytes)
	for i := range image[8192:30000] {
		image[8192+i] = byte(i) | 1
	}
	must(t, v.Write(image[8192:30000], 8192))
	must(t, v.Sync())
	return d, v, image
}

// plainly writes to it in parts of blocks, and says what fails.
func plainly(p *Plain, image []byte) error {
	part := bytes.Repeat([]byte{0x5a}, 700)
	copy(image[9000:], part)
	if err := p.WriteAt(part, 9000); err != nil {
		return err
	}
	clear(image[12288:20480])
	if err := p.Zero(12288, 8192); err != nil {
		return err
	}
	if err := p.Sync(); err != nil {
		return err
	}
	got := make([]byte, len(image))
	if err := p.ReadAt(got, 0); err != nil {
		return err
	}
	if !bytes.Equal(got, image) {
		return errWrong
	}
	at := int64(0)
	err := p.Extents(0, testBytes, func(n int64, hole bool) bool {
		if hole && !bytes.Equal(image[at:at+n], make([]byte, n)) {
			at = -testBytes
		}
		at += n
		return true
	})
	if err == nil && at != testBytes {
		err = fmt.Errorf("extents end at %d: %w", at, errWrong)
	}
	return err
}

var errWrong = errors.New("another disk")

// What is written to the image itself is read there, and not by way of the sums any more.
func TestPlain(t *testing.T) {
	d, v, image := plainDisk(t)
	p := v.Plain()
	must(t, plainly(p, image))
	if err := v.ReadAt(make([]byte, 4096), 8192); !errors.Is(err, ErrCorrupt) {
		t.Errorf("by its sums: %v", err)
	}
	for _, err := range []error{p.ReadAt(make([]byte, 2), testBytes-1), p.WriteAt(make([]byte, 2), testBytes-1), p.Zero(-1, 1)} {
		if err == nil {
			t.Error("outside of the volume")
		}
	}
	calls := 0
	must(t, p.Extents(0, testBytes, func(int64, bool) bool { calls++; return false }))
	if calls != 1 {
		t.Errorf("told %d times", calls)
	}
	f, err := d.Open(ImageName("/r", testPlace.Volume), 0)
	must(t, err)
	must(t, f.Truncate(4096))
	if err := p.ReadAt(make([]byte, 4096), 4096); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("of a disk that has shrunk: %v", err)
	}
	must(t, errors.Join(f.Close(), v.Close()))
}

// Every operation fails once: it is told, and only a failed sync is final.
func TestPlainErrorAtEveryOperation(t *testing.T) {
	for at := 1; ; at++ {
		d, v, image := plainDisk(t)
		p, seen, failed := v.Plain(), 0, faultdisk.Op(0)
		d.OnOp(func(op faultdisk.Op, _ string) { failed = op })
		d.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, Err: syscall.EIO, At: at, Only: func(string) bool { seen++; return true }})
		err := plainly(p, image)
		d.OnOp(nil)
		d.Heal()
		if seen < at {
			must(t, errors.Join(err, v.Close()))
			break
		}
		if !errors.Is(err, syscall.EIO) {
			t.Fatalf("operation %d: %v", at, err)
		}
		again := plainly(p, image)
		if final := errors.Is(err, ErrFailed); final != errors.Is(again, ErrFailed) || !final && again != nil {
			t.Fatalf("operation %d (%#x): %v, and then %v", at, failed, err, again)
		}
		must(t, v.Close())
	}
}

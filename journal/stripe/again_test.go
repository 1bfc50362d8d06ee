package stripe

import (
	"bytes"
	"errors"
	"io/fs"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// Whatever rots of a parity file is found by reading it back, and made anew: it then brings
// as much of the file back as on the first day.
func TestParityIsReadBack(t *testing.T) {
	const size = 80*BlockBytes + 12345 // 3 stripes
	par := ParityName(testSegment)
	f := func(what string, wantAnew bool, wantErr error, hurt func(d *faultdisk.Disk)) {
		t.Helper()
		d, want := protectedDisk(t, size)
		hurt(d)
		spent := 0
		anew, err := Local{FS: d}.Verify(testSegment, testID, func(n int) error { spent += n; return nil })
		if anew != wantAnew || !errors.Is(err, wantErr) {
			t.Errorf("%s: made anew %v, %v", what, anew, err)
		}
		d.Heal()
		if err != nil {
			return
		}
		if least := 6 * BlockBytes; spent < least || wantAnew && spent < least+size {
			t.Errorf("%s: %d bytes paced", what, spent)
		}
		if found, err := Check(d, testSegment, testID, nil); err != nil || !found.Well() {
			t.Errorf("%s: afterwards %v, %v", what, found, err)
		}
		ok(t, d.Rot(testSegment, 0, 1))
		ok(t, d.Rot(testSegment, 3*BlockBytes, 1))
		if got, _, err := repaired(d); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: two blocks of a stripe do not come back: %v", what, err)
		}
	}
	rot := func(at int64) func(*faultdisk.Disk) { return func(d *faultdisk.Disk) { ok(t, d.Rot(par, at, 1)) } }
	f("nothing", false, nil, func(*faultdisk.Disk) {})
	f("the front table", true, nil, rot(90))
	f("the back table", true, nil, rot(4096+6*BlockBytes+90))
	f("the first block", true, nil, rot(4096))
	f("the last block", true, nil, rot(4096+6*BlockBytes-1))
	f("a latent sector", true, nil, func(d *faultdisk.Disk) {
		d.Inject(faultdisk.Fault{Ops: faultdisk.OpRead, Only: func(n string) bool { return n == par }, At: 5, Err: syscall.EIO})
	})
	f("gone", false, fs.ErrNotExist, func(d *faultdisk.Disk) { ok(t, d.Remove(par)) })
	f("both tables", false, ErrCorrupt, func(d *faultdisk.Disk) { rot(90)(d); rot(4096 + 6*BlockBytes + 90)(d) })
	f("the file as well", false, ErrCorrupt, func(d *faultdisk.Disk) { rot(4096)(d); ok(t, d.Rot(testSegment, 50*BlockBytes, 1)) })
	f("the file is longer", false, ErrCorrupt, func(d *faultdisk.Disk) {
		g, err := d.Open(testSegment, 0)
		ok(t, err)
		ok(t, g.Truncate(size+1))
		ok(t, g.Close())
	})
}

// Where file and parity both rotted, what is left of the parity stays: it brings the file back.
func TestParityOfRotIsNotMade(t *testing.T) {
	d, want := protectedDisk(t, 80*BlockBytes)
	ok(t, d.Rot(ParityName(testSegment), 4096, 1))
	ok(t, d.Rot(testSegment, 50*BlockBytes, 1))
	if _, err := (Local{FS: d}).Verify(testSegment, testID, nil); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
	if got, _, err := repaired(d); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file does not come back: %v", err)
	}
}

// Each operation of reading parity back and making it anew fails, or is the last before a crash:
// an error or none, and the file can be repaired as well as before.
func TestParityReadBackErrorAndCrashAtEveryOperation(t *testing.T) {
	base, want := protectedDisk(t, 3*BlockBytes+700)
	ok(t, base.Rot(ParityName(testSegment), 4096+5, 1))
	whole := func(d *faultdisk.Disk, when string, n int) {
		t.Helper()
		ok(t, d.Rot(testSegment, 100, 1))
		if got, _, err := repaired(d); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s %d: %v", when, n, err)
		}
	}
	dry := base.Kill()
	if anew, err := (Local{FS: dry}).Verify(testSegment, testID, nil); !anew || err != nil {
		t.Fatal(anew, err)
	}
	for n := 1; n <= dry.Ops()+12; n++ { // those, and the reading and opening
		d := base.Kill()
		d.Inject(faultdisk.Fault{Ops: faultdisk.OpAny | faultdisk.OpRead | faultdisk.OpOpen, At: n, Err: syscall.EIO})
		_, err := Local{FS: d}.Verify(testSegment, testID, nil)
		d.Heal()
		whole(d.Crash(seeded(n), faultdisk.KeepNone), "an error at", n)
		if _, again := (Local{FS: d}).Verify(testSegment, testID, nil); again != nil {
			t.Fatalf("after an error at %d (%v): %v", n, err, again)
		}
		if found, err := Check(d, testSegment, testID, nil); err != nil || !found.Well() {
			t.Fatalf("after an error at %d: %v, %v", n, found, err)
		}

		d = base.Kill()
		var crashed *faultdisk.Disk
		count := 0
		d.OnOp(func(faultdisk.Op, string) {
			if count++; count == n {
				crashed = d.Crash(seeded(n), faultdisk.KeepTorn)
			}
		})
		_, err = Local{FS: d}.Verify(testSegment, testID, nil)
		ok(t, err)
		if crashed != nil {
			whole(crashed, "a crash at", n)
		}
	}
}

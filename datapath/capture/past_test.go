package capture

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// filtered names a volume, once the filter answers.
func (r *rig) filtered(vol int) Filtered {
	r.t.Helper()
	f := Filtered{PoolSocket: r.cfg.PoolSocket, Group: testGroup, Volume: r.cfg.Volumes[vol].ID}
	within(r.t, "the filter answers", func() bool { _, err := f.Past(r.t.Context()); return err == nil })
	return f
}

// wantPast holds a volume to what it is while somebody writes past the filter, or to be all dirty.
func (r *rig) wantPast(tap *Tap, want Past, lost uint64) {
	r.t.Helper()
	got, err := r.filtered(0).Past(r.t.Context())
	if err != nil || got.Past != want || got.Path != r.cfg.Volumes[0].Path {
		r.t.Fatalf("%+v, %v; want %d", got, err, want)
	}
	if dirty := dirtyBlocks(r.t, tap, 1); dirty != r.vol(0).disk.size.Load()/BlockBytes {
		r.t.Errorf("%v: %d blocks are dirty", want, dirty)
	}
	if tap.Lost() == lost {
		r.t.Errorf("%v: lost does not tell", want)
	}
	if err := tap.SyncRead(r.t.Context(), 1, 0, BlockBytes); want != PastNone && (err == nil || !strings.Contains(err.Error(), want.String())) {
		r.t.Errorf("%v: a sync read: %v", want, err)
	}
}

// TestDetachedVolume: from the detaching on until it was attached again, whatever becomes of the
// filter, all of the volume is dirty and cannot be read; then it is read whole.
func TestDetachedVolume(t *testing.T) {
	r := newRig(t, 512, 4*mib, mib, 2).open()
	tap := r.covered()
	lost := tap.Lost()
	for range 2 { // the second time changes nothing
		if err := r.filtered(0).Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.wantPast(tap, PastTold, lost)
	}
	write(t, r.vol(0), 4096, fill(512, 1)) // who comes this way all the same is served
	if dirty := dirtyBlocks(t, tap, 2); dirty != 0 {
		t.Errorf("the other volume: %d blocks dirty", dirty)
	}
	r.kill()
	r.open()
	r.wantPast(tap, PastTold, lost)
	r.stopRun()
	if err := r.filter.Close(); err != nil {
		t.Fatal(err)
	}
	r.open()
	r.wantPast(tap, PastTold, lost)
	r.filter.turn() // nobody is seen, which takes back nothing that was said
	r.wantPast(tap, PastTold, lost)
	lost = tap.Lost()
	if err := r.filtered(0).Attach(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.wantPast(tap, PastNone, lost)
	lost = tap.Lost()
	if err := r.filtered(0).Attach(t.Context()); err != nil || tap.Lost() != lost {
		t.Errorf("attached twice: %v, lost %d and %d", err, lost, tap.Lost())
	}
}

// TestWriterIsSeen: a lock as QEMU takes it is seen, at the start of a filter too, and its end.
func TestWriterIsSeen(t *testing.T) {
	r := laneRig(t, mib, 8*mib)
	tap := r.covered()
	other, err := os.OpenFile(r.cfg.Volumes[0].Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	lock := func(kind int16) {
		t.Helper()
		l := unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: 100, Len: 2}
		if err := unix.FcntlFlock(other.Fd(), unix.F_OFD_SETLK, &l); err != nil {
			t.Fatal(err)
		}
	}
	lost := tap.Lost()
	r.filter.turn()
	if r.vol(0).past() != PastNone || tap.Lost() != lost {
		t.Error("a file that is open is not one that is written to")
	}
	lock(unix.F_RDLCK)
	r.filter.turn()
	r.wantPast(tap, PastSeen, lost)
	if err := r.filtered(0).Attach(t.Context()); err == nil || !strings.Contains(err.Error(), "still has the disk open") {
		t.Errorf("attached beside a writer: %v", err)
	}
	lost = tap.Lost()
	lock(unix.F_UNLCK)
	r.filter.turn()
	r.wantPast(tap, PastNone, lost)
	lock(unix.F_RDLCK)
	r.kill()
	r.open()
	r.wantPast(tap, PastSeen, lost)
	// Said is said, whoever is seen.
	if err := r.filtered(0).Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	lock(unix.F_UNLCK)
	r.filter.turn()
	r.wantPast(tap, PastTold, lost)
}

func TestPastRefuses(t *testing.T) {
	r := newRig(t, 512, 4*mib, mib, 1).open()
	f := func(what Filtered, want string) {
		t.Helper()
		if err := what.Detach(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", what, err, want)
		}
	}
	good := r.filtered(0)
	f(Filtered{good.PoolSocket, good.Group, 9}, "no volume 9 here")
	f(Filtered{good.PoolSocket, 5, good.Volume}, "this filter is of group")
	f(Filtered{good.PoolSocket + "x", good.Group, good.Volume}, "no such file")
	if _, err := good.ask(t.Context(), 7); err == nil || !strings.Contains(err.Error(), "unknown wish 7") {
		t.Error(err)
	}
	if r.vol(0).past() != PastNone {
		t.Error("a refused question changed something")
	}
	for _, p := range [][]byte{nil, fill(7, 0), fill(8, 9), pastBody(PastUnsynced+1, "/d")} {
		if _, err := parsePast(p); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%x: %v", p, err)
		}
	}
	if p, err := parsePast(pastBody(PastSeen, "/d")); err != nil || p != (VolumePast{PastSeen, "/d"}) {
		t.Errorf("%+v, %v", p, err)
	}
}

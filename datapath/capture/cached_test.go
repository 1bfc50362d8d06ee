package capture

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/datapath/capture/activity"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// newCachedRig is a loggedRig whose volume is cached.
func newCachedRig(t *testing.T, size int64) *loggedRig {
	r := newLoggedRig(t, size)
	r.cfg.Volumes[0].Writeback = true
	return r
}

// applied takes n writes from the tap, into what the target holds.
func applied(r *loggedRig, target []byte, n int) {
	r.t.Helper()
	for _, w := range next(r.t, r.tap, n) {
		switch w.Kind {
		case Data, SyncData:
			copy(target[w.Off:], payload(w))
		default:
			clear(target[w.Off:][:w.Len])
		}
		r.tap.Free([]Write{w})
	}
}

// resynced has the tap read all that is dirty, into what the target holds.
func resynced(r *loggedRig, target []byte) {
	r.t.Helper()
	done := syncing(r.t, r.tap, 0, r.size)
	for dirtyBlocks(r.t, r.tap, 1) > 0 {
		applied(r, target, 1)
	}
	if err := <-done; err != nil {
		r.t.Fatal(err)
	}
	ws, err := r.tap.Next(r.t.Context(), 1000, 0)
	for _, w := range ws {
		if w.Kind == SyncData {
			copy(target[w.Off:], payload(w))
		} else {
			clear(target[w.Off:][:w.Len])
		}
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.tap.Free(ws)
}

// TestCachedAndCrashed: of a cached disk a crash of the host takes what was answered and not flushed, which the target has. It is found, and the
// target made the same. What was flushed is there, and what has left the log is.
func TestCachedAndCrashed(t *testing.T) {
	const size = 12 * region
	r := newCachedRig(t, size)
	v := r.start()
	r.tapOf()
	target := make([]byte, size)
	flushed, gone, idle := int64(0), int64(6*region+4096), int64(9*region)
	write(t, v, flushed, fill(512, 1))
	if err := v.Flush(); err != nil {
		t.Fatal(err)
	}
	write(t, v, idle, fill(BlockBytes, 3))
	applied(r, target, 2)
	r.tap.PublishDurable(r.tap.LastTicket())
	r.filter.turn()
	r.filter.turn()
	for range 4 {
		v.tickLog()
	}
	v.activity.Keep() // both leave, and what is idle nobody has flushed but the log itself
	v.activity.Keep()
	within(t, "the regions have left", func() bool {
		f := activity.Read(r.disk, "/disk.activity", activity.Identity{Boot: bootID{r.boot}, Group: uint64(testGroup), Volume: 1, Bytes: size})
		return f.Active.Count() == 0
	})
	write(t, v, gone, fill(512, 2))
	applied(r, target, 1)
	r.tap.PublishDurable(r.tap.LastTicket())
	r.filter.turn()
	r.filter.turn() // the marks know nothing of it any more
	r.crash(rand.New(rand.NewPCG(1, 1)), faultdisk.KeepNone)
	v = r.start()
	if got, want := dirtyRegions(v), "4:4096 5:4096 6:4096 7:4096 "; got != want {
		t.Errorf("dirty are %s, want %s", got, want)
	}
	r.openTapOf()
	resynced(r, target)
	disk := make([]byte, size)
	if err := v.ReadAt(disk, 0); err != nil {
		t.Fatal(err)
	}
	if disk[flushed] != 1 || disk[gone] != 0 || disk[idle] != 3 {
		t.Errorf("the disk holds %d, %d and %d", disk[flushed], disk[gone], disk[idle])
	}
	if !bytes.Equal(disk, target) {
		t.Error("the target holds something else")
	}
}

// TestFailedSyncIsFinal: once a sync of a cached disk has failed no flush succeeds, whichever filter is asked, and nothing is read, until it is
// said to a filter that came after that the disk was seen to. A disk that is not cached shows what it has, and is read.
func TestFailedSyncIsFinal(t *testing.T) {
	const size = 4 * region
	f := func(cached bool) {
		r := newLoggedRig(t, size)
		r.cfg.Volumes[0].Writeback = cached
		v := r.start()
		r.tapOf()
		lost := r.tap.Lost()
		write(t, v, 0, fill(512, 1))
		r.disk.Inject(faultdisk.Fault{Err: syscall.EIO, Ops: faultdisk.OpSync, Only: func(n string) bool { return n == "/disk" }})
		if err := v.Flush(); !errors.Is(err, syscall.EIO) {
			t.Fatalf("cached %v: %v", cached, err)
		}
		refused := func(when string, want bool) {
			t.Helper()
			w, err := r.vol(0).BeginWrite(0, 512)
			if err != nil {
				t.Fatal(err)
			}
			for what, err := range map[string]error{"a flush": r.vol(0).Flush(), "FUA": w.Commit(true)} {
				if (err != nil) != want {
					t.Errorf("cached %v, %s: %s says %v", cached, when, what, err)
				}
			}
			if dirty := r.vol(0).dirtyBlocks(); dirty != size/BlockBytes || r.tap.Lost() == lost {
				t.Errorf("cached %v, %s: %d blocks are dirty, and lost is %d", cached, when, dirty, r.tap.Lost())
			}
		}
		refused("at once", true)
		r.disk.Heal()
		refused("later", true)
		if err := r.filtered(0).Attach(t.Context()); cached && (err == nil || !strings.Contains(err.Error(), "start the filter again")) {
			t.Errorf("under the filter that saw it: %v", err)
		}
		r.kill()
		r.start()
		refused("by a filter that came after", cached)
		if cached {
			r.wantPast(r.tap, PastUnsynced, lost)
			if err := r.filtered(0).Detach(t.Context()); err != nil {
				t.Error(err)
			}
			r.wantPast(r.tap, PastUnsynced, lost)
		}
		if err := r.filtered(0).Attach(t.Context()); err != nil {
			t.Fatal(err)
		}
		refused("once it was seen to", false)
		r.wantPast(r.tap, PastNone, lost)
		resynced(r, make([]byte, size))
	}
	f(true)
	f(false)
}

// TestCloseSyncs: what was answered is on a cached disk once its filter has closed, with an activity log or without.
func TestCloseSyncs(t *testing.T) {
	r := newCachedRig(t, 4*region)
	r.cfg.Volumes[0].Log = ""
	write(t, r.start(), 4096, fill(512, 7))
	r.stopRun()
	if err := r.filter.Close(); err != nil {
		t.Fatal(err)
	}
	r.filter = nil
	onDisk(r, 7)
}

// TestSettles: what was answered is on a cached disk before its filter stops.
func TestSettles(t *testing.T) {
	r := newCachedRig(t, 4*region)
	write(t, r.start(), 4096, fill(512, 7))
	r.filter.Settle()
	onDisk(r, 7)
}

// onDisk checks what a crash of the host at this moment leaves at byte 4096 of the disk.
func onDisk(r *loggedRig, want byte) {
	r.t.Helper()
	file, err := r.disk.Crash(rand.New(rand.NewPCG(1, 1)), faultdisk.KeepNone).Open("/disk", ioengine.ReadOnly)
	if err != nil {
		r.t.Fatal(err)
	}
	p := make([]byte, 512)
	if err := readFull(file, p, 4096); err != nil || p[0] != want {
		r.t.Errorf("a crash leaves %d (%v), want %d", p[0], err, want)
	}
}

// TestCachedLane: a write into the page cache has ended when the call returns, and is read by whoever reads. One that the kernel holds up is no
// hang, and has the next ones go by a thread of its.
func TestCachedLane(t *testing.T) {
	r := laneRig(t, mib, 8*mib)
	r.kill()
	r.cfg.Volumes[0].Writeback = true
	r.open()
	v := r.vol(0)
	l, err := v.Lane(4)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ended := 0
	begin := func(off int64, b byte) {
		t.Helper()
		w, err := v.BeginWrite(off, 512)
		if err != nil {
			t.Fatal(err)
		}
		copy(w.Buffers()[0], fill(512, b))
		l.Write(w, func(err error) {
			if ended++; err != nil {
				t.Error(err)
			}
		})
	}
	begin(512, 1)
	if ended != 1 || l.Loop().Flying() != 0 {
		t.Errorf("%d writes ended, and %d fly", ended, l.Loop().Flying())
	}
	held := &heldUp{File: v.disk.file, look: func() {
		for range 3 * hangBeats {
			if v.hang() {
				t.Error("a write that the kernel holds up is taken for a hang")
				break
			}
		}
	}}
	v.disk.file = held
	begin(1024, 2)
	v.disk.file = held.File
	l.(*lane).cost = cachedTime
	begin(1536, 3)
	if ended != 2 || l.Loop().Flying() != 1 {
		t.Errorf("%d writes ended, and %d fly: one that may take long is to go by the loop", ended, l.Loop().Flying())
	}
	for l.Loop().Flying() > 0 {
		if err := l.Loop().Wait(); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Loop().Step(); err != nil {
			t.Fatal(err)
		}
	}
	if l.(*lane).quick(); !l.(*lane).quick() {
		t.Error("none is tried again")
	}
	got := make([]byte, 2048)
	if err := v.ReadAt(got, 0); err != nil || !bytes.Equal(got, append(append(make([]byte, 512), fill(512, 1)...), append(fill(512, 2), fill(512, 3)...)...)) {
		t.Errorf("the disk holds %d %d %d, %v", got[512], got[1024], got[1536], err)
	}
}

// heldUp is a file whose writes look about before they end.
type heldUp struct {
	ioengine.File
	look func()
}

func (f *heldUp) WriteParts(parts [][]byte, off int64) error {
	f.look()
	return f.File.WriteParts(parts, off)
}

// TestCachedSync: a sync read of a cached disk sees what stands in the page cache alone, also where the file had a hole, and holes as such.
func TestCachedSync(t *testing.T) {
	r := laneRig(t, 4*mib, 8*mib)
	r.kill()
	r.cfg.Volumes[0].Writeback = true
	r.open()
	v := r.vol(0)
	tap := r.covered()
	dirty(v, 0, 4*mib/BlockBytes)
	write(t, v, 2*mib, fill(512, 9)) // not captured: it is dirty
	done := syncing(t, tap, 0, 4*mib)
	got := fill(4*mib, 0xff)
	for seen := int64(0); seen < 4*mib; {
		for _, w := range next(t, tap, 1) {
			if seen += w.Len; w.Kind == SyncData {
				copy(got[w.Off:], payload(w))
			} else {
				clear(got[w.Off:][:w.Len])
			}
			tap.Free([]Write{w})
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 4*mib)
	copy(want[2*mib:], fill(512, 9))
	if !bytes.Equal(got, want) {
		t.Error("what was read is not what was written")
	}
}

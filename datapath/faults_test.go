package datapath

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/index"
)

// TestLinkCut cuts the link under writes: the guest does not notice, nothing is
// synchronised again, and the group comes back by itself.
func TestLinkCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start()
	w.awaitState(api.StateProtected)
	var most atomic.Int64 // of the window: what is above a quarter is kept for when the cut is seen
	most.Store(w.window / 4)
	g := w.writeWithin(&most, w.size, 2*time.Millisecond)
	inc, synced := w.s.flows[0].mu.inc, w.s.flows[0].count.syncRead.Load()
	for range times(2) {
		most.Store(w.window / 4)
		w.await("the window of the last cut to be sent", func() bool { return w.status().WindowBytes < most.Load() })
		w.link.Down()
		w.awaitState(api.StateDisconnected)
		most.Store(w.window / 2)
		w.await("the loss of the session to be counted", func() bool { return w.s.peers[0].lost.Load() > 0 })
		before := w.status().PackRawBytesTotal
		w.await("writes that go on", func() bool { return w.status().PackRawBytesTotal > before+1<<20 })
		w.link.Up()
		w.awaitState(api.StateProtected, api.StateBehind)
	}
	g.endPrompt()
	w.verify("after the cuts")
	if f := w.s.flows[0]; f.mu.inc != inc || f.count.syncRead.Load() != synced {
		t.Errorf("a cut link made incarnation %d of %d, and %d bytes were read again", f.mu.inc, inc, f.count.syncRead.Load()-synced)
	}
}

// times is how often a test repeats itself: half as often where time is short.
func times(n int) int {
	if testing.Short() {
		return n / 2
	}
	return n
}

// TestSourceKilled kills the source under writes to a small part of the disk: what is
// sent again is that part and no more.
func TestSourceKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.size = 16 << 20; w.pool = 1 << 20 })
	w.start()
	w.awaitState(api.StateProtected)
	// The marks of the first synchronisation go within seconds of its end.
	w.await("a few checkpoints", func() bool { return w.tg.group("").State().Count >= 5 })
	part := w.size / 10
	g := w.write(part, time.Millisecond)
	w.checkpoint("before")
	w.killSource()
	w.await("drops", func() bool { return w.f.Device("vol1") != nil && g.count() > 1000/slower })
	w.startSource()
	w.awaitState(api.StateProtected)
	g.endPrompt()
	w.verify("after")
	if sent := w.s.flows[0].count.syncRead.Load(); sent == 0 || sent > uint64(w.size/4) {
		t.Errorf("%d bytes of %d were read again", sent, w.size)
	}
	if raw := w.s.flows[0].count.raw.Load(); raw > uint64(w.size)*2 {
		t.Errorf("%d bytes were sent", raw)
	}
}

// TestTargetRestarts stops the target under writes.
func TestTargetRestarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start()
	w.awaitState(api.StateProtected)
	g := w.write(w.size, 2*time.Millisecond)
	before := w.checkpoint("before")
	w.stopTarget()
	w.awaitState(api.StateDisconnected)
	w.startTarget()
	w.awaitState(api.StateProtected, api.StateBehind)
	g.end()
	w.verify("after")
	if _, err := w.tg.group("").Checkpoint(number(t, before)); err != nil {
		t.Errorf("a checkpoint listed before is gone: %v", err)
	}
}

func number(t *testing.T, id string) uint64 {
	n, err := strconv.ParseUint(id, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestTargetLostEverything gives the target an empty store: it is filled again, and
// that is said.
func TestTargetLostEverything(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start()
	w.awaitState(api.StateProtected)
	g := w.write(w.size, 5*time.Millisecond)
	w.checkpoint("before")
	w.stopTarget()
	if err := os.RemoveAll(w.dir + "/store"); err != nil {
		t.Fatal(err)
	}
	w.startTarget()
	w.awaitSaid(api.StateInitialSync, "the target has lost everything")
	w.awaitState(api.StateProtected)
	g.end()
	w.verify("after")
}

// TestTargetFallsBack gives the target an older copy of its store while the source is
// down too: what was acknowledged since is gone, the source knows, and all is sent again.
func TestTargetFallsBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start()
	w.awaitState(api.StateProtected)
	w.stopTarget()
	if err := os.CopyFS(w.dir+"/old", os.DirFS(w.store)); err != nil {
		t.Fatal(err)
	}
	w.startTarget()
	g := w.write(w.size, 2*time.Millisecond)
	w.awaitState(api.StateProtected)
	// The marks of what is acknowledged go within seconds; then only the ledger knows.
	count := w.tg.group("").State().Count
	w.await("a few checkpoints", func() bool { return w.tg.group("").State().Count >= count+4 })
	g.end()
	w.checkpoint("lost")
	w.killSource()
	w.stopTarget()
	if err := errors.Join(os.RemoveAll(w.store), os.Rename(w.dir+"/old", w.store)); err != nil {
		t.Fatal(err)
	}
	w.startTarget()
	w.startSource()
	w.awaitState(api.StateProtected)
	if n := w.s.flows[0].count.syncRead.Load(); n < uint64(w.size) {
		t.Errorf("%d bytes of %d were read again", n, w.size)
	}
	w.verify("after")
}

// TestPowerLoss cuts the power of the target, again and again: what was acknowledged
// is there, and nothing is synchronised again.
func TestPowerLoss(t *testing.T) {
	t.Parallel()
	disk := faultdisk.New(4096)
	w := newWorld(t, func(w *world) {
		w.fs, w.store = disk, "store"
		w.catalogue = func() (index.Map, error) { return &index.Memory{}, nil }
	})
	w.start()
	w.awaitState(api.StateProtected)
	synced := w.s.flows[0].count.syncRead.Load()
	g := w.writeGently(w.size, 2*time.Millisecond)
	rng := rand.New(rand.NewPCG(7, 7))
	for range times(4) {
		w.checkpoint("before")
		w.link.Down() // first: what it acknowledges after the cut is on no disk
		disk = disk.Crash(rng, faultdisk.KeepSome)
		w.stopTarget() // what it still wrote went to the disk that is no more
		w.link.Up()
		w.fs = disk
		w.startTarget()
		w.awaitState(api.StateProtected, api.StateBehind)
	}
	g.end()
	w.verify("after")
	if n := w.s.flows[0].count.syncRead.Load(); n != synced {
		t.Errorf("%d bytes were read again", n-synced)
	}
}

// TestKilledWhileDisconnected kills a source whose link was down for seconds: nothing
// of what it held is acknowledged, so every block of it is still marked.
func TestKilledWhileDisconnected(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.pool = 16 << 20; w.window = 64 << 20 })
	w.start()
	w.awaitState(api.StateProtected)
	w.await("a few checkpoints", func() bool { return w.tg.group("").State().Count >= 3 })
	w.link.Down()
	g := w.write(w.size, 10*time.Millisecond)
	down := time.Now()
	w.await("silence", func() bool { return time.Since(down) > silence+time.Second })
	if s := w.status(); s.LagSeconds != nil {
		t.Errorf("the target is silent and the lag %f s", *s.LagSeconds)
	}
	g.end()
	w.killSource()
	w.link.Up()
	w.startSource()
	w.awaitState(api.StateProtected)
	w.verify("after")
}

// TestWindowLost keeps the link down until window and pool are full: writes are only
// marked, which the state says, no guest waits, and afterwards all is sent.
func TestWindowLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.size = 16 << 20; w.window = 2 << 20; w.pool = 2 << 20 })
	w.start()
	w.awaitState(api.StateProtected)
	w.link.Down()
	g := w.write(w.size, 3*time.Millisecond)
	w.awaitState(api.StateMarksOnly)
	if s := w.status(); s.WindowBytes > w.window+int64(16<<20) {
		t.Errorf("the window holds %d bytes of %d", s.WindowBytes, s.WindowLimit)
	}
	marked := g.count()
	w.await("writes that are only marked", func() bool { return g.count() > marked+200 })
	w.link.Up()
	w.awaitState(api.StateProtected)
	g.endPrompt()
	w.verify("after")
}

// TestFilterRestarts restarts the filter, as a clean stop and start of a guest's disk.
func TestFilterRestarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start()
	w.awaitState(api.StateProtected)
	g := w.write(w.size, 2*time.Millisecond)
	w.checkpoint("before")
	g.end()
	w.filter.end(t)
	w.awaitState(api.StateError)
	w.startFilter()
	w.awaitState(api.StateProtected)
	g = w.write(w.size, 2*time.Millisecond)
	w.checkpoint("between")
	g.end()
	w.verify("after")
}

// TestDependentWrites writes a number to one volume and, once that is answered, to the
// other, again and again: no checkpoint has the second without the first.
func TestDependentWrites(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.volumes = []string{"vol1", "vol2"}; w.size = 4 << 20 })
	w.start()
	stop, done := make(chan struct{}), make(chan struct{})
	var written atomic.Uint64
	go func() {
		defer close(done)
		for n := uint64(1); ; n++ {
			for _, v := range w.volumes {
				select {
				case <-stop:
					return
				default:
				}
				wr, err := w.f.Device(v).BeginWrite(1<<20+4096, 4096)
				if err != nil {
					t.Error(err)
					return
				}
				for _, p := range wr.Buffers() {
					fillWord(p, n)
				}
				if err := wr.Commit(false); err != nil {
					t.Error(err)
					return
				}
			}
			written.Store(n)
		}
	}()
	w.awaitState(api.StateProtected)
	for range 5 {
		w.checkpoint("now")
	}
	w.killSource()
	w.startSource()
	w.awaitState(api.StateProtected)
	w.await("a hundred numbers", func() bool { return written.Load() >= 100 })
	w.checkpoint("again")
	close(stop)
	<-done
	cs, err := w.tg.group("").Checkpoints(0, 1000)
	if err != nil || len(cs) < 7 {
		t.Fatalf("%d checkpoints, %v", len(cs), err)
	}
	last := uint64(0)
	for _, c := range cs {
		a, b := w.wordsAt(c.Number)
		if a != b && a != b+1 || a < last {
			t.Errorf("checkpoint %d has %d on the first volume and %d on the second; the one before had %d", c.Number, a, b, last)
		}
		last = a
	}
	if last < 100 {
		t.Errorf("only %d numbers were written", last)
	}
}

func fillWord(p []byte, n uint64) {
	for i := 0; i+8 <= len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], n)
	}
}

// wordsAt reads the numbers of both volumes at a checkpoint.
func (w *world) wordsAt(number uint64) (a, b uint64) {
	w.t.Helper()
	views := Handlers(Identity{}, nil, w.tg).Views
	res, err := views.Open(context.Background(), &holdfastv1.ViewsServiceOpenRequest{Checkpoint: strconv.FormatUint(number, 10), ReadOnly: true})
	if err != nil {
		w.t.Fatal(err)
	}
	defer views.Close(context.Background(), &holdfastv1.ViewsServiceCloseRequest{Id: res.View.Id})
	var words [2]uint64
	for i, v := range res.View.Volumes {
		c, err := nbd.Dial(context.Background(), v.Nbd)
		if err != nil {
			w.t.Fatal(err)
		}
		p := make([]byte, 4096)
		if _, err := c.ReadAt(p, 1<<20+4096); err != nil {
			w.t.Fatal(err)
		}
		c.Close()
		words[i] = binary.LittleEndian.Uint64(p)
		for j := 0; j < len(p); j += 8 {
			if binary.LittleEndian.Uint64(p[j:]) != words[i] && number > 0 {
				w.t.Errorf("checkpoint %d: a torn block on %s", number, v.Name)
				break
			}
		}
	}
	return words[0], words[1]
}

// TestNoSpace fills the target's disk: the source says so, and goes on by itself once
// there is room.
func TestNoSpace(t *testing.T) {
	t.Parallel()
	full := &fullFS{FS: ioengine.OS()}
	w := newWorld(t, func(w *world) { w.fs = full })
	w.start()
	w.awaitState(api.StateProtected)
	g := w.write(w.size, 5*time.Millisecond)
	full.full.Store(true)
	w.await("the refusal", func() bool { s := w.status(); return s.State == api.StateError && contains(s.Reason, "no space") })
	if w.s.flows[0].count.refusals.Load() == 0 {
		t.Error("the refusal is not counted")
	}
	full.full.Store(false)
	w.awaitState(api.StateProtected, api.StateBehind)
	g.end()
	w.verify("after")
}

func contains(s, part string) bool {
	for i := 0; i+len(part) <= len(s); i++ {
		if s[i:i+len(part)] == part {
			return true
		}
	}
	return false
}

// fullFS is a file system that can be full.
type fullFS struct {
	ioengine.FS
	full atomic.Bool
}

type fullFile struct {
	ioengine.File
	fs *fullFS
}

func (f *fullFS) Open(name string, flags ioengine.Flags) (ioengine.File, error) {
	if f.full.Load() && flags&ioengine.Create != 0 {
		return nil, &os.PathError{Op: "open", Path: name, Err: syscall.ENOSPC}
	}
	file, err := f.FS.Open(name, flags)
	if err != nil {
		return nil, err
	}
	return fullFile{file, f}, nil
}

func (f fullFile) WriteAt(p []byte, off int64) (int, error) {
	if f.fs.full.Load() {
		return 0, syscall.ENOSPC
	}
	return f.File.WriteAt(p, off)
}

func (f fullFile) WriteStart(parts [][]byte, off int64, done func(error)) {
	if f.fs.full.Load() {
		go done(syscall.ENOSPC)
		return
	}
	f.File.WriteStart(parts, off, done)
}

func (f fullFile) WriteParts(parts [][]byte, off int64) error {
	if f.fs.full.Load() {
		return syscall.ENOSPC
	}
	return f.File.WriteParts(parts, off)
}

func (f fullFile) Allocate(off, n int64) error {
	if f.fs.full.Load() {
		return syscall.ENOSPC
	}
	return f.File.Allocate(off, n)
}

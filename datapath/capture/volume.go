package capture

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/holdfast-dr/holdfast/datapath/capture/activity"
	"github.com/holdfast-dr/holdfast/datapath/capture/activity/regions"
	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// volume is one guest's disk, split: a front.Device.
type volume struct {
	id    record.VolumeID
	name  string
	path  string
	disk  *disk
	owned interface{ Close() error } // the lock on the disk
	log   *slog.Logger

	mirror  *mirror  // nil: it has a disk of its own
	watched *os.File // the disk, to ask who else writes to it; nil where that cannot be asked
	pool    *pool
	ring    *ring
	page    *orderPage
	clock   monoClock
	wake    func() // wakes the VRA if it sleeps

	// mu is held for no longer than a walk over a few bits; never over I/O, never
	// while waiting for anyone.
	mu struct {
		sync.Mutex
		flights flights
		marks   *marks
		overrun overrun
		log     regions.State // of activity
	}
	turning sync.Mutex // the bits of closed generations, and who turns them

	lanes    lanes
	activity *activity.Log  // nil: none is kept
	logWord  *atomic.Uint64 // where the VRA sees how the log is; nil until there is a pool
	sizeWord *atomic.Uint64 // where it sees the size
	useWord  *atomic.Uint64 // where it sees how many connections use it
	growing  sync.Mutex     // who takes a larger size

	seen atomic.Pointer[span] // data that a sync read saw last

	syncFailed atomic.Bool // a failed sync is final
	active     sync.WaitGroup
}

var _ front.Device = (*volume)(nil)

func (v *volume) Size() int64    { return v.disk.size.Load() }
func (v *volume) ReadOnly() bool { return false }

func (v *volume) ReadAt(p []byte, off int64) error {
	if err := v.inside(off, int64(len(p))); err != nil {
		return err
	}
	if v.mirror != nil {
		return fmt.Errorf("volume %s is a mirror target: its guest's own disk has what is to be read", v.name)
	}
	return told(v.disk.readAt(p, off))
}

func (v *volume) inside(off, n int64) error {
	if size := v.disk.size.Load(); off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("volume %s: [%d, +%d) is not within %d bytes", v.name, off, n, size)
	}
	return nil
}

// told turns a disk's error into what a guest is told apart.
func told(err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("%w: %w", front.ErrNoSpace, err)
	}
	return err
}

// guestWrite is a guest's write, or zeroing, from BeginWrite until the guest is answered.
type guestWrite struct {
	flight
	v       *volume
	kind    Kind
	slots   []uint32 // none: nothing free, so that it is dropped
	runs    [][]byte
	private *[]byte // where the payload stands when there is no slot
}

var guestWrites = sync.Pool{New: func() any { return new(guestWrite) }}

// privateBytes and longPrivateBytes are what pooled buffers hold of payload that finds no slots; what is
// longer takes its memory from the heap.
const (
	privateBytes     = 128 << 10
	longPrivateBytes = 1 << 20
)

var (
	privates     = sync.Pool{New: func() any { b := buf.Aligned(privateBytes); return &b }}
	longPrivates = sync.Pool{New: func() any { b := buf.Aligned(longPrivateBytes); return &b }}
)

// privatesFor is where payload of n bytes finds a buffer; nil for none.
func privatesFor(n int) *sync.Pool {
	switch {
	case n <= privateBytes:
		return &privates
	case n <= longPrivateBytes:
		return &longPrivates
	}
	return nil
}

// slotsFor is how many slots n bytes of payload take.
func slotsFor(n int64) int { return int((n + SlotBytes - 1) / SlotBytes) }

func (v *volume) newWrite(off, n int64, kind Kind) *guestWrite {
	w := guestWrites.Get().(*guestWrite)
	*w = guestWrite{v: v, kind: kind, slots: w.slots[:0], runs: w.runs[:0]}
	w.off, w.end = off, off+n
	w.lo, w.hi = v.disk.down(off), v.disk.up(off+n)
	return w
}

func (v *volume) begin(off, n int64, kind Kind) *guestWrite {
	w := v.newWrite(off, n, kind)
	slots := 1
	if kind == Data {
		slots = slotsFor(n)
	}
	w.slots, _ = v.pool.alloc(w.slots, slots, 0)
	return w
}

// recycle gives everything of w back.
func (w *guestWrite) recycle() {
	w.v.pool.release(w.slots)
	if w.private != nil {
		privatesFor(len(*w.private)).Put(w.private)
	}
	clear(w.runs)
	*w = guestWrite{slots: w.slots[:0], runs: w.runs[:0]}
	guestWrites.Put(w)
}

func (v *volume) BeginWrite(off int64, n int) (front.Write, error) {
	if err := v.inside(off, int64(n)); err != nil {
		return nil, v.mirror.refused(err)
	}
	if n < 1 || n > front.MaxWrite {
		return nil, v.mirror.refused(fmt.Errorf("write of %d bytes, want 1 to %d", n, front.MaxWrite))
	}
	w := v.begin(off, int64(n), Data)
	if len(w.slots) > 0 {
		w.runs = v.pool.runs(w.runs, w.slots, n)
	} else if from := privatesFor(n); from != nil {
		w.private = from.Get().(*[]byte)
		w.runs = append(w.runs, (*w.private)[:n])
	} else {
		w.runs = append(w.runs, buf.Aligned(n))
	}
	return w, nil
}

func (w *guestWrite) Buffers() [][]byte { return w.runs }
func (w *guestWrite) Abort()            { w.recycle() }

func (w *guestWrite) Commit(fua bool) error {
	v := w.v
	return v.carryOut(w, fua, func() error { return v.disk.writeRuns(w.runs, w.off) })
}

func (v *volume) Zero(off, n int64, mayUnmap, fua bool) error {
	if err := v.inside(off, n); err != nil || n == 0 {
		return v.mirror.refused(err)
	}
	return v.carryOut(v.begin(off, n, Zero), fua, func() error { return v.disk.zero(off, n, mayUnmap) })
}

// Trim zeroes the whole 4 KiB units in the range and leaves the rest as it is.
func (v *volume) Trim(off, n int64, fua bool) error {
	if err := v.inside(off, n); err != nil {
		return v.mirror.refused(err)
	}
	lo, hi := (off+zeroUnit-1)/zeroUnit*zeroUnit, (off+n)/zeroUnit*zeroUnit
	if lo < hi {
		return v.Zero(lo, hi-lo, true, fua)
	}
	if fua {
		return v.Flush()
	}
	return nil
}

// carryOut takes w through its life: wait for what overlaps, mark, write, take the
// ticket and publish, or drop; then the guest may be answered.
func (v *volume) carryOut(w *guestWrite, fua bool, write func() error) error {
	defer v.mirror.ends(v.mirror.begins())
	v.active.Add(1)
	if !v.tryEnter(w) {
		v.enterWaiting(w)
	}
	err := write()
	if err == nil && fua {
		err = v.sync()
	}
	v.end(w, err, func(e error) { err = e }, v.wake)
	return v.mirror.refused(err)
}

// end ends w, whose disk write ended with err, calls done: the guest may be answered; and then wake, which
// sees to it that the VRA hears of it.
func (v *volume) end(w *guestWrite, err error, done func(error), wake func()) {
	v.leave(w, err)
	v.waitHold()
	v.answer(w, err, done, wake)
}

// answer is the rest of end, once w has its ticket or is dropped, and nothing holds its answer back.
func (v *volume) answer(w *guestWrite, err error, done func(error), wake func()) {
	defer v.active.Done()
	v.pool.guestWrites.Add(1)
	v.pool.guestBytes.Add(uint64(w.end - w.off))
	w.recycle()
	done(told(err))
	wake()
}

// tryEnter registers w and marks its blocks, unless it overlaps flights or its regions do not stand in the
// activity log: then enterWaiting does, once that has changed.
func (v *volume) tryEnter(w *guestWrite) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.mu.flights.add(&w.flight) && !invariant.Planted("capture/no-overlap-wait") {
		return false
	}
	if v.activity.EnterLocked(w.lo, w.hi) != nil {
		return false
	}
	v.enterLocked(w)
	return true
}

// tryPass is tryEnter of a write that brings no copy: it enters, at once, only where no record could
// carry it. Its blocks are all dirty, and who reads them waits for it; or there are no slots for it, or captures
// rest since there were none, and it is dropped.
func (v *volume) tryPass(w *guestWrite) bool {
	from, to := blocksOf(w.off, w.end)
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.mu.flights.free(w.lo, w.hi) {
		return false
	}
	if !v.mu.marks.allDirty(from, to) && !invariant.Planted("capture/pass-all") {
		now := v.clock.now()
		if v.pool.short(slotsFor(w.end - w.off)) {
			v.mu.overrun.ranOut(now)
		}
		if !v.mu.overrun.rests(now) {
			return false
		}
	}
	if v.activity.EnterLocked(w.lo, w.hi) != nil {
		return false
	}
	v.mu.flights.add(&w.flight)
	v.enterLocked(w)
	return true
}

// enterWaiting enters w once nothing that it overlaps is in flight and its regions stand in the log.
func (v *volume) enterWaiting(w *guestWrite) {
	if w.ready != nil {
		<-w.ready
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if stands := v.activity.EnterLocked(w.lo, w.hi); stands != nil {
		v.mu.Unlock()
		v.activity.Wait(stands)
		v.mu.Lock()
	}
	v.enterLocked(w)
}

// enterLocked marks the blocks of w, which overlaps no flight any more. A write whose blocks are
// all dirty is not captured: they will be read.
func (v *volume) enterLocked(w *guestWrite) {
	from, to := blocksOf(w.off, w.end)
	v.mu.flights.start(&w.flight, !v.mu.marks.allDirty(from, to))
	w.gen = v.mu.marks.begin(from, to)
}

func blocksOf(off, end int64) (from, to int64) {
	return off / BlockBytes, (end + BlockBytes - 1) / BlockBytes
}

// leave gives w its ticket, or drops it, after its disk write ended with err.
func (v *volume) leave(w *guestWrite, err error) {
	split := !invariant.Planted("capture/no-split")
	published := false
	if w.carries && err == nil && len(w.slots) > 0 && split {
		_, published = v.ring.publish(w.slots, desc{off: w.off, n: w.end - w.off, volume: v.id, kind: w.kind})
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case published:
		w.slots = w.slots[:0] // the VRA's now
		v.pool.captured.Add(uint64(w.end - w.off))
	case w.carries && split:
		v.dropLocked(w.off, w.end)
		v.pool.dropped.Add(1)
	case split:
		v.pool.uncaptured.Add(1)
		// Its blocks were dirty when it began. A sync read that has taken them since
		// waits for it; so nothing is to be said.
	}
	v.mu.marks.end(w.gen)
	v.mu.flights.remove(&w.flight)
}

// dropLocked puts the blocks in the dirty map, then adds to lost: under one hold of
// the lock, so that no write finds them dirty, and goes uncaptured, before lost tells.
func (v *volume) dropLocked(off, end int64) {
	from, to := blocksOf(off, end)
	if !invariant.Planted("capture/drop-unmarked") {
		v.mu.marks.addDirty(from, to)
	}
	if !invariant.Planted("capture/drop-unsaid") {
		v.page.lost.Add(1)
	}
}

func (v *volume) Flush() error { return told(v.sync()) }

func (v *volume) sync() error {
	if v.syncFailed.Load() || v.past() == PastUnsynced {
		return fmt.Errorf("volume %s: an earlier sync failed", v.name)
	}
	if err := v.disk.sync(); err != nil {
		if !v.syncFailed.Swap(true) {
			v.unsynced(err)
		}
		return err
	}
	return nil
}

func (v *volume) Extents(off, n int64, emit func(n int64, hole bool) bool) error {
	if err := v.inside(off, n); err != nil {
		return err
	}
	if v.mirror != nil {
		emit(n, false) // who writes to it does not ask
		return nil
	}
	return v.disk.extents(off, n, emit)
}

// mark makes the blocks of [off, off+n) dirty, as far as the volume has them. When it returns, a crash of
// the host leaves them dirty.
func (v *volume) mark(off, n int64) {
	if n = min(n, v.disk.size.Load()-off); n <= 0 {
		return
	}
	v.mu.Lock()
	v.dropLocked(off, off+n)
	stands := v.activity.EnterLocked(off, off+n)
	v.mu.Unlock()
	if stands != nil {
		v.activity.Wait(stands)
	}
}

// dirtyBlocks counts what the target may lack; none only once every sync read is
// published and every write that one left out has its ticket.
func (v *volume) dirtyBlocks() int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.mu.marks.dirty + v.mu.flights.unsettled()
}

// dirtyExtents appends the first runs of the dirty map that begin at byte from or later.
func (v *volume) dirtyExtents(into []Extent, from int64, most int) []Extent {
	v.mu.Lock()
	defer v.mu.Unlock()
	m := v.mu.marks
	for _, at := blocksOf(0, max(from, 0)); len(into) < most; { // who goes on behind the last part of a block has had it
		start, end, ok := m.file.dirty.run(at, m.file.dirty.blocks)
		if !ok {
			break
		}
		into = append(into, v.extent(start, end))
		at = end
	}
	return into
}

func (v *volume) extent(fromBlock, toBlock int64) Extent {
	off := fromBlock * BlockBytes
	return Extent{Off: off, Len: min(toBlock*BlockBytes, v.disk.size.Load()) - off}
}

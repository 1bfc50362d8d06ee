package capture

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

var _ front.Laned = (*volume)(nil)

// lane carries out a queue's requests by the queue's own loop: what volume does in the calls
// of front.Device, in steps. What a step would have to wait for, a goroutine waits for.
type lane struct {
	v     *volume
	loop  *ioengine.Loop
	ops   sync.Pool
	due   bool          // the VRA is to be woken
	beat  beat          // the watchdog's
	cost  time.Duration // what a write into the page cache took of late
	later func()        // makes it due
}

// laneOp is a request under way.
type laneOp struct {
	lane  *lane
	w     *guestWrite
	done  func(error)
	ended func(int, error)
}

func (v *volume) Lane(requests int) (front.Lane, error) {
	loop, err := ioengine.NewLoop(v.disk.file, requests)
	if err != nil {
		return nil, err
	}
	a := &lane{v: v, loop: loop}
	a.later = func() { a.due = true }
	a.ops.New = func() any {
		op := &laneOp{lane: a}
		op.ended = op.end
		return op
	}
	v.lanes.add(a)
	return a, nil
}

func (a *lane) Loop() *ioengine.Loop { return a.loop }
func (a *lane) Close() {
	a.v.lanes.remove(a)
	a.loop.Close()
}

func (a *lane) Write(fw front.Write, done func(error)) {
	w, v := fw.(*guestWrite), a.v
	if invariant.Planted("capture/lane-hangs") && os.Remove(v.path+".hang") == nil {
		select {}
	}
	v.active.Add(1)
	if !v.tryEnter(w) {
		go func() {
			v.enterWaiting(w)
			v.end(w, v.disk.writeRuns(w.runs, w.off), done, v.wake)
		}()
		return
	}
	a.start(w, done)
}

// Pass writes from the guest's own memory what no record will carry: whatever the guest makes of it
// meanwhile, the target is sent what the disk holds then.
func (a *lane) Pass(parts [][]byte, off int64, done func(error)) bool {
	v, n := a.v, int64(ioengine.Bytes(parts))
	if n == 0 || v.inside(off, n) != nil || !v.disk.directRuns(parts, off) {
		return false
	}
	w := v.newWrite(off, n, Data)
	if !v.tryPass(w) {
		w.recycle()
		return false
	}
	w.runs = append(w.runs, parts...)
	v.active.Add(1)
	a.start(w, done)
	return true
}

// start gives the disk w, which has entered.
func (a *lane) start(w *guestWrite, done func(error)) {
	v, op := a.v, a.ops.Get().(*laneOp)
	op.w, op.done = w, done
	if v.disk.cached && len(w.runs) <= ioengine.LoopParts && a.quick() {
		began := time.Now()
		err := a.writeNow(w)
		a.cost += (time.Since(began) - a.cost) / 8
		op.end(0, err)
		return
	}
	if !v.disk.directRuns(w.runs, w.off) || !a.loop.Write(v.disk.file, w.runs, w.off, op.ended) {
		go op.again()
	}
}

// writeNow writes w in the call.
func (a *lane) writeNow(w *guestWrite) error {
	if invariant.Planted("capture/cached-seems-hung") {
		return a.v.disk.file.WriteParts(w.runs, w.off)
	}
	return a.loop.WriteNow(a.v.disk.file, w.runs, w.off)
}

// cachedTime is how long a write into the page cache may take, as a mean of late, for the queue's loop to wait for it.
const cachedTime = 200 * time.Microsecond

// quick says whether the loop carries out the next write into the page cache itself: what costs some microseconds so costs several times that
// where a thread of the kernel's is to do it. When too much is dirty the kernel holds up who writes, and then a thread is.
func (a *lane) quick() bool {
	if a.cost >= cachedTime {
		a.cost -= a.cost / 8 // and after a while one is tried again
		return false
	}
	return true
}

// end is what the loop says of a write.
func (op *laneOp) end(_ int, err error) {
	if unfinished(err) {
		go op.again()
		return
	}
	if invariant.Planted("capture/lane-error-untold") {
		err = nil
	}
	v := op.lane.v
	if v.leave(op.w, err); v.page.held(v.clock) && !invariant.Planted("capture/lane-held") {
		go func() { // the loop carries on with what it has
			v.waitHold()
			op.finish(err, v.wake)
		}()
		return
	}
	op.finish(err, op.lane.later)
}

// unfinished says that a part was done, or nothing, for no reason that is known to be the disk's.
func unfinished(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR)
}

// Looks implements front.Lane.
func (*lane) Looks() bool { return false }

// Told wakes the VRA: no guest waits for that.
func (a *lane) Told() {
	if a.due {
		a.due = false
		a.v.wake()
	}
}

// again writes all of it, and waits.
func (op *laneOp) again() {
	v := op.lane.v
	err := v.disk.writeRuns(op.w.runs, op.w.off)
	v.leave(op.w, err)
	v.waitHold()
	op.finish(err, v.wake)
}

// finish answers: nothing holds that back.
func (op *laneOp) finish(err error, wake func()) {
	a, w, done := op.lane, op.w, op.done
	op.w, op.done = nil, nil
	a.ops.Put(op)
	a.v.answer(w, err, done, wake)
}

// Read reads past any memory of ours: nobody checks what the guest's own disk holds.
func (a *lane) Read(parts [][]byte, off int64, done func(error)) bool {
	v := a.v
	if v.inside(off, int64(ioengine.Bytes(parts))) != nil || !v.disk.directRuns(parts, off) {
		return false
	}
	return a.loop.Read(v.disk.file, parts, off, func(_ int, err error) { a.endRead(parts, off, err, done) })
}

// endRead is what the loop says of a read.
func (a *lane) endRead(parts [][]byte, off int64, err error, done func(error)) {
	if !unfinished(err) {
		done(told(err))
		return
	}
	go func() { // all of it, and waits; nothing of ours touches the guest's memory
		done(told(a.v.disk.readRuns(parts, off)))
	}()
}

package vhostuser

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// running is a queue at work, from when the front end has set it up until it stops it.
type running struct {
	dev  front.Device
	name string
	log  *slog.Logger
	mem  *memory
	fua  bool          // the guest does not flush: writes are answered when they are durable
	big  chan struct{} // holds a token for each write of more than pooledBytes under way
	kick int           // stays open until stop has returned
	fail func(error)   // ends the session

	stopping atomic.Bool
	wake     func()         // makes the goroutine look at stopping
	ended    chan struct{}  // closed when it has ended
	lane     front.Lane     // nil: the device has none
	begun    sync.WaitGroup // requests in the lane
	copied   atomic.Int32   // of those, reads into memory of ours
	work     chan *task
	busy     atomic.Int32 // requests that workers have, and the one that waits for a worker
	workers  sync.WaitGroup
	started  int // workers; the goroutine's
	tasks    sync.Pool

	ring  *vring
	mu    sync.Mutex   // the used side of ring, and what table holds of answers
	table *flightTable // may be nil
	later bool         // the goroutine tells the guest of several answers at once
	call  *bell
}

// errGone says that memory of the guest was taken away under us.
var errGone = errors.New("the guest's memory is gone")

// guard runs f, and returns errGone when the memory that it used was not there. The goroutine
// has asked for a panic in that case.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			if fault, ok := p.(interface{ Addr() uintptr }); ok {
				err = fmt.Errorf("%w: at %#x", errGone, fault.Addr())
				return
			}
			panic(p)
		}
	}()
	return f()
}

// start begins to serve; redo are requests that were begun before.
func (q *running) start(redo []uint16) error {
	q.ended, q.work = make(chan struct{}), make(chan *task)
	q.tasks.New = func() any {
		t := new(task)
		t.done = func(err error) { q.end(t, err) }
		return t
	}
	up := make(chan error)
	go func() {
		defer close(q.ended)
		debug.SetPanicOnFault(true)
		run, err := q.prepare()
		up <- err
		if err != nil {
			return
		}
		if err := run(redo); err != nil {
			q.broken(err)
		}
		close(q.work)
	}()
	return <-up
}

// prepare chooses how the queue is served: by the device's lane, or by workers.
func (q *running) prepare() (run func(redo []uint16) error, err error) {
	if laned, ok := q.dev.(front.Laned); ok {
		lane, err := laned.Lane(int(min(q.ring.size, laneRequests)))
		if err == nil {
			q.lane, q.wake = lane, lane.Loop().Wake
			if err = lane.Loop().Watch(q.kick); err != nil {
				lane.Close()
			}
			return q.runLane, err
		}
		if !errors.Is(err, ioengine.ErrNoLoop) {
			return nil, err
		}
		q.log.Info("vhost-user queue goes by threads", "why", err)
	}
	kick, err := openKick(q.kick)
	if err != nil {
		return nil, err
	}
	q.wake = func() { kick.SetReadDeadline(time.Unix(1, 0)) }
	return func(redo []uint16) error {
		defer kick.Close()
		return guard(func() error { return q.run(kick, redo) })
	}, nil
}

// broken says why the queue is not served any more. A queue of nonsense is the guest's own
// affair; memory that is gone is the front end's.
func (q *running) broken(err error) {
	q.log.Warn("vhost-user queue is not served any more", "err", err)
	if errors.Is(err, errGone) {
		q.fail(err)
	}
}

// stop ends the queue: nothing more is taken, and what is under way is answered. It returns how
// far it came.
func (q *running) stop() uint16 {
	q.stopping.Store(true)
	q.wake()
	<-q.ended
	q.workers.Wait()
	return q.ring.lastAvail
}

// run takes requests until the queue is stopped.
func (q *running) run(kick *os.File, redo []uint16) error {
	for _, head := range redo {
		if err := q.take(head); err != nil {
			return err
		}
	}
	var count [8]byte
	for !q.stopping.Load() {
		n, err := q.takeAll()
		if err != nil {
			return err
		}
		if n > 0 || !q.ring.arm() {
			continue
		}
		if _, err := kick.Read(count[:]); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("kick: %w", err)
		}
	}
	return nil
}

// runLane is run with a lane: requests are started here, and their ends taken here.
func (q *running) runLane(redo []uint16) error {
	defer q.lane.Close()
	err := guard(func() error {
		for _, head := range redo {
			if err := q.take(head); err != nil {
				return err
			}
		}
		q.lane.Told()
		for !q.stopping.Load() {
			q.setLater(true) // what ends at once is told at once
			n, err := q.takeAll()
			q.tell()
			if (n > 0 || err != nil) && !invariant.Planted("vhostuser/at-once-untold") {
				q.lane.Told()
			}
			if err != nil {
				return err
			}
			switch q.next(n) {
			case lookAgain:
				continue
			case waitThenStep:
				if !q.ring.arm() {
					continue
				}
				if err := q.lane.Loop().Wait(); err != nil {
					return err
				}
			}
			if _, err := q.step(); err != nil {
				return err
			}
		}
		return nil
	})
	// What the disk has is taken from it whatever became of the queue.
	for q.lane.Loop().Flying() > 0 {
		waitErr := q.lane.Loop().Wait()
		if _, stepErr := q.step(); waitErr != nil || stepErr != nil {
			return errors.Join(err, waitErr, stepErr)
		}
	}
	q.begun.Wait()
	return err
}

// turn is what the goroutine of a queue with a lane does after it has taken requests.
type turn int

const (
	stepNow      turn = iota // the disk is given several: it works on them while more are taken
	lookAgain                // a lone one, if it is small, it is given by the system call that waits for its end
	waitThenStep             // there is nothing to take
)

// next chooses so that requests cost few system calls, and none waits for another to come.
func (q *running) next(taken int) turn {
	switch {
	case taken == 0:
		return waitThenStep
	case taken == 1 && q.lane.Loop().Flying() == 1:
		return lookAgain
	}
	return stepNow
}

// step lets requests end, and tells the guest of all of them at once.
func (q *running) step() (some bool, err error) {
	q.setLater(true)
	some, err = q.lane.Loop().Step()
	return some, errors.Join(err, guard(func() error {
		q.tell()
		if some {
			q.lane.Told()
		}
		return nil
	}))
}

// tell tells the guest of the answers that waited for that.
func (q *running) tell() {
	if q.setLater(false) {
		q.call.ring()
	}
}

// setLater says whether answers wait to be told; when they no longer do, whether the guest wants
// to hear of some.
func (q *running) setLater(later bool) (tell bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.later = later
	return !later && q.ring.interrupts()
}

// takeAll takes the requests that are there now.
func (q *running) takeAll() (n int, err error) {
	waiting, err := q.ring.waiting()
	if err != nil {
		return 0, err
	}
	for ; n < int(waiting) && !q.stopping.Load(); n++ {
		head, err := q.ring.pop()
		if err != nil {
			return n, err
		}
		q.table.enter(head)
		if err := q.take(head); err != nil {
			return n, err
		}
	}
	return n, nil
}

// take reads a request and gives it to the lane or to a worker: a disk that hangs over one holds up
// no other.
func (q *running) take(head uint16) error {
	t := q.tasks.Get().(*task)
	t.head = head
	if t.err = t.plain.walk(q.mem, q.ring.desc, head); t.err == nil {
		t.err = t.parse(q.dev.Size())
	} else {
		t.status, t.kind, t.n = nil, 0, 0
	}
	if q.lane != nil && q.begin(t) {
		return nil
	}
	if q.busy.Add(1) > maxWorkers && q.lane != nil && !invariant.Planted("vhostuser/waits-for-workers") {
		if err := q.stepUntilFree(); err != nil {
			return err
		}
	}
	select {
	case q.work <- t:
		return nil
	default:
	}
	if q.started < maxWorkers {
		q.started++
		q.workers.Go(q.worker)
	}
	q.work <- t // with a lane, one of them is free, or about to be
	return nil
}

// stepUntilFree returns when a worker is free. What the lane has ends meanwhile: workers may wait for it, as for a lock that a read in the
// lane has.
func (q *running) stepUntilFree() error {
	for q.busy.Load() > maxWorkers {
		if !invariant.Planted("vhostuser/held-back") { // a worker may be long: what has ended does not wait for it
			q.tell()
			q.lane.Told()
		}
		if err := q.lane.Loop().Wait(); err != nil {
			return err
		}
		if _, err := q.step(); err != nil {
			return err
		}
	}
	return nil
}

func (q *running) worker() {
	debug.SetPanicOnFault(true)
	for t := range q.work {
		if t.err == nil {
			t.err = guard(func() error { return q.do(t) })
		}
		q.finish(t)
		if q.busy.Add(-1) == maxWorkers && q.lane != nil {
			q.wake() // it is waited for
		}
	}
}

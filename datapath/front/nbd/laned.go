package nbd

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// laned is a connection that is served by a lane of its device: one goroutine takes in all that
// the socket holds, starts it, takes its ends, and sends the answers, many by one system call each. What a
// lane does not do goes to workers. One request that is alone it carries out itself, as without a lane.
type laned struct {
	*conn
	lane front.Lane
	fd   int // the socket: ours, and known to no poller of the runtime's
	sent *outlet

	readable bool          // the socket may hold something
	full     bool          // it takes no answers, and will tell
	next     *task         // being taken in; or nil
	cost     time.Duration // what a lone request took of late
	tasks    sync.Pool     // *task

	work    chan *task
	working atomic.Int32 // requests that workers have
	under   atomic.Int32 // requests that are not answered
	bytes   atomic.Int64 // their payload
}

// openLane prepares to serve by a lane. Nil: the device has none, or the connection is no socket. An
// error says why there is none for want of io_uring.
func (c *conn) openLane() (*laned, error) {
	dev, ok := c.dev.(front.Laned)
	if !ok || c.in.raw == nil {
		return nil, nil
	}
	lane, err := dev.Lane(laneRequests)
	if err != nil {
		return nil, err
	}
	l := &laned{conn: c, lane: lane, work: make(chan *task), readable: true} // what came before somebody listens
	if err := l.takeSocket(); err != nil {
		lane.Close()
		return nil, fmt.Errorf("%w: %w", ioengine.ErrNoLoop, err)
	}
	l.tasks.New = func() any {
		t := new(task)
		t.done = func(err error) {
			if t.err = err; !t.lane.CompareAndSwap(laneStarts, laneDone) {
				l.end(t, err)
			}
		}
		return t
	}
	l.sent = newOutlet(l.fd, lane.Loop().Wake)
	c.out, c.in.before, c.in.fd, c.in.loop = l.sent, func() {}, l.fd, lane.Loop()
	wake := l.sent.interrupt
	c.wake.Store(&wake)
	return l, nil
}

// takeSocket takes the socket from the runtime, whose poller would wake a thread for all that comes.
func (l *laned) takeSocket() (err error) {
	failed := l.in.raw.Control(func(fd uintptr) { l.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(failed, err); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if err := l.lane.Loop().Hear(l.fd, func() { l.readable = true }); err != nil {
		return errors.Join(err, unix.Close(l.fd))
	}
	if err := unix.SetNonblock(l.fd, false); err != nil { // it is ours alone; each call says whether it waits
		return errors.Join(fmt.Errorf("socket: %w", err), unix.Close(l.fd))
	}
	l.nc.Close() // what is wrong with the socket we shall be told too
	return nil
}

// run serves until the client is gone or the connection is stopped, and returns why. All requests have ended
// then, and the client has the answers or does not want them.
func (l *laned) run() error {
	err := l.serve()
	if l.next != nil {
		l.next.abort()
	}
	if l.lane.Loop().Flying() > 0 {
		panic(fmt.Sprintf("BUG: a loop that can neither be waited for nor left: %v", err)) // the disk has our memory
	}
	close(l.work)
	l.wg.Wait()
	l.sent.close()
	l.parted = !l.sent.wasCut() && hungUpFD(l.fd)
	_ = unix.Shutdown(l.fd, unix.SHUT_RDWR) // the kernel holds on to what was watched for some time after Close
	l.lane.Close()
	_ = unix.Close(l.fd)
	return err
}

func (l *laned) serve() (ended error) {
	loop, stopping := l.lane.Loop(), false
	for {
		l.sent.becomes(laneTakes)
		if !stopping && l.stopped.Load() {
			stopping = true
			defer time.AfterFunc(partingTime, func() { l.sent.fail(os.ErrDeadlineExceeded) }).Stop()
		}
		for more := true; more; {
			more = false
			if ended == nil && !l.stopped.Load() {
				more, ended = l.takeAll()
			}
			crowded := !l.hasRoom()
			if err := l.send(); ended == nil {
				ended = err
			}
			l.lane.Told()
			more = more || crowded && l.hasRoom() // of what was left in the socket nobody tells again
		}
		if (ended != nil || l.stopped.Load()) && (l.idle() || invariant.Planted("nbd/lane-ends-early")) {
			return ended
		}
		if l.sent.waits(laneWaits) {
			if err := loop.Wait(); err != nil {
				return err
			}
		}
		l.sent.becomes(laneSteps)
		if _, err := loop.Step(); err != nil {
			return err
		}
	}
}

// takeAll takes in and starts what the socket holds, as far as there is room for more; when there is nothing
// else to do it waits for the socket. More: it is to be called again, once an answer that somebody
// waits for is sent. An error ends the connection.
func (l *laned) takeAll() (more bool, err error) {
	for l.hasRoom() {
		alone := l.idle() && l.sent.waits(laneReceives)
		if !alone && l.emptied() {
			return true, nil
		}
		if !alone && !l.readable {
			return false, nil
		}
		err := l.takeOne(alone)
		switch {
		case err == errLater:
			l.readable = false
			return false, nil
		case err != nil && err != errDisconnect && l.stopped.Load():
			return true, nil // it is not the client that ends it
		case err != nil:
			return false, err
		}
		t := l.next
		l.next = nil
		if l.start(t) {
			return true, nil
		}
	}
	return false, nil
}

// emptied says that all that came was carried out at once, and answered but for the sending: after that the goroutine waits for the socket, and for
// nothing else.
func (l *laned) emptied() bool {
	return l.in.short && l.in.buffered() == 0 && l.under.Load() == 0 && l.sent.queued() > 0 && !l.full
}

// takeOne takes l.next in.
func (l *laned) takeOne(waits bool) error {
	if l.next == nil {
		l.next = l.tasks.Get().(*task)
	}
	if !waits {
		return l.take(l.next)
	}
	l.in.waits = true
	err := l.take(l.next)
	l.in.waits = false
	l.sent.becomes(laneTakes)
	l.readable = true // nobody has listened
	return err
}

// idle says that there is nothing to be carried out, and nothing to be sent.
func (l *laned) idle() bool { return l.under.Load() == 0 && l.sent.queued() == 0 }

// hasRoom says whether one more request may come in.
func (l *laned) hasRoom() bool {
	if invariant.Planted("nbd/lane-unbounded") {
		return true
	}
	return l.under.Load() < laneRequests && l.bytes.Load() < laneBytes && l.working.Load() < maxWorkers && l.sent.queued() < waitingBytes
}

// send sends what the socket takes, and has it tell when it takes more. The error is why it never will.
func (l *laned) send() error {
	if l.full && l.sent.failed() == nil {
		return nil
	}
	full, err := l.sent.send()
	if full {
		l.full = true
		return l.lane.Loop().Room(l.fd, func() { l.full = false })
	}
	return err
}

// payloadBytes is what the request holds of memory.
func (t *task) payloadBytes() int64 {
	if t.cmd == cmdRead || t.cmd == cmdWrite {
		return int64(t.n)
	}
	return 0
}

// start carries a request out, or has it carried out. Done: its answer is to be sent.
func (l *laned) start(t *task) (done bool) {
	l.wg.Add(1)
	l.under.Add(1)
	l.bytes.Add(t.payloadBytes())
	switch {
	case t.code != wireOK || t.n == 0 && t.cmd != cmdFlush: // the device is not asked
		l.carryOut(t)
	case l.alone(t):
		began := time.Now()
		l.carryOut(t)
		l.cost += (time.Since(began) - l.cost) / 8
		done = true
	case l.begin(t):
		if t.lane.CompareAndSwap(laneStarts, laneHas) {
			return false
		}
		t.lane.Store(laneHas)
		l.ended(t, t.err)
	default:
		l.give(t)
		return false
	}
	l.sent.put(t.head, t.payload, t.home())
	l.finish(t)
	l.wg.Done()
	return done
}

// alone says whether a request is carried out at once: nobody else is kept waiting, and, as far as is known, it
// does not take so long that others who come meanwhile would mind.
func (l *laned) alone(t *task) bool {
	if !t.quick() || t.flags&flagFUA != 0 || l.in.buffered() > 0 || l.under.Load() > 1 {
		return false
	}
	if l.cost >= loneTime {
		l.cost -= l.cost / 8 // and after a while one is tried again
		return false
	}
	return true
}

// begin has the lane carry a request out. False: it is for a worker.
func (l *laned) begin(t *task) bool {
	t.lane.Store(laneStarts)
	switch {
	case t.cmd == cmdWrite && t.flags&flagFUA == 0:
		l.lane.Write(t.write, t.done)
		return true
	case t.cmd == cmdRead && t.n <= pieceBytes:
		t.buf = l.srv.bufs.get(int(t.n))
		t.payload = t.buf.all[:t.n]
		t.parts[0] = t.payload
		if l.lane.Read(t.parts[:], int64(t.off), t.done) {
			return true
		}
		t.dropPayload()
	}
	t.lane.Store(laneHas)
	return false
}

// end answers what the lane has carried out, on whatever goroutine that says so.
func (l *laned) end(t *task, err error) {
	l.ended(t, err)
	l.sent.put(t.head, t.payload, t.home())
	l.finish(t)
	l.sent.flush()
	l.wg.Done()
}

// ended makes the answer to what the lane has carried out.
func (l *laned) ended(t *task, err error) {
	if invariant.Planted("nbd/lane-error-untold") {
		err = nil
	}
	if l.judge(t, err); err != nil && t.buf != nil {
		t.dropPayload()
	}
	l.answer(t)
}

// finish ends a task whose answer was added.
func (l *laned) finish(t *task) {
	l.bytes.Add(-t.payloadBytes())
	t.buf, t.payload, t.parts[0], t.write = nil, nil, nil, nil // lent to others, or ended
	l.tasks.Put(t)
	l.under.Add(-1)
}

// give gives a request to a worker.
func (l *laned) give(t *task) {
	l.working.Add(1)
	select {
	case l.work <- t:
		return
	default:
	}
	if l.workers < maxWorkers {
		l.workers++
		l.wg.Go(l.worker)
	}
	l.work <- t // one of them is free, or about to be
}

func (l *laned) worker() {
	for t := range l.work {
		l.carryOut(t)
		l.sent.add(t.head, t.payload, t.home())
		l.working.Add(-1)
		l.finish(t)
		l.sent.flush()
		l.wg.Done()
	}
}

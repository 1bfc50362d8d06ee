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
	"github.com/holdfast-dr/holdfast/ioengine/buf"
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
	kick *os.File
	fail func(error) // ends the session

	stopping atomic.Bool
	loop     chan struct{} // closed when the loop has ended
	work     chan *task
	workers  sync.WaitGroup
	started  int // workers; the loop's
	tasks    sync.Pool
	errors   atomic.Int64

	ring  *vring
	mu    sync.Mutex   // the used side of ring, and what table holds of answers
	table *flightTable // may be nil

	call *bell
}

// task is a request under way.
type task struct {
	request
	head uint16
	err  error
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
func (q *running) start(redo []uint16) {
	q.loop = make(chan struct{})
	q.work = make(chan *task)
	q.tasks.New = func() any { return new(task) }
	go func() {
		defer close(q.loop)
		debug.SetPanicOnFault(true)
		if err := guard(func() error { return q.run(redo) }); err != nil {
			q.broken(err)
		}
		close(q.work)
	}()
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
	q.kick.SetReadDeadline(time.Unix(1, 0))
	<-q.loop
	q.workers.Wait()
	return q.ring.lastAvail
}

// run takes requests until the queue is stopped.
func (q *running) run(redo []uint16) error {
	for _, head := range redo {
		q.take(head)
	}
	var count [8]byte
	for !q.stopping.Load() {
		n, err := q.ring.waiting()
		if err != nil {
			return err
		}
		if n == 0 {
			if !q.ring.arm() {
				continue
			}
			if _, err := q.kick.Read(count[:]); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				return fmt.Errorf("kick: %w", err)
			}
			continue
		}
		for ; n > 0 && !q.stopping.Load(); n-- {
			head, err := q.ring.pop()
			if err != nil {
				return err
			}
			q.table.enter(head)
			q.take(head)
		}
	}
	return nil
}

// take reads a request and gives it to a worker: a disk that hangs over one holds up no other.
func (q *running) take(head uint16) {
	t := q.tasks.Get().(*task)
	t.head = head
	if t.err = t.plain.walk(q.mem, q.ring.desc, head); t.err == nil {
		t.err = t.parse(q.dev.Size())
	} else {
		t.status, t.kind, t.n = nil, 0, 0
	}
	select {
	case q.work <- t:
		return
	default:
	}
	if q.started < maxWorkers {
		q.started++
		q.workers.Go(q.worker)
	}
	q.work <- t
}

func (q *running) worker() {
	debug.SetPanicOnFault(true)
	for t := range q.work {
		q.carryOut(t)
	}
}

// carryOut does what the task asks and answers it.
func (q *running) carryOut(t *task) {
	err := guard(func() error {
		if t.err == nil {
			t.err = q.do(t)
		}
		if errors.Is(t.err, errGone) {
			return t.err
		}
		q.answer(t)
		return nil
	})
	if err != nil {
		q.broken(err)
		return // the task is not used again: its memory is gone
	}
	if t.err != nil {
		q.errors.Add(1)
	}
	t.plain.reset()
	t.request.out, t.request.in, t.status = nil, nil, nil
	q.tasks.Put(t)
}

// do carries a request out.
func (q *running) do(t *task) error {
	if q.dev.ReadOnly() && t.kind != blkRead && t.kind != blkFlush && t.kind != blkID {
		return front.ErrReadOnly
	}
	switch t.kind {
	case blkRead:
		return q.read(t)
	case blkWrite:
		return q.write(t)
	case blkFlush:
		return q.dev.Flush()
	case blkID:
		name := make([]byte, t.n)
		copy(name[:min(t.n, idBytes)], q.name)
		scatter(t.in, name)
		return nil
	}
	for _, r := range t.ranges { // parse lets no other pass
		if err := q.zero(t.kind, r); err != nil {
			return err
		}
	}
	return nil
}

func (q *running) zero(kind uint32, r zeroRange) error {
	switch {
	case r.n == 0:
		return nil
	case kind == blkDiscard:
		return q.dev.Trim(r.off, r.n, q.fua)
	}
	return q.dev.Zero(r.off, r.n, r.unmap, q.fua)
}

// write copies the payload once, into the device's buffers.
func (q *running) write(t *task) error {
	if t.n > pooledBytes && !invariant.Planted("vhostuser/all-big") {
		q.big <- struct{}{}
		defer func() { <-q.big }()
	}
	w, err := q.dev.BeginWrite(t.off, int(t.n))
	if err != nil {
		return err
	}
	err = guard(func() error {
		for _, p := range w.Buffers() {
			t.out, _ = take(t.out, p)
		}
		return nil
	})
	if err != nil {
		if !invariant.Planted("vhostuser/leaked-write") {
			w.Abort()
		}
		return err
	}
	return w.Commit(q.fua && !invariant.Planted("vhostuser/lost-fua"))
}

// readBuffers are what devices read into: memory of ours, which no guest changes meanwhile.
var readBuffers = sync.Pool{New: func() any { p := make([]byte, 0); return &p }}

func (q *running) read(t *task) error {
	mem := readBuffers.Get().(*[]byte)
	defer readBuffers.Put(mem)
	if n := min(t.n, pooledBytes); int64(cap(*mem)) < n {
		*mem = buf.Aligned(int(n))
	}
	for done := int64(0); done < t.n; {
		p := (*mem)[:min(t.n-done, pooledBytes)]
		if err := q.dev.ReadAt(p, t.off+done); err != nil {
			return err
		}
		t.in = scatter(t.in, p)
		done += int64(len(p))
	}
	return nil
}

// answer tells the guest what became of its request.
func (q *running) answer(t *task) {
	status, written := t.request.answer(t.err)
	if t.status == nil {
		written = 0
	} else {
		t.status[0] = status
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.table.answering(t.head, q.ring.usedIdx)
	q.ring.push(t.head, written)
	q.table.answered(t.head, q.ring.usedIdx)
	if q.ring.interrupts() {
		q.call.ring()
	}
}

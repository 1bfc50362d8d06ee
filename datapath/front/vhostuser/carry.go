package vhostuser

import (
	"errors"
	"runtime/debug"
	"sync"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// task is a request under way.
type task struct {
	request
	head uint16
	err  error
	done func(error) // ends it, once the lane has carried it out

	copied *[]byte   // what a lane that looks at what it reads has read into, until that is copied
	parts  [1][]byte // of it
}

// begin starts a request in the lane. False: it is one for a worker.
func (q *running) begin(t *task) bool {
	switch {
	case t.err != nil:
		return false
	case q.lane.Looks():
		return t.kind == blkRead && t.n <= copiedBytes && q.beginCopied(t)
	case t.kind == blkRead:
		q.begun.Add(1)
		if q.lane.Read(t.in, t.off, t.done) {
			return true
		}
		q.begun.Done()
	case t.kind == blkWrite && t.n <= pooledBytes && !q.fua && !q.dev.ReadOnly():
		q.begun.Add(1)
		if q.lane.Pass(t.out, t.off, t.done) {
			return true
		}
		q.begun.Done()
		w, err := q.fill(t)
		if err != nil {
			t.err = err
			return false // a worker tells the guest
		}
		q.begun.Add(1)
		q.lane.Write(w, t.done)
		return true
	}
	return false
}

// copies are what lanes read into that look at it.
var copies = sync.Pool{New: func() any { p := buf.Aligned(copiedBytes); return &p }}

// beginCopied begins a read in a lane that looks at what it reads, which is ours and no guest's.
func (q *running) beginCopied(t *task) bool {
	if q.copied.Load() >= laneCopies && !invariant.Planted("vhostuser/copies-unbounded") {
		return false
	}
	t.copied = copies.Get().(*[]byte)
	t.parts[0] = (*t.copied)[:t.n]
	q.copied.Add(1)
	q.begun.Add(1)
	if q.lane.Read(t.parts[:], t.off, t.done) {
		return true
	}
	q.begun.Done()
	q.dropCopied(t)
	return false
}

func (q *running) dropCopied(t *task) {
	copies.Put(t.copied)
	t.copied, t.parts[0] = nil, nil
	q.copied.Add(-1)
}

// end ends a request of the lane.
func (q *running) end(t *task, err error) {
	debug.SetPanicOnFault(true) // it may be a goroutine of the lane's
	t.err = err
	if t.copied != nil {
		if err == nil {
			t.err = guard(func() error { t.in = scatter(t.in, t.parts[0]); return nil })
		}
		q.dropCopied(t)
	}
	q.finish(t)
	q.begun.Done()
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

// write carries a write out.
func (q *running) write(t *task) error {
	if t.n > pooledBytes && !invariant.Planted("vhostuser/all-big") {
		q.big <- struct{}{}
		defer func() { <-q.big }()
	}
	w, err := q.fill(t)
	if err != nil {
		return err
	}
	return w.Commit(q.fua && !invariant.Planted("vhostuser/lost-fua"))
}

// fill copies a write's payload once, into the device's buffers.
func (q *running) fill(t *task) (front.Write, error) {
	w, err := q.dev.BeginWrite(t.off, int(t.n))
	if err != nil {
		return nil, err
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
		return nil, err
	}
	return w, nil
}

// readBuffers are what devices without a lane read into: memory of ours, which no guest changes
// meanwhile.
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

// finish answers a task that was carried out.
func (q *running) finish(t *task) {
	err := t.err
	if !errors.Is(err, errGone) {
		err = guard(func() error { q.answer(t); return nil })
	}
	if errors.Is(err, errGone) {
		q.broken(err)
		return // the task is not used again: its memory is gone
	}
	t.plain.reset()
	t.out, t.in, t.status = nil, nil, nil
	q.tasks.Put(t)
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
	if !q.later && q.ring.interrupts() {
		q.call.ring()
	}
}

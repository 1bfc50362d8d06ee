package ioengine

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// engine chooses between io_uring and threads. The ring is there while files use it,
// so that a file system needs no Close.
type engine struct {
	workers workers

	mu       sync.Mutex
	ring     *ring
	users    int   // files with started writes, and SyncFiles; or with reads
	polled   bool  // see ring.polled
	portable error // why there is no ring, for good
}

var errForced = errors.New("io_uring is switched off")

// without says why there is no ring, as far as that is known.
func (e *engine) without() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.portable
}

// acquire returns the ring, which is there until release; nil: there is none.
func (e *engine) acquire() *ring {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.portable != nil {
		return nil
	}
	if e.ring == nil {
		if e.ring, e.portable = newRing(); e.portable != nil {
			e.ring = nil
			return nil
		}
		if e.polled {
			e.ring.poll()
		}
	}
	e.users++
	return e.ring
}

func (e *engine) release() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.users--; e.users == 0 {
		e.ring.close()
		e.ring = nil
	}
}

// Engine says how the file system writes: "io_uring", or "threads" and why.
func Engine(fsys FS) string {
	s, ours := fsys.(*osFS)
	if !ours {
		return "its own"
	}
	if s.engine.acquire() == nil {
		return "threads: " + s.engine.portable.Error()
	}
	s.engine.release()
	return "io_uring"
}

// WriteStart begins a write. The file is held open until it has ended, so that Close
// waits and no write reaches a descriptor that was given out again.
func (f *osFile) WriteStart(parts [][]byte, off int64, done func(error)) {
	f.open.RLock()
	if f.open.closed {
		f.open.RUnlock()
		go done(pathError("write", f.name, unix.EBADF))
		return
	}
	w := newStartedWrite(f, parts, off, done)
	if r := f.usesRing(); r != nil && w.bytes > 0 && off >= 0 { // to io_uring -1 is the file's position
		r.start(&w.op)
		return
	}
	f.fs.engine.workers.run(w.finish)
}

// usesRing returns the ring, which the file holds until Close; nil: there is none.
func (f *osFile) usesRing() *ring {
	f.ring.once.Do(func() { f.ring.ring = f.fs.engine.acquire() })
	return f.ring.ring
}

// startedWrite is a write on its way.
type startedWrite struct {
	op    ringOp
	file  *osFile
	bytes int
	wrote int
	tell  func(error)
}

var startedWrites sync.Pool

func newStartedWrite(f *osFile, parts [][]byte, off int64, tell func(error)) *startedWrite {
	w, _ := startedWrites.Get().(*startedWrite)
	if w == nil {
		w = new(startedWrite)
		w.op.code, w.op.done = opWritev, w.ended
	}
	w.file, w.bytes, w.wrote, w.tell = f, Bytes(parts), 0, tell
	w.op.fd, w.op.parts, w.op.off = f.fd, parts, off
	return w
}

// ended takes the kernel's answer. What it wrote in part, or did not begin (it was
// interrupted, out of memory, or the thread that began it is gone), is written by a
// thread of ours.
func (w *startedWrite) ended(op *ringOp, res int32) {
	switch {
	case int(res) == w.bytes:
		w.end(nil)
		return
	case res >= 0 && invariant.Planted("ioengine/short-is-whole"):
		w.end(nil)
		return
	case res >= 0:
		w.wrote = int(res)
	default:
		switch err := unix.Errno(-res); err {
		case unix.EAGAIN, unix.EINTR, unix.ECANCELED, unix.EBUSY, unix.ENOMEM:
		default:
			w.end(pathError("write", w.file.name, err))
			return
		}
	}
	w.file.fs.engine.workers.run(w.finish)
}

// finish writes what is left.
func (w *startedWrite) finish() {
	w.end(w.file.writeRest(w.op.parts, w.op.off, w.wrote))
}

func (w *startedWrite) end(err error) {
	f, tell := w.file, w.tell
	clear(w.op.vectors)
	w.file, w.tell, w.op.parts = nil, nil, nil
	startedWrites.Put(w)
	f.open.RUnlock()
	tell(err)
}

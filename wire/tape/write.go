package tape

import (
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// waiting is how much of a tape may wait for its file, in bytes: a second of a fast link
// without what guests wrote; with that, what the file cannot take is left out.
const waiting = 8 << 20

// Options say what goes on a tape.
type Options struct {
	Payload bool  // what guests wrote as well
	Limit   int64 // of the file, in bytes; at least 1 KiB
	Log     *slog.Logger
}

// Tape is one being written.
type Tape struct {
	options Options
	began   time.Time
	done    chan struct{} // closed when nothing is written any more

	mu struct {
		sync.Mutex
		wake        *sync.Cond
		out         []byte // waits to be written
		bytes       int64  // of the file, with what waits
		lost        uint64 // bytes not taken since the last Lost entry
		connections uint32
		stopped     bool
	}
}

// New begins a tape on w, which is written from one goroutine until Close.
func New(w io.Writer, o Options) *Tape {
	t := &Tape{options: o, began: time.Now(), done: make(chan struct{})}
	if o.Log == nil {
		t.options.Log = slog.New(slog.DiscardHandler)
	}
	t.mu.wake = sync.NewCond(&t.mu)
	t.mu.out = Header{Began: t.began, Payload: o.Payload}.appendTo(nil)
	t.mu.bytes = headerBytes
	go t.write(w)
	return t
}

// Payload says whether what guests wrote goes on the tape.
func (t *Tape) Payload() bool { return t.options.Payload }

// Close writes what waits, and returns when that is done. It does not close the file.
func (t *Tape) Close() {
	t.mu.Lock()
	if !t.mu.stopped {
		t.sayLostLocked()
	}
	t.mu.stopped = true
	t.mu.wake.Signal()
	t.mu.Unlock()
	<-t.done
}

// write gives what waits to the file until Close.
func (t *Tape) write(w io.Writer) {
	defer close(t.done)
	var spare []byte
	for {
		t.mu.Lock()
		for len(t.mu.out) == 0 && !t.mu.stopped {
			t.mu.wake.Wait()
		}
		out := t.mu.out
		t.mu.out = spare[:0]
		t.mu.Unlock()
		if len(out) == 0 {
			return
		}
		if _, err := w.Write(out); err != nil {
			t.options.Log.Warn("the tape of the wire ends: its file does not take it", "error", err)
			t.mu.Lock()
			t.mu.stopped, t.mu.out = true, nil
			t.mu.Unlock()
			return
		}
		spare = out
	}
}

// now is a wall clock that never falls.
func (t *Tape) now() time.Time { return t.began.Add(time.Since(t.began)) }

// add takes an entry, or counts it as lost. It never waits for the file.
func (c *Connection) add(e Entry) {
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	if e.Type == Close && c.closed {
		return
	}
	c.closed = c.closed || e.Type == Close
	e.Connection = c.number
	c.t.addLocked(e)
}

func (t *Tape) addLocked(e Entry) {
	if t.mu.stopped {
		return
	}
	if len(t.mu.out)+entryBytes+len(e.Data) > waiting && e.Type == Bytes {
		t.mu.lost += uint64(len(e.Data))
		return
	}
	e.Time = t.now()
	before := len(t.mu.out)
	t.sayLostLocked()
	t.mu.out = e.appendTo(t.mu.out)
	t.mu.bytes += int64(len(t.mu.out) - before)
	if t.mu.bytes > t.options.Limit-entryBytes {
		t.mu.out = Entry{Type: Full, Time: e.Time}.appendTo(t.mu.out[:before])
		t.mu.stopped = true
		t.options.Log.Warn("the tape of the wire is full, and ends", "limit_bytes", t.options.Limit)
	}
	t.mu.wake.Signal()
}

// sayLostLocked notes what was left out since it was called last.
func (t *Tape) sayLostLocked() {
	if t.mu.lost > 0 && !invariant.Planted("tape/loss-unsaid") {
		t.mu.out = Entry{Type: Lost, Offset: t.mu.lost, Time: t.now()}.appendTo(t.mu.out)
		t.mu.lost = 0
	}
}

// Connection is one that goes on the tape. A nil one takes everything and keeps nothing.
type Connection struct {
	t      *Tape
	number uint32
	closed bool // guarded by t.mu
}

// Open begins a connection's part of the tape; that of a nil tape is nil.
func (t *Tape) Open(o Opened) *Connection {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.connections++
	c := &Connection{t: t, number: t.mu.connections}
	t.addLocked(Entry{Type: Open, Connection: c.number, Opened: o})
	return c
}

// Bytes notes p, which stood at offset of its way; begins says that a frame begins
// there. p is borrowed.
func (c *Connection) Bytes(way Way, offset uint64, begins bool, p []byte) {
	for c != nil && len(p) > 0 {
		n := min(len(p), MaxBytes)
		c.add(Entry{Type: Bytes, Way: way, Begins: begins, Offset: offset, Data: p[:n]})
		p, offset, begins = p[n:], offset+uint64(n), false
	}
}

// Close says that the connection is closed; again is no matter. What was read or written
// beside that may follow.
func (c *Connection) Close() {
	if c != nil {
		c.add(Entry{Type: Close})
	}
}

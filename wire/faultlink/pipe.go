package faultlink

import (
	"io"
	"net"
	"sync"
	"time"
)

// pair is one connection in memory.
type pair struct {
	up, down *half
	gone     func() // once, when both ends are closed or it was reset
	once     sync.Once
	mu       sync.Mutex
	ends     int // still open
}

func newPair(f Faults, window int) *pair {
	p := &pair{ends: 2}
	p.up, p.down = newHalf(f.Up, window, p), newHalf(f.Down, window, p)
	return p
}

// reset ends both ways for both ends; what has passed a cut may still be read.
func (p *pair) reset() {
	for _, h := range []*half{p.up, p.down} {
		h.mu.Lock()
		h.broken = true
		h.changed.Broadcast()
		h.mu.Unlock()
	}
	p.once.Do(p.gone)
}

// half is one way of a pair: bytes in chunks that arrive at their time.
type half struct {
	pair   *pair
	way    Way
	window int

	mu      sync.Mutex
	changed sync.Cond
	chunks  []chunk
	held    int   // bytes in chunks
	passed  int64 // bytes ever
	ended   bool  // the writer closed
	deaf    bool  // the reader closed
	broken  bool
	stalled bool
	readBy  deadline
	writeBy deadline
}

type chunk struct {
	bytes []byte
	due   time.Time
}

func newHalf(w Way, window int, p *pair) *half {
	h := &half{pair: p, way: w, window: window}
	h.changed.L = &h.mu
	return h
}

func (h *half) freeze() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stalled = true
	h.chunks = nil // in flight, and lost
}

// from gives the way other faults, of what follows.
func (h *half) from(w Way) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, at := range []*int64{&w.CutAt, &w.StallAt, &w.FlipAt, &w.RepeatAt} {
		if *at > 0 {
			*at += h.passed
		}
	}
	h.way = w
}

// write passes on p, or as much of it as the faults let.
func (h *half) write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		n, cut, err := h.writeSome(p[written:])
		written += n
		if cut {
			h.pair.reset()
			return written, errReset
		}
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

func (h *half) writeSome(p []byte) (n int, cut bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.ended:
			return 0, false, errClosed
		case h.broken:
			return 0, false, errReset
		case h.deaf && !h.stalled: // else the news of it is lost too
			return 0, false, errPipe
		case h.writeBy.over():
			return 0, false, errTimeout
		}
		if h.held < h.window {
			break
		}
		h.changed.Wait()
	}
	c := append([]byte(nil), p[:min(len(p), h.window-h.held)]...)
	if h.stalled {
		h.held += len(c) // as a kernel does: it takes what fits, and waits for an ack
		return len(c), false, nil
	}
	n, cut, stall := h.way.pass(h.passed, c)
	h.passed += int64(n)
	if n > 0 {
		h.held += n
		h.chunks = append(h.chunks, chunk{c[:n], h.due()})
		if at := h.way.RepeatAt; at > h.passed-int64(n) && at <= h.passed {
			h.held += n
			h.chunks = append(h.chunks, chunk{append([]byte(nil), c[:n]...), h.due()})
		}
		h.changed.Broadcast()
	}
	h.stalled = h.stalled || stall
	return n, cut, nil
}

func (h *half) due() time.Time {
	if h.way.Delay == 0 {
		return time.Time{}
	}
	d := time.Now().Add(h.way.Delay)
	time.AfterFunc(h.way.Delay, h.wake)
	return d
}

func (h *half) wake() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.changed.Broadcast()
}

func (h *half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		if h.deaf {
			return 0, errClosed
		}
		if h.readBy.over() {
			return 0, errTimeout
		}
		if len(p) == 0 {
			return 0, nil
		}
		if len(h.chunks) > 0 && (h.chunks[0].due.IsZero() || !time.Now().Before(h.chunks[0].due)) {
			c := &h.chunks[0]
			n := copy(p, c.bytes)
			if c.bytes = c.bytes[n:]; len(c.bytes) == 0 {
				h.chunks = h.chunks[1:]
			}
			h.held -= n
			h.changed.Broadcast()
			return n, nil
		}
		if len(h.chunks) == 0 && h.broken {
			return 0, errReset
		}
		if len(h.chunks) == 0 && h.ended && !h.stalled {
			return 0, io.EOF
		}
		h.changed.Wait()
	}
}

// deadline is when a wait is over; its timer wakes those who wait.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) over() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (h *half) setDeadline(d *deadline, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = at
	if !at.IsZero() {
		if left := time.Until(at); left > 0 {
			d.timer = time.AfterFunc(left, h.wake)
		}
	}
	h.changed.Broadcast()
}

// end is one end of a pair: a net.Conn.
type end struct {
	pair          *pair
	in, out       *half
	local, remote addr
	once          sync.Once
}

func (e *end) Read(p []byte) (int, error)  { return e.in.read(p) }
func (e *end) Write(p []byte) (int, error) { return e.out.write(p) }
func (e *end) LocalAddr() net.Addr         { return e.local }
func (e *end) RemoteAddr() net.Addr        { return e.remote }

func (e *end) SetDeadline(t time.Time) error {
	e.SetReadDeadline(t)
	return e.SetWriteDeadline(t)
}

func (e *end) SetReadDeadline(t time.Time) error {
	e.in.setDeadline(&e.in.readBy, t)
	return nil
}

func (e *end) SetWriteDeadline(t time.Time) error {
	e.out.setDeadline(&e.out.writeBy, t)
	return nil
}

// Close ends this end; the other reads what was written, then io.EOF.
func (e *end) Close() error {
	e.once.Do(func() {
		e.in.shut(&e.in.deaf, &e.in.readBy)
		e.out.shut(&e.out.ended, &e.out.writeBy)
		e.pair.mu.Lock()
		e.pair.ends--
		last := e.pair.ends == 0
		e.pair.mu.Unlock()
		if last {
			e.pair.once.Do(e.pair.gone)
		}
	})
	return nil
}

func (h *half) shut(what *bool, d *deadline) {
	h.mu.Lock()
	defer h.mu.Unlock()
	*what = true
	if d.timer != nil {
		d.timer.Stop()
	}
	h.changed.Broadcast()
}

package wire

import (
	"bufio"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

const (
	// queueBytes is how much may wait on the control connection: thousands of acks,
	// and several of the largest messages. A peer that leaves that much is as good as dead.
	queueBytes = 2 << 20
	// pieceBytes is what one write deadline covers: one record of TLS.
	pieceBytes = 16 << 10
)

// queue is what waits to be sent on the control connection: whole frames.
type queue struct {
	mu   sync.Mutex
	out  []byte
	wake chan struct{}
}

// take returns what waits, and keeps the memory of spare for what comes.
func (q *queue) take(spare []byte) []byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := q.out
	q.out = spare[:0]
	return out
}

// Send queues a message on the control connection. It never waits: a peer that
// lets the queue fill ends the session. After the end it returns the reason;
// a message beyond its limits, or newer than the session's version, is an error and
// changes nothing.
func (s *Session) Send(m Message) error {
	if err := m.check(); err != nil {
		return err
	}
	if !s.Speaks(m) && !invariant.Planted("wire/newer-message") {
		return fmt.Errorf("%w: %T needs version %d, the session has %d", ErrVersion, m, m.since(), s.version)
	}
	if err := s.reason(); err != nil {
		return err
	}
	if !s.source { // before it is out: records may come as soon as it is
		switch m := m.(type) {
		case *Stand:
			s.opened(m)
		case *Refused:
			s.shut(m.Stream)
		}
	}
	if s.queue.add(m.kind(), m.appendTo) {
		s.end(ErrSlow)
		return ErrSlow
	}
	return nil
}

// add queues a frame, and says whether too much waits.
func (q *queue) add(t frameType, body func([]byte) []byte) (full bool) {
	q.mu.Lock()
	q.out = appendFrame(q.out, t, body)
	full = len(q.out) > queueBytes
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default: // it is awake
	}
	return full
}

// writeControl sends heartbeats and what is queued until the session ends; then
// what is left, and the reason.
func (s *Session) writeControl() {
	tick := time.NewTicker(heartbeatEvery)
	defer tick.Stop()
	var spare, beat []byte
	due := true
	for {
		if due {
			beat = appendFrame(beat[:0], typeHeartbeat, s.heartbeat().appendTo)
			if !s.source && s.version >= OrderedSince {
				beat = appendFrame(beat, typeTaken, s.takenNow().appendTo)
			}
			if !s.writePieces(beat) {
				return
			}
		}
		out := s.queue.take(spare)
		if !s.writePieces(out) {
			return
		}
		spare = out
		select {
		case <-tick.C:
			due = true
		case <-s.queue.wake:
			due = false
		case <-s.ctx.Done():
			if reason := s.reason(); polite(reason) {
				s.writePieces(appendBye(s.queue.take(spare), reason))
			}
			return
		}
	}
}

// writePieces writes p under a deadline for each piece, so that a slow link is not
// taken for a dead one.
func (s *Session) writePieces(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), pieceBytes)
		s.control.SetWriteDeadline(time.Now().Add(deadAfter))
		if _, err := s.control.Write(p[:n]); err != nil {
			s.end(&lostError{"control", err})
			return false
		}
		p = p[n:]
	}
	return true
}

// listener reads the control connection, notes when the peer was heard, and gives
// it up when it is silent.
type listener struct{ s *Session }

func (l listener) Read(p []byte) (int, error) {
	l.s.control.SetReadDeadline(time.Now().Add(deadAfter))
	n, err := l.s.control.Read(p)
	if n > 0 {
		l.s.heard.Store(int64(l.s.clock()))
	}
	return n, err
}

// readControl hands messages on until the connection ends. Once the session is
// ending it only waits for that.
func (s *Session) readControl() {
	r := bufio.NewReaderSize(listener{s}, pieceBytes)
	var head [frameBytes]byte
	var body []byte
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			s.lostControl(err)
			return
		}
		t, n, err := parseFrame(head[:])
		if err == nil && t == typeRecord {
			err = badFrame(BadType, "a record on the control connection")
		}
		if err != nil {
			s.end(err)
			return
		}
		if cap(body) < n {
			body = make([]byte, n)
		}
		body = body[:n]
		if _, err := io.ReadFull(r, body); err != nil {
			s.lostControl(err)
			return
		}
		if s.ctx.Err() != nil {
			continue
		}
		if err := s.hear(t, body); err != nil {
			s.end(err)
			if !polite(err) {
				return
			}
		}
	}
}

func (s *Session) lostControl(err error) {
	if isTimeout(err) {
		err = ErrDead
	}
	s.end(&lostError{"control", err})
}

// hear takes in one frame; an error ends the session.
func (s *Session) hear(t frameType, body []byte) error {
	switch t {
	case typeHeartbeat:
		h, err := parseHeartbeat(body)
		if err != nil {
			return err
		}
		return s.heardHeartbeat(h)
	case typeBye:
		b, err := parseBye(body)
		if err != nil {
			return err
		}
		return &PeerError{b.code, b.text}
	case typeTaken, typeGone:
		if s.version < OrderedSince || s.source != (t == typeTaken) {
			return badFrame(BadType, "type %d in version %d", t, s.version)
		}
		if t == typeGone {
			n, err := parseGone(body)
			if err == nil {
				s.heardGone(n)
			}
			return err
		}
		r, err := parseTaken(body)
		if err != nil {
			return err
		}
		return s.heardTaken(r)
	}
	m, err := decodeMessage(t, body)
	if err != nil {
		return err
	}
	if !s.Speaks(m) {
		return badFrame(BadType, "%T in version %d", m, s.version)
	}
	switch m := m.(type) {
	case *Stand:
		if s.source {
			s.opened(m)
		}
	case *CloseStream:
		if !s.source {
			s.shut(m.Stream)
		}
	}
	return s.handler.Message(s, m)
}

func (s *Session) heartbeat() heartbeat {
	now := s.clock()
	h := heartbeat{sent: now, taken: s.taken.Load()}
	for _, l := range s.all() {
		h.busy = h.busy || l.since.Load() != 0
	}
	s.echo.Lock()
	defer s.echo.Unlock()
	if s.echo.sent > 0 {
		h.echo, h.held = s.echo.sent, now-min(now, s.echo.at)
	}
	return h
}

func (s *Session) heardHeartbeat(h heartbeat) error {
	now := s.clock()
	s.echo.Lock()
	s.echo.sent, s.echo.at = h.sent, now
	s.echo.Unlock()
	if rtt := h.roundTrip(now); rtt > 0 {
		s.rtt.Store(int64(rtt))
	}
	sent := s.sent.Load()
	if h.taken > sent {
		return protocolError("the peer took %d bytes of %d", h.taken, sent)
	}
	if !s.source {
		return s.orderStuck()
	}
	if s.version >= OrderedSince {
		return nil // Taken says it of each connection
	}
	if s.stall.beat(time.Now(), sent, h.taken, h.busy) && !invariant.Planted("wire/no-stall") {
		return ErrStalled
	}
	if tcp, ok := tcpOf(s.data.socket.Conn); ok && s.hole.beat(tcp) {
		return ErrBlackHole
	}
	return nil
}

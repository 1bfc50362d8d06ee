package nbd

import (
	"net"
	"sync"
)

// answers is where the answers of a connection go.
type answers interface {
	// add queues head (copied) and p (lent until home is told), and returns how much is queued.
	add(head, p []byte, home releaser) (queued int)
	// flush sees to it that what was added is sent.
	flush()
}

// sender writes messages to a connection, whole and in the order of their adding.
// Whoever flushes and finds nobody writing writes all there is, for all; so a
// burst of answers leaves in one call, and none waits for a goroutine to wake.
type sender struct {
	conn net.Conn
	// broken is called once, without locks, when a write failed.
	broken func(error)

	mu struct {
		sync.Mutex
		queue, spare *outgoing
		writing      bool
		err          error
		room         sync.Cond // the queue was taken over for writing, or writing failed
	}
}

// outgoing is a row of messages: bytes of our own, and payload that is lent.
type outgoing struct {
	own   []byte
	parts []part
	bytes int // own and lent
	bufs  net.Buffers
}

// part is payload that stands after own[:after].
type part struct {
	after int
	p     []byte
	home  releaser // told when the payload is written, or never will be
}

// releaser takes back what a sender no longer needs.
type releaser interface{ release() }

func newSender(conn net.Conn, broken func(error)) *sender {
	s := &sender{conn: conn, broken: broken}
	s.mu.queue, s.mu.spare = new(outgoing), new(outgoing)
	s.mu.room.L = &s.mu
	return s
}

// add queues head (copied) and p (lent until home is told). It waits while too much
// is queued and somebody is writing. After a failure all is dropped.
func (s *sender) add(head, p []byte, home releaser) (queued int) {
	s.mu.Lock()
	for s.mu.writing && s.mu.queue.bytes >= waitingBytes && s.mu.err == nil {
		s.mu.room.Wait()
	}
	if s.mu.err != nil {
		s.mu.Unlock()
		if home != nil {
			home.release()
		}
		return 0
	}
	s.mu.queue.add(head, p, home)
	queued = s.mu.queue.bytes
	s.mu.Unlock()
	return queued
}

// flush sees to it that all that was added is being written: by this call, or by
// another that is at it.
func (s *sender) flush() {
	s.mu.Lock()
	if s.mu.writing {
		s.mu.Unlock()
		return
	}
	s.mu.writing = true
	var failed error
	for s.mu.queue.bytes > 0 && s.mu.err == nil {
		q := s.mu.queue
		s.mu.queue, s.mu.spare = s.mu.spare, nil
		s.mu.room.Broadcast()
		s.mu.Unlock()
		err := q.writeTo(s.conn)
		s.mu.Lock()
		s.mu.spare = q
		if err != nil {
			s.mu.err, failed = err, err
		}
	}
	s.mu.writing = false
	var dropped *outgoing
	if s.mu.err != nil {
		dropped, s.mu.queue = s.mu.queue, new(outgoing)
		s.mu.room.Broadcast()
	}
	s.mu.Unlock()
	if dropped != nil {
		dropped.release()
	}
	if failed != nil {
		s.broken(failed)
	}
}

// fail makes the sender drop everything from now on; what waits is dropped too.
func (s *sender) fail(err error) {
	s.mu.Lock()
	if s.mu.err == nil {
		s.mu.err = err
	}
	s.mu.room.Broadcast()
	s.mu.Unlock()
	s.flush()
}

// buffers is all of it, in order.
func (q *outgoing) buffers() net.Buffers {
	bufs, at := q.bufs[:0], 0
	for _, p := range q.parts {
		if p.after > at {
			bufs = append(bufs, q.own[at:p.after])
			at = p.after
		}
		if len(p.p) > 0 {
			bufs = append(bufs, p.p)
		}
	}
	if at < len(q.own) {
		bufs = append(bufs, q.own[at:])
	}
	q.bufs = bufs
	return bufs
}

// add appends head, which is copied, and p, which is lent until home is told.
func (q *outgoing) add(head, p []byte, home releaser) {
	q.own = append(q.own, head...)
	if home != nil {
		q.parts = append(q.parts, part{after: len(q.own), p: p, home: home})
	}
	q.bytes += len(head) + len(p)
}

// writeTo writes all and gives the payload back, written or not.
func (q *outgoing) writeTo(conn net.Conn) error {
	bufs := q.buffers()
	var err error
	if len(bufs) == 1 {
		_, err = conn.Write(bufs[0])
	} else {
		sawWrite(conn)
		_, err = q.bufs.WriteTo(conn) // eats q.bufs
		q.bufs = bufs
	}
	q.release()
	return err
}

// release gives the payload back and makes the row empty.
func (q *outgoing) release() {
	for i := range q.parts {
		q.parts[i].home.release()
	}
	clear(q.parts)
	q.own, q.parts, q.bytes = q.own[:0], q.parts[:0], 0
}

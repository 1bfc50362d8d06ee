package wire

import (
	"net"
	"sync"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// corkBytes is how much one system call writes on the data connection; TLS alone
// would make one for each of its records of 16 KiB. The copy costs less than that.
const corkBytes = 128 << 10

// socket is what TLS writes to: it counts what passes and, once corked, gathers it.
type socket struct {
	net.Conn
	sent, received           atomic.Uint64
	totalSent, totalReceived *atomic.Uint64

	mu   sync.Mutex // TLS may write an alert of its own while a record is flushed
	held []byte     // nil: not corked
}

func (s *socket) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	s.received.Add(uint64(n))
	s.totalReceived.Add(uint64(n))
	return n, err
}

// belongs has the totals count what passed and what will with others of its kind. Only
// for a socket that nobody reads or writes at the moment.
func (s *socket) belongs(sent, received *atomic.Uint64) {
	if invariant.Planted("wire/one-port-counts-control") {
		return
	}
	s.totalSent.Add(-s.sent.Load())
	s.totalReceived.Add(-s.received.Load())
	s.totalSent, s.totalReceived = sent, received
	sent.Add(s.sent.Load())
	received.Add(s.received.Load())
}

// Write passes p on; corked, it may keep it until flush.
func (s *socket) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held == nil {
		return s.write(p)
	}
	s.held = append(s.held, p...)
	if len(s.held) < corkBytes {
		return len(p), nil
	}
	return len(p), s.flushLocked()
}

// cork makes Write gather, from now on.
func (s *socket) cork() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = make([]byte, 0, corkBytes+32<<10) // one TLS record over
}

// flush passes on what was gathered.
func (s *socket) flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flushLocked()
}

func (s *socket) flushLocked() error {
	if len(s.held) == 0 {
		return nil
	}
	_, err := s.write(s.held)
	s.held = s.held[:0]
	return err
}

func (s *socket) write(p []byte) (int, error) {
	n, err := s.Conn.Write(p)
	s.sent.Add(uint64(n))
	s.totalSent.Add(uint64(n))
	return n, err
}

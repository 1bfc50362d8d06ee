package wire

import (
	"context"
	"errors"
	"time"
)

var errNotBuilt = errors.New("wire: not built yet")

// Session is one conversation with a peer. It ends as a whole: when Done closes,
// both connections are closed and Handler.Closed has returned.
type Session struct{ noCopy [0]func() }

// Peer is whom the other end's certificate names.
func (s *Session) Peer() Peer { return Peer{} }

// Send queues a message on the control connection. It never blocks: a peer that
// lets the queue fill ends the session. After the end it returns the reason.
func (s *Session) Send(m Message) error { return errNotBuilt }

// SendRecord sends one record on the data connection, source to target only. It
// blocks until the record is handed to the network, and borrows rec until it
// returns. ctx ends the wait for its turn only; once the first byte is out
// nothing but the session's end stops it. After an error nothing of rec counts
// as sent.
func (s *Session) SendRecord(ctx context.Context, rec []byte) error { return errNotBuilt }

// Close ends the session and returns at once; Done says when it is over.
func (s *Session) Close() {}

// Done is closed once the session is over and its handler has seen Closed.
func (s *Session) Done() <-chan struct{} { return nil }

// RTT is the round trip of the last heartbeat, 0 before the first.
func (s *Session) RTT() time.Duration { return 0 }

// Heard is when the peer was last heard on the control connection.
func (s *Session) Heard() time.Time { return time.Time{} }

// Traffic is what the session has moved so far.
func (s *Session) Traffic() Traffic { return Traffic{} }

// Received is one record as it came, in a pooled, aligned buffer. Whoever holds it
// calls Release once.
type Received struct{ p []byte }

// Bytes is the whole record, valid until Release.
func (r *Received) Bytes() []byte { return r.p }

// Release gives the buffer back; a second call panics.
func (r *Received) Release() {}

// Handler is told what happens in sessions.
type Handler interface {
	// Opened is called first. An error ends the session, and Closed is not called.
	Opened(*Session) error
	// Message is called for each message, one after the other. It must not wait for
	// the peer. An error ends the session.
	Message(*Session, Message) error
	// Record takes one record: Release it when done, on an error too. Calls come one
	// after the other, in order, beside those of Message. Blocking in it is how a
	// target that cannot keep up holds back its source. An error ends the session.
	Record(*Session, *Received) error
	// Closed is called last, once, when no other call is running; err is never nil.
	Closed(s *Session, err error)
}

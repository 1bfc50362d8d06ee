package wire

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Handler is told what happens in sessions.
type Handler interface {
	// Opened is called first, and must not take long: the peer waits for it. An error
	// ends the session, and Closed is not called.
	Opened(*Session) error
	// Message is called for each message, one after the other. It must not wait for
	// the peer. An error ends the session.
	Message(*Session, Message) error
	// Record takes one record: Release it when done, on an error too. Calls come one
	// after the other, in order, beside those of Message. Blocking in it is how a
	// target that cannot keep up holds back its source; what blocks there must end
	// with the session's Context. An error ends the session.
	Record(*Session, *Received) error
	// Lost says at a source that a data connection is no more while others are: what was
	// sent on it and is not acknowledged must be sent again. It is called beside the
	// others, and must not wait for the peer.
	Lost(s *Session, line uint32)
	// Closed is called last, once, when no other call is running; err is never nil.
	Closed(s *Session, err error)
}

// Session is one conversation with a peer. It ends as a whole.
type Session struct {
	source        bool // this end sends the records
	version       uint16
	control, data *link // data is the first of its data connections
	token         token
	handler       Handler
	counters      *Counters
	memory        *memory // a target's
	log           *slog.Logger
	began         time.Time

	ctx  context.Context // ends when the session begins to end; its cause is the reason
	end  context.CancelCauseFunc
	done chan struct{}

	queue queue
	turn  chan struct{} // held by the one who hands over a record
	lines lines
	order order
	work  sync.WaitGroup // goroutines of data connections; added to under lines, while that is not closed

	sent   atomic.Uint64 // bytes of frames given to data connections
	taken  atomic.Uint64 // bytes of frames taken off them
	waited atomic.Int64  // ns in which records waited for data connections
	// What the target reported, at a source: bytes of frames it took, and ns in which it
	// held up connections, all together.
	arrived     atomic.Uint64
	reports     atomic.Uint64 // of what arrived
	heldUpThere atomic.Int64
	wanted      atomic.Int32   // data connections, at a source
	reported    chan time.Time // capacity 1: when a report came
	heard       atomic.Int64   // ns since began of the last byte on the control connection
	rtt         atomic.Int64   // ns
	echo        struct {
		sync.Mutex
		sent uint64 // of the peer's newest heartbeat
		at   uint64 // when it came, by our clock of this session
	}
	stall stall // of the control connection's reader
	hole  hole  // and of a source's
}

// newSession makes a session of a control connection; data follows before run.
func newSession(ctx context.Context, source bool, control *link, h Handler, c *Counters, log *slog.Logger) *Session {
	s := &Session{
		source: source, control: control, handler: h, counters: c,
		log: log.With("peer", control.peer.String()), began: time.Now(),
		done: make(chan struct{}), turn: make(chan struct{}, 1), reported: make(chan time.Time, 1),
	}
	s.ctx, s.end = context.WithCancelCause(ctx)
	s.queue.wake = make(chan struct{}, 1)
	return s
}

// Peer is whom the other end's certificate names.
func (s *Session) Peer() Peer { return s.control.peer }

// Speaks says whether the session's version has the message: a peer that does not know
// it must never get it.
func (s *Session) Speaks(m Message) bool { return m.since() <= s.version }

// Ordered says whether the target puts the records of a stream in order: SendOrdered is for that.
func (s *Session) Ordered() bool { return s.version >= OrderedSince }

// TakesFreezes says whether the target takes cuts that say how a freeze went.
func (s *Session) TakesFreezes() bool { return s.version >= freezeSince }

// TakesSources says whether the target takes cuts that say how many sources their group has.
func (s *Session) TakesSources() bool { return s.version >= cutsSince }

// Context ends when the session begins to end; its cause is the reason.
func (s *Session) Context() context.Context { return s.ctx }

// Done is closed once the session is over and its handler has seen Closed.
func (s *Session) Done() <-chan struct{} { return s.done }

// Close ends the session and returns at once; Done says when it is over. What Send
// took before is still sent if the peer takes it within a moment.
func (s *Session) Close() { s.end(ErrClosed) }

// RTT is the round trip of the last heartbeat, 0 before the first.
func (s *Session) RTT() time.Duration { return time.Duration(s.rtt.Load()) }

// Heard is when the peer was last heard on the control connection.
func (s *Session) Heard() time.Time { return s.began.Add(time.Duration(s.heard.Load())) }

// Traffic is what the session has moved so far.
func (s *Session) Traffic() Traffic {
	t := Traffic{ControlSent: s.control.socket.sent.Load(), ControlReceived: s.control.socket.received.Load()}
	s.lines.Lock()
	defer s.lines.Unlock()
	t.DataSent, t.DataReceived = s.lines.sent, s.lines.recvd
	for _, l := range s.lines.up {
		t.DataSent += l.socket.sent.Load()
		t.DataReceived += l.socket.received.Load()
	}
	return t
}

// run carries an opened session to its end.
func (s *Session) run() error {
	s.counters.Sessions.Add(1)
	s.log.Info("session opened", "version", s.version)
	var control sync.WaitGroup
	s.lines.Lock()
	for _, l := range s.lines.up {
		s.startLocked(l)
	}
	s.lines.Unlock()
	control.Go(s.writeControl)
	control.Go(s.readControl)

	<-s.ctx.Done()
	s.closeLines()
	reason := s.reason()
	// The writer says goodbye, and the reader waits for the peer to hang up in answer.
	hangUp := time.AfterFunc(byeTime, s.control.hangUp)
	if !polite(reason) {
		s.control.hangUp()
	}
	control.Wait()
	hangUp.Stop()
	s.control.hangUp()
	s.work.Wait()
	s.shutAll()
	s.counters.broke(reason)
	s.handler.Closed(s, reason)
	s.log.Info("session closed", "reason", reason, "lasted", time.Since(s.began).Round(time.Millisecond))
	return reason
}

// reason is why the session ends, nil while it does not.
func (s *Session) reason() error {
	err := context.Cause(s.ctx)
	if errors.Is(err, context.Canceled) {
		return ErrClosed // whoever started us was told to stop
	}
	return err
}

// clock is ns since the session began; never 0.
func (s *Session) clock() uint64 { return uint64(max(1, time.Since(s.began))) }

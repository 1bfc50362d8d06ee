package wire

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/shape"
)

// maxLines is how many data connections a session may have.
const maxLines = 8

// leaveTime is how long a target may take to read what a connection still carries that
// its source gives up.
const leaveTime = 30 * time.Second

// line is one data connection of a session. Its number is never given out twice.
type line struct {
	*link
	number uint32
	turn   chan struct{} // held by whoever writes a record on it
	quit   chan struct{} // closed when it is gone
	first  []byte        // a frame's headers and the beginning of its record; of whoever has the turn
	pieces chan piece    // for its writer
	queued atomic.Int64  // bytes that the writer has and has not written

	sent  atomic.Uint64 // bytes of frames given to it
	taken atomic.Uint64 // bytes of frames taken off it
	held  atomic.Int64  // ns in which its reader was held up, but for the present time
	since atomic.Int64  // ns, by the session's clock, since when it is; 0 when it is not

	arrived atomic.Uint64 // of those sent, as the target said

	// What follows is guarded by Session.lines.
	started bool
	gone    bool
	leaving bool // gets no more records
	unsent  int  // bytes that may wait in the kernel unsent while there is no cap

	told told // of the control connection's reader, at a source
}

// told is what a target said of a connection.
type told struct {
	stall       stall
	hole        hole
	taken, held uint64
	at          time.Time // of its last report
	missed      int       // reports in a row in which it does not stand
}

// lines are the data connections of a session.
type lines struct {
	sync.Mutex
	up     []*line // by number, those that leave too
	next   uint32  // number
	closed bool
	gone   Spent // of those that are gone, with their traffic
	sent   uint64
	recvd  uint64
	cap    shape.Rate
	bound  bool
	free   chan struct{} // capacity 1: a turn is free, or up changed
}

// setData gives a new session its first data connection.
func (s *Session) setData(l *link) {
	s.data = l
	s.lines.free = make(chan struct{}, 1)
	s.lines.up = []*line{newLine(l, 0)}
	s.lines.next = 1
}

func newLine(l *link, number uint32) *line {
	return &line{link: l, number: number, turn: make(chan struct{}, 1), quit: make(chan struct{}), pieces: make(chan piece, 4), unsent: unsentBytes}
}

// Connections is how many data connections there are.
func (s *Session) Connections() int {
	s.lines.Lock()
	defer s.lines.Unlock()
	return s.lines.usable()
}

// Wanted is how many data connections a source wants at the moment.
func (s *Session) Wanted() int { return int(s.wanted.Load()) }

// usable is how many may be given records.
func (ls *lines) usable() (n int) {
	for _, l := range ls.up {
		if !l.leaving {
			n++
		}
	}
	return n
}

// Sole is the number of the data connection if there is one alone.
func (s *Session) Sole() (number uint32, ok bool) {
	s.lines.Lock()
	defer s.lines.Unlock()
	if len(s.lines.up) != 1 {
		return 0, false
	}
	return s.lines.up[0].number, true
}

// errFull is a target that has enough connections.
var errFull = errors.New("enough data connections")

// addLine takes one more data connection and begins to use it. The caller keeps it on an error.
func (s *Session) addLine(l *link, number uint32) error {
	ls := &s.lines
	ls.Lock()
	defer ls.Unlock()
	if err := ls.mayAddLocked(number); err != nil {
		return err
	}
	ls.next = number + 1
	n := newLine(l, number)
	ls.up = append(ls.up, n)
	s.startLocked(n)
	s.boundLocked()
	ls.kick()
	return nil
}

// mayAdd says why a connection of that number would not be taken.
func (ls *lines) mayAdd(number uint32) error {
	ls.Lock()
	defer ls.Unlock()
	return ls.mayAddLocked(number)
}

func (ls *lines) mayAddLocked(number uint32) error {
	switch {
	case ls.closed:
		return ErrClosed
	case number < ls.next:
		return protocolError("data connection %d again", number)
	case len(ls.up) >= maxLines:
		return errFull
	}
	return nil
}

// startLocked begins to use a connection, once: one may be attached before the session runs.
func (s *Session) startLocked(l *line) {
	if l.started {
		return
	}
	l.started = true
	if s.source {
		s.work.Go(func() { s.watchLine(l) })
		s.work.Go(func() { s.writeLine(l) })
	} else {
		s.work.Go(func() { s.readLine(l) })
	}
}

func (ls *lines) kick() {
	select {
	case ls.free <- struct{}{}:
	default:
	}
}

// all is a copy of those that are up.
func (s *Session) all() []*line {
	s.lines.Lock()
	defer s.lines.Unlock()
	return append([]*line(nil), s.lines.up...)
}

// take removes a connection; first is false when it is gone already, and last is true
// when there is no other to carry records.
func (ls *lines) take(l *line) (first, last bool) {
	ls.Lock()
	defer ls.Unlock()
	if l.gone || ls.closed {
		return false, false
	}
	others := ls.usable()
	if !l.leaving {
		others--
	}
	if others == 0 {
		return true, true
	}
	l.gone = true
	for i, o := range ls.up {
		if o == l {
			ls.up = append(ls.up[:i:i], ls.up[i+1:]...)
			break
		}
	}
	spent, _ := l.spent()
	ls.gone.Sent += spent.Sent + spent.Unsent
	ls.sent += l.socket.sent.Load()
	ls.recvd += l.socket.received.Load()
	close(l.quit)
	ls.kick()
	return true, false
}

// lostLine takes a connection out that broke. What was sent on it and not acknowledged
// goes over the others; where there is no other the session ends.
func (s *Session) lostLine(l *line, err error) {
	if s.without(l, err) {
		s.lostData(err)
	}
}

// heardLost is lostLine for the reader of the control connection: it does not wait for a
// better reason, which it would have to read itself.
func (s *Session) heardLost(l *line, err error) {
	if s.without(l, err) {
		s.end(err)
	}
}

// without goes on without a connection, and says whether the session must end because that was
// the last.
func (s *Session) without(l *line, err error) (over bool) {
	if s.ctx.Err() != nil {
		return false
	}
	first, last := s.lines.take(l)
	switch {
	case !first:
		return false
	case last && errors.Is(err, ErrStalled):
		s.end(err)
		return false
	case last:
		return true
	}
	l.cut()
	s.counters.ConnectionsLost.Add(1)
	s.counters.broke(err)
	s.log.Warn("a data connection is lost", "number", l.number, "error", err, "left", s.Connections())
	if s.source {
		s.sayGone(l.number)
		if !invariant.Planted("wire/cut-untold") {
			s.handler.Lost(s, l.number)
		}
	}
	s.rebound()
	return false
}

// leftLine is the end of a connection that its source gave up: all that was sent on it came.
func (s *Session) leftLine(l *line) {
	if first, last := s.lines.take(l); !first {
		return
	} else if last {
		s.lostData(&lostError{"data", errHungUp})
		return
	}
	if !s.source {
		l.SetWriteDeadline(time.Now().Add(byeTime))
		l.CloseWrite()
	}
	l.hangUp()
	s.rebound()
}

// errHungUp is a source that gives up the last connection.
var errHungUp = errors.New("the peer hung up")

// retire gives up the newest connection, if there is another: it gets no more records,
// and ends once the target has read it to its end.
func (s *Session) retire() {
	ls := &s.lines
	ls.Lock()
	var l *line
	for _, o := range ls.up {
		if !o.leaving {
			l = o
		}
	}
	if ls.closed || ls.usable() < 2 {
		ls.Unlock()
		return
	}
	l.leaving = true
	s.work.Go(func() { s.leave(l) })
	ls.Unlock()
	s.rebound()
}

func (s *Session) leave(l *line) {
	t := time.NewTimer(leaveTime)
	defer t.Stop()
	select {
	case l.turn <- struct{}{}: // nobody writes on it again
		l.SetWriteDeadline(time.Now().Add(leaveTime))
		l.CloseWrite()
		l.socket.flush()
		<-l.turn
	case <-t.C:
	case <-l.quit:
		return
	case <-s.ctx.Done():
		return
	}
	select {
	case <-l.quit:
	case <-s.ctx.Done():
	case <-t.C:
		s.lostLine(l, ErrStalled)
	}
}

// closeLines cuts all connections of a session that ends, and lets their writers go.
func (s *Session) closeLines() {
	s.lines.Lock()
	s.lines.closed = true
	up := s.lines.up
	s.lines.Unlock()
	for _, l := range up {
		l.cut()
	}
	s.turn <- struct{}{} // nobody hands pieces to a writer any more
	defer func() { <-s.turn }()
	for _, l := range up {
		close(l.quit)
	}
}

// Bound has the kernel keep the data connections, together, below the cap too; 0 is no cap.
func (s *Session) Bound(cap shape.Rate) {
	s.lines.Lock()
	defer s.lines.Unlock()
	s.lines.cap, s.lines.bound = cap, true
	s.boundLocked()
}

func (s *Session) rebound() {
	s.lines.Lock()
	defer s.lines.Unlock()
	s.boundLocked()
}

func (s *Session) boundLocked() {
	if !s.lines.bound {
		return
	}
	for _, l := range s.lines.up {
		l.boundTo(s.lines.cap, max(1, s.lines.usable()))
	}
}

// holdUp says that the connection's reader waits for us, and not for the peer.
func (s *Session) holdUp(l *line) { l.since.Store(int64(s.clock())) }

func (s *Session) goOn(l *line) {
	if since := l.since.Swap(0); since > 0 {
		l.held.Add(int64(s.clock()) - since)
	}
}

// heldUp is for how long it has been, ever, and whether it is now.
func (s *Session) heldUp(l *line) (ns uint64, now bool) {
	since, held := l.since.Load(), l.held.Load()
	if since == 0 {
		return uint64(held), false
	}
	return uint64(held + max(0, int64(s.clock())-since)), true
}

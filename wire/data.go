package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
	"github.com/holdfast-dr/holdfast/wire/reorder"
)

// firstBytes is how much of a frame goes into the first TLS record, header
// included, so that the header does not travel in a record of its own.
const firstBytes = 16 << 10

// Lent is a record that its owner lends to a session.
type Lent interface {
	Bytes() []byte
	Return() // ends the loan; called once, perhaps by another goroutine
}

// Sending says how a record of a stream goes.
type Sending struct {
	Opening uint32 // of the stream, which must be one that stood
	// Sole, where set, has it go on the connection Line, if that is the only one, and be
	// written before SendOrdered returns.
	Sole bool
	Line uint32
	Pace Pace
}

// ErrMoved is a record that was not sent: the connections are others now.
var ErrMoved = errors.New("the data connections have changed")

// SendOrdered sends one record of an opened stream on whichever data connection takes it
// first, source to target only, and says which. It blocks until the record is on its
// way. It takes the loan of rec, on an error too, and ends it when the record is written.
// ctx ends the wait for a turn only. An error other than ErrMoved and ctx's says that
// the session is over. Whether the record arrives, an acknowledgement tells; that it may
// not have, Handler.Lost. The session's version must be OrderedSince or later.
func (s *Session) SendOrdered(ctx context.Context, rec Lent, o Sending) (line uint32, err error) {
	p := rec.Bytes()
	if err := s.maySend(p); err != nil {
		rec.Return()
		return 0, err
	}
	if err := s.takeTurn(ctx); err != nil {
		rec.Return()
		return 0, err
	}
	defer func() { <-s.turn }()
	l, err := s.pick(ctx, o.Sole, o.Line)
	if err != nil {
		rec.Return()
		return 0, err
	}
	w := writing{rec: p, opening: o.Opening, pace: o.Pace}
	if o.Sole {
		err = s.writeNow(l, &w)
		<-l.turn
		s.lines.kick()
		rec.Return()
		return l.number, err
	}
	return l.number, s.handOver(l, &w, rec) // the writer gives the turn back, and the loan
}

// SendRecord sends one record that belongs to no opening, or in a version before
// OrderedSince: the target delivers it as it comes. It blocks until the record is
// handed to the network, and borrows rec until it returns. ctx ends the wait for a turn
// only: once its first byte is out nothing but the session's end stops a record. An
// error says that the session is over (or ctx); whether the record arrived, the next
// session's Stand tells.
func (s *Session) SendRecord(ctx context.Context, rec []byte) error {
	return s.SendPaced(ctx, rec, atOnce{})
}

// SendPaced is SendRecord in pieces of which pace says when they go and how large they are.
func (s *Session) SendPaced(ctx context.Context, rec []byte, pace Pace) error {
	if err := s.maySend(rec); err != nil {
		return err
	}
	if err := s.takeTurn(ctx); err != nil {
		return err
	}
	defer func() { <-s.turn }()
	l, err := s.pick(ctx, false, 0)
	if err != nil {
		return err
	}
	defer func() { <-l.turn; s.lines.kick() }()
	return s.writeNow(l, &writing{rec: rec, pace: pace})
}

func (s *Session) maySend(rec []byte) error {
	if !s.source {
		return ErrDirection
	}
	if len(rec) < record.HeaderBytes || len(rec) > record.MaxRecordBytes {
		return fmt.Errorf("record of %d bytes", len(rec))
	}
	return nil
}

// takeTurn waits until no other record is being handed over.
func (s *Session) takeTurn(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ctx.Done():
		return s.reason()
	}
	if err := s.reason(); err != nil {
		<-s.turn
		return err
	}
	return nil
}

// pick takes the turn of the first connection that is free, or of the sole one of that
// number. Those with low numbers go first, so that with little to send the same ones are
// used: an idle connection forgets how fast it may be.
func (s *Session) pick(ctx context.Context, sole bool, number uint32) (*line, error) {
	var began time.Time
	for {
		s.lines.Lock()
		if sole && (len(s.lines.up) != 1 || s.lines.up[0].number != number) {
			s.lines.Unlock()
			return nil, ErrMoved
		}
		for _, l := range s.lines.up {
			if l.leaving {
				continue
			}
			select {
			case l.turn <- struct{}{}:
				s.lines.Unlock()
				if !began.IsZero() {
					s.waited.Add(int64(time.Since(began)))
				}
				return l, nil
			default:
			}
		}
		s.lines.Unlock()
		if began.IsZero() {
			began = time.Now()
		}
		select {
		case <-s.lines.free:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.ctx.Done():
			return nil, s.reason()
		}
	}
}

// writing is a record on its way onto a connection.
type writing struct {
	rec     []byte
	opening uint32 // 0: it is of none
	pace    Pace
}

// piece is what may be written of a record: of its beginning, and of what follows that.
type piece struct {
	first, rest []byte
	end         Lent // with the last one
}

func (p piece) bytes() int64 { return int64(len(p.first) + len(p.rest)) }

// inPieces writes a record piece by piece, as its pace says, now or through the writer.
// It says too whether anything was.
func (l *line) inPieces(s *Session, w *writing, now bool) (began bool, err error) {
	if l.first == nil {
		l.first = make([]byte, firstBytes)
	}
	head := frameBytes
	if w.opening == 0 {
		putFrame(l.first, typeRecord, len(w.rec))
	} else {
		putFrame(l.first, typeOrdered, orderedBytes+len(w.rec))
		putOrdered(l.first[frameBytes:], w.opening)
		head += orderedBytes
	}
	n := copy(l.first[head:], w.rec)
	first, rest := l.first[:head+n], w.rec[n:]
	for left := head + len(w.rec); left > 0; {
		n, err := w.pace.Next(left)
		if err != nil {
			return began, err
		}
		select {
		case <-l.quit:
			return began, nil // the rest is not missed: all of it goes on another
		default:
		}
		began = true
		n = min(max(n, 1), left)
		left -= n
		// Before the bytes, so that the peer never has more than we say we sent.
		l.sent.Add(uint64(n))
		s.sent.Add(uint64(n))
		a := min(n, len(first))
		b := n - a
		p := piece{first: first[:a], rest: rest[:b]}
		if !now {
			l.queued.Add(p.bytes())
			l.pieces <- p
		} else if err := s.put(l, p); err != nil {
			return true, err
		}
		first, rest = first[a:], rest[b:]
	}
	return true, nil
}

// writeNow writes a record in this goroutine. An error says that the session is over,
// unless nothing of the record was written.
func (s *Session) writeNow(l *line, w *writing) error {
	began, err := l.inPieces(s, w, true)
	if err != nil && began {
		if !isLost(err) {
			err = &lostError{"data", err}
		}
		s.lostLine(l, err)
		if err := s.reason(); err != nil {
			return err
		}
		return nil // it is to be sent again, as Lost said
	} else if err != nil {
		return err
	}
	s.counters.RecordsSent.Add(1)
	return nil
}

func (s *Session) put(l *line, p piece) error {
	began := time.Now()
	err := l.put(p)
	s.waited.Add(int64(time.Since(began)))
	return err
}

// put writes a piece and flushes it.
func (l *line) put(p piece) error {
	for _, b := range [2][]byte{p.first, p.rest} {
		if len(b) == 0 {
			continue
		}
		if _, err := l.Write(b); err != nil {
			return err
		}
	}
	return l.socket.flush()
}

// handOver gives a record to the connection's writer, with the turn and the loan.
func (s *Session) handOver(l *line, w *writing, rec Lent) error {
	began, err := l.inPieces(s, w, false)
	l.pieces <- piece{end: rec} // the writer takes all pieces until nobody has the turn
	if err != nil && !began {
		return err
	}
	if err == nil {
		s.counters.RecordsSent.Add(1)
	}
	return err
}

// writeLine writes what is handed over, until the connection is gone and nobody has its turn.
func (s *Session) writeLine(l *line) {
	var failed error
	var done chan<- struct{}
	for quit := l.quit; ; {
		select {
		case p := <-l.pieces:
			if failed == nil && p.bytes() > 0 {
				if failed = l.put(p); failed != nil {
					s.lostLine(l, &lostError{"data", failed})
				}
			}
			l.queued.Add(-p.bytes())
			if p.end != nil {
				p.end.Return()
				<-l.turn
				s.lines.kick()
			}
		case <-quit:
			quit, done = nil, l.turn
		case done <- struct{}{}: // for good: nothing comes any more
			return
		}
	}
}

// lostData ends the session for a broken data connection, and returns the reason.
// A peer that ends a session closes both connections, so a better reason may be on
// its way on the other: it gets a moment.
func (s *Session) lostData(err error) error {
	t := time.NewTimer(byeTime)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.ctx.Done():
	}
	if !isLost(err) {
		err = &lostError{"data", err}
	}
	s.end(err)
	return s.reason()
}

// watchLine waits at a source for the end of a data connection, on which a target says nothing.
func (s *Session) watchLine(l *line) {
	var p [1]byte
	n, err := l.Read(p[:])
	s.lines.Lock()
	leaving := l.leaving
	s.lines.Unlock()
	switch {
	case n > 0:
		s.end(protocolError("a target sends data"))
	case leaving && err == io.EOF:
		s.leftLine(l)
	default:
		s.lostLine(l, &lostError{"data", err})
	}
}

// readLine hands on what comes on a data connection until that ends.
func (s *Session) readLine(l *line) {
	r := &taker{s: s, l: l}
	for {
		err := s.readRecord(l, r)
		switch {
		case err == nil:
		case err == errHungUp:
			s.leftLine(l)
			return
		case isLost(err):
			s.lostLine(l, err)
			return
		default:
			s.end(err)
			return
		}
	}
}

// readRecord reads one frame and hands its record on. The record's own header is
// checked before there is memory for it.
func (s *Session) readRecord(l *line, r *taker) error {
	head := &r.head
	if _, err := io.ReadFull(r, head[:frameBytes]); err == io.EOF && s.version >= OrderedSince {
		return errHungUp
	} else if err != nil {
		return &lostError{"data", err}
	}
	t, n, err := parseFrame(head[:frameBytes])
	if err != nil {
		return err
	}
	before := frameBytes
	if t == typeOrdered && s.version >= OrderedSince {
		before += orderedBytes
		n -= orderedBytes
	} else if t != typeRecord {
		return badFrame(BadType, "type %d of %d bytes on the data connection", t, n)
	}
	if n < record.HeaderBytes {
		return badFrame(BadType, "type %d of %d bytes on the data connection", t, n)
	}
	if _, err := io.ReadFull(r, head[frameBytes:before+record.HeaderBytes]); err != nil {
		return &lostError{"data", err}
	}
	h, err := record.ParseHeader(head[before:])
	if err != nil {
		return badFrame(BadRecord, "%w", err)
	}
	if h.Size != n {
		return badFrame(BadLength, "a record of %d bytes in a frame of %d", h.Size, n)
	}
	if t == typeRecord {
		return s.takePlain(l, r, h, head[before:before+record.HeaderBytes])
	}
	opening, err := parseOrdered(head[frameBytes:before])
	if err != nil {
		return err
	}
	m := reorder.Mark{Stream: h.Stream, Opening: opening, Seq: h.Seq, Bytes: h.Size, Checksum: h.Checksum}
	return s.takeOrdered(l, r, m, h, head[before:before+record.HeaderBytes])
}

// takePlain takes a record that is delivered as it comes.
func (s *Session) takePlain(l *line, r *taker, h record.Header, head []byte) error {
	s.holdUp(l)
	rec, err := s.memory.get(s.ctx, h)
	s.goOn(l)
	if err != nil {
		return err
	}
	if err := r.rest(rec, head); err != nil {
		return err
	}
	s.counters.RecordsReceived.Add(1)
	s.holdUp(l)
	defer s.goOn(l)
	s.order.delivering.Lock()
	defer s.order.delivering.Unlock()
	return s.handler.Record(s, rec)
}

// rest fills in a record whose header was read.
func (t *taker) rest(rec *Received, head []byte) error {
	copy(rec.Bytes(), head)
	err := t.fill(rec)
	if err != nil && !invariant.Planted("wire/half-record") {
		rec.Release()
		return &lostError{"data", err}
	}
	return nil
}

// fill reads what follows the header. The checksums are taken on the way; who finds them wrong,
// or tables that are, is whoever parses the record and verifies it.
func (t *taker) fill(rec *Received) error {
	p, tables := rec.Bytes(), rec.header.TablesEnd()
	if _, err := io.ReadFull(t, p[record.HeaderBytes:tables]); err != nil {
		return err
	}
	a, err := record.Arrive(rec.header, p)
	if err != nil {
		_, err := io.ReadFull(t, p[tables:])
		return err
	}
	for far := rec.far(); len(a.Left()) > 0; {
		to := a.Left()
		if far {
			to = t.chunk[:]
		}
		n, err := t.Read(to[:min(len(a.Left()), len(t.chunk))])
		if far {
			a.Far(t.chunk[:n])
		} else {
			a.Stand(n)
		}
		if err != nil && len(a.Left()) > 0 {
			return err
		}
	}
	rec.rec, rec.arrived = a.Record(), true
	return nil
}

// taker reads a data connection and counts what it took.
type taker struct {
	s    *Session
	l    *line
	head [frameBytes + orderedBytes + record.HeaderBytes]byte // of the frame that is being read
	// chunk is what TLS gives at once: where it goes past the caches it is read into these first.
	chunk [16 << 10]byte
}

func (t *taker) Read(p []byte) (int, error) {
	n, err := t.l.Read(p)
	t.s.taken.Add(uint64(n))
	t.l.taken.Add(uint64(n))
	return n, err
}

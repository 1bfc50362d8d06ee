package wire

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// firstBytes is how much of a frame goes into the first TLS record, header
// included, so that the header does not travel in a record of its own.
const firstBytes = 16 << 10

// SendRecord sends one record on the data connection, source to target only. It
// blocks until the record is handed to the network, and borrows rec until it
// returns. ctx ends the wait for a turn only: once its first byte is out nothing
// but the session's end stops a record. An error says that the session is over (or
// ctx); whether the record arrived, the next session's Stand tells.
func (s *Session) SendRecord(ctx context.Context, rec []byte) error {
	return s.SendPaced(ctx, rec, atOnce{})
}

// SendPaced is SendRecord in pieces of which pace says when they go and how large they are.
func (s *Session) SendPaced(ctx context.Context, rec []byte, pace Pace) error {
	if !s.source {
		return ErrDirection
	}
	if len(rec) < record.HeaderBytes || len(rec) > record.MaxRecordBytes {
		return fmt.Errorf("record of %d bytes", len(rec))
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ctx.Done():
		return s.reason()
	}
	if err := s.reason(); err != nil {
		return err
	}
	if began, err := s.writeRecord(rec, pace); err != nil && began {
		return s.lostData(err)
	} else if err != nil {
		return err
	}
	s.counters.RecordsSent.Add(1)
	return nil
}

// writeRecord says too whether any of rec was written.
func (s *Session) writeRecord(rec []byte, pace Pace) (began bool, err error) {
	if s.first == nil {
		s.first = make([]byte, firstBytes)
	}
	putFrame(s.first, typeRecord, len(rec))
	n := copy(s.first[frameBytes:], rec)
	first, rest := s.first[:frameBytes+n], rec[n:]
	for left := frameBytes + len(rec); left > 0; {
		n, err := pace.Next(left)
		if err != nil {
			return began, err
		}
		began = true
		n = min(max(n, 1), left)
		left -= n
		// Before the bytes, so that the peer never has more than we say we sent.
		s.sent.Add(uint64(n))
		a := min(n, len(first))
		b := n - a
		for _, p := range [2][]byte{first[:a], rest[:b]} {
			if len(p) == 0 {
				continue
			}
			if _, err := s.data.Write(p); err != nil {
				return true, err
			}
		}
		first, rest = first[a:], rest[b:]
		if err := s.data.socket.flush(); err != nil {
			return true, err
		}
	}
	return true, nil
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

// watchData waits at a source for the end of the data connection, on which a
// target says nothing.
func (s *Session) watchData() {
	var p [1]byte
	if n, err := s.data.Read(p[:]); n == 0 {
		s.lostData(err)
		return
	}
	s.end(protocolError("a target sends data"))
}

// readData hands records to the handler until the session ends.
func (s *Session) readData() {
	r := &taker{s: s}
	for {
		rec, err := s.readRecord(r)
		if err != nil {
			if isLost(err) {
				s.lostData(err)
			} else {
				s.end(err)
			}
			return
		}
		s.counters.RecordsReceived.Add(1)
		s.busy.Store(true)
		err = s.handler.Record(s, rec)
		s.busy.Store(false)
		if err != nil {
			s.end(err)
			return
		}
	}
}

// readRecord reads one frame. The record's own header is checked before there is
// memory for it.
func (s *Session) readRecord(r *taker) (*Received, error) {
	head := &r.head
	if _, err := io.ReadFull(r, head[:frameBytes]); err != nil {
		return nil, &lostError{"data", err}
	}
	t, n, err := parseFrame(head[:frameBytes])
	if err != nil {
		return nil, err
	}
	if t != typeRecord || n < record.HeaderBytes {
		return nil, badFrame(BadType, "type %d of %d bytes on the data connection", t, n)
	}
	if _, err := io.ReadFull(r, head[frameBytes:]); err != nil {
		return nil, &lostError{"data", err}
	}
	h, err := record.ParseHeader(head[frameBytes:])
	if err != nil {
		return nil, badFrame(BadRecord, "%w", err)
	}
	if h.Size != n {
		return nil, badFrame(BadLength, "a record of %d bytes in a frame of %d", h.Size, n)
	}
	s.busy.Store(true)
	rec, err := s.memory.get(s.ctx, h)
	s.busy.Store(false)
	if err != nil {
		return nil, err
	}
	p := rec.Bytes()
	copy(p, head[frameBytes:])
	if _, err := io.ReadFull(r, p[record.HeaderBytes:]); err != nil && !invariant.Planted("wire/half-record") {
		rec.Release()
		return nil, &lostError{"data", err}
	}
	return rec, nil
}

// taker reads the data connection and counts what it took.
type taker struct {
	s    *Session
	head [frameBytes + record.HeaderBytes]byte // of the frame that is being read
}

func (t *taker) Read(p []byte) (int, error) {
	n, err := t.s.data.Read(p)
	t.s.taken.Add(uint64(n))
	return n, err
}

package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
	"github.com/holdfast-dr/holdfast/wire/reorder"
)

// An Ordered frame's body is the opening, a zero, and the record:
//
//	0 opening u32   4 zero u32   8 record
const orderedBytes = 8

func putOrdered(p []byte, opening uint32) {
	binary.LittleEndian.PutUint32(p, opening)
	binary.LittleEndian.PutUint32(p[4:], 0)
}

func parseOrdered(p []byte) (opening uint32, err error) {
	opening = binary.LittleEndian.Uint32(p)
	if opening == 0 || binary.LittleEndian.Uint32(p[4:]) != 0 {
		return 0, badFrame(BadBody, "ordered: opening %d, and a zero that is none", opening)
	}
	return opening, nil
}

// crampedAfter is how long every connection may wait for room for what came early:
// then nobody can bring what is missing, and the session ends.
const crampedAfter = 5 * time.Second

// ErrCramped ends a session whose connections all wait for room.
var ErrCramped = errors.New("no room for records that came early, on any connection")

// order is what a target holds of a session until its turn comes, and the counts of
// openings at a source.
type order struct {
	sync.Mutex
	target   reorder.Target[*Received]
	openings map[record.StreamID]uint32 // Stands that came, at a source
	changed  chan struct{}              // closed when the turn of something came
	waiting  int                        // readers that wait for room for what came early
	// delivering is held over the calls of Handler.Record.
	delivering sync.Mutex
}

// Opening is the number of the newest opening of a stream, as a source counts them: 0
// before the first Stand.
func (s *Session) Opening(id record.StreamID) uint32 {
	s.order.Lock()
	defer s.order.Unlock()
	return s.order.openings[id]
}

// opened takes note of a Stand that goes out or came in.
func (s *Session) opened(m *Stand) {
	o := &s.order
	o.Lock()
	if s.source {
		if o.openings == nil {
			o.openings = make(map[record.StreamID]uint32)
		}
		o.openings[m.Stream]++
		o.Unlock()
		return
	}
	dropped := o.target.Open(m.Stream, m.Durable+1)
	o.turnedLocked()
	o.Unlock()
	releaseAll(dropped)
}

// shut drops what is held of a stream that is refused or closed.
func (s *Session) shut(id record.StreamID) {
	o := &s.order
	o.Lock()
	dropped := o.target.Close(id)
	o.turnedLocked()
	o.Unlock()
	releaseAll(dropped)
}

// shutAll is the end of the session.
func (s *Session) shutAll() {
	s.order.Lock()
	dropped := s.order.target.CloseAll()
	s.order.Unlock()
	releaseAll(dropped)
}

func releaseAll(rs []*Received) {
	for _, r := range rs {
		r.Release()
	}
}

// turnedLocked wakes those who wait for a turn.
func (o *order) turnedLocked() {
	if o.waiting > 0 {
		close(o.changed)
		o.changed = make(chan struct{})
	}
}

// takeOrdered takes a record whose headers were read off l, and delivers what is next.
func (s *Session) takeOrdered(l *line, r *taker, m reorder.Mark, h record.Header, head []byte) error {
	rec, err := s.makeRoom(l, m, h)
	if err != nil {
		return err
	}
	if rec == nil {
		s.counters.RecordsAgain.Add(1)
		if _, err := io.CopyN(io.Discard, r, int64(h.Size-record.HeaderBytes)); err != nil {
			return &lostError{"data", err}
		}
		return nil
	}
	if err := r.rest(rec, head); err != nil {
		return err
	}
	s.counters.RecordsReceived.Add(1)
	held, err := s.hold(m, rec)
	if held || err != nil {
		return err
	}
	s.holdUp(l)
	defer s.goOn(l)
	return s.deliver(m, rec)
}

// hold keeps a record that came early; its memory is the session's then.
func (s *Session) hold(m reorder.Mark, rec *Received) (held bool, err error) {
	o := &s.order
	o.Lock()
	defer o.Unlock()
	v, err := o.target.Judge(m)
	if err == nil && v == reorder.Early {
		_, err = o.target.Came(time.Now(), m, rec)
		held = err == nil
		if held {
			s.counters.RecordsEarly.Add(1)
		}
	}
	if err != nil {
		rec.Release()
		return false, orderError(err)
	}
	return held, nil
}

// deliver hands a record whose turn it is to the handler, and those that waited for it.
func (s *Session) deliver(m reorder.Mark, rec *Received) error {
	o := &s.order
	o.delivering.Lock()
	defer o.delivering.Unlock()
	o.Lock()
	v, err := o.target.Came(time.Now(), m, rec)
	o.Unlock()
	if err != nil || v == reorder.Again || v == reorder.Stale {
		rec.Release()
		return orderError(err)
	}
	for ok := v == reorder.Next; ok; {
		rec.inOrder()
		if err := s.handler.Record(s, rec); err != nil {
			return err
		}
		o.Lock()
		rec, ok = o.target.Pop(time.Now(), m.Stream)
		o.turnedLocked()
		o.Unlock()
		if invariant.Planted("wire/held-for-ever") && ok {
			rec.Release()
			ok = false
		}
	}
	return nil
}

// orderError is nil for nil: what breaks the window's rules breaks the protocol.
func orderError(err error) error {
	if err == nil {
		return nil
	}
	return badFrame(BadSense, "%w", err)
}

// makeRoom finds memory for a record that is about to be read, nil for one that will be
// dropped. What comes before its turn leaves a part of the memory to what does not.
func (s *Session) makeRoom(l *line, m reorder.Mark, h record.Header) (*Received, error) {
	s.holdUp(l)
	defer s.goOn(l)
	o := &s.order
	var timer *time.Timer
	for {
		o.Lock()
		v, err := o.target.Judge(m)
		changed := o.changed
		if v == reorder.Early && err == nil {
			o.waiting++
			if o.changed == nil {
				o.changed = make(chan struct{})
			}
			changed = o.changed
		}
		o.Unlock()
		switch {
		case err != nil:
			return nil, orderError(err)
		case v == reorder.Next:
			return s.memory.get(s.ctx, h)
		case v != reorder.Early:
			return nil, nil
		}
		if timer == nil {
			timer = time.NewTimer(crampedAfter)
			defer timer.Stop()
		}
		rec, err := s.memory.getEarly(s.ctx, h, changed, l.quit, timer.C)
		o.Lock()
		o.waiting--
		all := o.waiting+1 >= s.Connections()
		o.Unlock()
		switch {
		case rec != nil || err != nil && !errors.Is(err, errLater):
			return rec, err
		case err != nil && all:
			return nil, ErrCramped
		case err != nil:
			timer.Reset(crampedAfter)
		}
	}
}

// errLater is room that there was none of for crampedAfter.
var errLater = errors.New("no room yet")

// getEarly makes room for a record that comes before its turn; nil and no error when
// changed was closed before there was any.
func (m *memory) getEarly(ctx context.Context, h record.Header, changed, gone <-chan struct{}, late <-chan time.Time) (*Received, error) {
	c := m.class(h)
	select {
	case c.early <- struct{}{}:
	default:
		select {
		case c.early <- struct{}{}:
		case <-changed:
			return nil, nil
		case <-late:
			return nil, errLater
		case <-gone:
			return nil, &lostError{"data", errHungUp}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	r, err := m.get(ctx, h)
	if err != nil {
		<-c.early
		return nil, err
	}
	r.early = true
	return r, nil
}

// sayGone tells the target that a connection is no more.
func (s *Session) sayGone(number uint32) {
	s.queue.add(typeGone, func(p []byte) []byte { return putU32(p, number) })
}

func parseGone(p []byte) (uint32, error) {
	d := decoder{p: p}
	n := d.u32()
	return n, d.end("gone")
}

// heardGone cuts the connection that the source gave up.
func (s *Session) heardGone(number uint32) {
	for _, l := range s.all() {
		if l.number == number {
			s.heardLost(l, &lostError{"data", fmt.Errorf("given up by the source")})
		}
	}
}

// orderStuck ends the session of a source that leaves a gap.
func (s *Session) orderStuck() error {
	s.order.Lock()
	defer s.order.Unlock()
	return orderError(s.order.target.Stuck(time.Now()))
}

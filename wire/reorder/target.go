package reorder

import (
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Verdict is what becomes of a record.
type Verdict uint8

// The verdicts.
const (
	Next  Verdict = iota // its turn has come
	Early                // it is held until then
	Again                // it was taken before: dropped
	Stale                // of an earlier opening, or the stream is closed: dropped
)

func (v Verdict) String() string { return [...]string{"next", "early", "again", "stale"}[v] }

// Mark is what tells records apart before they were read.
type Mark struct {
	Stream   record.StreamID
	Opening  uint32
	Seq      record.Seq
	Bytes    int    // of the whole record
	Checksum uint32 // of its header, which stands for all of it
}

// Target orders what the connections of one session bring. T is what holds a record.
// The zero value is ready.
type Target[T any] struct {
	streams map[record.StreamID]*inflow[T]
	room    int64
	held    int
}

type inflow[T any] struct {
	opening uint32
	open    bool
	next    record.Seq
	held    map[record.Seq]early[T]
	room    int64
	since   time.Time // something is held and next has not come since
}

type early[T any] struct {
	mark  Mark
	thing T
}

// Open begins the next opening of a stream, whose first record is next, and gives back
// what was held of the one before.
func (t *Target[T]) Open(id record.StreamID, next record.Seq) (dropped []T) {
	if t.streams == nil {
		t.streams = make(map[record.StreamID]*inflow[T])
	}
	s := t.streams[id]
	if s == nil {
		s = &inflow[T]{held: make(map[record.Seq]early[T])}
		t.streams[id] = s
	}
	dropped = t.empty(s)
	s.opening++
	s.open, s.next = true, next
	return dropped
}

// Close drops what comes of a stream until it is opened again, and gives back what was held.
func (t *Target[T]) Close(id record.StreamID) (dropped []T) {
	s := t.streams[id]
	if s == nil {
		return nil
	}
	s.open = false
	return t.empty(s)
}

// CloseAll closes all streams.
func (t *Target[T]) CloseAll() (dropped []T) {
	for id := range t.streams {
		dropped = append(dropped, t.Close(id)...)
	}
	return dropped
}

func (t *Target[T]) empty(s *inflow[T]) (dropped []T) {
	for _, e := range s.held {
		dropped = append(dropped, e.thing)
	}
	clear(s.held)
	t.room -= s.room
	t.held -= len(dropped)
	s.room = 0
	return dropped
}

// Judge says what becomes of a record as things stand, before it is read. An error says
// that no honest source sends it.
func (t *Target[T]) Judge(m Mark) (Verdict, error) {
	s := t.streams[m.Stream]
	if s == nil || m.Opening == 0 || m.Opening > s.opening {
		return Stale, fmt.Errorf("%w: %v of opening %d", ErrOpening, m.Stream, m.Opening)
	}
	if m.Opening < s.opening && !invariant.Planted("reorder/takes-stale") || !s.open {
		return Stale, nil
	}
	switch {
	case m.Seq == s.next:
		return Next, nil
	case m.Seq < s.next:
		return Again, nil
	}
	if e, ok := s.held[m.Seq]; ok {
		if e.mark != m {
			return Again, fmt.Errorf("%w: %v seq %d", ErrDiffers, m.Stream, m.Seq)
		}
		return Again, nil
	}
	room := Room(m.Bytes)
	if (s.room+room > Window || m.Seq-s.next >= Window/smallest) && !invariant.Planted("reorder/no-bound") {
		return Early, fmt.Errorf("%w: %v seq %d, with %d bytes held behind seq %d", ErrBeyond, m.Stream, m.Seq, s.room, s.next)
	}
	return Early, nil
}

// Came takes a record that was read whole. What is Early is held; after Next the caller
// has it, and then whatever Pop gives. Of what is dropped the caller keeps thing.
func (t *Target[T]) Came(now time.Time, m Mark, thing T) (Verdict, error) {
	v, err := t.Judge(m)
	if err != nil {
		return v, err
	}
	s := t.streams[m.Stream]
	switch v {
	case Next:
		s.next++
		s.since = now
	case Early:
		if len(s.held) == 0 {
			s.since = now
		}
		s.held[m.Seq] = early[T]{m, thing}
		s.room += Room(m.Bytes)
		t.room += Room(m.Bytes)
		t.held++
	}
	return v, nil
}

// Pop gives the record that is next now, if it is held.
func (t *Target[T]) Pop(now time.Time, id record.StreamID) (thing T, ok bool) {
	s := t.streams[id]
	e, ok := s.held[s.next]
	if !ok {
		return thing, false
	}
	delete(s.held, s.next)
	room := Room(e.mark.Bytes)
	s.room -= room
	t.room -= room
	t.held--
	s.next++
	s.since = now
	return e.thing, true
}

// Stuck is ErrGap when something has been held for too long.
func (t *Target[T]) Stuck(now time.Time) error {
	for id, s := range t.streams {
		if len(s.held) > 0 && now.Sub(s.since) > MaxGap {
			return fmt.Errorf("%w: %v lacks seq %d for %v", ErrGap, id, s.next, now.Sub(s.since).Round(time.Second))
		}
	}
	return nil
}

// Held is how many records wait for others, and their room.
func (t *Target[T]) Held() (records int, room int64) { return t.held, t.room }

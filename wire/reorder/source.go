package reorder

import (
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Source knows of one opening of a stream which records are under way, and on which
// connection each. NewSource makes one.
type Source struct {
	first record.Seq // the oldest not acknowledged
	out   []sent     // from first on; those up to the newest that was sent
	room  int64      // of all of out
	lost  int        // of out
	gone  map[uint32]bool
	on    map[uint32]int // how many of out are on each connection
}

// sent is one record; of a connection only its number is known.
type sent struct {
	conn uint32
	lost bool // to be sent again
	room int64
	size int // bytes
}

// NewSource begins with from.
func NewSource(from record.Seq) *Source {
	return &Source{first: from, gone: make(map[uint32]bool), on: make(map[uint32]int)}
}

// Pick is the record to be sent next: the oldest that was lost, or else the one after
// the newest that was sent. Again says which.
func (s *Source) Pick() (seq record.Seq, again bool) {
	if s.lost > 0 {
		for i := range s.out {
			if s.out[i].lost {
				return s.first + record.Seq(i), true
			}
		}
	}
	return s.first + record.Seq(len(s.out)), false
}

// May says whether the picked record, of so many bytes, may go on any connection now.
// When it may not, an acknowledgement must come first.
func (s *Source) May(seq record.Seq, bytes int) bool {
	if seq <= s.first || invariant.Planted("reorder/no-window") {
		return true
	}
	before := s.room
	at := int(seq - s.first)
	if at < len(s.out) {
		before = 0
		for _, o := range s.out[:at] {
			before += o.room
		}
	}
	return before+Room(bytes) <= Window
}

// Only says whether all that is under way is on that one connection: then what follows
// on it cannot overtake anything, and is not bound by the window.
func (s *Source) Only(conn uint32) bool {
	return s.lost == 0 && s.on[conn] == len(s.out)
}

// Sent notes that the picked record was given to a connection. It may have been
// acknowledged, or the connection lost, by now.
func (s *Source) Sent(seq record.Seq, conn uint32, bytes int) {
	if seq < s.first {
		return
	}
	lost := s.gone[conn] && !invariant.Planted("reorder/late-loss")
	at := int(seq - s.first)
	switch {
	case at == len(s.out):
		s.out = append(s.out, sent{conn, lost, Room(bytes), bytes})
		s.room += Room(bytes)
	case at < len(s.out) && s.out[at].lost:
		s.lost--
		s.on[s.out[at].conn]--
		s.out[at].conn, s.out[at].lost = conn, lost
	default:
		panic("BUG: reorder: sent what was not picked")
	}
	s.on[conn]++
	if lost {
		s.lost++
	}
}

// Acked notes that all up to seq is acknowledged.
func (s *Source) Acked(seq record.Seq) {
	for len(s.out) > 0 && s.first <= seq {
		o := s.out[0]
		s.room -= o.room
		s.on[o.conn]--
		if o.lost {
			s.lost--
		}
		s.out = s.out[1:]
		s.first++
	}
	s.first = max(s.first, seq+1)
}

// Lost notes that a connection is no more, and says whether anything is to be sent
// again for that.
func (s *Source) Lost(conn uint32) bool {
	s.gone[conn] = true
	any := false
	for i := range s.out {
		if o := &s.out[i]; o.conn == conn && !o.lost && !invariant.Planted("reorder/forgets-cut") {
			o.lost = true
			s.lost++
			any = true
		}
	}
	return any
}

// Under is how many records are under way, and how many of those are to be sent again.
func (s *Source) Under() (records, lost int) { return len(s.out), s.lost }

// Bytes are how many are under way, without those that are to be sent again.
func (s *Source) Bytes() (n int64) {
	for _, o := range s.out {
		if !o.lost {
			n += int64(o.size)
		}
	}
	return n
}

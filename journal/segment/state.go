package segment

import (
	"fmt"
	"sort"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/ioengine/buf"
)

// segment is one file of the log. Its header never changes; the rest is guarded by
// the log's lock.
type segment struct {
	header
	end       Pos     // durable
	chain     uint32  // at end
	entries   []entry // of this life's records, until it is verified; nil: not known
	records   int
	state     State
	err       error
	abandoned bool // a write or sync of it failed: nothing more goes to that file
	gone      bool // no longer part of the log
	restored  bool // the file's header is damaged, and this one is what it must have been
	edition   int  // how often the file was replaced: what was found in an older one is void

	// pins are reads and other work under way on the file; none begins once it is gone. A
	// file with pins is never used again.
	pins atomic.Int32
	// sealing says that it is read back for its footer: who drops it leaves the file to that.
	sealing atomic.Bool
}

// limit is where the segment's places end; a folded one's records may end before.
func (s *segment) limit() Pos {
	if s.folded() {
		return s.Fold.To
	}
	return s.end
}

// limitChain is the chain there.
func (s *segment) limitChain() uint32 {
	if s.folded() {
		return s.Fold.Chain
	}
	return s.chain
}

// State says what is known of a segment.
type State uint8

// The states of a segment.
const (
	StateOpen     State = iota + 1 // takes records
	StateClosed                    // takes no more, and has no footer yet
	StateVerified                  // every byte was read back and verified, then the footer written
	StateBad                       // the read-back found damage, or could not read: Info.Err
)

var stateNames = [...]string{"none", "open", "closed", "verified", "bad"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state-%d", uint8(s))
}

// Info describes a segment.
type Info struct {
	Number     uint64
	First, End Pos // where its records begin and end; the open one's end is what is durable
	Records    int // 0 while they are not known: of a closed segment, right after Open
	State      State
	Err        error // of StateBad

	// To is where the next segment's places begin; Last is Number, but in a folded
	// segment the number of the last one that it stands for.
	To   Pos
	Last uint64

	Life   uint64 // of its file: another one with the same places has another
	Folded bool

	Restored bool // its header is damaged: Restore writes it anew
}

// Segments returns the segments, oldest first.
func (l *Log) Segments() []Info {
	l.mu.RLock()
	defer l.mu.RUnlock()
	infos := make([]Info, len(l.mu.segs))
	for i, s := range l.mu.segs {
		last, _ := s.last()
		infos[i] = Info{
			Number: s.Number, First: s.First, End: s.end, Records: s.records, State: s.state, Err: s.err,
			To: s.limit(), Last: last, Life: s.Life, Folded: s.folded(), Restored: s.restored,
		}
	}
	return infos
}

// Life says which log this is up to pos, a place that Durable returned: the number of
// the segment that holds the byte before it, and a number, never zero, that stands for
// every record before pos. Recovery may move the last round to another segment, so
// compare pos and life alone. ok is false when the log does not know the place: it is
// none where a round ends, or was dropped, or folded.
func (l *Log) Life(pos Pos) (segment, life uint64, ok bool) {
	l.names.RLock()
	defer l.names.RUnlock()
	s, chain, ok := l.edge(pos)
	if s == nil {
		return 0, 0, false
	}
	defer s.pins.Add(-1)
	if !ok {
		if chain, ok = l.chainIn(s, pos); !ok {
			return 0, 0, false
		}
	}
	return s.Number, uint64(chain)<<32 | uint64(uint32(l.group)|1), true
}

// edge returns the segment before pos, pinned, and if pos is an edge of it the chain there.
func (l *Log) edge(pos Pos) (s *segment, chain uint32, ok bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	segs := l.mu.segs
	if l.mu.closed || pos < segs[0].First || pos > l.durableLocked() {
		return nil, 0, false
	}
	s = segs[sort.Search(len(segs)-1, func(i int) bool { return segs[i].limit() >= pos })]
	s.pins.Add(1)
	switch {
	case pos == s.limit():
		return s, s.limitChain(), true
	case pos == s.First:
		return s, s.Chain, true
	case s.folded():
		s.pins.Add(-1)
		return nil, 0, false
	}
	return s, 0, false
}

// chainIn reads the chain at pos in the segment's file.
func (l *Log) chainIn(s *segment, pos Pos) (uint32, bool) {
	page := buf.Aligned(pageBytes)
	if pos%pageBytes != 0 || l.files.read(s.header, page, offset(s.First, pos)-pageBytes) != nil {
		return 0, false
	}
	c, err := parseCommit(page[pageBytes-commitBytes:])
	return c.Chain, err == nil && c.Life == s.Life && c.End == pos
}

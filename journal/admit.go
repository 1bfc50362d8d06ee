package journal

import (
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// life is one life of a stream's source, under one epoch. Lives only rise: neither
// part ever falls.
type life struct {
	epoch record.Epoch
	inc   record.Incarnation
}

func (l life) String() string { return fmt.Sprintf("epoch %d incarnation %d", l.epoch, l.inc) }

// older says whether l may no longer speak once m was admitted.
func (l life) older(m life) bool { return l.epoch < m.epoch || l.inc < m.inc }

// admission decides what a group takes: who may append, and which record is next. It
// is pure: the group tells it what happens and does what it says.
type admission struct {
	epoch   record.Epoch // no epoch below is taken
	streams map[record.StreamID]*streamAdmission
}

type streamAdmission struct {
	admitted life // the only life that may append; persisted before its source is told
	present  bool // a source was admitted since the journal was opened
	last     life // of the last record; zero: the stream has none
	next     record.Seq
	phase    phase
	recent   recentSums
}

// phase says where the records of a stream go.
type phase uint8

const (
	phaseNew    phase = iota // no record yet
	phaseDirect              // initial sync with no history: into the replica
	phaseLog                 // into the log, for good
)

// maxStreams bounds the streams that a group ever had.
const maxStreams = 1024

// arrival is a record as admission looks at it.
type arrival struct {
	record.Identity
	kind    record.Kind
	sum     uint32 // the header's checksum; it covers the whole record
	initial bool   // of an opening boundary: an initial sync
}

// verdict says what becomes of an arrival that is not refused.
type verdict uint8

const (
	toLog verdict = iota
	toReplica
	duplicate
)

func newAdmission() *admission {
	return &admission{streams: make(map[record.StreamID]*streamAdmission)}
}

func (a *admission) stream(id record.StreamID) *streamAdmission {
	s := a.streams[id]
	if s == nil {
		s = &streamAdmission{next: 1}
		a.streams[id] = s
	}
	return s
}

// admit lets a life of a stream in. It is to be persisted before the source hears of it.
func (a *admission) admit(id record.StreamID, l life) error {
	if id == 0 || l.epoch == 0 || l.inc == 0 {
		return fmt.Errorf("stream %s %s: %w", id, l, ErrAdmit)
	}
	if l.epoch < a.epoch {
		return fmt.Errorf("stream %s %s: epoch is %d: %w", id, l, a.epoch, ErrFenced)
	}
	if s := a.streams[id]; s != nil && (l.older(s.admitted) || l.older(s.last)) {
		return fmt.Errorf("stream %s %s: %s was admitted: %w", id, l, s.admitted, ErrFenced)
	}
	if a.streams[id] == nil && len(a.streams) >= maxStreams {
		return fmt.Errorf("stream %s: the group has %d streams already: %w", id, len(a.streams), ErrAdmit)
	}
	s := a.stream(id)
	s.admitted, s.present, a.epoch = l, true, l.epoch
	return nil
}

// standing tells where a stream stands.
func (a *admission) standing(id record.StreamID) Standing {
	s := a.stream(id)
	return Standing{Durable: s.next - 1, Epoch: a.epoch, Incarnation: s.last.inc, NeedOpen: s.last != s.admitted}
}

// step judges a record. What it returns without error has been taken: the next one
// is judged as following it.
func (a *admission) step(r arrival) (verdict, error) {
	s := a.streams[r.Stream]
	l := life{r.Epoch, r.Incarnation}
	if s == nil || !s.present {
		return 0, fmt.Errorf("record %s: %w", r.Identity, ErrAdmit)
	}
	if (r.Epoch < a.epoch || l.older(s.admitted)) && !invariant.Planted("journal/no-fence") {
		return 0, fmt.Errorf("record %s: %s was admitted: %w", r.Identity, s.admitted, ErrFenced)
	}
	if l != s.admitted && !invariant.Planted("journal/no-fence") {
		return 0, fmt.Errorf("record %s: %s was admitted: %w", r.Identity, s.admitted, ErrAdmit)
	}
	newLife := l != s.last
	if r.Seq < s.next && r.Seq > 0 && !newLife {
		return duplicate, s.sameAgain(r)
	}
	if r.Seq != s.next && !(invariant.Planted("journal/gap") && r.Seq > s.next) {
		return 0, fmt.Errorf("record %s: next is %d: %w", r.Identity, s.next, ErrGap)
	}
	if newLife && r.kind != record.KindResyncOpen {
		return 0, fmt.Errorf("record %s: %w", r.Identity, ErrNeedOpen)
	}
	if s.phase == phaseNew {
		if r.initial && !a.hasLog() {
			s.phase = phaseDirect
		} else {
			s.phase = phaseLog
		}
	}
	v := toLog
	if s.phase == phaseDirect {
		v = toReplica
		if r.kind == record.KindResyncClose {
			s.phase = phaseLog
		}
	}
	s.last, s.next = l, r.Seq+1
	s.recent.put(r.Seq, r.sum)
	return v, nil
}

// hasLog says whether any stream has gone over to the log: from then on the replica
// belongs to the log's beginning, and a sync must go through the log.
func (a *admission) hasLog() bool {
	for _, s := range a.streams {
		if s.phase == phaseLog {
			return true
		}
	}
	return false
}

// sameAgain compares a record that came before with what is remembered of it. An
// older one is believed to be what it says: it is durable, nothing of it is read and
// nothing is written, so all that is missed is a source that contradicts itself.
func (s *streamAdmission) sameAgain(r arrival) error {
	sum, ok := s.recent.get(r.Seq)
	if ok && sum != r.sum && !invariant.Planted("journal/any-duplicate") {
		return fmt.Errorf("record %s: came before with another checksum: %w", r.Identity, ErrCorrupt)
	}
	return nil
}

// recentSums remembers the header checksums of the last records of a stream.
type recentSums struct {
	seq [recentCount]record.Seq
	sum [recentCount]uint32
}

// recentCount is how many records of a stream are compared when they come again. A
// source is told where its stream stands and goes on from there: twice comes only
// what two sessions of one life had on their way at once. At one record a millisecond
// this is a quarter of a second of them, or 256 MiB of the largest; it takes 3 KiB.
const recentCount = 256

func (r *recentSums) put(seq record.Seq, sum uint32) {
	r.seq[seq%recentCount], r.sum[seq%recentCount] = seq, sum
}

func (r *recentSums) get(seq record.Seq) (uint32, bool) {
	i := seq % recentCount
	return r.sum[i], r.seq[i] == seq && seq != 0
}

// upTo returns those remembered below seq, rising.
func (r *recentSums) upTo(seq record.Seq) (sums []sumOf) {
	first := record.Seq(1)
	if seq > recentCount {
		first = seq - recentCount
	}
	for ; first < seq; first++ {
		if sum, ok := r.get(first); ok {
			sums = append(sums, sumOf{first, sum})
		}
	}
	return sums
}

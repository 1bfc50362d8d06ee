package journal

import (
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// history is what the records of a log, in order, say of a group: where its streams
// stand, and which cuts became checkpoints. It begins with what the manifest states of
// the log's beginning, or with a snapshot. It is pure.
type history struct {
	streams map[record.StreamID]*replayed
	cuts    *cuts
	// gaps says that records are left out, or are those of a folded segment: the next of a
	// stream may then be any later one. The last that a stream has in a folded segment is
	// the last that it had in what was folded, so behind it there is no gap.
	gaps bool
}

// replayed is a stream on the way through the log.
type replayed struct {
	mark
	admitted life
	upTo     record.Seq // the replicas hold the stream up to here; the log may begin before
	begun    bool       // a record of it was found
	recent   *recentSums
}

// beginning is what the manifest states of the place where the log begins: how far
// the initial syncs came, and the checkpoint that the replicas were brought to since.
func beginning(f *facts) *history {
	h := &history{streams: make(map[record.StreamID]*replayed), cuts: newCuts()}
	for id, m := range f.streams {
		s := &replayed{admitted: m.admitted, mark: mark{next: 1}, recent: new(recentSums)}
		h.streams[id] = s
		if a := m.applied; a.kind != 0 {
			s.last, s.next, s.phase = a.life, a.seq+1, phaseDirect
			if a.closed {
				s.phase = phaseLog
			}
			s.recent.put(a.seq, a.sum)
			h.cuts.streams[id] = &streamCuts{seq: a.seq, open: !a.closed, initial: !a.closed}
		}
	}
	if f.promoted.number == 0 || invariant.Planted("journal/promoted-forgotten") {
		return h
	}
	// The promoted checkpoint is the oldest that is left: its own cuts are in the log, and
	// make it again; what else its streams had up to there says nothing any more.
	h.cuts.newest, h.cuts.seen = f.promoted.number-1, f.promoted.number-1
	for _, at := range f.promoted.at {
		s := h.streams[at.Stream]
		if s == nil {
			continue // the manifest would have to have admitted it: found by follow
		}
		if at.Seq >= s.next { // else all of it is still in the log, or came by the sync
			s.last, s.next, s.phase, s.upTo = life{}, at.Seq+1, phaseLog, at.Seq
		}
		h.cuts.streams[at.Stream] = &streamCuts{seq: at.Seq}
	}
	return h
}

// resume is h with what a snapshot knows, of which the manifest said follows.
func (h *history) resume(s *snapshot) {
	for id, st := range s.streams {
		r := h.streams[id]
		r.mark, r.begun, r.upTo = st.mark, true, 0
		r.recent = new(recentSums)
		for _, sum := range st.recent {
			r.recent.put(sum.seq, sum.sum)
		}
	}
	for id, c := range h.cuts.streams {
		if s.cuts.streams[id] == nil {
			s.cuts.streams[id] = c // its sync goes on, and is in no log
		}
	}
	h.cuts = s.cuts
}

// follow takes the next record of the log, and returns the checkpoint that it
// completes. It holds the record against the manifest: a life that was never admitted,
// or a sync that was never complete, means that the manifest has lost what it once
// stated.
func (h *history) follow(rec record.Record) (cp Checkpoint, complete bool, err error) {
	if rec.Stream == record.FoldedStream {
		if !h.gaps {
			return Checkpoint{}, false, fmt.Errorf("a folded record, and nothing was folded here: %w", ErrCorrupt)
		}
		return Checkpoint{}, false, nil
	}
	s, err := h.take(rec.Identity)
	if err != nil {
		return Checkpoint{}, false, err
	}
	s.recent.put(rec.Seq, rec.Checksum)
	d := durableRecord{stream: rec.Stream, seq: rec.Seq, kind: rec.Kind, time: rec.Time}
	if err := d.readBody(rec); err != nil {
		return Checkpoint{}, false, err
	}
	if rec.Seq <= s.upTo && !d.concerns(h.cuts.newest+1) {
		return Checkpoint{}, false, nil
	}
	cp, complete = h.cuts.step(d)
	return cp, complete, nil
}

// concerns says whether the record is a cut of the checkpoint, or a confirm of it.
func (d *durableRecord) concerns(number uint64) bool {
	return d.kind == record.KindCut && d.cut.Checkpoint == number || d.kind == record.KindConfirm && d.confirm == number
}

// skip takes a record that is left out, one that carries writes: where its stream stands
// is in the checkpoints of others.
func (h *history) skip(stream record.StreamID, seq record.Seq) {
	if s := h.streams[stream]; s != nil && seq > s.upTo && !invariant.Planted("journal/silent-stream") {
		h.cuts.step(durableRecord{stream: stream, seq: seq, kind: record.KindData})
	}
}

// lose is skip of a record without writes that is damaged: a boundary is one by its kind
// alone, a cut or a confirm is as if it had never come.
func (h *history) lose(kind record.Kind, stream record.StreamID, seq record.Seq) {
	if s := h.streams[stream]; s == nil || seq <= s.upTo {
		return
	}
	if kind != record.KindResyncOpen && kind != record.KindResyncClose {
		kind = record.KindData
	}
	h.cuts.step(durableRecord{stream: stream, seq: seq, kind: kind})
}

// take moves the record's stream past it.
func (h *history) take(id record.Identity) (*replayed, error) {
	s := h.streams[id.Stream]
	l := life{id.Epoch, id.Incarnation}
	if s == nil || l.epoch > s.admitted.epoch || l.inc > s.admitted.inc {
		return nil, fmt.Errorf("%s was never admitted: %w", l, ErrCorrupt)
	}
	if s.phase == phaseDirect {
		return nil, fmt.Errorf("initial sync is not complete: %w", ErrCorrupt)
	}
	early := !s.begun && id.Seq <= s.upTo // the log begins before what the replicas hold
	later := h.gaps && id.Seq > s.next
	if id.Seq != s.next && !early && !later {
		return nil, fmt.Errorf("%d is next: %w", s.next, ErrCorrupt)
	}
	s.last, s.next, s.phase, s.begun = l, id.Seq+1, phaseLog, true
	return s, nil
}

// ended says whether the log may end here: all that the replicas hold of a stream was
// in it, when any of it was.
func (h *history) ended() error {
	for id, s := range h.streams {
		if s.next <= s.upTo {
			return fmt.Errorf("stream %s ends before %d, and the replicas hold it up to %d: %w", id, s.next, s.upTo, ErrCorrupt)
		}
	}
	return nil
}

// snapshot is what is known at pos, all records before it having been followed.
func (h *history) snapshot(group record.GroupID, lineage uint64, pos, complete segment.Pos) *snapshot {
	s := &snapshot{group: group, lineage: lineage, pos: pos, complete: complete, cuts: h.cuts, streams: make(map[record.StreamID]standing)}
	for id, r := range h.streams {
		if r.phase == phaseLog {
			s.streams[id] = standing{r.mark, r.recent.upTo(r.next)}
		}
	}
	return s
}

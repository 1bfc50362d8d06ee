package journal

import (
	"maps"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// cuts decides which cuts become checkpoints. It is fed every durable record, in the
// order of the log, and is pure; fed the same records again at recovery it lists the
// same checkpoints.
type cuts struct {
	streams map[record.StreamID]*streamCuts
	pending map[uint64]*pendingCut // by checkpoint number; of groups with several sources
	newest  uint64                 // highest number listed
	seen    uint64                 // highest number in any cut
	limit   uint64                 // newest checkpoint that a cut calls listed on every target
}

type streamCuts struct {
	seq     record.Seq // the last durable one
	open    bool       // a resync is open; a stream begins so
	initial bool       // no resync was ever closed
}

// pendingCut is a cut that waits for other streams or for its confirms.
type pendingCut struct {
	time      record.Time
	cut       record.Cut // of the stream that came first
	at        map[record.StreamID]record.Seq
	confirmed map[record.StreamID]bool
	volumes   map[record.VolumeID]int64
}

func newCuts() *cuts {
	return &cuts{streams: make(map[record.StreamID]*streamCuts), pending: make(map[uint64]*pendingCut)}
}

// durable is a durable record, as far as it matters here.
type durableRecord struct {
	stream  record.StreamID
	seq     record.Seq
	kind    record.Kind
	time    record.Time
	cut     record.Cut // of a cut
	confirm uint64     // of a confirm: the checkpoint's number
	initial bool       // of a resync boundary
}

// step takes the next durable record and returns the checkpoint that it completes.
func (c *cuts) step(r durableRecord) (cp Checkpoint, listed bool) {
	s := c.streams[r.stream]
	if s == nil {
		s = &streamCuts{open: true, initial: true}
		c.streams[r.stream] = s
	}
	s.seq = r.seq
	switch r.kind {
	case record.KindResyncOpen:
		s.open = !invariant.Planted("journal/list-in-resync")
		clear(c.pending) // a cut not confirmed before the boundary never will be
	case record.KindResyncClose:
		s.open, s.initial = false, false
	case record.KindCut:
		c.seen = max(c.seen, r.cut.Checkpoint)
		c.limit = max(c.limit, r.cut.Listed)
		if s.open || r.cut.Checkpoint <= c.newest {
			return Checkpoint{}, false // void: its source tries again with another
		}
		p := c.pendingCut(r)
		p.at[r.stream] = r.seq
		p.cut.Sources = max(p.cut.Sources, r.cut.Sources)
		for _, v := range r.cut.Volumes {
			p.volumes[v.ID] = v.Bytes
		}
		if r.cut.Solo {
			return c.list(p), true
		}
		return c.complete(r.cut.Checkpoint)
	case record.KindConfirm:
		if p := c.pending[r.confirm]; p != nil && !s.open {
			p.confirmed[r.stream] = true
			return c.complete(r.confirm)
		}
	}
	return Checkpoint{}, false
}

func (c *cuts) pendingCut(r durableRecord) *pendingCut {
	p := c.pending[r.cut.Checkpoint]
	if p == nil {
		if len(c.pending) >= maxPendingCuts {
			delete(c.pending, slices.Min(slices.Collect(maps.Keys(c.pending))))
		}
		p = &pendingCut{time: r.time, cut: r.cut, at: map[record.StreamID]record.Seq{},
			confirmed: map[record.StreamID]bool{}, volumes: map[record.VolumeID]int64{}}
		c.pending[r.cut.Checkpoint] = p
	}
	return p
}

// maxPendingCuts bounds the cuts that wait for their confirms; a source has one open
// at a time, so more are leftovers.
const maxPendingCuts = 64

// complete lists the cut when every stream has it and its confirm: as many as it says that there
// are, some of which may not have sent anything yet, or else all that ever did.
func (c *cuts) complete(number uint64) (Checkpoint, bool) {
	p := c.pending[number]
	if len(p.at) < int(p.cut.Sources) && !invariant.Planted("journal/first-sources") {
		return Checkpoint{}, false
	}
	for id, s := range c.streams {
		if p.cut.Sources > 0 && p.at[id] == 0 {
			continue // it takes no part any more
		}
		if s.open || p.at[id] == 0 || !p.confirmed[id] && !invariant.Planted("journal/no-confirm") {
			return Checkpoint{}, false
		}
	}
	return c.list(p), true
}

func (c *cuts) list(p *pendingCut) Checkpoint {
	cp := Checkpoint{Number: p.cut.Checkpoint, Time: p.time, Wall: p.cut.Wall, Tag: p.cut.Tag, Freeze: p.cut.Freeze, State: index.Good}
	for id, bytes := range p.volumes {
		cp.Volumes = append(cp.Volumes, record.VolumeSize{ID: id, Bytes: bytes})
	}
	slices.SortFunc(cp.Volumes, func(a, b record.VolumeSize) int { return int(int64(a.ID) - int64(b.ID)) })
	for id, s := range c.streams {
		seq := s.seq // a stream that no longer takes part, at its end
		if at := p.at[id]; at != 0 {
			seq = at
		}
		cp.At = append(cp.At, index.StreamAt{Stream: id, Seq: seq})
	}
	slices.SortFunc(cp.At, func(a, b index.StreamAt) int {
		if a.Stream < b.Stream {
			return -1
		}
		return 1
	})
	c.newest = cp.Number
	for n := range c.pending {
		if n <= c.newest {
			delete(c.pending, n)
		}
	}
	return cp
}

// resync says whether a resync is open in any stream, and initial whether one never
// had its first sync complete.
func (c *cuts) resync() (open, initial bool) {
	for _, s := range c.streams {
		open = open || s.open
		initial = initial || s.initial
	}
	return open || len(c.streams) == 0, initial || len(c.streams) == 0
}

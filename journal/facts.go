package journal

import (
	"maps"
	"slices"

	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// facts is what a manifest log states, all entries taken together.
type facts struct {
	lineage   uint64
	name      string
	epoch     record.Epoch
	volumes   map[record.VolumeID]VolumeInfo
	streams   map[record.StreamID]streamFacts
	bad       map[uint64]string
	abandoned []entry
	folded    []entry
	damaged   damages

	tags      map[uint64]string // by checkpoint; "": none, whatever its cut said
	pins      map[uint64]string // labels, by checkpoint
	gone      uint64            // all checkpoints below are gone; 0: none
	thinned   spans
	promoted  promoted
	promoting promoted                   // of which not all parts have come
	policy    string                     // how long history is kept; "": never said
	parity    string                     // how files are protected; "": never said
	failover  failover.Failover          // the last one
	disks     map[record.VolumeID]string // where replicas are that stand elsewhere
	ended     []failover.Ended           // those that are over, or never began: the last of them
}

// promoted is the checkpoint that the replicas hold, and what it holds of each stream,
// ordered by stream. Number 0: none.
type promoted struct {
	number uint64
	at     []index.StreamAt
}

// Entries kept of things past; they are evidence, nothing depends on them.
const (
	maxAbandoned = 256
	maxFolded    = 256
)

// streamFacts is what the manifest knows of a stream.
type streamFacts struct {
	admitted life
	applied  entry // its last entryApplied; kind 0: none
}

func newFacts() facts {
	return facts{volumes: map[record.VolumeID]VolumeInfo{}, streams: map[record.StreamID]streamFacts{}, bad: map[uint64]string{},
		tags: map[uint64]string{}, pins: map[uint64]string{}, disks: map[record.VolumeID]string{}}
}

// apply takes one entry in.
func (f *facts) apply(e entry) {
	switch e.kind {
	case entryGroup:
		f.lineage, f.name = e.lineage, e.name
	case entryVolume:
		f.volumes[e.volume] = VolumeInfo{ID: e.volume, Name: e.name, Bytes: e.bytes}
	case entryEpoch:
		f.epoch = max(f.epoch, e.life.epoch)
	case entryAdmitted:
		s := f.streams[e.stream]
		s.admitted = e.life
		f.streams[e.stream] = s
	case entryApplied:
		s := f.streams[e.stream]
		s.applied = e
		f.streams[e.stream] = s
	case entryBad:
		f.bad[e.number] = e.reason
	case entryAbandoned:
		f.abandoned = append(f.abandoned, e)
		f.abandoned = f.abandoned[max(0, len(f.abandoned)-maxAbandoned):]
	case entryDamaged:
		f.damaged = f.damaged.add(damage{e.volume, int64(e.number), int64(e.end), e.reason})
	case entryRepaired:
		f.damaged = f.damaged.without(damage{volume: e.volume, from: int64(e.number), to: int64(e.end)})
	case entryFolded:
		f.folded = append(f.folded, e)
		f.folded = f.folded[max(0, len(f.folded)-maxFolded):]
	case entryTag:
		f.tags[e.number] = e.reason
	case entryPin:
		delete(f.pins, e.number)
		if e.pinned {
			f.pins[e.number] = e.reason
		} else if f.lost(e.number) {
			delete(f.tags, e.number)
		}
	case entryGone:
		f.goneBelow(e.number)
	case entryPromoted:
		f.promote(e)
	case entryPolicy:
		f.policy = e.reason
	case entryParity:
		f.parity = e.reason
	case entryFailover: // it raises the epoch in the same breath
		f.failover, f.epoch = e.failover, max(f.epoch, e.failover.Epoch)
	case entryEnded:
		f.ended = failover.Note(f.ended, e.ended)
	case entryReleased:
		if f.failover.State.Final() {
			f.failover.State = failover.Released
		}
	case entryPlain:
		if f.failover.State.Final() {
			f.failover.State = e.state
		}
	case entryMoving:
		if f.failover.State.Final() {
			f.failover.State = failover.Moving
		}
	case entryDisk:
		f.disks[e.volume] = e.reason
	case entryThinned:
		for _, s := range e.spans {
			f.thin(s)
		}
	case entryMark:
	}
}

// goneBelow forgets what was said of checkpoints that are gone.
func (f *facts) goneBelow(number uint64) {
	f.gone = max(f.gone, number)
	f.thinned = f.thinned.above(f.gone)
	f.forget(func(n uint64) bool { return n < f.gone })
}

// thin takes in that checkpoints strictly within s are gone, but for those pinned.
func (f *facts) thin(s span) {
	f.thinned = f.thinned.add(s).above(f.gone)
	f.forget(func(n uint64) bool { _, pinned := f.pins[n]; return s.holds(n) && !pinned })
}

func (f *facts) forget(gone func(number uint64) bool) {
	isGone := func(n uint64, _ string) bool { return gone(n) }
	maps.DeleteFunc(f.tags, isGone)
	maps.DeleteFunc(f.pins, isGone)
	maps.DeleteFunc(f.bad, isGone)
}

// lost says whether a checkpoint, listed once, is gone: of those thinned the pinned stay.
func (f *facts) lost(number uint64) bool {
	_, pinned := f.pins[number]
	return number < f.gone || f.thinned.holds(number) && !pinned
}

// promote takes in one part; what it says counts when the last has come.
func (f *facts) promote(e entry) {
	if e.first == 0 {
		f.promoting = promoted{number: e.number}
	}
	p := &f.promoting
	if p.number != e.number || len(p.at) != e.first {
		*p = promoted{} // not one that was ever put whole
		return
	}
	p.at = append(p.at, e.at...)
	if len(p.at) == e.count {
		f.promoted, f.promoting = *p, promoted{}
	}
}

// entries returns the entries that state p, to be put together.
func (p promoted) entries() (es []entry) {
	for first := 0; first < len(p.at) || first == 0; first += maxParts {
		part := p.at[first:min(len(p.at), first+maxParts)]
		es = append(es, entry{kind: entryPromoted, number: p.number, count: len(p.at), first: first, at: part})
	}
	return es
}

// entries returns the fewest entries that state the same.
func (f *facts) entries() []entry {
	es := []entry{{kind: entryGroup, lineage: f.lineage, name: f.name}}
	if f.epoch != 0 {
		es = append(es, entry{kind: entryEpoch, life: life{epoch: f.epoch}})
	}
	for _, id := range slices.Sorted(maps.Keys(f.volumes)) {
		v := f.volumes[id]
		es = append(es, entry{kind: entryVolume, volume: v.ID, bytes: v.Bytes, name: v.Name})
	}
	for _, id := range slices.Sorted(maps.Keys(f.disks)) {
		es = append(es, entry{kind: entryDisk, volume: id, reason: f.disks[id]})
	}
	for _, id := range slices.Sorted(maps.Keys(f.streams)) {
		s := f.streams[id]
		if s.admitted != (life{}) {
			es = append(es, entry{kind: entryAdmitted, stream: id, life: s.admitted})
		}
		if s.applied.kind != 0 {
			es = append(es, s.applied)
		}
	}
	for _, n := range slices.Sorted(maps.Keys(f.bad)) {
		es = append(es, entry{kind: entryBad, number: n, reason: f.bad[n]})
	}
	for _, d := range f.damaged {
		es = append(es, d.entry())
	}
	for _, n := range slices.Sorted(maps.Keys(f.tags)) {
		es = append(es, entry{kind: entryTag, number: n, reason: f.tags[n]})
	}
	for _, n := range slices.Sorted(maps.Keys(f.pins)) { // before what was thinned, which would take them for gone
		es = append(es, entry{kind: entryPin, number: n, pinned: true, reason: f.pins[n]})
	}
	if f.gone != 0 {
		es = append(es, entry{kind: entryGone, number: f.gone})
	}
	for part := range slices.Chunk(f.thinned, maxParts) {
		es = append(es, entry{kind: entryThinned, spans: part})
	}
	if f.promoted.number != 0 {
		es = append(es, f.promoted.entries()...)
	}
	if f.policy != "" {
		es = append(es, entry{kind: entryPolicy, reason: f.policy})
	}
	if f.parity != "" {
		es = append(es, entry{kind: entryParity, reason: f.parity})
	}
	if f.failover.State != failover.None {
		es = append(es, failoverEntries(f.failover)...)
	}
	for _, e := range f.ended {
		es = append(es, entry{kind: entryEnded, ended: e})
	}
	return append(append(es, f.abandoned...), f.folded...)
}

// failoverEntries state how far a failover has come. That its disks were given away, or are plain, is an entry of its own,
// which a release that knows nothing of it does not take for a torn end.
func failoverEntries(f failover.Failover) []entry {
	more, ok := plainEntry(f.State)
	if !ok {
		return []entry{{kind: entryFailover, failover: f}}
	}
	f.State = failover.Settled
	return []entry{{kind: entryFailover, failover: f}, more}
}

// plainEntry states, of a failover that is stated as settled or beyond, that it has come to the state; false: one of those that are
// stated with all else.
func plainEntry(s failover.State) (entry, bool) {
	switch s {
	case failover.Passing, failover.OnDisks:
		return entry{kind: entryPlain, state: s}, true
	case failover.Moving:
		return entry{kind: entryMoving}, true
	case failover.Released:
		return entry{kind: entryReleased}, true
	}
	return entry{}, false
}

func (f *facts) clone() facts {
	g := *f
	g.volumes, g.streams, g.bad = maps.Clone(f.volumes), maps.Clone(f.streams), maps.Clone(f.bad)
	g.abandoned, g.folded = slices.Clone(f.abandoned), slices.Clone(f.folded)
	g.tags, g.pins, g.disks = maps.Clone(f.tags), maps.Clone(f.pins), maps.Clone(f.disks)
	g.promoting.at = slices.Clone(f.promoting.at)
	return g
}

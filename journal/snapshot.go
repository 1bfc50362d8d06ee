package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"math"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// snapshot is what a group knows at a place of its log, all records before that place
// having been taken in order: where its streams stand, and which cuts wait. It lies
// beside the index, so that an opening need not read what came before. It is a cache:
// with anything amiss in it the log is read from its beginning.
type snapshot struct {
	group    record.GroupID
	lineage  uint64
	pos      segment.Pos                  // of the first record that is not in it
	complete segment.Pos                  // where the record ends that last completed a checkpoint; 0: none did
	streams  map[record.StreamID]standing // those that have gone over to the log
	cuts     *cuts
}

// standing is where a stream stands, and what it may send again.
type standing struct {
	mark
	recent []sumOf // rising
}

// sumOf is the header checksum of a record.
type sumOf struct {
	seq record.Seq
	sum uint32
}

// The encoding of a snapshot; see FORMAT.md.
const (
	snapshotMagic   = 0x31534648 // "HFS1"
	snapshotVersion = 1

	maxCutVolumes = 1 << 20 // of one cut in all streams; a bound for what is read, far above any group

	cutSources = 1024 // what a source counts beside the length of a tag

	flagInCuts  = 1 // the stream has had a durable record
	flagOpen    = 2 // a resync is open in it
	flagInitial = 4 // none was ever closed
)

var errSnapshot = errors.New("no valid snapshot")

// appendTo appends the encoding of s.
func (s *snapshot) appendTo(dst []byte) []byte {
	start := len(dst)
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, snapshotMagic)
	dst = le.AppendUint32(dst, snapshotVersion)
	dst = le.AppendUint64(dst, uint64(s.group))
	dst = le.AppendUint64(dst, s.lineage)
	dst = le.AppendUint64(dst, uint64(s.pos))
	dst = le.AppendUint64(dst, uint64(s.complete))
	dst = le.AppendUint32(dst, uint32(len(s.streams)))
	for _, id := range slices.Sorted(maps.Keys(s.streams)) {
		dst = appendStanding(dst, id, s.streams[id], s.cuts.streams[id])
	}
	dst = le.AppendUint64(dst, s.cuts.newest)
	dst = le.AppendUint64(dst, s.cuts.seen)
	dst = le.AppendUint64(dst, s.cuts.limit)
	dst = le.AppendUint32(dst, uint32(len(s.cuts.pending)))
	for _, n := range slices.Sorted(maps.Keys(s.cuts.pending)) {
		dst = appendPendingCut(dst, s.cuts.pending[n])
	}
	return appendSum(dst, dst[start:])
}

func appendStanding(dst []byte, id record.StreamID, s standing, c *streamCuts) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint64(dst, uint64(id))
	dst = le.AppendUint32(dst, uint32(s.last.epoch))
	dst = le.AppendUint32(dst, uint32(s.last.inc))
	dst = le.AppendUint64(dst, uint64(s.next))
	flags, seq := byte(0), record.Seq(0)
	if c != nil {
		flags, seq = flagInCuts, c.seq
		if c.open {
			flags |= flagOpen
		}
		if c.initial {
			flags |= flagInitial
		}
	}
	dst = append(dst, byte(s.phase), flags)
	dst = le.AppendUint64(dst, uint64(seq))
	dst = le.AppendUint16(dst, uint16(len(s.recent)))
	for _, r := range s.recent {
		dst = le.AppendUint16(dst, uint16(s.next-r.seq)) // 1 to recentCount
		dst = le.AppendUint32(dst, r.sum)
	}
	return dst
}

func appendPendingCut(dst []byte, p *pendingCut) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint64(dst, p.cut.Checkpoint)
	dst = le.AppendUint64(dst, uint64(p.time))
	dst = le.AppendUint64(dst, uint64(p.cut.Wall))
	dst = le.AppendUint16(dst, uint16(len(p.cut.Tag)+cutSources*int(p.cut.Sources)))
	dst = append(dst, p.cut.Tag...)
	dst = le.AppendUint32(dst, uint32(len(p.at)))
	for _, id := range slices.Sorted(maps.Keys(p.at)) {
		dst = le.AppendUint64(dst, uint64(id))
		dst = le.AppendUint64(dst, uint64(p.at[id]))
	}
	dst = le.AppendUint32(dst, uint32(len(p.confirmed)))
	for _, id := range slices.Sorted(maps.Keys(p.confirmed)) {
		dst = le.AppendUint64(dst, uint64(id))
	}
	dst = le.AppendUint32(dst, uint32(len(p.volumes)))
	for _, id := range slices.Sorted(maps.Keys(p.volumes)) {
		dst = le.AppendUint32(dst, uint32(id))
		dst = le.AppendUint64(dst, uint64(p.volumes[id]))
	}
	return dst
}

// parseSnapshot reads what appendTo wrote. What it returns borrows nothing of p.
func parseSnapshot(p []byte) (*snapshot, error) {
	if len(p) < 4 {
		return nil, errSnapshot
	}
	end := len(p) - 4
	if crc32.Checksum(p[:end], castagnoli) != binary.LittleEndian.Uint32(p[end:]) && !invariant.Planted("journal/snapshot-no-crc") {
		return nil, errSnapshot
	}
	d := decoder{p: p[:end]}
	d.ok(d.u32() == snapshotMagic)
	d.ok(d.u32() == snapshotVersion)
	s := &snapshot{group: record.GroupID(d.u64()), lineage: d.u64(), pos: d.pos(), complete: d.pos(),
		streams: make(map[record.StreamID]standing), cuts: newCuts()}
	d.ok(s.group != 0 && s.lineage != 0 && s.complete <= s.pos)
	above := record.StreamID(0)
	for range d.count(maxStreams, 36) {
		above = d.standing(s, above)
	}
	s.cuts.newest, s.cuts.seen, s.cuts.limit = d.u64(), d.u64(), d.u64()
	d.ok(s.cuts.seen >= s.cuts.newest && s.cuts.seen >= s.cuts.limit)
	number := s.cuts.newest
	for range d.count(maxPendingCuts, 38) {
		c := d.pendingCut()
		d.ok(c.cut.Checkpoint > number && c.cut.Checkpoint <= s.cuts.seen)
		number = c.cut.Checkpoint
		s.cuts.pending[number] = c
	}
	if d.bad || len(d.p) != 0 {
		return nil, errSnapshot
	}
	return s, nil
}

// pos takes a place of the log.
func (d *decoder) pos() segment.Pos {
	n := d.u64()
	d.ok(n <= math.MaxInt64)
	return segment.Pos(n)
}

// count takes how many follow, each of so many bytes or more; none once anything was bad.
func (d *decoder) count(limit, size int) int {
	n := int(d.u32())
	if d.ok(n <= limit && n <= len(d.p)/size); d.bad {
		return 0
	}
	return n
}

// standing takes one stream, whose id is above the one before.
func (d *decoder) standing(s *snapshot, above record.StreamID) record.StreamID {
	id := record.StreamID(d.u64())
	st := standing{mark: mark{last: life{record.Epoch(d.u32()), record.Incarnation(d.u32())}, next: record.Seq(d.u64()), phase: phase(d.u8())}}
	flags, seq := d.u8(), record.Seq(d.u64())
	d.ok(id > above && st.next > 0 && st.phase <= phaseLog && flags <= flagInCuts|flagOpen|flagInitial)
	d.ok((st.last.epoch == 0) == (st.last.inc == 0) && (flags == 0) == (seq == 0) && (flags == 0 || flags&flagInCuts != 0))
	if flags != 0 {
		s.cuts.streams[id] = &streamCuts{seq: seq, open: flags&flagOpen != 0, initial: flags&flagInitial != 0}
	}
	n := int(d.u16())
	d.ok(n <= recentCount)
	for back := record.Seq(recentCount) + 1; n > 0 && !d.bad; n-- {
		b := record.Seq(d.u16())
		d.ok(b > 0 && b < back && b < st.next)
		back = b
		st.recent = append(st.recent, sumOf{st.next - b, d.u32()})
	}
	s.streams[id] = st
	return id
}

func (d *decoder) pendingCut() *pendingCut {
	p := &pendingCut{at: map[record.StreamID]record.Seq{}, confirmed: map[record.StreamID]bool{}, volumes: map[record.VolumeID]int64{}}
	p.cut.Checkpoint, p.time, p.cut.Wall = d.u64(), record.Time(d.u64()), int64(d.u64())
	n := int(d.u16())
	p.cut.Sources, n = uint8(n/cutSources), n%cutSources
	d.ok(n <= record.MaxTag && p.cut.Sources <= record.MaxSources && p.cut.Sources != 1)
	p.cut.Tag = string(d.take(min(n, record.MaxTag)))
	last := uint64(0)
	for range d.count(maxStreams, 16) {
		id, seq := d.u64(), record.Seq(d.u64())
		d.ok(id > last && seq > 0)
		last, p.at[record.StreamID(id)] = id, seq
	}
	last = 0
	for range d.count(maxStreams, 8) {
		id := d.u64()
		d.ok(id > last)
		last, p.confirmed[record.StreamID(id)] = id, true
	}
	last = 0
	for range d.count(maxCutVolumes, 12) {
		id, bytes := d.u32(), int64(d.u64())
		d.ok(uint64(id) > last && bytes >= 0)
		last, p.volumes[record.VolumeID(id)] = uint64(id), bytes
	}
	return p
}

// follows says whether what the manifest states can have come to this: it is this
// group's history, and has admitted every life and completed every sync in it.
func (s *snapshot) follows(group record.GroupID, f *facts) error {
	if s.group != group || s.lineage != f.lineage {
		return fmt.Errorf("%w: of group %s with lineage %x", errSnapshot, s.group, s.lineage)
	}
	for id, st := range s.streams {
		m := f.streams[id]
		switch {
		case st.last.epoch > m.admitted.epoch || st.last.inc > m.admitted.inc:
			return fmt.Errorf("%w: stream %s: %s was never admitted", errSnapshot, id, st.last)
		case m.applied.kind != 0 && (!m.applied.closed || st.next <= m.applied.seq):
			return fmt.Errorf("%w: stream %s: %d is next, and the replica holds up to %d", errSnapshot, id, st.next, m.applied.seq)
		}
	}
	return nil
}

package index

import (
	"fmt"
	"slices"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// memtable holds the versions of the newest records in memory. One goroutine adds, any
// number look up.
//
// Versions of a group are a list from newest to oldest, with jumps in it, so that the one a
// checkpoint shows is found in as many steps as its length has binary digits. Groups of
// a cell are a list; cells and groups are found by hashing. It costs 24 bytes a version,
// about 48 a group, 16 a block, 44 a record with its place in its stream.
type memtable struct {
	mu       sync.RWMutex
	records  growing[memRecord]
	blocks   growing[blockEntry]
	versions growing[memVersion] // the first is none
	groups   growing[memGroup]
	cells    hashed // of groups: the first of each cell
	byGroup  hashed // of groups

	volumes map[record.VolumeID]*memVolume
	ids     []record.VolumeID // by ordinal
	streams map[record.StreamID]*memStream
	list    []*memStream // by ordinal
	regions map[uint64]struct{}
	lo, hi  segment.Pos
}

type memRecord struct {
	pos        segment.Pos
	seq        record.Seq
	epoch      record.Epoch
	inc        record.Incarnation
	sum        uint32
	firstBlock uint32
	stream     uint32
}

type memVersion struct {
	rec      uint32
	block    uint32 // in blocks; zeroBlock: zeros
	ext      uint16
	blockOff uint16
	older    uint32 // 0: none
	jump     uint32 // to one further back; 0: none
	depth    uint32 // how many are older
}

type memGroup struct {
	cell   uint64
	span   span
	area   uint32 // ordinal of the volume<<4 | level
	stream uint32
	next   uint32 // of the cell, plus one; 0: none
	newest uint32
}

type memVolume struct {
	ordinal uint32
	levels  uint16
}

// memStream is a stream of the memtable; its records stand in recs, the first has seq first.
type memStream struct {
	id      record.StreamID
	ordinal uint32
	first   record.Seq
	recs    []uint32 // without gap; none of record.FoldedStream
}

// Regions are what large lookups skip by when nothing touches them: of 16 MiB and of 8 GiB.
const (
	regionShift = 24
	wideShift   = 33
	wideRegion  = 1 << 63
	maxOrdinals = 1 << 27
)

func newMemtable() *memtable {
	m := &memtable{volumes: make(map[record.VolumeID]*memVolume), streams: make(map[record.StreamID]*memStream), regions: make(map[uint64]struct{})}
	m.versions.add(memVersion{})
	return m
}

// add takes the record at pos, which lies above those before.
func (m *memtable) add(pos segment.Pos, r *record.Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.streams[r.Stream]
	if s == nil {
		s = &memStream{id: r.Stream, ordinal: uint32(len(m.list)), first: r.Seq}
		m.streams[r.Stream] = s
		m.list = append(m.list, s)
	}
	if m.records.n == 0 {
		m.lo = pos
	}
	m.hi = pos + 1
	rec := m.records.add(memRecord{pos: pos, seq: r.Seq, epoch: r.Epoch, inc: r.Incarnation, sum: r.Checksum, firstBlock: uint32(m.blocks.n), stream: s.ordinal})
	if r.Stream != record.FoldedStream {
		if r.Seq != s.first+record.Seq(len(s.recs)) { // some in between were folded
			s.first, s.recs = r.Seq, nil
		}
		s.recs = append(s.recs, rec)
	}
	for i := range r.Blocks {
		b := r.Block(i)
		m.blocks.add(blockEntry{at: uint32(b.At), crc: b.CRC, raw: uint16(b.Raw - 1), stored: uint16(b.Stored - 1), codec: b.Codec})
	}
	for i := range r.Extents {
		if err := m.addExtentLocked(rec, s.ordinal, uint16(i), r.Extent(i)); err != nil {
			return err
		}
	}
	return nil
}

func (m *memtable) addExtentLocked(rec, stream uint32, ext uint16, e record.Extent) error {
	vol := m.volumes[e.Volume]
	if vol == nil {
		if len(m.ids) == maxOrdinals {
			return fmt.Errorf("index: more than %d volumes", maxOrdinals)
		}
		vol = &memVolume{ordinal: uint32(len(m.ids))}
		m.volumes[e.Volume] = vol
		m.ids = append(m.ids, e.Volume)
	}
	if e.Kind == record.ExtentData { // lies in one line
		v := memVersion{rec: rec, ext: ext, block: m.records.at(rec).firstBlock + uint32(e.Block), blockOff: uint16(e.BlockOff)}
		m.insertLocked(vol, 0, uint64(e.Off)>>lineShift, spanOf(e.Off&(record.LineBytes-1), e.Len), stream, v)
		return nil
	}
	eachCell(e.Off, e.Len, func(level uint8, cell uint64, s span, _ int64) {
		m.insertLocked(vol, level, cell, s, stream, memVersion{rec: rec, ext: ext, block: zeroBlock})
	})
	return nil
}

// insertLocked puts a version in front of its group, and a new group in front of its cell.
func (m *memtable) insertLocked(vol *memVolume, level uint8, cell uint64, s span, stream uint32, v memVersion) {
	a := vol.ordinal<<4 | uint32(level)
	h := hashGroup(a, cell, s, stream)
	slot, found := m.byGroup.find(h, func(i uint32) bool {
		g := m.groups.at(i)
		return g.cell == cell && g.span == s && g.area == a && g.stream == stream
	})
	if found {
		g := m.groups.at(m.byGroup.slots[slot] - 1)
		old := m.versions.at(g.newest)
		v.older, v.depth, v.jump = g.newest, old.depth+1, g.newest
		// Jumps as in a skew-binary list: two of a length become one.
		if j := m.versions.at(old.jump); old.jump != 0 && old.depth-j.depth == j.depth-m.versions.at(j.jump).depth && j.jump != 0 {
			v.jump = j.jump
		}
		g.newest = m.versions.add(v)
		return
	}
	g := memGroup{cell: cell, span: s, area: a, stream: stream, newest: m.versions.add(v)}
	hc := hashCell(a, cell)
	cslot, other := m.cells.find(hc, func(i uint32) bool { o := m.groups.at(i); return o.cell == cell && o.area == a })
	if other {
		g.next = m.cells.slots[cslot]
	} else {
		vol.levels |= 1 << level
		m.touchLocked(vol.ordinal, level, cell)
	}
	i := m.groups.add(g)
	m.byGroup.put(slot, i, func(i uint32) uint64 { g := m.groups.at(i); return hashGroup(g.area, g.cell, g.span, g.stream) })
	if other {
		m.cells.slots[cslot] = i + 1
	} else {
		m.cells.put(cslot, i, func(i uint32) uint64 { g := m.groups.at(i); return hashCell(g.area, g.cell) })
	}
}

func (m *memtable) touchLocked(vol uint32, level uint8, cell uint64) {
	at := cell << cellShift(level)
	if level > fineLevel {
		return
	}
	region := regionKey(vol, at>>regionShift)
	if _, ok := m.regions[region]; !ok {
		m.regions[region] = struct{}{}
		m.regions[regionKey(vol, at>>wideShift)|wideRegion] = struct{}{}
	}
}

func regionKey(vol uint32, region uint64) uint64 { return uint64(vol)<<32 | region }

func hashCell(a uint32, cell uint64) uint64 {
	return filterKey(area(a), cell, 0)
}

func hashGroup(a uint32, cell uint64, s span, stream uint32) uint64 {
	return filterKey(area(a)|area(stream)<<32, cell, 0) ^ filterKey(0, uint64(s), 1)
}

// bytes is what the memtable takes of memory.
func (m *memtable) bytes() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	n := m.records.bytes(40) + m.blocks.bytes(16) + m.versions.bytes(24) + m.groups.bytes(32)
	n += int64(len(m.cells.slots)+len(m.byGroup.slots))*4 + int64(len(m.regions))*24 + int64(len(m.volumes))*100
	for _, s := range m.list {
		n += int64(cap(s.recs))*4 + 150
	}
	return n
}

func (m *memtable) empty() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.records.n == 0
}

// sum returns the header checksum of a record; ok is false for one that is not here.
func (m *memtable) sum(stream record.StreamID, seq record.Seq) (sum uint32, ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	s := m.streams[stream]
	if s == nil || seq < s.first || seq-s.first >= record.Seq(len(s.recs)) {
		return 0, false
	}
	return m.records.at(s.recs[seq-s.first]).sum, true
}

// newestLocked returns the newest version of the group with no higher seq; 0: none.
func (m *memtable) newestLocked(g *memGroup, seq record.Seq) uint32 {
	fits := func(n uint32) bool { return m.records.at(m.versions.at(n).rec).seq <= seq }
	n := g.newest
	for n != 0 && !fits(n) {
		v := m.versions.at(n)
		if v.jump != 0 && !fits(v.jump) {
			n = v.jump
		} else {
			n = v.older
		}
	}
	return n
}

// collect appends to l what the memtable has of [from, to) of the volume.
func (m *memtable) collect(l *lookup, vol record.VolumeID, from, to int64, _ []Span) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	v := m.volumes[vol]
	if v == nil {
		return nil
	}
	for level := uint8(0); level < levels; level++ {
		if v.levels&(1<<level) == 0 {
			continue
		}
		a, shift := v.ordinal<<4|uint32(level), cellShift(level)
		for cell := uint64(from) >> shift; cell <= uint64(to-1)>>shift; cell++ {
			if at := int64(cell << shift); level <= fineLevel && at&(1<<regionShift-1) == 0 {
				if next := m.touchedLocked(v.ordinal, at, to); next > at {
					cell = uint64(next)>>shift - 1
					continue
				}
			}
			slot, ok := m.cells.find(hashCell(a, cell), func(i uint32) bool { o := m.groups.at(i); return o.cell == cell && o.area == a })
			if !ok {
				continue
			}
			for next := m.cells.slots[slot]; next != 0; {
				g := m.groups.at(next - 1)
				next = g.next
				key := group{area: areaOf(vol, level), cell: cell, span: g.span, stream: m.list[g.stream].id}
				if off, n := key.place(); off < to && off+n > from {
					m.newestOfLocked(l, g, &key)
				}
			}
		}
	}
	return nil
}

func (m *memtable) newestOfLocked(l *lookup, g *memGroup, k *group) {
	seq := l.at.Upto(k.stream)
	if invariant.Planted("journal/index/newest-of-memory") {
		seq = anySeq
	}
	n := m.newestLocked(g, seq)
	if n == 0 || m.records.at(m.versions.at(n).rec).pos < l.from {
		return
	}
	var v version
	m.versionLocked(&v, k, n)
	l.take(&v)
}

// versionLocked makes v the group's version n.
func (m *memtable) versionLocked(v *version, g *group, n uint32) {
	e := m.versions.at(n)
	r := m.records.at(e.rec)
	*v = version{sortKey: sortKey{group: *g, seq: r.seq, pos: r.pos, ext: e.ext}, epoch: r.epoch, inc: r.inc, zero: e.block == zeroBlock}
	if !v.zero {
		b := m.blocks.at(e.block)
		v.number, v.blockOff = uint16(e.block-r.firstBlock), e.blockOff
		v.block = record.Block{Codec: b.codec, Raw: int(b.raw) + 1, Stored: int(b.stored) + 1, CRC: b.crc, At: int(b.at)}
	}
}

// touchedLocked returns where the first region at or behind at that has versions of fine
// levels begins, or at itself; limit or more when there is none before it.
func (m *memtable) touchedLocked(vol uint32, at, limit int64) int64 {
	for at < limit {
		if _, ok := m.regions[regionKey(vol, uint64(at)>>wideShift)|wideRegion]; !ok {
			at = (at>>wideShift + 1) << wideShift
			continue
		}
		if _, ok := m.regions[regionKey(vol, uint64(at)>>regionShift)]; ok {
			return at
		}
		at = (at>>regionShift + 1) << regionShift
	}
	return at
}

// next is a source's.
func (m *memtable) next(_ *lookup, vol record.VolumeID, off int64, fine, coarse *int64) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	v := m.volumes[vol]
	if v == nil {
		return nil
	}
	*fine = min(*fine, m.touchedLocked(v.ordinal, off, *fine))
	for level := uint8(fineLevel + 1); level < levels; level++ {
		if v.levels&(1<<level) == 0 {
			continue
		}
		a, shift := v.ordinal<<4|uint32(level), cellShift(level)
		for cell := uint64(off) >> shift; int64(cell<<shift) < *coarse; cell++ {
			if _, ok := m.cells.find(hashCell(a, cell), func(i uint32) bool { o := m.groups.at(i); return o.cell == cell && o.area == a }); ok {
				*coarse = min(*coarse, max(off, int64(cell<<shift)))
			}
		}
	}
	return nil
}

// each calls fn with all versions in the order of a run; v is lent for the call.
func (m *memtable) each(fn func(v *version) error) error {
	m.mu.RLock() // nobody adds any more, or the caller is who adds
	defer m.mu.RUnlock()
	rank := make([]area, len(m.ids)) // in the order of ids, not of arrival
	for i, id := range m.ids {
		rank[i] = areaOf(id, 0)
	}
	type sorted struct {
		area  area
		cell  uint64
		group uint32
	}
	order := make([]sorted, m.groups.n)
	for i := range order {
		g := m.groups.at(uint32(i))
		order[i] = sorted{rank[g.area>>4] | area(g.area&15), g.cell, uint32(i)}
	}
	slices.SortFunc(order, func(a, b sorted) int {
		if a.area != b.area {
			return cmpUint(uint64(a.area), uint64(b.area))
		}
		if a.cell != b.cell {
			return cmpUint(a.cell, b.cell)
		}
		g, h := m.groups.at(a.group), m.groups.at(b.group)
		if g.span != h.span {
			return cmpUint(uint64(g.span), uint64(h.span))
		}
		return cmpUint(uint64(m.list[g.stream].id), uint64(m.list[h.stream].id))
	})
	var v version
	for i := range order {
		g := m.groups.at(order[i].group)
		k := group{area: order[i].area, cell: g.cell, span: g.span, stream: m.list[g.stream].id}
		for n := g.newest; n != 0; n = m.versions.at(n).older {
			m.versionLocked(&v, &k, n)
			if err := fn(&v); err != nil {
				return err
			}
		}
	}
	return nil
}

func cmpUint(a, b uint64) int {
	if a < b {
		return -1
	}
	if a > b {
		return 1
	}
	return 0
}

package index

import (
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// collect appends to l what the memtable has of [from, to) of the volume.
func (m *memtable) collect(l *lookup, vol record.VolumeID, from, to int64, _ []Span) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	v := m.volumes[vol]
	newest, ok := m.heldLocked(&l.at)
	if v == nil || !ok {
		return nil
	}
	s := chainSearch{m: m, l: l, id: vol, vol: v.ordinal, several: v.several, newest: newest}
	for level := uint8(0); level < levels; level++ {
		if v.levels&(1<<level) == 0 {
			continue
		}
		s.level = level
		shift := cellShift(level)
		for cell := uint64(from) >> shift; cell <= uint64(to-1)>>shift; cell++ {
			if at := int64(cell << shift); level <= fineLevel && at&(1<<regionShift-1) == 0 && to-at >= 1<<regionShift {
				if next := m.touchedLocked(v.ordinal, at, to); next > at {
					cell = uint64(next)>>shift - 1
					continue
				}
			}
			base := int64(cell << shift)
			s.in(cell, max(from-base, 0), min(to-base, 1<<shift))
		}
	}
	return nil
}

// heldLocked returns the last of the records that the checkpoint may hold; false when it
// holds none.
func (m *memtable) heldLocked(at *Vector) (newest uint32, ok bool) {
	if invariant.Planted("journal/index/newest-of-memory") {
		return uint32(m.records.n), true
	}
	for _, s := range m.list {
		n, some := s.upTo(at.Upto(s.id), uint32(m.records.n))
		if some {
			newest, ok = max(newest, n), true
		}
	}
	return newest, ok
}

// upTo returns a record of the stream, of so many in all, behind which none has that seq or a
// lower one; false when no record has.
func (s *memStream) upTo(seq record.Seq, records uint32) (uint32, bool) {
	switch {
	case seq < s.least:
		return 0, false
	case s.id == record.FoldedStream:
		return records, true
	case seq < s.first: // before the last gap
		return s.recs[0], true
	}
	return s.recs[min(seq-s.first, record.Seq(len(s.recs)-1))], true
}

// chainSearch finds, of one level of a volume, what a lookup wants of memory.
type chainSearch struct {
	m       *memtable
	l       *lookup
	id      record.VolumeID
	vol     uint32
	several bool // as in memVolume
	level   uint8
	newest  uint32 // of the records that the checkpoint may hold
}

// in takes what there is of [lo, hi) of a cell.
func (s *chainSearch) in(cell uint64, lo, hi int64) {
	a := area(s.vol)<<8 | area(s.level)
	if s.several {
		s.chain(cell, lo, hi, filterKey(a, cell, wholeCell))
	}
	if s.level > 0 {
		return
	}
	for block := lo >> blockShift; block <= (hi-1)>>blockShift; block++ {
		s.chain(cell, max(lo, block<<blockShift), min(hi, (block+1)<<blockShift), filterKey(a, cell, uint64(block)))
	}
}

// chain takes from a chain the versions that touch [lo, hi) of the cell, the newest first, until
// they cover it. One may be taken that newer ones cover together.
func (s *chainSearch) chain(cell uint64, lo, hi int64, hash uint64) {
	m, seen := s.m, newCoverage(s.level, lo, hi)
	for n := m.newestLocked(hash, s.newest); n != 0; {
		v := m.versions.at(n)
		mine := v.vol == s.vol && v.level() == s.level && (v.cell() == cell || invariant.Planted("journal/index/shared-chain"))
		if mine && s.take(v, &seen) {
			return
		}
		n = v.older
		s.l.steps++
	}
}

// take takes the version, if it is held and not covered; done: all is covered, or what
// follows is older than what is looked for.
func (s *chainSearch) take(v *memVersion, seen *coverage) (done bool) {
	lo := v.inCell()
	hi := lo + v.bytes()
	if lo >= seen.hi || hi <= seen.lo {
		return false
	}
	r := s.m.records.at(v.rec)
	if r.pos < s.l.from {
		return true
	}
	stream := s.m.list[r.stream].id
	if r.seq > s.l.at.Upto(stream) && !invariant.Planted("journal/index/newest-of-memory") {
		return false
	}
	if seen.has(lo, hi) {
		return false
	}
	var full version
	s.m.versionLocked(&full, s.id, v)
	s.l.take(&full)
	return seen.add(lo, hi)
}

// coverage is what was found of [lo, hi) of a cell, as far as it has to be known: parts of the cell, a
// 64th each, and the longest stretch, for what ends within a part.
type coverage struct {
	lo, hi   int64
	shift    uint
	parts    uint64 // a bit for each that is covered
	from, to int64  // as [from, to) is
}

func newCoverage(level uint8, lo, hi int64) coverage {
	return coverage{lo: lo, hi: hi, shift: cellShift(level) - 6}
}

// touched are the parts that [lo, hi) touches.
func (c *coverage) touched(lo, hi int64) uint64 {
	first, last := lo>>c.shift, (hi-1)>>c.shift
	return ^uint64(0) >> (63 - (last - first)) << first
}

// within are the parts that lie in [lo, hi).
func (c *coverage) within(lo, hi int64) uint64 {
	first, end := (lo+1<<c.shift-1)>>c.shift, hi>>c.shift
	if invariant.Planted("journal/index/covered-in-part") {
		return c.touched(lo, hi)
	}
	if end <= first {
		return 0
	}
	return ^uint64(0) >> (64 - (end - first)) << first
}

// has says whether [lo, hi) is covered, as far as it is asked for.
func (c *coverage) has(lo, hi int64) bool {
	lo, hi = max(lo, c.lo), min(hi, c.hi)
	return lo >= c.from && hi <= c.to || c.touched(lo, hi)&^c.parts == 0
}

// add covers [lo, hi), and says whether all is covered now.
func (c *coverage) add(lo, hi int64) bool {
	c.parts |= c.within(lo, hi)
	switch {
	case lo <= c.to && hi >= c.from && c.from < c.to: // they meet
		c.from, c.to = min(c.from, lo), max(c.to, hi)
	case hi-lo > c.to-c.from:
		c.from, c.to = lo, hi
	}
	return c.has(c.lo, c.hi)
}

// newestLocked returns the newest version in a chain that is of that record or an older one; 0: none.
func (m *memtable) newestLocked(hash uint64, rec uint32) uint32 {
	if len(m.chains) == 0 {
		return 0
	}
	c := m.chains[hash>>chainShift&uint64(len(m.chains)-1)]
	n := c.newest
	for i := c.marked >> markShift; i != 0; {
		k := m.marks.at(i)
		if m.versions.at(k.version).rec <= rec {
			break
		}
		n, i = k.version, k.older
	}
	for n != 0 && m.versions.at(n).rec > rec {
		n = m.versions.at(n).older
	}
	return n
}

// versionLocked makes full the version v of that volume.
func (m *memtable) versionLocked(full *version, vol record.VolumeID, v *memVersion) {
	r, b := m.records.at(v.rec), &blockEntry{}
	if v.block != zeroBlock {
		b = m.blocks.at(v.block)
	}
	full.fill(vol, v, r, b, m.list[r.stream].id)
}

// fill makes full the version v of a volume, of that record and block.
func (full *version) fill(vol record.VolumeID, v *memVersion, r *memRecord, b *blockEntry, stream record.StreamID) {
	full.area, full.cell, full.stream = areaOf(vol, v.level()), v.cell(), stream
	full.span = 0
	if v.length != 0 {
		full.span = spanOf(v.inCell(), int64(v.length))
	}
	full.seq, full.pos, full.ext = r.seq, r.pos, v.ext
	full.epoch, full.inc = r.epoch, r.inc
	if full.zero = v.block == zeroBlock; full.zero {
		full.number, full.blockOff, full.block = 0, 0, record.Block{}
		return
	}
	full.number, full.blockOff = uint16(v.block-r.firstBlock), v.blockOff
	full.block = record.Block{Codec: b.codec, Raw: int(b.raw) + 1, Stored: int(b.stored) + 1, CRC: b.crc, At: int(b.at)}
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
		a, shift := area(v.ordinal)<<8|area(level), cellShift(level)
		for cell := uint64(off) >> shift; int64(cell<<shift) < *coarse; cell++ {
			if m.anyLocked(v.ordinal, level, cell, filterKey(a, cell, wholeCell)) {
				*coarse = min(*coarse, max(off, int64(cell<<shift)))
			}
		}
	}
	return nil
}

// anyLocked says whether a cell of a level that has no blocks has any version.
func (m *memtable) anyLocked(vol uint32, level uint8, cell uint64, hash uint64) bool {
	for n := m.newestLocked(hash, uint32(m.records.n)); n != 0; {
		v := m.versions.at(n)
		if v.vol == vol && v.level() == level && v.cell() == cell {
			return true
		}
		n = v.older
	}
	return false
}

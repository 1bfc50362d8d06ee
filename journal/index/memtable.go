package index

import (
	"fmt"
	"sync"

	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// memtable holds the versions of the newest records in memory. One goroutine adds, any
// number look up.
//
// Versions stand in the order in which they came. Those of one chain, which is found by
// hashing the 4 KiB block that a version lies in (or its cell, if it lies in several), lead from
// the newest to the oldest, and every 64th has a mark, so that what a checkpoint does not hold
// yet is passed in large steps. A hash that two blocks share makes their chains one.
//
// Adding touches no version that was added before: memory that is in no cache of the processor is
// what it costs. A version takes 32 bytes and 4 to 16 of the chains, a block 16, a record with
// its place in its stream 44.
type memtable struct {
	mu       sync.RWMutex
	records  growing[memRecord]
	blocks   growing[blockEntry]
	versions growing[memVersion] // the first is none
	chains   []memChain
	marks    growing[memMark] // the first is none

	volumes map[record.VolumeID]*memVolume
	ids     []record.VolumeID // by ordinal
	streams map[record.StreamID]*memStream
	list    []*memStream // by ordinal
	lo, hi  segment.Pos

	touched regions
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
	at       uint64 // where it begins in its volume<<4 | level
	length   uint32 // 0: its whole cell, beyond partLevel
	vol      uint32 // ordinal
	rec      uint32
	block    uint32 // in blocks; zeroBlock: zeros
	older    uint32 // in the chain; 0: none
	ext      uint16
	blockOff uint16
}

func (v *memVersion) level() uint8  { return uint8(v.at & 15) }
func (v *memVersion) off() uint64   { return v.at >> 4 }
func (v *memVersion) cell() uint64  { return v.off() >> cellShift(v.level()) }
func (v *memVersion) inCell() int64 { return int64(v.off() & (1<<cellShift(v.level()) - 1)) }

// bytes is how long it is.
func (v *memVersion) bytes() int64 {
	if v.length == 0 {
		return 1 << cellShift(v.level())
	}
	return int64(v.length)
}

// memChain is the newest version of a chain, and its last mark<<markShift | how many versions are
// newer than that.
type memChain struct{ newest, marked uint32 }

// memMark is a marked version, and the mark before in its chain; 0: none.
type memMark struct{ version, older uint32 }

const (
	markShift = 6
	markEvery = 1 << markShift
)

type memVolume struct {
	ordinal uint32
	levels  uint16 // that have versions
	several bool   // so has a chain of versions in several blocks of a cell of level 0
}

// memStream is a stream of the memtable; its records stand in recs, the first has seq first.
type memStream struct {
	id      record.StreamID
	ordinal uint32
	least   record.Seq // of all its records
	first   record.Seq
	recs    []uint32 // without gap; none of record.FoldedStream
}

const maxOrdinals = 1 << 27

// A memtable begins with leastChains; when they have chainVersions each, they become chainGrowth
// times as many.
const (
	leastChains   = 32
	chainVersions = 2
	chainGrowth   = 4
)

func newMemtable() *memtable {
	m := &memtable{volumes: make(map[record.VolumeID]*memVolume), streams: make(map[record.StreamID]*memStream)}
	m.versions.add(memVersion{})
	m.marks.add(memMark{})
	return m
}

// add takes the record at pos, which lies above those before.
func (m *memtable) add(pos segment.Pos, r *record.Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.streams[r.Stream]
	if s == nil {
		s = &memStream{id: r.Stream, ordinal: uint32(len(m.list)), least: r.Seq, first: r.Seq}
		m.streams[r.Stream] = s
		m.list = append(m.list, s)
	}
	if m.records.n == 0 {
		m.lo = pos
	}
	m.hi, s.least = pos+1, min(s.least, r.Seq)
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
		if err := m.addExtentLocked(rec, uint16(i), r.Extent(i)); err != nil {
			return err
		}
	}
	return nil
}

func (m *memtable) addExtentLocked(rec uint32, ext uint16, e record.Extent) error {
	vol := m.volumes[e.Volume]
	if vol == nil {
		if len(m.ids) == maxOrdinals {
			return fmt.Errorf("index: more than %d volumes", maxOrdinals)
		}
		vol = &memVolume{ordinal: uint32(len(m.ids))}
		m.volumes[e.Volume] = vol
		m.ids = append(m.ids, e.Volume)
	}
	v := memVersion{vol: vol.ordinal, rec: rec, ext: ext}
	if e.Kind == record.ExtentData { // lies in one line
		v.block, v.blockOff = m.records.at(rec).firstBlock+uint32(e.Block), uint16(e.BlockOff)
		vol.levels |= 1
		vol.several = vol.several || e.Off>>blockShift != (e.Off+e.Len-1)>>blockShift
		m.insertLocked(uint64(e.Off)<<4, uint32(e.Len), v)
		return nil
	}
	v.block = zeroBlock
	eachCell(e.Off, e.Len, func(level uint8, cell uint64, s span, _ int64) {
		vol.levels |= 1 << level
		vol.several = true
		m.insertLocked((cell<<cellShift(level)+uint64(s>>32))<<4|uint64(level), uint32(s), v)
	})
	return nil
}

// insertLocked puts v in front of its chain.
func (m *memtable) insertLocked(at uint64, length uint32, v memVersion) {
	v.at, v.length = at, length
	if m.versions.n > len(m.chains)*chainVersions {
		m.growLocked()
	}
	m.linkLocked(&v, uint32(m.versions.n))
	m.versions.add(v)
}

// linkLocked makes v, which is or will be that version, the newest of its chain.
func (m *memtable) linkLocked(v *memVersion, n uint32) {
	c := &m.chains[chainOf(v)>>chainShift&uint64(len(m.chains)-1)]
	v.older, c.newest = c.newest, n
	if c.marked++; c.marked%markEvery == 0 {
		c.marked = m.marks.add(memMark{version: n, older: c.marked>>markShift - 1}) << markShift
	}
}

// growLocked makes more chains, and links all versions anew.
func (m *memtable) growLocked() {
	m.chains = make([]memChain, max(len(m.chains)*chainGrowth, leastChains))
	m.marks = growing[memMark]{}
	m.marks.add(memMark{})
	for n := 1; n < m.versions.n; n++ {
		m.linkLocked(m.versions.at(uint32(n)), uint32(n))
	}
}

// chainShift is how many low bits of a filterKey find no chain.
const chainShift = 20

// chainOf is the hash of the chain that the version belongs to.
func chainOf(v *memVersion) uint64 {
	a, cell := area(v.vol)<<8|area(v.level()), v.cell()
	if first, last := v.blocks(); v.level() == 0 && first == last {
		return filterKey(a, cell, uint64(first))
	}
	return filterKey(a, cell, wholeCell)
}

// blocks are the first and the last 4 KiB of its cell that a version touches.
func (v *memVersion) blocks() (first, last int64) {
	return v.inCell() >> blockShift, (v.inCell() + v.bytes() - 1) >> blockShift
}

// bytes is what the memtable takes of memory.
func (m *memtable) bytes() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	n := m.records.bytes(40) + m.blocks.bytes(16) + m.versions.bytes(32) + m.marks.bytes(8)
	n += int64(len(m.chains))*8 + m.touched.bytes() + int64(len(m.volumes))*100
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

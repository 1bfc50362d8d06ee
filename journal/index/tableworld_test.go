package index

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// said is an extent as the table was told of it.
type said struct {
	pos segment.Pos
	id  record.Identity
	ext int
	e   record.Extent
}

// told is all that a table was told and that it has to answer by: the extents of the records
// in the log, ordered by place.
type told struct {
	records []placedRecord
	first   segment.Pos
	tail    segment.Pos // behind the last record there was
	seqs    [4]record.Seq
}

type placedRecord struct {
	pos segment.Pos
	r   record.Record
}

func (m *told) clone() *told {
	c := *m
	c.records = slices.Clone(m.records)
	return &c
}

// extents returns the extents of a volume that the checkpoint holds, the newest first.
func (m *told) extents(vol record.VolumeID, at Vector, from segment.Pos) (held []said) {
	for _, p := range m.records {
		if p.pos < max(m.first, from) || !at.Holds(p.r.Stream, p.r.Seq) {
			continue
		}
		for i := range p.r.Extents {
			if e := p.r.Extent(i); e.Volume == vol {
				held = append(held, said{pos: p.pos, id: p.r.Identity, ext: i, e: e})
			}
		}
	}
	slices.Reverse(held)
	return held
}

// agrees compares pieces of [off, off+n) with what was told, at every border of an extent.
func (m *told) agrees(got []Piece, vol record.VolumeID, off, n int64, at Vector, from segment.Pos, gaps bool) error {
	held := m.extents(vol, at, from)
	borders := []int64{off, off + n}
	add := func(p int64) {
		if p > off && p < off+n {
			borders = append(borders, p)
		}
	}
	for _, s := range held {
		add(s.e.Off)
		add(s.e.Off + s.e.Len)
	}
	for _, p := range got {
		add(p.Off)
	}
	slices.Sort(borders)
	borders = slices.Compact(borders)
	k := 0
	for i := range borders[:len(borders)-1] {
		place := borders[i]
		for k < len(got) && got[k].Off+got[k].Len <= place {
			k++
		}
		have := Piece{In: InReplica}
		if k < len(got) && got[k].Off <= place {
			have = got[k].after(place - got[k].Off)
		} else if !gaps {
			return fmt.Errorf("nothing at %d", place)
		}
		if k < len(got) && got[k].Len <= 0 {
			return fmt.Errorf("piece of %d bytes", got[k].Len)
		}
		if err := matches(have, held, place, m, gaps); err != nil {
			return fmt.Errorf("volume %d at %d (up to %d): %w", vol, place, borders[i+1], err)
		}
	}
	if len(got) > 0 && (got[0].Off < off || got[len(got)-1].Off+got[len(got)-1].Len > off+n) {
		return errors.New("pieces outside of what was asked for")
	}
	return nil
}

func matches(have Piece, held []said, place int64, m *told, walk bool) error {
	for _, s := range held {
		if place < s.e.Off || place >= s.e.Off+s.e.Len {
			continue
		}
		if s.e.Kind == record.ExtentZero {
			if have.In != IsZero || walk && (have.Pos != s.pos || have.ID != s.id) {
				return fmt.Errorf("%+v, want zeros of %s", have, s.id)
			}
			return nil
		}
		r := m.at(s.pos)
		want := Piece{Off: have.Off, Len: have.Len, In: InLog, Pos: s.pos, ID: s.id, Number: s.e.Block, Block: r.Block(s.e.Block), BlockOff: s.e.BlockOff + int(place-s.e.Off)}
		if have != want {
			return fmt.Errorf("%+v, want %+v", have, want)
		}
		return nil
	}
	if have.In != InReplica {
		return fmt.Errorf("%+v, want the replica", have)
	}
	return nil
}

func (m *told) at(pos segment.Pos) record.Record {
	i, _ := slices.BinarySearchFunc(m.records, pos, func(p placedRecord, pos segment.Pos) int { return cmp.Compare(p.pos, pos) })
	return m.records[i].r
}

// end is behind the last record.
func (m *told) end() segment.Pos { return max(m.tail, segment.Start) }

// next is the seq that the stream's next record has.
func (m *told) next(s record.StreamID) record.Seq { return m.seqs[s] + 1 }

// fold replaces the records in [from, to).
func (m *told) fold(from, to segment.Pos, with []placedRecord) {
	m.records = slices.DeleteFunc(m.records, func(p placedRecord) bool { return p.pos >= from && p.pos < to })
	i, _ := slices.BinarySearchFunc(m.records, from, func(p placedRecord, pos segment.Pos) int { return cmp.Compare(p.pos, pos) })
	m.records = slices.Insert(m.records, i, with...)
}

// stored is what Stored has to find.
func (m *told) stored(spans []Span) map[Place]int {
	want := map[Place]int{}
	for _, p := range m.records {
		if p.pos < m.first {
			continue
		}
		for i := range p.r.Extents {
			e := p.r.Extent(i)
			if e.Kind != record.ExtentData {
				continue
			}
			b := p.r.Block(e.Block)
			from := p.pos + segment.Pos(b.At)
			for _, s := range spans {
				if s.From < from+segment.Pos(b.Stored) && s.To > from || s.From < p.pos+segment.Pos(p.r.TablesEnd()) && s.To > p.pos {
					want[Place{Volume: e.Volume, Off: e.Off, Len: e.Len, Pos: p.pos, Number: e.Block, Stream: p.r.Stream, Seq: p.r.Seq}]++
					break
				}
			}
		}
	}
	return want
}

// draws gives the test's choices: a seeded generator or a property's.
type draws interface{ IntN(n int) int }

const (
	worldVolumes = 3
	worldBytes   = 1 << 37 // of the first volume; the others have 256 KiB
)

// drawRecord makes a record of a few extents: of hot blocks, of parts of them, of zeros short
// and long.
func drawRecord(d draws, id record.Identity) record.Record {
	c := compressors.Get().(*record.Compressor)
	defer compressors.Put(c)
	b := record.NewBatch(record.Limits{})
	var fold record.Fold
	var taken []Span
	for i := range 1 + d.IntN(4) {
		p := record.Piece{Volume: record.VolumeID(1 + d.IntN(worldVolumes)), Ticket: record.Ticket(i + 1)}
		limit := int64(256 << 10)
		if p.Volume == 1 && d.IntN(2) == 0 {
			limit = worldBytes
		}
		base := int64(d.IntN(int(limit>>12))) << 12
		switch d.IntN(6) {
		case 0: // hot
			p.Off, p.Len = int64(d.IntN(3))<<12, 4096
		case 1:
			p.Off, p.Len = base, 4096
		case 2: // bytes
			p.Off, p.Len = base+int64(d.IntN(4096)), int64(1+d.IntN(6000))
		case 3: // a line and more
			p.Off, p.Len = base+int64(d.IntN(8))*512, int64(1+d.IntN(100))*512
		case 4: // zeros
			p.Off, p.Len = base+int64(d.IntN(2))*int64(d.IntN(4096)), int64(1+d.IntN(400<<10))
		case 5: // zeros of any length
			shift := d.IntN(37)
			p.Off, p.Len = base, int64(1+d.IntN(1<<shift))
			if d.IntN(2) == 0 {
				p.Off = p.Off >> shift << shift
				p.Len = 1 << shift
			}
		}
		p.Off = min(p.Off, limit-1)
		p.Len = min(p.Len, limit-p.Off)
		if p.Len <= 64<<10 && d.IntN(5) > 0 {
			p.Data = make([]byte, p.Len)
			seed := uint32(d.IntN(1 << 30))
			compressible := d.IntN(3) == 0
			for k := range p.Data {
				if seed = seed*1664525 + 1013904223; !compressible || k < 300 {
					p.Data[k] = byte(seed >> 24)
				}
			}
			p.Data[0], p.Data[len(p.Data)-1] = 1, 1
		}
		if id.Stream != record.FoldedStream {
			b.Add(p)
			continue
		}
		from, to := segment.Pos(p.Off), segment.Pos(p.Off+p.Len)
		if p.Volume != 1 || slices.ContainsFunc(taken, func(s Span) bool { return s.From < to && s.To > from }) {
			continue // a folded record has no place twice
		}
		taken = append(taken, Span{from, to})
		if p.Data == nil {
			fold.Zero(p.Volume, p.Off, p.Len)
		}
		for data, off := p.Data, p.Off; len(data) > 0; {
			n := min(int(record.LineBytes-off%record.LineBytes), len(data))
			fold.Data(p.Volume, off, data[:n], c)
			data, off = data[n:], off+int64(n)
		}
	}
	var sealed []byte
	if id.Stream == record.FoldedStream {
		if fold.Empty() {
			fold.Zero(2, 4096, 4096)
		}
		sealed = fold.Seal(nil, uint64(id.Seq), id.Incarnation, 1, c)
	} else {
		sealed = b.Seal(nil, id, 1, c)
	}
	r, err := record.Parse(sealed)
	if err != nil {
		panic(err)
	}
	return r
}

var compressors = sync.Pool{New: func() any { return record.NewCompressor() }}

// drawVector is a checkpoint somewhere.
func drawVector(d draws, m *told) Vector {
	cp := Checkpoint{Number: uint64(d.IntN(int(m.end()>>10) + 2))}
	if d.IntN(3) == 0 {
		cp.Number = 1 << 40
	}
	for s := record.StreamID(1); s <= 3; s++ {
		if n := int(m.next(s)); d.IntN(4) > 0 {
			cp.At = append(cp.At, StreamAt{Stream: s, Seq: record.Seq(d.IntN(n + 1))})
		} else if d.IntN(2) == 0 {
			cp.At = append(cp.At, StreamAt{Stream: s, Seq: record.Seq(n)})
		}
	}
	return NewVector(cp)
}

// tableLife is a table and what it was told, through every way it can end.
type tableLife struct {
	d   draws
	cfg TableConfig
	t   *Table
	*told
	covered segment.Pos // flushed

	pending   *pendingFold // the last
	forgiving bool         // the index may have been made again
}

func testTable(fs ioengine.FS) TableConfig {
	return TableConfig{FS: fs, Dir: "index", Group: 7, Cache: NewCache(1 << 20), Go: func(f func()) { f() }, FoldBytes: 4 << 10}
}

// open opens the table and adds again what it has not, as the journal does.
func (l *tableLife) open() (err error) {
	if l.t, err = OpenTable(l.cfg); err != nil {
		l.t = nil
		return err
	}
	s := l.t.Covered()
	l.covered = s.Pos
	if s.Pos > l.end() {
		return fmt.Errorf("covers %s, the log ends at %s", s.Pos, l.end())
	}
	if s.Pos > 0 && (string(s.State) != fmt.Sprint("state at ", s.Pos) || s.Segment != uint64(s.Pos>>20)+1 || s.Life != 99) {
		return fmt.Errorf("covers %s with another state: %q", s.Pos, s.State)
	}
	if err := l.t.Drop(l.first); err != nil {
		return err
	}
	for _, p := range l.records {
		if p.pos >= s.Pos && p.pos >= l.first {
			if err := l.t.Add(p.pos, p.r); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *tableLife) add() error {
	s := record.StreamID(1 + l.d.IntN(3))
	id := record.Identity{Stream: s, Epoch: 1 + record.Epoch(l.end()>>20), Incarnation: 3, Seq: l.told.next(s)}
	p := placedRecord{l.end() + segment.Pos(l.d.IntN(2)*4096), drawRecord(l.d, id)}
	l.records = append(l.records, p)
	l.tail, l.seqs[s] = p.pos+segment.Pos(p.r.Size), id.Seq
	return l.t.Add(p.pos, p.r)
}

func (l *tableLife) flush() error {
	pos := l.end()
	err := l.t.Flush(Snapshot{Pos: pos, Segment: uint64(pos>>20) + 1, Life: 99, State: fmt.Append(nil, "state at ", pos)})
	if err == nil {
		l.covered = pos
	}
	return err
}

func (l *tableLife) drop() error {
	if len(l.records) == 0 {
		return nil
	}
	l.first = max(l.first, l.records[l.d.IntN(len(l.records))].pos)
	return l.t.Drop(l.first)
}

// fold replaces some records in a row that were flushed.
func (l *tableLife) fold() error {
	n := 0
	for n < len(l.records) && l.records[n].pos < l.covered {
		n++
	}
	if n < 2 {
		return nil
	}
	i := l.d.IntN(n)
	j := i + 1 + l.d.IntN(n-i)
	from, to := l.records[i].pos, l.covered
	if j < len(l.records) {
		to = min(to, l.records[j].pos)
	}
	// Of the folded stream too, seqs do not fall from place to place: a part of what was
	// folded, folded again, brings the group to no checkpoint before that.
	seq := 1 + record.Seq(to>>10)
	for _, p := range l.records {
		if p.pos < to && p.r.Stream == record.FoldedStream {
			seq = max(seq, p.r.Seq)
		}
	}
	var with []placedRecord
	for pos := from; pos < to && len(with) < 3; {
		r := drawRecord(l.d, record.Identity{Stream: record.FoldedStream, Epoch: 1, Incarnation: record.Incarnation(len(with) + 1), Seq: seq})
		if pos+segment.Pos(r.Size) > to {
			break
		}
		with = append(with, placedRecord{pos, r})
		pos += segment.Pos(r.Size)
	}
	l.pending = &pendingFold{from, to, with}
	// The log holds what it was folded to before the index does: a fold that fails is done again.
	l.told.fold(from, to, with)
	err := l.t.Fold(from, to, func(add func(segment.Pos, record.Record) error) error {
		for _, p := range with {
			if err := add(p.pos, p.r); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		l.pending = nil
	}
	return err
}

// step does one thing of a life.
func (l *tableLife) step() error {
	switch n := l.d.IntN(40); {
	case n < 20:
		return l.add()
	case n < 30:
		return l.flush()
	case n == 30:
		if l.d.IntN(4) == 0 {
			return l.drop()
		}
	case n < 33:
		return l.fold()
	case n < 35:
		return l.checkStored()
	case n == 35:
		return errors.Join(l.t.Close(), l.open(), l.refold())
	}
	return l.check(2)
}

// check asks the table at random.
func (l *tableLife) check(times int) error {
	for range times {
		vol := record.VolumeID(1 + l.d.IntN(worldVolumes+1))
		off, n := int64(l.d.IntN(256<<10)), int64(1+l.d.IntN(64<<10))
		switch l.d.IntN(4) {
		case 0:
			off, n = 0, worldBytes
		case 1:
			off = off >> 12 << 12
			n = 4096
		case 2:
			off = int64(l.d.IntN(worldBytes))
			n = int64(1 + l.d.IntN(int(worldBytes-off)))
		}
		at := drawVector(l.d, l.told)
		got, err := l.t.Lookup(nil, vol, off, n, at)
		if err != nil {
			return err
		}
		if err := l.agrees(got, vol, off, n, at, 0, false); err != nil {
			return fmt.Errorf("lookup [%d, +%d): %w", off, n, err)
		}
		from := segment.Pos(l.d.IntN(int(l.end())))
		got = got[:0]
		err = l.t.Walk(vol, off, n, at, from, func(p Piece) error { got = append(got, p); return nil })
		if err != nil {
			return err
		}
		if err := l.agrees(got, vol, off, n, at, from, true); err != nil {
			return fmt.Errorf("walk [%d, +%d) from %s: %w", off, n, from, err)
		}
	}
	return nil
}

func (l *tableLife) checkStored() error {
	from := segment.Pos(l.d.IntN(int(l.end())))
	spans := []Span{{from, from + 1 + segment.Pos(l.d.IntN(100<<10))}, {1, 2}}
	got, err := l.t.Stored(spans)
	if err != nil {
		return err
	}
	want := l.told.stored(spans)
	for _, p := range got {
		if want[p]--; want[p] < 0 {
			return fmt.Errorf("stored in %v: %+v is not in it", spans, p)
		}
	}
	for p, n := range want {
		if n != 0 {
			return fmt.Errorf("stored in %v: %+v is missing", spans, p)
		}
	}
	return nil
}

package journal

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/journal/segment"
)

const (
	// portionBytes is how much is read from the log before it is written into a replica.
	portionBytes = 16 << 20
	// pieceBytes is the most that is read or checked at once.
	pieceBytes = 1 << 20
	// portionPieces bounds the pieces of a portion, however small they are.
	portionPieces = 8192
	// stretchPieces is how many pieces of a volume are brought into the log's order at once:
	// some 40 MB of memory while a pass runs, and 16 GiB of the volume in writes of 64 KiB.
	stretchPieces = 256 << 10
)

// passMemory is what a pass works in: some hundred MB of a large one.
type passMemory struct {
	stretch  stretch
	portions [2]portion // one is read while the other is written

	since time.Time // nobody has it
}

// forget makes it memory for a pass of any group.
func (m *passMemory) forget() {
	m.stretch.reset()
	for i := range m.portions {
		p := &m.portions[i]
		p.reset()
		for _, r := range p.readers {
			r.window.forget()
		}
	}
}

// passMemories are those of passes that have ended, for the next: memory that was not used for a while is given back, and what
// is new to the system costs it more time than to read a portion into it, which acknowledgements would wait for.
type passMemories struct {
	mu   sync.Mutex
	idle []*passMemory // the last used last
}

// passMemoryIdle is how long memory is kept that no pass uses.
const passMemoryIdle = time.Minute

func (s *passMemories) take() *passMemory {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := len(s.idle) - 1
	if last < 0 {
		return &passMemory{}
	}
	m := s.idle[last]
	s.idle = s.idle[:last]
	return m
}

// put takes back the memory of a pass; not more than as many passes as there are at once.
func (s *passMemories) put(m *passMemory) {
	if !invariant.Planted("journal/pass-memory-remembered") {
		m.forget()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.idle) < passesAtOnce {
		m.since = time.Now()
		s.idle = append(s.idle, m)
	}
}

// shrink lets go of what was not used for long.
func (s *passMemories) shrink(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = slices.DeleteFunc(s.idle, func(m *passMemory) bool { return now.Sub(m.since) >= passMemoryIdle })
}

// stretch is a part of a volume: what of it is to go into the replica. It is taken in
// portions that lie together in the log, for what is next to each other in a volume may
// lie anywhere there, and a disk gives the more the longer its reads are.
type stretch struct {
	most   int           // pieces
	pieces []index.Piece // rising in the volume
	units  []unit
	taken  int // of the units
}

// unit is a row of pieces that go into the replica together, pieces[from:to] of a stretch:
// all of them that touch a block of it.
type unit struct {
	from, to int
	bytes    int         // of them that are in the log
	pos      segment.Pos // of the first that is
}

func (s *stretch) reset() { s.pieces, s.units, s.taken = s.pieces[:0], s.units[:0], 0 }

// full says whether the stretch may end before what comes at off. Only one in which no
// block ends for very long ends within a block, which then is put in place twice.
func (s *stretch) full(off int64) bool {
	n := len(s.pieces)
	return n >= s.most && (apart(&s.pieces[n-1], off) || n >= 2*s.most)
}

// apart says whether a piece shares no block of the replica with what comes at off.
func apart(p *index.Piece, off int64) bool {
	return off/replica.BlockBytes != (p.Off+p.Len-1)/replica.BlockBytes
}

// add takes a piece that stands behind those before in the volume.
func (s *stretch) add(p index.Piece) {
	n, u := len(s.pieces), len(s.units)-1
	s.pieces = append(s.pieces, p)
	if u < 0 || apart(&s.pieces[n-1], p.Off) || s.units[u].bytes >= portionBytes {
		s.units = append(s.units, unit{from: n})
		u++
	}
	one := &s.units[u]
	one.to = n + 1
	if p.In == index.InLog {
		if one.bytes == 0 {
			one.pos = place(&p)
		}
		one.bytes += int(p.Len)
	}
}

// place is where in the log a piece's block stands.
func place(p *index.Piece) segment.Pos { return p.Pos + segment.Pos(p.Block.At) }

// order brings the units into the log's order, before the first is taken.
func (s *stretch) order() {
	slices.SortFunc(s.units, func(x, y unit) int { return cmp.Or(cmp.Compare(x.pos, y.pos), cmp.Compare(x.from, y.from)) })
}

// take fills a portion with the next units; it stays empty when there are none.
func (s *stretch) take(p *portion) {
	p.reset()
	first := s.taken
	for pieces := 0; s.taken < len(s.units) && p.bytes < portionBytes && pieces < portionPieces; s.taken++ {
		u := &s.units[s.taken]
		p.bytes += u.bytes
		pieces += u.to - u.from
	}
	units := s.units[first:s.taken]
	slices.SortFunc(units, func(x, y unit) int { return cmp.Compare(x.from, y.from) })
	for _, u := range units {
		p.pieces = append(p.pieces, s.pieces[u.from:u.to]...)
	}
}

// portion is a part of a stretch on its way from the log into a replica.
type portion struct {
	pieces  []index.Piece // rising in the volume
	bytes   int           // of them that are in the log
	order   []int         // of the pieces in the log, as they lie there
	at      []int         // where a piece's bytes are in data
	lost    []bool
	data    []byte
	changes []replica.Change
	readers []*blockReader
}

func (b *portion) reset() { b.pieces, b.bytes = b.pieces[:0], 0 }

// prepare makes room for the data and brings the pieces into the log's order. What is at least a block of the
// replica has an address from which it can be written.
func (b *portion) prepare() {
	b.order, b.at, b.lost = b.order[:0], b.at[:0], b.lost[:0]
	used := 0
	for i := range b.pieces {
		n := int(b.pieces[i].Len)
		if b.pieces[i].In == index.InLog && n >= replica.BlockBytes {
			used = buf.RoundUp(used)
		}
		b.at, b.lost = append(b.at, used), append(b.lost, false)
		if b.pieces[i].In == index.InLog {
			used += n
			b.order = append(b.order, i)
		}
	}
	if len(b.data) < used { // small portions are most of all, and in turn
		b.data = buf.Row(max(used, min(2*len(b.data), portionBytes+pieceBytes)), 1)[0]
	}
	slices.SortFunc(b.order, func(i, j int) int { return cmp.Compare(place(&b.pieces[i]), place(&b.pieces[j])) })
}

// dataOf is where the bytes of a piece that is in the log are.
func (b *portion) dataOf(i int) []byte {
	at, n := b.at[i], int(b.pieces[i].Len)
	return b.data[at : at+n : at+n]
}

// wholly is the place of a piece that alone, of the n of its block, is wanted, and is all of it; otherwise nil.
func (b *portion) wholly(i, n int) []byte {
	if piece := &b.pieces[i]; n > 1 || piece.BlockOff != 0 || int(piece.Len) != piece.Block.Raw {
		return nil
	}
	return b.dataOf(i)
}

// blockAt is the first place at or behind i in the order at which another block begins.
func (b *portion) blockAt(i int) int {
	for i > 0 && i < len(b.order) && sameBlock(&b.pieces[b.order[i-1]], &b.pieces[b.order[i]]) {
		i++
	}
	return i
}

func sameBlock(x, y *index.Piece) bool { return x.Pos == y.Pos && x.Number == y.Number }

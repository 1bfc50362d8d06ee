package delta

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

const (
	// regionsMost is how many regions are compared at once, 256 MiB of a volume: over a way of 100 ms
	// that is 2.5 GB/s of what is the same.
	regionsMost = 16
	// flightBytes is how much of answers is under way: at 5 Mbit/s they hold up an
	// acknowledgement behind them by 0.1 s.
	flightBytes = 64 << 10
	// FlightMost is how many questions are under way at most; a target takes no more.
	FlightMost = 64
	// skipPart is which part of a row of regions that differed is sent whole until another is tried, and
	// skipMost how many regions at most.
	skipPart = 8
	skipMost = 64
)

// ErrAnswer is an answer to no question of ours, or of another shape.
var ErrAnswer = errors.New("no answer to what was asked")

// Range is a part of a volume, in bytes.
type Range struct{ Off, Len int64 }

// Key names a region.
type Key struct {
	Volume record.VolumeID
	Number int64
}

// Found is a region that is decided. It is still the source's until it is forgotten.
type Found struct {
	Key
	Bytes  int64   // compared
	Differ []Range // in rising order and apart; beyond the volume's end where that is no whole block
}

// Counts are what was decided so far.
type Counts struct {
	Regions      int
	Bytes        int64 // compared
	Differ       int64 // of them, in blocks that differ
	Skipped      int   // regions left to be sent whole, because what came before differed
	Asked, Heard int64 // bytes of sums asked for, and that came
}

// And is both together.
func (c Counts) And(d Counts) Counts {
	return Counts{c.Regions + d.Regions, c.Bytes + d.Bytes, c.Differ + d.Differ, c.Skipped + d.Skipped, c.Asked + d.Asked, c.Heard + d.Heard}
}

// Source compares regions with a target's. It is not for concurrent use.
type Source struct {
	pending map[Key]*pending
	queue   []Ask // to be sent, in order
	flight  []Ask // sent, in order
	bytes   int   // of answers under way
	found   []Found
	counts  Counts
	row     int // regions in a row that differed for the most part, with those between that were sent whole
	skip    int // regions to be sent whole
}

// pending is a region that is being read or compared.
type pending struct {
	*Region
	read    bool
	open    int // questions queued or under way
	differ  Blocks
	decided bool
}

// NewSource returns one that compares nothing yet.
func NewSource() *Source { return &Source{pending: make(map[Key]*pending)} }

// Room says whether another region may begin: one at a time as long as it may turn out that
// nothing is the same.
func (s *Source) Room() bool {
	if s.counts.Regions == 0 || s.row > 0 {
		return len(s.pending) == 0
	}
	return len(s.pending) < regionsMost
}

// Idle says that no region is being read or compared, or decided and not forgotten.
func (s *Source) Idle() bool { return len(s.pending) == 0 }

// Counts tells what was decided so far.
func (s *Source) Counts() Counts { return s.counts }

// Begin says that a region of a volume of size bytes will be read; false: it is to be sent
// whole, as too much differed before.
func (s *Source) Begin(k Key, size int64) bool {
	if s.skip > 0 {
		s.skip--
		s.row++
		s.counts.Skipped++
		return false
	}
	s.pending[k] = &pending{Region: NewRegion(k.Number, size)}
	return true
}

// Of says which region a block of a volume is in, and which block of it that is.
func Of(volume record.VolumeID, block int64) (Key, int) {
	return Key{volume, block / regionBlocks}, int(block % regionBlocks)
}

// Put tells what stands in a block of the volume, as Region.Put; false: it is of no region
// that is being read.
func (s *Source) Put(volume record.VolumeID, block int64, p []byte) bool {
	k, b := Of(volume, block)
	r := s.pending[k]
	if r == nil || r.read {
		return false
	}
	r.Put(b, p)
	return true
}

// Read says that all of a region was put that will be.
func (s *Source) Read(k Key) {
	r := s.pending[k]
	r.read = true
	s.ask(k, r)
}

// ask begins to compare a region: as a whole where all of it is known, else the leaves that
// are known whole, and the blocks of the others.
func (s *Source) ask(k Key, r *pending) {
	if r.known.Count(0, r.blocks) == r.blocks {
		s.enqueue(k, r, Node, 0, 1)
		return
	}
	whole := func(leaf int) bool {
		from, to := r.leafRange(leaf)
		return r.known.Count(from, to) == to-from
	}
	some := func(leaf int) bool {
		from, to := r.leafRange(leaf)
		return !whole(leaf) && r.known.Count(from, to) > 0
	}
	runs(r.leaves(), whole, func(from, to int) { s.enqueue(k, r, Leaf, from, to) })
	runs(r.leaves(), some, func(from, to int) { s.enqueue(k, r, Block, from*leafBlocks, min(to*leafBlocks, r.blocks)) })
	s.decide(k, r)
}

// runs calls f for each run of numbers below n that is has.
func runs(n int, is func(int) bool, f func(from, to int)) {
	for i := 0; i < n; i++ {
		from := i
		for i < n && is(i) {
			i++
		}
		if i > from {
			f(from, i)
		}
	}
}

// enqueue asks for pieces [from, to) of a region.
func (s *Source) enqueue(k Key, r *pending, level Level, from, to int) {
	first := k.Number * (RegionBytes / level.Bytes())
	for ; from < to; from += level.Most() {
		s.queue = append(s.queue, Ask{k.Volume, level, first + int64(from), min(to-from, level.Most())})
		r.open++
	}
}

// Next returns the next question to send, if one may be sent now.
func (s *Source) Next() (Ask, bool) {
	if len(s.queue) == 0 || len(s.flight) == FlightMost || len(s.flight) > 0 && s.bytes+s.queue[0].AnswerBytes() > flightBytes {
		return Ask{}, false
	}
	a := s.queue[0]
	s.queue, s.flight = s.queue[1:], append(s.flight, a)
	s.bytes += a.AnswerBytes()
	s.counts.Asked += int64(a.AnswerBytes())
	return a, true
}

// Answer takes the target's sums, which must answer the oldest question under way.
func (s *Source) Answer(a Ask, sums []byte) error {
	if len(s.flight) == 0 || s.flight[0] != a || len(sums) != a.AnswerBytes() {
		return fmt.Errorf("%w: %d bytes for %d of %s %d of volume %d", ErrAnswer, len(sums), a.Count, a.Level, a.First, a.Volume)
	}
	s.flight = s.flight[1:]
	s.bytes -= len(sums)
	s.counts.Heard += int64(len(sums))
	k := Key{a.Volume, a.Region()}
	r := s.pending[k]
	if r == nil || r.decided { // given up
		return nil
	}
	at, n := a.inRegion(), a.Level.SumBytes()
	differs := func(i int) bool { return !r.same(a.Level, at+i, sums[i*n:(i+1)*n]) }
	switch a.Level {
	case Node:
		if differs(0) {
			s.enqueue(k, r, Leaf, 0, r.leaves())
		}
	case Leaf:
		if invariant.Planted("delta/first-leaf-only") {
			differs = func(i int) bool { return i == 0 && !r.same(a.Level, at, sums[:n]) }
		}
		runs(a.Count, differs, func(from, to int) {
			s.enqueue(k, r, Block, (at+from)*leafBlocks, min((at+to)*leafBlocks, r.blocks))
		})
	case Block:
		for i := range a.Count {
			if r.known.Has(at+i) && differs(i) {
				r.differ.Add(at+i, at+i+1)
			}
		}
	}
	r.open--
	s.decide(k, r)
	return nil
}

// decide ends a region of which no question is open.
func (s *Source) decide(k Key, r *pending) {
	if r.open > 0 || r.decided {
		return
	}
	r.decided = true
	f := Found{Key: k, Bytes: int64(r.known.Count(0, r.blocks)) * BlockBytes}
	runs(r.blocks, r.differ.Has, func(from, to int) {
		f.Differ = append(f.Differ, Range{k.Number*RegionBytes + int64(from)*BlockBytes, int64(to-from) * BlockBytes})
	})
	s.found = append(s.found, f)
	s.counts.Regions++
	s.counts.Bytes += f.Bytes
	s.counts.Differ += int64(r.differ.Count(0, r.blocks)) * BlockBytes
	s.judge(r)
}

// judge looks whether comparing pays. After a row of regions of which most leaves differed
// ever more are sent whole before another is tried: an eighth of the row, so that behind its end, wherever
// that is, hardly more is sent in vain.
func (s *Source) judge(r *pending) {
	known, differ := 0, 0
	for l := range r.leaves() {
		from, to := r.leafRange(l)
		if r.known.Count(from, to) > 0 {
			known++
		}
		if r.differ.Count(from, to) > 0 {
			differ++
		}
	}
	switch {
	case known == 0:
	case 2*differ <= known:
		s.row = 0
	default:
		s.row++
		if s.skip = min(s.row/skipPart, skipMost); invariant.Planted("delta/sends-in-vain") {
			s.skip = min(s.row, skipMost)
		}
	}
}

// Found returns a region that was decided since the last call.
func (s *Source) Found() (Found, bool) {
	if len(s.found) == 0 {
		return Found{}, false
	}
	f := s.found[0]
	s.found = s.found[1:]
	return f, true
}

// Forget gives a decided region up: what differs is known to be lacking.
func (s *Source) Forget(k Key) { delete(s.pending, k) }

// Restart asks again for all that is not decided: the session is another one, and no answer
// comes to what was asked before.
func (s *Source) Restart() {
	s.queue, s.flight, s.bytes = nil, nil, 0
	for _, k := range s.keys() {
		if r := s.pending[k]; r.read && !r.decided {
			r.open, r.differ = 0, Blocks{}
			s.ask(k, r)
		}
	}
}

// GiveUp decides all that is not: what was read of it may differ.
func (s *Source) GiveUp() {
	s.queue = nil
	for _, k := range s.keys() {
		if r := s.pending[k]; r.read && !r.decided {
			r.open = 0
			if r.differ = r.known; invariant.Planted("delta/gives-up-in-silence") {
				r.differ = Blocks{}
			}
			s.decide(k, r)
		}
	}
}

// keys are those of the regions that are pending, in order.
func (s *Source) keys() []Key {
	return slices.SortedFunc(maps.Keys(s.pending), func(a, b Key) int {
		return cmp.Or(cmp.Compare(a.Volume, b.Volume), cmp.Compare(a.Number, b.Number))
	})
}

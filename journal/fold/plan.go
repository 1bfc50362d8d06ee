// Package fold decides what is left of a row of records when only some of the
// checkpoints among them are kept: thinning frees space by it. It is pure: it looks at
// tables and gives back a plan; journal reads, seals and writes.
//
// A record is first held by some kept checkpoint, its bucket. Of the versions that a
// place has in one bucket only the newest is ever seen, by that checkpoint and by those
// after it, so the others go. What no kept checkpoint holds yet stays as it is: a
// later cut may come to need it. So do control records, but for the cuts of
// checkpoints that are gone; and so does the last record of each stream, which tells a
// rebuild where the stream stands.
//
// Memory: about 80 bytes for each extent of the row, so the caller bounds the row.
package fold

import (
	"cmp"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Planner takes the records of a row, in order.
type Planner struct {
	kept    []index.Checkpoint // rising
	numbers map[uint64]bool    // of kept
	records []entry
	extents []extent
	last    map[record.StreamID]int // in records
}

// entry is a record of the row.
type entry struct {
	pos        segment.Pos
	size       int
	kind       record.Kind
	id         record.Identity
	checkpoint uint64 // of a cut or confirm
	bucket     int    // in kept; len(kept): none holds it
	verbatim   bool
	first      int            // in extents
	blocks     []record.Block // of data and folded records
}

// extent is an extent of the row.
type extent struct {
	volume   record.VolumeID
	zero     bool
	block    int
	blockOff int
	off, len int64
}

// NewPlanner begins a row. kept are the checkpoints that are kept, rising by number:
// all of them from the last one before the row to the first one after it, as far as
// there are any.
func NewPlanner(kept []index.Checkpoint) *Planner {
	p := &Planner{kept: kept, numbers: map[uint64]bool{}, last: map[record.StreamID]int{}}
	for _, c := range kept {
		p.numbers[c.Number] = true
	}
	return p
}

// Add takes the next record; only its tables and body are looked at, and nothing of it
// is kept.
func (p *Planner) Add(pos segment.Pos, r record.Record) error {
	e := entry{pos: pos, size: r.Size, kind: r.Kind, id: r.Identity, bucket: len(p.kept), first: len(p.extents)}
	switch r.Kind {
	case record.KindCut:
		c, err := record.ParseCut(r)
		if err != nil {
			return err
		}
		e.checkpoint, e.verbatim = c.Checkpoint, p.mayList(c.Checkpoint)
	case record.KindConfirm:
		n, err := record.ParseConfirm(r)
		if err != nil {
			return err
		}
		e.checkpoint, e.verbatim = n, p.mayList(n)
	case record.KindData, record.KindFolded:
		e.bucket = p.bucketOf(r)
		e.verbatim = e.bucket == len(p.kept)
		e.blocks = make([]record.Block, r.Blocks)
		for i := range e.blocks {
			e.blocks[i] = r.Block(i)
		}
		for i := range r.Extents {
			x := r.Extent(i)
			p.extents = append(p.extents, extent{x.Volume, x.Kind == record.ExtentZero, x.Block, x.BlockOff, x.Off, x.Len})
		}
	default:
		e.verbatim = true
	}
	if r.Stream != record.FoldedStream {
		p.last[r.Stream] = len(p.records)
	}
	p.records = append(p.records, e)
	return nil
}

// mayList says whether a cut must stay: its checkpoint is kept, or newer than all that
// this row knows of.
func (p *Planner) mayList(checkpoint uint64) bool {
	return invariant.Planted("journal/fold/cuts-stay") || p.numbers[checkpoint] || len(p.kept) == 0 || checkpoint > p.kept[len(p.kept)-1].Number
}

// bucketOf is the first kept checkpoint that holds the record. Holding only grows from
// one checkpoint to the next.
func (p *Planner) bucketOf(r record.Record) int {
	i, _ := slices.BinarySearchFunc(p.kept, r, func(c index.Checkpoint, r record.Record) int {
		if holds(&c, r.Identity) {
			return 1 // this one or one before
		}
		return -1
	})
	return i
}

func holds(c *index.Checkpoint, id record.Identity) bool {
	if id.Stream == record.FoldedStream {
		return c.Number >= uint64(id.Seq)
	}
	for _, at := range c.At {
		if at.Stream == id.Stream {
			return id.Seq <= at.Seq
		}
	}
	return false
}

// Step is a part of the row that replaces another, in the order in which they stand.
type Step struct {
	// A record that stays as it is, when Size is not 0.
	Pos  segment.Pos
	Size int
	// Else what of others is left for a checkpoint.
	Checkpoint uint64
	Blocks     []Block
	Zeros      []record.Extent // of any length; those that data here lies over come first
}

// Block is a block of a record of the row, and what of it is left.
type Block struct {
	Pos    segment.Pos // of the record
	ID     record.Identity
	Number int
	Block  record.Block
	Left   []record.Extent // by place in the block, none over another
	Bytes  int64           // in Left
}

// Steps returns the row that says the same for the kept checkpoints. What is left for a
// checkpoint stands behind records that stay and are held by it, and before all that are
// not: another stream may have written over what a record that stays as a witness put
// there, in the same bucket.
func (p *Planner) Steps() []Step {
	for _, i := range p.last {
		p.records[i].verbatim = true
	}
	left := p.newestWins()
	var steps []Step
	next := 0 // in kept
	emit := func(before int) {
		for ; next < before; next++ {
			if left[next] != nil {
				left[next].Checkpoint = p.kept[next].Number
				steps = append(steps, *left[next])
			}
		}
	}
	for _, e := range p.records {
		if !e.verbatim {
			continue
		}
		if e.kind == record.KindData || e.kind == record.KindFolded {
			before := e.bucket
			if invariant.Planted("journal/fold/witness-last") {
				before++
			}
			emit(min(before, len(p.kept)))
		}
		steps = append(steps, Step{Pos: e.pos, Size: e.size})
	}
	emit(len(p.kept))
	return steps
}

// longZero is the length from which a zero extent is not split at what lies over it.
const longZero = 32 * record.LineBytes

// newestWins walks the row from its newest extent to its oldest and returns what is
// left of each bucket.
func (p *Planner) newestWins() []*Step {
	left := make([]*Step, len(p.kept))
	seen := newCover()
	for i := len(p.records) - 1; i >= 0; i-- {
		e := &p.records[i]
		if e.kind != record.KindData && e.kind != record.KindFolded {
			continue
		}
		end := len(p.extents)
		if i+1 < len(p.records) {
			end = p.records[i+1].first
		}
		p.walk(e, p.extents[e.first:end], seen, left)
	}
	for _, s := range left {
		if s != nil { // oldest first, as they were written
			slices.Reverse(s.Blocks)
			slices.Reverse(s.Zeros)
		}
	}
	return left
}

// walk takes one record's extents, newest first.
func (p *Planner) walk(e *entry, extents []extent, seen *cover, left []*Step) {
	blocks := make([][]record.Extent, len(e.blocks))
	var zeros []record.Extent
	for i := len(extents) - 1; i >= 0; i-- {
		x := extents[i]
		if e.bucket == len(p.kept) {
			continue // stays as it is, above all that is folded, and hides nothing of it
		}
		if x.zero && x.len > longZero {
			seen.addLong(x.volume, x.off, x.len, e.bucket)
			zeros = append(zeros, record.Extent{Volume: x.volume, Kind: record.ExtentZero, Off: x.off, Len: x.len})
			continue
		}
		for _, part := range seen.take(x.volume, x.off, x.len, e.bucket) {
			y := record.Extent{Volume: x.volume, Kind: record.ExtentZero, Off: part.from, Len: part.to - part.from}
			if x.zero {
				zeros = append(zeros, y)
				continue
			}
			y.Kind, y.BlockOff = record.ExtentData, x.blockOff+int(part.from-x.off)
			blocks[x.block] = append(blocks[x.block], y)
		}
	}
	if e.bucket == len(p.kept) {
		return
	}
	s := left[e.bucket]
	for number := len(blocks) - 1; number >= 0; number-- {
		if len(blocks[number]) == 0 {
			continue
		}
		b := Block{Pos: e.pos, ID: e.id, Number: number, Block: e.blocks[number], Left: blocks[number]}
		slices.SortFunc(b.Left, func(a, b record.Extent) int { return cmp.Compare(a.BlockOff, b.BlockOff) })
		for _, x := range b.Left {
			b.Bytes += x.Len
		}
		s = step(s)
		s.Blocks = append(s.Blocks, b)
	}
	if len(zeros) > 0 {
		s = step(s)
		s.Zeros = append(s.Zeros, zeros...)
	}
	left[e.bucket] = s
}

func step(s *Step) *Step {
	if s == nil {
		return new(Step)
	}
	return s
}

// cover knows, for each place that a newer extent covers, the first bucket of those
// that do.
type cover struct {
	cells map[cellKey][]span // by place, none over another
	long  map[record.VolumeID][]span
}

type cellKey struct {
	volume record.VolumeID
	cell   int64
}

type span struct {
	from, to int64
	bucket   int
}

const cellBytes = 2 * record.LineBytes

func newCover() *cover {
	return &cover{cells: map[cellKey][]span{}, long: map[record.VolumeID][]span{}}
}

func (c *cover) addLong(v record.VolumeID, off, n int64, bucket int) {
	c.long[v] = append(c.long[v], span{off, off + n, bucket})
}

// take returns the parts of [off, off+n) that no newer extent of this bucket or one
// before covers, and covers them.
func (c *cover) take(v record.VolumeID, off, n int64, bucket int) (free []span) {
	for end := off + n; off < end; {
		to := min(end, (off/cellBytes+1)*cellBytes)
		key := cellKey{v, off / cellBytes}
		var parts []span
		parts, c.cells[key] = cut(c.cells[key], span{off, to, bucket})
		free = append(free, parts...)
		off = to
	}
	for _, z := range c.long[v] {
		if z.bucket <= bucket && !invariant.Planted("journal/fold/under-zeros") {
			free = without(free, z)
		}
	}
	return free
}

// cut returns the parts of s that stand in have under no bucket up to its own, and have
// with s put in.
func cut(have []span, s span) (free, next []span) {
	at := s.from
	for _, h := range have {
		if h.to <= s.from || h.from >= s.to {
			next = append(next, h)
			continue
		}
		if h.from < s.from {
			next = append(next, span{h.from, s.from, h.bucket})
		}
		lo, hi := max(h.from, s.from), min(h.to, s.to)
		if at < lo {
			free = append(free, span{at, lo, s.bucket})
		}
		if h.bucket > s.bucket || invariant.Planted("journal/fold/oldest-wins") {
			free = append(free, span{lo, hi, s.bucket})
		}
		next = append(next, span{lo, hi, min(h.bucket, s.bucket)})
		at = hi
		if h.to > s.to {
			next = append(next, span{s.to, h.to, h.bucket})
		}
	}
	if at < s.to {
		free = append(free, span{at, s.to, s.bucket})
	}
	for _, f := range free {
		if !slices.ContainsFunc(next, func(n span) bool { return n.from <= f.from && f.to <= n.to }) {
			next = append(next, f)
		}
	}
	slices.SortFunc(next, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	return free, next
}

// without is what of the spans lies outside z.
func without(spans []span, z span) (out []span) {
	for _, s := range spans {
		if s.to <= z.from || s.from >= z.to {
			out = append(out, s)
			continue
		}
		if s.from < z.from {
			out = append(out, span{s.from, z.from, s.bucket})
		}
		if s.to > z.to {
			out = append(out, span{z.to, s.to, s.bucket})
		}
	}
	return out
}

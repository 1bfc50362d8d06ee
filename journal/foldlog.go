package journal

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/fold"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// folding is a group's part in giving back the space of thinned checkpoints.
type folding struct {
	thinned atomic.Int64 // checkpoints, since Open
	folded  atomic.Int64 // bytes of log that were folded, since Open
	freed   atomic.Int64 // by how much the log is shorter for it

	again atomic.Bool   // there may be more to fold
	next  time.Duration // of the store's clock, when thinning is due; of the retainer's goroutine

	pace bucket

	seen map[uint64]*seenSegment // by number; guarded by retention.passing
}

// seenSegment is what a look into a closed segment's control records found.
type seenSegment struct {
	life  uint64
	cuts  []uint64 // checkpoints that have a cut in it
	tried int      // see foldable
}

var (
	// errLittle says that a row is not folded because little would be freed.
	errLittle = errors.New("little would be freed")
	// errLarge says that a row has too many extents; the row is to be shorter.
	errLarge = errors.New("too many extents")
)

// foldLog folds one row of segments, if there is one that is worth it:
//
//  1. the checkpoints that are kept, and the tables of the row's records, make a plan;
//  2. what is left is written into a new segment beside the old ones, and its index into
//     runs that no lookup sees;
//  3. both are made known at once: readers that looked a place up before and read it after
//     find other bytes there, and look again.
//
// A crash or an error leaves the old segments, or the new one; an index that knows other
// folds than the log has is built anew. It returns how much shorter the log is.
func (g *Group) foldLog(pace func(bytes int64) error) (did bool, err error) {
	g.retention.passing.Lock()
	defer g.retention.passing.Unlock()
	if err := g.opened(); err != nil {
		return false, err
	}
	segs, err := g.lookForRows()
	if err != nil {
		return false, fmt.Errorf("folding: %w", err)
	}
	from, to := chooseRow(segs.foldable, g.maxFold())
	if from < to && !invariant.Planted("journal/fold-shifts") {
		g.retention.from = 0 // what follows stands nearer to the beginning then
	}
	for ; from < to; to-- {
		r := &foldRow{g: g, segs: segs.infos[from:to], pace: pace}
		if err = r.fold(); !errors.Is(err, errLarge) || to == from+1 {
			break
		}
	}
	if from == to {
		return false, nil
	}
	if errors.Is(err, errLittle) || errors.Is(err, errLarge) {
		for i := from; i < to; i++ {
			g.folding.seen[segs.infos[i].Number].tried = segs.foldable[i].lost
		}
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("folding segments %d to %d: %w", segs.infos[from].Number, segs.infos[to-1].Last, err)
	}
	return true, nil
}

// maxFold is how many bytes are folded at once.
func (g *Group) maxFold() int64 {
	if n := g.store.cfg.SegmentBytes; n > 0 {
		return min(maxFoldBytes, 8*n)
	}
	return maxFoldBytes
}

// rowsToFold are the closed segments, and what the choice needs to know of each.
type rowsToFold struct {
	infos    []segment.Info
	foldable []foldable
}

func (g *Group) lookForRows() (rs rowsToFold, err error) {
	facts := g.manifest.now()
	covered := g.index.Covered().Pos
	g.marking.Lock()
	damaged := slices.Clone(g.damages)
	g.marking.Unlock()
	before := g.folding.seen
	g.folding.seen = make(map[uint64]*seenSegment)
	for _, s := range g.segments.Segments() {
		if s.State == segment.StateOpen {
			break
		}
		f := foldable{from: s.First, to: s.To, bytes: int64(s.End - s.First),
			ready: s.State == segment.StateVerified && s.To <= covered && !damaged.inLog(s.First, s.To)}
		if f.ready {
			seen := before[s.Number]
			anew := seen == nil || seen.life != s.Life
			if anew {
				if seen, err = g.lookInto(s); err != nil {
					return rs, err
				}
			}
			g.folding.seen[s.Number] = seen
			for _, n := range seen.cuts {
				if facts.lost(n) {
					f.lost++
				}
			}
			if anew && s.Folded { // what is left of them is left on purpose
				seen.tried = f.lost
			}
			f.cuts, f.tried = len(seen.cuts), seen.tried
		}
		rs.infos, rs.foldable = append(rs.infos, s), append(rs.foldable, f)
	}
	return rs, nil
}

// inLog says whether any damage lies in that part of the log.
func (ds damages) inLog(from, to segment.Pos) bool {
	return slices.ContainsFunc(ds, func(d damage) bool { return d.volume == 0 && d.from < int64(to) && d.to > int64(from) })
}

func (g *Group) lookInto(s segment.Info) (*seenSegment, error) {
	seen := &seenSegment{life: s.Life}
	err := g.segments.Replay(s.First, s.To, segment.ReplayOptions{ControlOnly: true}, func(_ segment.Pos, rec record.Record) error {
		if rec.Kind != record.KindCut {
			return nil
		}
		c, err := record.ParseCut(rec)
		if err == nil && !slices.Contains(seen.cuts[max(0, len(seen.cuts)-16):], c.Checkpoint) {
			seen.cuts = append(seen.cuts, c.Checkpoint)
		}
		return err
	})
	return seen, err
}

// foldRow is one row of segments on its way to be one.
type foldRow struct {
	g    *Group
	segs []segment.Info
	pace func(bytes int64) error

	kept    map[uint64]Checkpoint
	steps   []fold.Step
	log     window
	raw     []byte
	out     []byte
	pack    *record.Compressor
	packed  record.Fold
	parts   map[uint64]record.Incarnation // of the folded records, by checkpoint
	add     func(rec []byte) (segment.Pos, error)
	index   func(segment.Pos, record.Record) error
	written int64
}

func (r *foldRow) from() segment.Pos { return r.segs[0].First }
func (r *foldRow) to() segment.Pos   { return r.segs[len(r.segs)-1].To }

func (r *foldRow) fold() error {
	before, left, err := r.plan()
	if err != nil {
		return err
	}
	if !worthFold(before, left) {
		return errLittle
	}
	g := r.g
	if free, err := g.store.cfg.FS.Free(g.dir); err == nil && free < 2*left+g.store.segmentBytes() {
		return fmt.Errorf("%d bytes are free, and the new segment takes %d: %w", free, left, errLittle)
	}
	first, last := r.segs[0].Number, r.segs[len(r.segs)-1].Last
	var index *index.Folding
	err = g.segments.ReplaceRange(first, last, func(add func([]byte) (segment.Pos, error)) (err error) {
		index, err = g.index.table.PrepareFold(r.from(), r.to(), func(take func(segment.Pos, record.Record) error) error {
			r.add, r.index = add, take
			return r.write()
		})
		return err
	}, func(swap func() (uint64, bool, error)) error { return r.publish(index, swap) })
	if errors.Is(err, segment.ErrRoom) {
		err = errLittle
	}
	if err != nil {
		if index != nil {
			err = errors.Join(err, index.Discard()) // what is shown by now is not discarded
		}
		return err
	}
	if err := g.manifest.put(false, entry{kind: entryFolded, number: first, end: last, into: first}); err != nil {
		g.log.Warn("a fold is not noted", "error", err) // nothing depends on it
	}
	g.folding.folded.Add(before)
	g.folding.freed.Add(before - r.written)
	g.log.Info("log was folded", "segments", len(r.segs), "first", first, "last", last, "bytes", before, "left", r.written, "checkpoints", len(r.kept))
	return g.onCommit(func() error { g.showSegments(); return nil })
}

// publish makes log and index change together for whoever looks while nothing changes.
func (r *foldRow) publish(index *index.Folding, swap func() (uint64, bool, error)) error {
	g := r.g
	if invariant.Planted("journal/index-not-told") {
		_, _, err := swap()
		return errors.Join(err, index.Discard())
	}
	g.steady.Lock()
	defer g.steady.Unlock()
	if !g.relogging.TryLock() {
		return errReindexing
	}
	defer g.relogging.Unlock()
	if _, err := g.index.whole(); err != nil || !index.Fresh() {
		return errors.Join(errReindexing, err)
	}
	g.marking.Lock()
	damaged := g.damages.inLog(r.from(), r.to())
	g.marking.Unlock()
	if damaged {
		return fmt.Errorf("damage was found in it: %w", errLittle)
	}
	life, done, err := swap()
	if !done {
		return err
	}
	if shown := index.Show(life); shown != nil {
		g.index.damaged(fmt.Errorf("the log was folded and the index was not: %w", shown))
	}
	return err
}

// plan finds out what is left of the row: of how many bytes how many, about.
func (r *foldRow) plan() (before, left int64, err error) {
	g := r.g
	var cuts []uint64
	for _, s := range r.segs {
		cuts = append(cuts, g.folding.seen[s.Number].cuts...)
		before += int64(s.End - s.First)
	}
	kept, err := g.keptAround(slices.Min(cuts), slices.Max(cuts))
	if err != nil {
		return 0, 0, err
	}
	r.kept = make(map[uint64]Checkpoint)
	for _, cp := range kept {
		r.kept[cp.Number] = cp
	}
	if err := r.noneForgotten(cuts); err != nil {
		return 0, 0, err
	}
	p, extents := fold.NewPlanner(kept), 0
	err = g.segments.Replay(r.from(), r.to(), segment.ReplayOptions{}, func(pos segment.Pos, rec record.Record) error {
		if extents += rec.Extents; extents > maxFoldExtents {
			return errLarge
		}
		if err := r.pace(int64(rec.TablesEnd())); err != nil {
			return err
		}
		return p.Add(pos, rec)
	})
	if err != nil {
		return 0, 0, err
	}
	r.steps = p.Steps()
	for i := range r.steps {
		left += takes(&r.steps[i])
	}
	return before, int64(buf.RoundUp(int(left))), nil
}

// takes is about how many bytes of log a step takes.
func takes(s *fold.Step) (n int64) {
	if s.Size != 0 {
		return int64(s.Size)
	}
	const extent = 32
	n = record.HeaderBytes + extent*int64(len(s.Zeros))
	for i := range s.Blocks {
		b := &s.Blocks[i]
		n += extent*int64(1+len(b.Left)) + b.Bytes*int64(b.Block.Stored)/int64(b.Block.Raw)
		if whole(b) {
			n += (int64(b.Block.Raw) - b.Bytes) * int64(b.Block.Stored) / int64(b.Block.Raw)
		}
	}
	return n
}

// whole says whether a block is taken as it is stored: at least half of it is left.
func whole(b *fold.Block) bool { return 2*b.Bytes >= int64(b.Block.Raw) }

// keptMargin is how many checkpoints beyond those of a row are looked at on both sides: in
// a group of several streams the cuts of one lie apart, by fewer than can wait for each other.
const keptMargin = maxPendingCuts + 1

// keptAround returns the listed checkpoints from some before the first to some behind the
// last, rising.
func (g *Group) keptAround(first, last uint64) (kept []Checkpoint, err error) {
	c, id := g.store.catalogue, g.info.ID
	page, err := c.List(id, index.Query{Newest: true, After: first, Limit: keptMargin})
	if err != nil {
		return nil, err
	}
	kept = page.Checkpoints
	slices.Reverse(kept)
	after := first - 1
	for {
		cps, err := g.Checkpoints(after, thinPage)
		if err != nil {
			return nil, err
		}
		behind := 0
		for _, cp := range cps {
			kept = append(kept, cp)
			if after = cp.Number; after > last {
				behind++
			}
			if behind == keptMargin {
				return kept, nil
			}
		}
		if len(cps) < thinPage {
			return kept, nil
		}
	}
}

// noneForgotten holds the catalogue, which is a cache, against the log: of the row's cuts
// each is of a checkpoint that is listed, or stated to be gone, or newer than all listed, or
// never became a checkpoint. What a checkpoint needs is never folded away for want of a
// line in a cache.
func (r *foldRow) noneForgotten(cuts []uint64) error {
	g, facts := r.g, r.g.manifest.now()
	newest, _ := listed{g}.Newest(math.MaxUint64 - 1)
	doubtful := make(map[uint64]bool)
	for _, n := range cuts {
		if _, kept := r.kept[n]; !kept && !facts.lost(n) && n <= newest {
			doubtful[n] = true
		}
	}
	if len(doubtful) == 0 {
		return nil
	}
	h := beginning(&facts)
	h.gaps = true
	return g.segments.Replay(g.logFirst(), r.lastCut(), segment.ReplayOptions{ControlOnly: true, Skipped: h.skip}, func(_ segment.Pos, rec record.Record) error {
		cp, complete, err := h.follow(rec)
		if err == nil && complete && doubtful[cp.Number] {
			err = fmt.Errorf("checkpoint %d is in the log and not in the catalogue: %w", cp.Number, ErrCorrupt)
		}
		return err
	})
}

// lastCut is where the log ends for noneForgotten: what the row's cuts wait for may come
// after it.
func (r *foldRow) lastCut() segment.Pos { return r.g.segments.Durable() }

// write puts what is left into the new segment.
func (r *foldRow) write() error {
	r.parts, r.pack = make(map[uint64]record.Incarnation), record.NewCompressor()
	for i := range r.steps {
		s := &r.steps[i]
		var err error
		if s.Size != 0 {
			err = r.verbatim(s)
		} else {
			err = r.folded(s)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// verbatim copies a record; the new segment is verified whole before it counts.
func (r *foldRow) verbatim(s *fold.Step) error {
	p, err := r.read(s.Pos, s.Size)
	if err != nil {
		return err
	}
	return r.put(p)
}

// read reads from the log. It is lent until the next call.
func (r *foldRow) read(pos segment.Pos, n int) ([]byte, error) {
	if err := r.pace(int64(n)); err != nil {
		return nil, err
	}
	if n <= windowBytes {
		return r.log.read(r.g.segments, pos, n)
	}
	if cap(r.raw) < n {
		r.raw = make([]byte, n)
	}
	return r.raw[:n], r.g.segments.ReadAt(r.raw[:n], pos)
}

// put adds a record to the new segment and to its index.
func (r *foldRow) put(p []byte) error {
	rec, err := record.Parse(p)
	if err != nil {
		return err
	}
	if err := r.pace(int64(len(p))); err != nil {
		return err
	}
	pos, err := r.add(p)
	if err != nil {
		return err
	}
	r.written += int64(len(p))
	return r.index(pos, rec)
}

// folded writes what is left for a checkpoint: the zeros first, since data may lie over
// them, and in a record of their own, in which no place may be twice.
func (r *foldRow) folded(s *fold.Step) error {
	for _, z := range s.Zeros {
		if !r.packed.Room(1) {
			if err := r.seal(s.Checkpoint); err != nil {
				return err
			}
		}
		r.packed.Zero(z.Volume, z.Off, z.Len)
	}
	if err := r.seal(s.Checkpoint); err != nil {
		return err
	}
	for _, stored := range []bool{true, false} { // one after the other: what is packed anew is packed tight
		for i := range s.Blocks {
			b := &s.Blocks[i]
			if whole(b) != stored {
				continue
			}
			if !r.packed.Room(len(b.Left)) {
				if err := r.seal(s.Checkpoint); err != nil {
					return err
				}
			}
			if err := r.block(b); err != nil {
				return err
			}
		}
	}
	return r.seal(s.Checkpoint)
}

func (r *foldRow) block(b *fold.Block) error {
	stored, err := r.read(b.Pos+segment.Pos(b.Block.At), b.Block.Stored)
	if err != nil {
		return err
	}
	if whole(b) {
		return r.packed.Stored(b.ID, b.Number, b.Block, stored, b.Left)
	}
	raw, err := record.OpenStored(nil, b.ID, b.Number, b.Block, stored)
	if err != nil {
		return err
	}
	for _, x := range b.Left {
		if x.BlockOff+int(x.Len) > len(raw) {
			return fmt.Errorf("block %d of record %s has %d bytes: %w", b.Number, b.ID, len(raw), record.ErrCorrupt)
		}
		r.packed.Data(x.Volume, x.Off, raw[x.BlockOff:x.BlockOff+int(x.Len)], r.pack)
	}
	return nil
}

// seal writes the folded record that was gathered, if any.
func (r *foldRow) seal(checkpoint uint64) error {
	if r.packed.Empty() {
		return nil
	}
	r.parts[checkpoint]++
	r.out = r.packed.Seal(r.out[:0], checkpoint, r.parts[checkpoint], r.kept[checkpoint].Time, r.pack)
	return r.put(r.out)
}

// folds are those that the log has.
func (g *Group) folds() (marks []index.FoldMark) {
	for _, s := range g.segments.Segments() {
		if s.Folded {
			marks = append(marks, index.FoldMark{From: s.First, To: s.To, Life: s.Life})
		}
	}
	return marks
}

// sameFolds says whether the index has seen the log's folds, and no others.
func (g *Group) sameFolds() error {
	marks, first := g.index.table.Marks(), g.logFirst()
	marks = slices.DeleteFunc(marks, func(m index.FoldMark) bool { return m.To <= first })
	if folds := g.folds(); !slices.Equal(marks, folds) && !invariant.Planted("journal/folds-unheeded") {
		return fmt.Errorf("the log was folded otherwise: it has %d folds, and the index knows %d", len(folds), len(marks))
	}
	return nil
}

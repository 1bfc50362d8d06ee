package journal

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// What of the index is not on disk yet takes memory, and has to be replayed by the next
// opening. Both are bounded: when all groups together hold more than the store's
// memory for it, the largest is written; so is one that has much log behind it.
const (
	defaultIndexMemory = 64 << 20
	defaultCache       = 64 << 20

	// unflushedLog is how much log of all groups an opening replays at most, as far as that
	// leaves each group leastUnflushed: of records of 1 MiB that is 256 reads, of many small
	// ones memory fills up before. No group has more than mostUnflushed: 16384 reads of
	// records of 64 KiB. What is flushed at once is merged less often.
	unflushedLog   = 64 << 30
	leastUnflushed = 256 << 20
	mostUnflushed  = 1 << 30

	// indexOverdraft is how many times its memory the index may take while it cannot be
	// written; then no data is taken until it can.
	indexOverdraft = 4

	// flushWriters is how many groups' indexes are written at once: they share the disk
	// with the log.
	flushWriters = 2

	// openParallel is how many groups are opened, or closed, at once: most of that is
	// waiting for the disk.
	openParallel = 16
)

// flushes writes parts of indexes beside the commit rounds.
type flushes struct {
	writing sync.WaitGroup
	slots   chan struct{}
	failed  atomic.Bool // a write failed, and is to be tried again
	full    atomic.Bool // the overdraft is taken

	// Of the goroutine that ends rounds: bytes of memory of all groups, as last seen.
	held   int64 // with what is being written
	active int64 // without
}

// flushing is a group's part in it.
type flushing struct {
	held, active int64          // its shares
	complete     segment.Pos    // where the record ends that last completed a checkpoint
	flushed      segment.Pos    // what was last given to be written ends here
	busy         atomic.Bool    // it is being written
	writing      sync.WaitGroup // whoever writes it
	missed       atomic.Bool    // the last write failed
	frozen       atomic.Int64   // bytes that are being written, or could not be
}

// flushIndexes looks at the groups that were in a round, and begins to write what is
// due. It never waits: acks come from the same goroutine.
func (s *Store) flushIndexes(groups map[*Group]struct{}) {
	f, most := &s.flushes, s.flushAfter()
	for g := range groups {
		if g.parting.Load() {
			continue
		}
		s.measure(g)
		if g.index != nil && g.segments.Durable()-g.flush.flushed > most {
			s.flush(g)
		}
	}
	again := f.failed.Swap(false)
	if limit := s.indexMemory(); again || f.active > limit/2 || f.held > limit || f.full.Load() {
		s.flushLargest(limit/2, again)
	}
	f.full.Store(f.held > indexOverdraft*s.indexMemory())
}

// flushAfter is how much log a group may have behind what was flushed of it.
func (s *Store) flushAfter() segment.Pos {
	s.mu.Lock()
	defer s.mu.Unlock()
	return segment.Pos(min(max(unflushedLog/int64(max(len(s.groups), 1)), leastUnflushed), mostUnflushed))
}

// measure takes in how much memory the group's index takes.
func (s *Store) measure(g *Group) {
	if g.index == nil {
		return
	}
	f := &s.flushes
	frozen := g.flush.frozen.Load()
	held := g.index.Memory()
	active := max(0, held-frozen)
	f.held += held - g.flush.held
	f.active += active - g.flush.active
	g.flush.held, g.flush.active = held, active
}

// flushLargest writes the largest until what is active of the others fits into the
// limit, and again what could not be written.
func (s *Store) flushLargest(limit int64, again bool) {
	var idle []*Group
	for _, g := range s.Groups() {
		s.measure(g)
		if again && g.flush.missed.Load() {
			s.flush(g)
		}
		if g.index != nil && !g.flush.busy.Load() {
			idle = append(idle, g)
		}
	}
	slices.SortFunc(idle, func(a, b *Group) int { return cmp.Compare(b.flush.active, a.flush.active) })
	for _, g := range idle {
		if s.flushes.active <= limit || g.flush.active == 0 {
			return
		}
		s.flush(g)
	}
}

// flush begins to write what the group has in memory, unless it is being written or the
// group has failed: then its log says more than the index.
func (s *Store) flush(g *Group) {
	if g.flush.busy.Load() || g.failed() {
		return
	}
	snap, ok := g.snapshotOf(g.snapshot())
	if !ok {
		return
	}
	write := g.index.Freeze(snap)
	if write == nil {
		return
	}
	g.flush.busy.Store(true)
	g.flush.frozen.Store(g.index.Memory())
	g.flush.flushed = snap.Pos
	s.measure(g)
	g.flush.writing.Add(1)
	s.flushes.writing.Go(func() {
		defer g.flush.writing.Done()
		s.flushes.slots <- struct{}{}
		err := write()
		<-s.flushes.slots
		if err == nil {
			g.flush.frozen.Store(0)
		}
		g.wrote(err)
		g.flush.missed.Store(err != nil)
		g.flush.busy.Store(false)
		if err != nil {
			s.flushes.failed.Store(true)
			s.kick()
		}
	})
}

// wrote keeps for State how the index was last written.
func (g *Group) wrote(err error) {
	if err != nil {
		g.log.Warn("index is not written", "error", err)
		err = fmt.Errorf("the index of what came last is only in memory: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.unwritten = err
}

func (g *Group) failed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.fatal != nil
}

// flushAll writes all that the groups have in memory, so that the next opening replays
// nothing. The rounds have ended. What cannot be written is replayed.
func (s *Store) flushAll() {
	s.flushes.writing.Wait()
	slots := make(chan struct{}, openParallel)
	var wg sync.WaitGroup
	for _, g := range s.Groups() {
		g.upkeep.Wait()
		if g.index == nil || g.failed() || g.segments.Durable() == g.index.Covered().Pos {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			snap, ok := g.snapshotOf(g.snapshot())
			if !ok {
				return
			}
			write := g.index.Freeze(snap)
			if write == nil {
				return
			}
			if err := write(); err != nil {
				g.log.Warn("index is not written", "error", err)
			}
		})
	}
	wg.Wait()
}

// snapshot is what the group knows now. It is for the goroutine that commits, between
// two rounds: all that is durable is in the index.
func (g *Group) snapshot() *snapshot {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := &snapshot{group: g.info.ID, lineage: g.info.Lineage, pos: g.segments.Durable(), complete: g.flush.complete, cuts: g.cuts,
		streams: make(map[record.StreamID]standing)}
	for id, m := range g.standings {
		if m.phase == phaseLog {
			s.streams[id] = standing{m, g.admission.stream(id).recent.upTo(m.next)}
		}
	}
	return s
}

// snapshotOf is the snapshot as the index keeps it; false when the log cannot say which
// it is at that place.
func (g *Group) snapshotOf(s *snapshot) (index.Snapshot, bool) {
	number, life, ok := g.segments.Life(s.pos)
	return index.Snapshot{Pos: s.pos, Segment: number, Life: life, State: s.appendTo(nil)}, ok
}

// errIndexFull says that the index takes all the memory that it may.
var errIndexFull = errors.New("the index cannot be written and takes too much memory: no data is taken until it can")

// indexFull says whether no data may be taken, for want of memory.
func (s *Store) indexFull() error {
	if !s.flushes.full.Load() {
		return nil
	}
	return errIndexFull
}

func (s *Store) indexMemory() int64 {
	if s.cfg.IndexMemory > 0 {
		return s.cfg.IndexMemory
	}
	return defaultIndexMemory
}

func (s *Store) cacheBytes() int64 {
	if s.cfg.CacheBytes > 0 {
		return s.cfg.CacheBytes
	}
	return defaultCache
}

// loadMemory is how much of its index a group keeps in memory while it is loaded.
func (s *Store) loadMemory() int64 { return s.indexMemory() / openParallel }

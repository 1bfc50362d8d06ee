package journal

import (
	"errors"
	"fmt"
	"path"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// load brings a group up from what is on disk:
//
//  1. what the manifest states: names, volumes, lives, how far a sync and a promotion came;
//  2. the replicas, and the log's files;
//  3. the index, and beside it the snapshot of what was known where it ends, if both are
//     of this log; else none of either;
//  4. the records of the log from there on, or all: they say where each stream stands,
//     which versions there are and which cuts became checkpoints;
//  5. the catalogue, made to say the same;
//  6. the views that are kept, and a live failover, which goes on from where it stood.
//
// What it lists may be shown once the watermark is raised over it.
func (g *Group) load(m *manifest) (*Group, error) {
	g.manifest = m
	err := g.loadVolumes()
	if err == nil {
		err = g.loadRetention()
	}
	if err == nil {
		err = g.openFiles()
	}
	if err == nil {
		if err = g.loadLog(false); errors.Is(err, errReindexing) {
			err = g.loadLog(true)
		}
	}
	if err == nil {
		err = g.loadViews()
	}
	if err == nil {
		g.loadFailover()
	}
	if err != nil {
		g.stop()
	}
	close(g.loaded) // segments that are being read back may tell now
	if err != nil {
		return nil, errors.Join(err, g.close())
	}
	g.upkeep.Go(g.tendSegments)
	return g, nil
}

func (g *Group) loadVolumes() error {
	facts := g.manifest.now()
	g.info.Name, g.info.Lineage = facts.name, facts.lineage
	g.failover = facts.failover // views want to know
	for id, info := range facts.volumes {
		r, err := replica.OpenAt(g.store.cfg.FS, g.replicaDir(), facts.disks[id], g.place(id), info.Bytes)
		if err != nil {
			return err
		}
		g.volumes[id] = &volume{info: info, replica: r}
	}
	return nil
}

// openFiles opens the log and the index, without reading any record.
func (g *Group) openFiles() (err error) {
	cfg := g.store.cfg
	o := segment.Options{SegmentBytes: cfg.SegmentBytes, LendBytes: cfg.lendBytes, Stages: g.store.stages, Spare: g.store.spare, Log: g.log, Damaged: g.sealed,
		Go: g.store.readBacks.run, Pace: g.store.readBacks.pace}
	o.Verified, o.ReadBack = g.verifiedNow, g.readBack
	if p := cfg.Protector; p != nil {
		o.Discarded = p.Dropped
	}
	g.segments, err = segment.Open(cfg.FS, g.logDir(), g.info.ID, g.store.watermarks.Get(g.info.ID), o, nil)
	if err != nil {
		return err
	}
	g.index, err = openLiveIndex(index.TableConfig{FS: cfg.FS, Dir: path.Join(g.dir, indexName), Group: g.info.ID,
		Cache: g.store.cache, Log: g.log}, g.reindex)
	if err != nil {
		return err
	}
	return g.index.Drop(g.logFirst())
}

// loadLog replays what the index does not hold, and lists what the catalogue does not.
// errReindexing: the index is damaged, and is to be built anew.
func (g *Group) loadLog(anew bool) error {
	facts := g.manifest.now()
	l := &loading{g: g, lineage: facts.lineage, history: beginning(&facts), facts: &facts}
	var err error
	if l.listing, err = newRelisting(g, &facts); err != nil {
		return err
	}
	from := g.logFirst()
	if s, why := g.remembered(&facts); why == nil && !anew {
		from, l.complete = s.pos, s.complete
		if s.complete > l.listing.covers {
			if err := l.relist(from); err != nil {
				return l.ended(err)
			}
		}
		l.history.resume(s)
	} else {
		g.log.Info("index is built anew", "why", why)
		if err := g.index.reset(); err != nil {
			return err
		}
		g.index.table.SetMarks(g.folds())
		l.anew = true
	}
	l.from = from
	if _, err := l.replay(from); err != nil {
		return l.ended(err)
	}
	if err := l.history.ended(); err != nil {
		return err
	}
	if err := l.listing.end(l.history.cuts.newest); err != nil {
		return err
	}
	g.adopt(l.history, facts.epoch)
	return l.ended(nil)
}

// ended finishes the loading; cut, if not nil, is why the log was not followed to its end.
func (l *loading) ended(cut error) (err error) {
	g, facts := l.g, l.facts
	if cut != nil && !errors.Is(cut, errCut) {
		return cut
	}
	if cut != nil {
		if err := l.freeze(cut); err != nil {
			return err
		}
	}
	if n := l.history.cuts.newest; n > 0 {
		g.complete(n)
	}
	g.flush.complete, g.flush.flushed = l.complete, max(g.index.Covered().Pos, g.logFirst())
	g.healed, g.damages = l.healed, facts.damaged
	g.stateLost(l.lost)
	if g.hurt, err = g.blame(g.damages, facts); err != nil {
		return err
	}
	g.sayLocked()
	if err := g.showSegmentsAnew(); err != nil {
		return err
	}
	g.log.Info("group opened", "segments", len(g.segments.Segments()), "replayed_from", int64(l.from), "to", int64(g.segments.Durable()),
		"checkpoints_entered", l.listing.put)
	return g.recount()
}

// logFirst is where the log's records begin.
func (g *Group) logFirst() segment.Pos { return g.segments.Segments()[0].First }

// remembered returns the snapshot that lies beside the index when both are of this
// log and what the manifest states; else why they are not.
func (g *Group) remembered(facts *facts) (*snapshot, error) {
	c := g.index.Covered()
	if c.Pos == 0 {
		return nil, errors.New("there is none")
	}
	if c.Pos < g.logFirst() || c.Pos > g.segments.Durable() {
		return nil, fmt.Errorf("it ends at %s, and the log is from %s to %s", c.Pos, g.logFirst(), g.segments.Durable())
	}
	if _, life, ok := g.segments.Life(c.Pos); (!ok || life != c.Life) && !invariant.Planted("journal/any-index") {
		return nil, fmt.Errorf("it is of another log: life %x, not %x", c.Life, life)
	}
	if err := g.sameFolds(); err != nil {
		return nil, err
	}
	s, err := parseSnapshot(c.State)
	if err == nil && s.pos != c.Pos {
		err = fmt.Errorf("%w: at %s, not %s", errSnapshot, s.pos, c.Pos)
	}
	if err == nil {
		err = s.follows(g.info.ID, facts)
	}
	return s, err
}

// adopt makes the end of the history the group's own present.
func (g *Group) adopt(h *history, epoch record.Epoch) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.admission.epoch = epoch
	for id, r := range h.streams {
		s := g.admission.stream(id)
		s.admitted, s.last, s.next, s.phase, s.recent = r.admitted, r.last, r.next, r.phase, *r.recent
		g.standings[id] = s.mark()
	}
	g.cuts = h.cuts
	g.resync, g.initial = g.cuts.resync()
	g.seen = g.cuts.seen
}

// loading is a group on the way through its log.
type loading struct {
	g        *Group
	lineage  uint64
	facts    *facts
	history  *history
	complete segment.Pos     // see snapshot
	listing  *relisting      // nil: all is listed already
	anew     bool            // the index had nothing of this log
	from     segment.Pos     // where the replay began
	lost     damages         // what of the log was lost
	healed   map[uint64]bool // segments that were brought back
}

// replay follows the log from there to its end, which it returns, into the index too. It
// has the index for itself.
func (l *loading) replay(from segment.Pos) (end segment.Pos, err error) {
	end = from
	for _, s := range l.g.segments.Segments() {
		if s.To <= from {
			continue
		}
		l.history.gaps = s.Folded
		err := l.through(s.Number, max(from, s.First), s.To, segment.ReplayOptions{}, nil, l.record)
		if err != nil {
			return end, err
		}
		if end = s.To; l.g.index.Memory() > l.g.store.loadMemory() {
			l.flush(end)
		}
	}
	if l.anew && end > from {
		l.flush(end)
	}
	return end, nil
}

// record takes the next record.
func (l *loading) record(pos segment.Pos, rec record.Record) error {
	cp, complete, err := l.history.follow(rec)
	if err == nil {
		err = l.g.index.table.Add(pos, rec)
	}
	if err != nil {
		return fmt.Errorf("record %s at %s: %w", rec.Identity, pos, err)
	}
	if complete {
		l.complete = pos + segment.Pos(rec.Size)
	}
	if complete && l.listing != nil {
		return l.listing.list(l.complete, cp)
	}
	return nil
}

// relist finds the checkpoints of the log up to there, from its control records.
func (l *loading) relist(to segment.Pos) error {
	h := beginning(l.facts)
	h.gaps = true
	lose := func(r *segment.LostRecord) { h.lose(r.Kind, r.Stream, r.Seq) }
	for _, s := range l.g.segments.Segments() {
		if s.First >= to {
			break
		}
		err := l.through(s.Number, s.First, min(s.To, to), segment.ReplayOptions{ControlOnly: true, Skipped: h.skip}, lose, func(pos segment.Pos, rec record.Record) error {
			cp, complete, err := h.follow(rec)
			if err != nil {
				return fmt.Errorf("record %s at %s: %w", rec.Identity, pos, err)
			}
			if complete {
				return l.listing.list(pos+segment.Pos(rec.Size), cp)
			}
			return nil
		})
		if errors.Is(err, errCut) {
			l.history = h // nothing beyond is known to be complete
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// flush writes what was replayed so far to disk: the index of a long log is built within
// bounded memory. Where that fails it stays in memory, and is written later.
func (l *loading) flush(pos segment.Pos) {
	s, ok := l.g.snapshotOf(l.history.snapshot(l.g.info.ID, l.lineage, pos, l.complete))
	if !ok {
		return
	}
	if err := l.g.index.table.Flush(s); err != nil {
		l.g.log.Warn("index is not written", "error", err)
	}
}

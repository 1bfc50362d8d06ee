package journal

import (
	"errors"
	"fmt"
	"math"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// What an opening finds damaged it mends where it can: a segment's header from the rest of
// the log, its records by parity, each in a new file. Where it cannot, the group shows what
// needs nothing of the damage, and takes no more: what the records said that are lost
// nobody knows, nor what came after them.

// errCut says that the log cannot be followed beyond some damage.
var errCut = errors.New("the log cannot be followed further")

// through is a Replay of [from, to), of one segment. What is damaged in it is brought back
// first where that can be. A damaged record whose writes are not asked for is passed over
// when it is known what it was.
func (l *loading) through(number uint64, from, to segment.Pos, o segment.ReplayOptions, lose func(*segment.LostRecord), each func(segment.Pos, record.Record) error) error {
	for {
		var refused error
		err := l.g.segments.Replay(from, to, o, func(pos segment.Pos, rec record.Record) error {
			if refused = each(pos, rec); refused == nil {
				from = pos + segment.Pos(rec.Size)
			}
			return refused
		})
		if err == nil || refused != nil || !isDamage(err) {
			return err
		}
		if l.heals(number, err) {
			continue
		}
		var lost *segment.LostRecord
		if lose != nil && errors.As(err, &lost) && !invariant.Planted("journal/lost-cut-is-end") {
			lose(lost)
			l.lost = l.lost.add(damage{from: int64(lost.Pos), to: int64(lost.To), reason: cut(lost.Err.Error())})
			from = lost.To
			continue
		}
		if invariant.Planted("journal/damage-shuts") {
			return err
		}
		l.lost = l.lost.add(damage{from: int64(from), to: int64(to), reason: cut(err.Error())})
		return fmt.Errorf("%w: %w", errCut, err)
	}
}

// heals brings a damaged segment back, once, and says whether it may be read again.
func (l *loading) heals(number uint64, why error) bool {
	g := l.g
	if l.healed[number] {
		return false
	}
	found, err := g.segments.Verify(number, nil)
	if err == nil {
		l.noteHealed(number)
		return true // the disk gave it the second time
	}
	if g.store.cfg.Protector == nil || invariant.Planted("journal/open-unhealed") {
		return false
	}
	if err := g.repairSegment(number, found); err != nil {
		g.log.Error("segment is not repaired", "segment", number, "damage", why, "error", err)
		return false
	}
	g.log.Warn("segment was damaged and is repaired", "segment", number, "damage", why)
	g.store.scrubber.repairs.Add(1)
	l.noteHealed(number)
	return true
}

func (l *loading) noteHealed(number uint64) {
	if l.healed == nil {
		l.healed = make(map[uint64]bool)
	}
	l.healed[number] = true
}

// tendSegments does after an opening what that did not wait for: it takes back what was known
// to be damaged in segments that were healed, writes anew those whose headers were damaged,
// and sees to the parity of all.
func (g *Group) tendSegments() {
	for n := range g.healed {
		if err := g.reads(n); err != nil {
			g.log.Error("a segment is whole again, and that is not stated", "segment", n, "error", err)
		}
	}
	for _, i := range g.segments.Segments() {
		if !i.Restored {
			continue
		}
		err := g.segments.Restore(i.Number)
		if err == nil {
			g.log.Warn("the header of a segment was damaged and is written anew", "segment", i.Number)
			err = g.repairedSegment(i.Number)
		} else if !errors.Is(err, segment.ErrClosed) {
			_, err = g.readSegment(i.Number, g.paceReadBack)
		}
		if errors.Is(err, segment.ErrClosed) {
			return
		}
		if err != nil {
			g.log.Error("a segment's header is damaged", "segment", i.Number, "error", err)
		}
	}
	if g.store.cfg.Protector != nil {
		g.protectAll()
	}
}

// freeze ends the loading of a group whose log can be followed up to some damage: the
// checkpoints that are complete before it are listed, those known beyond it are bad, and
// nothing is taken, promoted or dropped until an opening finds the log whole.
func (l *loading) freeze(why error) error {
	g := l.g
	newest := l.history.cuts.newest
	if err := l.listing.flush(); err != nil {
		return err
	}
	reason := cut(l.lost[len(l.lost)-1].String())
	_, err := g.store.catalogue.Change(g.info.ID, newest+1, math.MaxUint64, func(cp *Checkpoint) bool {
		was := cp.State
		cp.State, cp.Reason = index.Bad, reason
		return was != index.Bad
	})
	if err == nil {
		err = l.listing.forgetLost()
	}
	if err == nil {
		err = l.listing.remark()
	}
	if err != nil {
		return err
	}
	g.adopt(l.history, l.facts.epoch)
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.standings) // how far it was durable is not known: no source is told less
	g.frozen, g.upTo, g.resync = true, newest, true
	g.fatal = fmt.Errorf("it opens only up to checkpoint %d, and takes nothing: %w: %s", newest, why, nextStep(g.dir, why))
	g.log.Error("group opens in part", "up_to", newest, "error", why)
	return nil
}

// beyond says whether a checkpoint lies beyond what the group could follow of its log:
// nobody knows what it holds.
func (g *Group) beyond(number uint64) bool { return g.frozen && number > g.upTo }

// still says whether the group's history is to be left as it is.
func (g *Group) still() bool { return g.opened() != nil || g.frozen || g.Stays() != nil }

// stateLost makes known what was lost on the way through the log.
func (g *Group) stateLost(lost damages) {
	for _, d := range lost {
		if !g.damages.holds(d) {
			g.damages = g.damages.add(d)
			g.unstated = append(g.unstated, d.entry())
		}
	}
	if err := g.stateLocked(); err != nil {
		g.log.Error("damage is not stated in the manifest", "error", err)
	}
}

package journal

import (
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/journal/view"
)

// sealed takes what the read-back of a segment found. It waits until the group is
// loaded; what is found while the group closes is found again by the next read-back.
func (g *Group) sealed(found []segment.Damage) {
	<-g.loaded
	g.mu.Lock()
	closed := g.closed
	g.mu.Unlock()
	if closed {
		return
	}
	var lasting, passing damages
	for _, f := range found {
		d := damage{from: int64(f.From), to: int64(f.To), reason: cut(f.Err.Error())}
		if isDamage(f.Err) {
			lasting = lasting.add(d)
		} else { // the disk may give it the next time
			passing = passing.add(d)
		}
	}
	g.wounded(lasting, passing)
}

// viewed takes what a view could not read.
func (g *Group) viewed(v view.Damage) {
	d := damage{volume: v.Volume, from: v.Piece.Off, to: v.Piece.Off + v.Piece.Len, reason: cut(v.Err.Error())}
	if v.Piece.In == index.InLog {
		from := v.Piece.Pos + segment.Pos(v.Piece.Block.At)
		d.volume, d.from, d.to = 0, int64(from), int64(from)+int64(v.Piece.Block.Stored)
	}
	g.wounded(damages{d}, nil)
}

func cut(reason string) string { return reason[:min(len(reason), maxReason)] }

// wounded makes damage known: in the manifest when it lasts, in the group's state, and
// in every listed checkpoint that needs what is damaged.
func (g *Group) wounded(lasting, passing damages) {
	g.marking.Lock()
	defer g.marking.Unlock()
	var fresh damages
	for i, d := range append(lasting, passing...) {
		if g.damages.holds(d) {
			continue
		}
		fresh = append(fresh, d)
		g.damages = g.damages.add(d)
		if i < len(lasting) {
			g.unstated = append(g.unstated, d.entry())
		}
		g.log.Error("damage", "where", d.String())
	}
	if len(fresh) == 0 {
		return
	}
	g.sayLocked()
	if g.stateLocked() != nil {
		g.store.queued(g, urgent) // tried again from there
	}
	ws := g.wounds(fresh)
	g.unhealed = append(g.unhealed, ws...)
	if err := g.spoilListed(ws); err != nil {
		g.log.Error("checkpoints are bad and could not be marked", "error", err)
	}
}

func (d damage) entry() entry {
	return entry{kind: entryDamaged, volume: d.volume, number: uint64(d.from), end: uint64(d.to), reason: d.reason}
}

// stateLocked states in the manifest what is not stated yet. The group's marking is held.
func (g *Group) stateLocked() error {
	if len(g.unstated) == 0 {
		return nil
	}
	err := g.manifest.put(true, g.unstated...)
	if err == nil {
		g.unstated = nil
	}
	return err
}

// sayLocked keeps for State what is damaged. The group's marking is held.
func (g *Group) sayLocked() {
	var err error
	if n := len(g.damages); n > 0 {
		err = fmt.Errorf("%w: checkpoints that need what is damaged cannot be opened whole: %s", ErrCorrupt, g.damages[0])
		if n > 1 {
			err = fmt.Errorf("%w, and %d more", err, n-1)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.damaged = err
}

// spoilListed marks the listed checkpoints that the wounds are in. The group's marking
// is held, so that none is listed meanwhile.
func (g *Group) spoilListed(ws []wound) error {
	cps, err := g.allCheckpoints()
	if err != nil {
		return err
	}
	spoiled := g.spoil(cps, ws)
	if len(spoiled) == 0 {
		return nil
	}
	for _, i := range spoiled {
		g.log.Error("checkpoint is bad", "checkpoint", cps[i].Number, "reason", cps[i].Reason)
		if err := g.store.catalogue.Put(g.info.ID, cps[i]); err != nil {
			return err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.listed.count, g.listed.oldest, g.listed.newest = 0, 0, 0
	for _, cp := range cps {
		g.countLocked(cp)
	}
	return nil
}

func (g *Group) allCheckpoints() (all []Checkpoint, err error) {
	for after := uint64(0); ; after = all[len(all)-1].Number {
		cps, err := g.Checkpoints(after, 1000)
		if all = append(all, cps...); err != nil || len(cps) == 0 {
			return all, err
		}
	}
}

// examineLocked marks those of the checkpoints that are about to be listed that are bad from
// the start, and forgets the wounds that all later ones have covered. The group's
// marking is held.
func (g *Group) examineLocked(cps []Checkpoint) {
	if len(g.unhealed) == 0 || len(cps) == 0 || invariant.Planted("journal/list-wounded") {
		return
	}
	g.spoil(cps, g.unhealed)
	newest, open := cps[len(cps)-1], g.unhealed[:0]
	for _, w := range g.unhealed {
		if !w.heldBy(&newest) || g.shows(&w, &newest) {
			open = append(open, w)
		}
	}
	g.unhealed = open
}

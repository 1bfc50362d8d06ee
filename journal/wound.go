package journal

import (
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/journal/view"
	"github.com/holdfast-dr/holdfast/wire/record"
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
	found = g.repaired(found)
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

// viewed takes what a view could not read, and what was not repaired for it.
func (g *Group) viewed(v view.Damage) {
	d := damage{volume: v.Volume, from: v.Piece.Off, to: v.Piece.Off + v.Piece.Len, reason: cut(v.Err.Error())}
	if v.Piece.In == index.InLog {
		from, to := placeOf(&v.Piece)
		d.volume, d.from, d.to = 0, int64(from), int64(to)
	}
	g.wounded(damages{d}, nil)
}

// replicaRepaired says whether the damage that a view met in a replica was brought back from
// another copy: who reads again reads what was written.
func (g *Group) replicaRepaired(v *view.Damage) bool {
	g.mu.Lock()
	vol := g.volumes[v.Volume]
	g.mu.Unlock()
	if vol == nil || !g.settled() {
		return false
	}
	off := v.Piece.Off &^ (replica.BlockBytes - 1)
	found := []replica.Damage{{Off: off, Len: v.Piece.Off + v.Piece.Len - off, Err: v.Err}}
	left, err := g.fromCopies(vol, found, nil)
	return err == nil && len(left) == 0
}

// placeOf is where a piece's block stands in the log.
func placeOf(p *index.Piece) (from, to segment.Pos) {
	from = p.Pos + segment.Pos(p.Block.At)
	return from, from + segment.Pos(p.Block.Stored)
}

// repairsFor repairs what a view met, and says whether the view may read it again. Of many
// that meet the same damage one repairs it and the others wait.
func (g *Group) repairsFor(v view.Damage) bool {
	g.healing.Lock()
	defer g.healing.Unlock()
	if v.Piece.In == index.InReplica {
		return g.replicaRepaired(&v)
	}
	from, to := placeOf(&v.Piece)
	stored := make([]byte, to-from)
	if err := g.segments.ReadAt(stored, from); err == nil {
		_, err = record.OpenStored(make([]byte, record.LineBytes), v.Piece.ID, v.Piece.Number, v.Piece.Block, stored)
		if err == nil {
			return true // somebody was faster
		}
	}
	return len(g.repaired([]segment.Damage{{From: from, To: to, Err: v.Err}})) == 0
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
	g.unplaced = append(g.unplaced, fresh...)
	g.sayLocked()
	g.mu.Lock()
	g.wounds += uint64(len(fresh))
	g.mu.Unlock()
	if g.stateLocked() != nil {
		g.store.queued(g, urgent) // tried again from there
	}
	if err := g.placeLocked(); err != nil {
		g.log.Error("checkpoints are bad and could not be marked", "error", err)
		g.store.queued(g, urgent)
	}
}

// placeLocked finds the checkpoints that what was found of late concerns. Until it
// succeeds none is listed. The group's marking is held.
func (g *Group) placeLocked() error {
	if g.unblamed {
		return g.blameLocked()
	}
	if len(g.unplaced) == 0 {
		return nil
	}
	err := g.eachWounds(g.unplaced, func(ws []wound) error {
		lasting, err := g.spoil(ws, func(uint64) {})
		g.hurt.add(lasting)
		return err
	})
	if err != nil {
		return err
	}
	g.unplaced = nil
	g.sayLocked()
	return g.recount()
}

// mended takes damage back that was repaired: its bytes are again what was written.
func (g *Group) mended(d damage) error {
	g.marking.Lock()
	defer g.marking.Unlock()
	if err := g.manifest.put(true, entry{kind: entryRepaired, volume: d.volume, number: uint64(d.from), end: uint64(d.to)}); err != nil {
		return err
	}
	g.damages = g.damages.without(d)
	var unstated []entry
	for _, e := range g.unstated {
		for _, left := range (damages{{e.volume, int64(e.number), int64(e.end), e.reason}}).without(d) {
			unstated = append(unstated, left.entry())
		}
	}
	g.unstated = unstated
	g.unblamed = !invariant.Planted("journal/blamed-for-ever")
	if err := g.blameLocked(); err != nil {
		g.sayLocked()
		g.log.Error("checkpoints may be good again and could not be marked", "error", err)
		g.store.queued(g, urgent) // tried again from there
	}
	return nil
}

// blameLocked finds anew which checkpoints are bad, after damage was taken back. Until it
// succeeds none is listed. The group's marking is held.
func (g *Group) blameLocked() error {
	marks := g.manifest.now()
	h, err := g.blame(g.damages, &marks)
	if err != nil {
		return err
	}
	g.hurt, g.unplaced, g.unblamed = h, nil, false
	g.sayLocked()
	return g.recount()
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
	g.lacking = len(g.hurt.wounds)+len(g.hurt.rest)+len(g.unplaced) > 0
}

package journal

import (
	"errors"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// readSegment reads a closed segment back and says whether it is whole now. What is
// damaged is brought back by parity, else it is made known; what was known and reads well
// is taken back.
func (g *Group) readSegment(number uint64, pace func(int) error) (whole bool, err error) {
	found, err := g.segments.Verify(number, pace)
	switch {
	case errors.Is(err, segment.ErrRange):
		return true, nil // it is gone
	case errors.Is(err, segment.ErrClosed):
		return false, err
	case err == nil:
		return true, errors.Join(g.reads(number), g.verifyParity(number, pace))
	case len(found) > 0:
		g.sealed(found)
		return g.segmentWhole(number), nil
	case isDamage(err): // of what no checkpoint needs
		if g.store.cfg.Protector == nil {
			g.log.Error("a segment is damaged where no checkpoint needs it", "segment", number, "error", err)
			return false, nil
		}
		if again := g.repairSegment(number, nil); again != nil {
			return false, errors.Join(err, again)
		}
		return true, g.repairedSegment(number)
	}
	return false, err
}

// verifyParity reads what protects a segment back, which was just verified; one that is not
// protected, is now.
func (g *Group) verifyParity(number uint64, pace func(int) error) error {
	p := g.store.cfg.Protector
	if p == nil {
		return nil
	}
	err := g.segments.Hold(number, func(f segment.FileInfo, verified bool) error {
		if !verified {
			return nil
		}
		if is, err := p.Protects(f); !is || err != nil || invariant.Planted("journal/parity-not-read-back") {
			g.protected(f)
			return nil
		}
		anew, err := p.Verify(f, pace)
		if anew {
			g.store.scrubber.repairs.Add(1)
			g.log.Warn("the parity of a segment was damaged and is made anew", "segment", number)
		}
		return err
	})
	if errors.Is(err, segment.ErrRange) {
		return nil // it is gone
	}
	return err
}

// segmentWhole says whether a segment has no damage that is known.
func (g *Group) segmentWhole(number uint64) bool {
	for _, i := range g.segments.Segments() {
		if i.Number == number {
			return i.Err == nil
		}
	}
	return true
}

// repairedSegment counts a segment that was brought back, and takes back what was known to
// be damaged in it.
func (g *Group) repairedSegment(number uint64) error {
	g.store.scrubber.repairs.Add(1)
	return g.reads(number)
}

// reads takes back what was known to be damaged in a segment, all of which verifies.
func (g *Group) reads(number uint64) error {
	for _, i := range g.segments.Segments() {
		if i.Number == number {
			return g.takeBack(damage{from: int64(i.First), to: int64(i.To)})
		}
	}
	return nil
}

// takeBack takes back all known damage within d, whose bytes verify.
func (g *Group) takeBack(d damage) error {
	g.marking.Lock()
	ds := g.damages
	g.marking.Unlock()
	for _, have := range ds {
		if have.volume != d.volume || have.from >= d.to || have.to <= d.from {
			continue
		}
		have.from, have.to = max(have.from, d.from), min(have.to, d.to)
		if err := g.mended(have); err != nil {
			return err
		}
		g.log.Info("what was damaged is whole again", "where", have.String())
	}
	return nil
}

// readReplica reads a part of a volume's replica back, from off on.
func (g *Group) readReplica(id record.VolumeID, off int64, pace func(int) error) (whole bool, err error) {
	g.mu.Lock()
	v := g.volumes[id]
	g.mu.Unlock()
	if v == nil || off >= v.replica.Bytes() {
		return true, nil
	}
	n := min(v.replica.Bytes()-off, partBytes)
	found, err := v.replica.Verify(off, n, pace)
	if errors.Is(err, segment.ErrClosed) {
		return false, err
	}
	if !g.settled() {
		return false, nil // a promotion began, or failed: what it left torn is written again
	}
	if len(found) > 0 && err == nil {
		if found, err = g.fromCopies(v, found, pace); errors.Is(err, segment.ErrClosed) {
			return false, err
		}
	}
	var lasting, passing damages
	at := off
	for _, f := range found {
		if back := g.takeBackReplica(id, at, f.Off); back != nil {
			return false, back
		}
		at = f.Off + f.Len
		d := damage{volume: id, from: f.Off, to: f.Off + f.Len, reason: cut(f.Err.Error())}
		if isDamage(f.Err) {
			lasting = lasting.add(d)
		} else {
			passing = passing.add(d)
		}
	}
	g.wounded(lasting, passing)
	if err == nil {
		err = g.takeBackReplica(id, at, off+n)
	}
	return err == nil && len(found) == 0, err
}

// fromCopies brings damaged blocks of a replica back from its copies in other stores, and
// returns what is left of the damage.
func (g *Group) fromCopies(v *volume, found []replica.Damage, pace func(int) error) (left []replica.Damage, err error) {
	blocks, err := v.replica.Repair(found)
	if err != nil {
		g.log.Error("a replica is not repaired", "volume", v.info.ID, "error", err)
	}
	if blocks == 0 {
		return found, nil
	}
	g.store.scrubber.repairs.Add(1)
	g.log.Warn("a replica was damaged and is repaired from a copy in another store", "volume", v.info.ID, "blocks", blocks)
	for _, f := range found {
		again, err := v.replica.Verify(f.Off, min(f.Len, v.replica.Bytes()-f.Off), pace)
		if err != nil {
			return found, err
		}
		left = append(left, again...)
	}
	return left, nil
}

func (g *Group) takeBackReplica(id record.VolumeID, from, to int64) error {
	if from >= to {
		return nil
	}
	return g.takeBack(damage{volume: id, from: from, to: to})
}

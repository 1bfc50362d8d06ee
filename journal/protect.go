package journal

import (
	"errors"
	"io"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
)

// Protector keeps what brings damaged segments back. Its methods are called concurrently, for
// different files, on goroutines that may wait; the file stays what it is until they return.
type Protector interface {
	// Protects says, at little cost, whether a file is protected already. An error says that
	// this is not known now: then nothing is done about it.
	Protects(f segment.FileInfo) (bool, error)
	// Sealed protects a file that was just verified and will not change any more. What it
	// finds in it is what Repair gives back: the file must not have been at rest since.
	Sealed(f segment.FileInfo) error
	// Verify reads what protects a file back, where nobody else does, and makes what is damaged
	// of it anew; the file was just verified. It calls pace with all that it reads and writes.
	Verify(f segment.FileInfo, pace func(bytes int) error) (anew bool, err error)
	// Repair writes the file to w as it was, the damaged places, in bytes of the file,
	// taken from elsewhere. The bytes are verified by whoever takes them.
	Repair(f segment.FileInfo, bad []Extent, w io.Writer) error
	// Dropped is told that the file is going.
	Dropped(f segment.FileInfo)
}

// Extent is a part of a file, in bytes.
type Extent struct{ From, To int64 }

// protected has a segment protected that was just verified, unless it is.
func (g *Group) protected(f segment.FileInfo) {
	p := g.store.cfg.Protector
	if p == nil {
		return
	}
	is, err := p.Protects(f)
	if err == nil && !is {
		err = p.Sealed(f)
	}
	if err != nil && !errors.Is(err, segment.ErrClosed) {
		g.log.Warn("segment has no parity yet", "segment", f.Number, "err", err)
	}
}

// verifiedNow takes in that a segment was verified as it was sealed, or written anew.
func (g *Group) verifiedNow(f segment.FileInfo) {
	g.store.scrubber.sealedNow(f)
	g.protected(f)
}

// readBack takes in that a segment was verified as it was sealed. It waits until the group
// is loaded.
func (g *Group) readBack(f segment.FileInfo) {
	<-g.loaded
	if g.openStill() != nil || g.index == nil || invariant.Planted("journal/seal-takes-nothing-back") {
		return
	}
	if err := g.reads(f.Number); err != nil {
		g.log.Error("a segment is whole again, and that is not stated", "segment", f.Number, "error", err)
	}
}

// protectAll sees to the protection of every segment that was verified before the store was
// opened: nobody may have come to it then, or have been asked to. It may have rotted
// since, so one without protection is read back first.
func (g *Group) protectAll() {
	for _, i := range g.segments.Segments() {
		if i.State != segment.StateVerified {
			continue
		}
		is := false
		err := g.segments.Hold(i.Number, func(f segment.FileInfo, _ bool) (err error) {
			if invariant.Planted("journal/parity-of-rot") {
				g.protected(f)
			}
			is, err = g.store.cfg.Protector.Protects(f)
			return err
		})
		if err == nil && is || errors.Is(err, segment.ErrRange) {
			continue
		}
		if err == nil {
			_, err = g.readSegment(i.Number, g.paceReadBack)
		}
		if errors.Is(err, segment.ErrClosed) {
			return
		}
		if err != nil {
			g.log.Warn("segment has no parity yet", "segment", i.Number, "err", err)
		}
	}
}

// paceReadBack lets what is read of the group go behind intake, until the group ends.
func (g *Group) paceReadBack(bytes int) error {
	if g.openStill() != nil {
		return segment.ErrClosed
	}
	return g.store.readBacks.pace(bytes)
}

// repaired brings damaged segments back, each as a new file that was verified whole, and
// returns what of the damage is left.
func (g *Group) repaired(found []segment.Damage) (left []segment.Damage) {
	if g.store.cfg.Protector == nil || invariant.Planted("journal/no-repair") {
		return found
	}
	of := map[uint64][]segment.Damage{}
	var order []uint64
	for _, d := range found {
		for _, i := range g.segments.Segments() {
			if d.From < i.First || d.From >= i.To {
				continue
			}
			if of[i.Number] == nil {
				order = append(order, i.Number)
			}
			of[i.Number] = append(of[i.Number], d)
		}
	}
	for _, n := range order {
		if err := g.repairSegment(n, of[n]); err != nil {
			g.log.Error("segment is not repaired", "segment", n, "err", err)
			left = append(left, of[n]...)
			continue
		}
		g.log.Warn("segment was damaged and is repaired", "segment", n, "damaged", len(of[n]))
		if err := g.repairedSegment(n); err != nil {
			g.log.Error("a segment is repaired, and that is not stated", "segment", n, "error", err)
		}
	}
	return left
}

// repairSegment replaces a segment's file by one with the damage mended.
func (g *Group) repairSegment(number uint64, ds []segment.Damage) error {
	var file segment.FileInfo
	err := g.segments.Hold(number, func(f segment.FileInfo, _ bool) error {
		file = f
		return nil
	})
	if err != nil {
		return err
	}
	var bad []Extent
	for _, d := range ds {
		bad = append(bad, Extent{file.Offset(d.From), file.Offset(d.To)})
	}
	return g.segments.Replace(number, func(w io.Writer) error {
		return g.store.cfg.Protector.Repair(file, bad, w)
	})
}

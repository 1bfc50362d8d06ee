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
	// Sealed protects a file that was verified and will not change any more. It is called
	// for every such file again when the store is opened, and then has little to do.
	Sealed(f segment.FileInfo) error
	// Repair writes the file to w as it was, the damaged places, in bytes of the file,
	// taken from elsewhere. The bytes are verified by whoever takes them.
	Repair(f segment.FileInfo, bad []Extent, w io.Writer) error
	// Dropped is told that the file is going.
	Dropped(f segment.FileInfo)
}

// Extent is a part of a file, in bytes.
type Extent struct{ From, To int64 }

// protected tells the protector of a segment that was verified.
func (g *Group) protected(f segment.FileInfo) {
	if err := g.store.cfg.Protector.Sealed(f); err != nil && !errors.Is(err, segment.ErrClosed) {
		g.log.Warn("segment has no parity yet", "segment", f.Number, "err", err)
	}
}

// protectAll tells the protector of every segment that was verified before the store was
// opened: it may not have come to it then, or not have been asked.
func (g *Group) protectAll() {
	for _, i := range g.segments.Segments() {
		if i.State != segment.StateVerified {
			continue
		}
		err := g.segments.Hold(i.Number, func(f segment.FileInfo, _ bool) error {
			g.protected(f)
			return nil
		})
		if errors.Is(err, segment.ErrClosed) {
			return
		}
	}
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

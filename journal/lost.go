package journal

import (
	"cmp"
	"math"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Place is a part of a volume.
type Place struct {
	Volume   record.VolumeID
	Off, Len int64
}

// Lacks says whether the newest version of anything is damaged, so that checkpoints that
// are yet to be listed would be bad, and the source could mend that: no resync is open.
// found rises with each damage that is found. It costs next to nothing.
func (g *Group) Lacks() (lacks bool, found uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lacking && !g.resync && !g.closed && g.fatal == nil, g.wounds
}

// Lost returns places whose newest version is damaged, in whole blocks, ordered and apart,
// at most so many: what the source has to send again for later checkpoints to be whole.
// Older versions that are damaged are not among them: nobody has those any more.
func (g *Group) Lost(most int) (lost []Place, err error) {
	if err := g.opened(); err != nil {
		return nil, err
	}
	g.marking.Lock()
	defer g.marking.Unlock()
	if err := g.placeLocked(); err != nil {
		return nil, err
	}
	at := g.newest()
	take := func(ws []wound) error {
		for i := range ws {
			if lost, err = g.showsNow(lost, &ws[i], at); err != nil {
				return err
			}
		}
		lost = join(lost)
		return nil
	}
	if err := take(g.hurt.wounds); err != nil {
		return nil, err
	}
	if err := g.eachWounds(g.hurt.rest, take); err != nil {
		return nil, err
	}
	return lost[:min(len(lost), most)], nil
}

// newest holds all that is durable.
func (g *Group) newest() index.Vector {
	g.mu.Lock()
	defer g.mu.Unlock()
	cp := Checkpoint{Number: math.MaxUint64}
	for id, m := range g.standings {
		cp.At = append(cp.At, index.StreamAt{Stream: id, Seq: max(m.next, 1) - 1})
	}
	return g.index.Vector(cp)
}

// showsNow appends the parts of a wound that nothing has covered.
func (g *Group) showsNow(lost []Place, w *wound, at index.Vector) ([]Place, error) {
	n := w.Len
	g.mu.Lock()
	if v := g.volumes[w.Volume]; v != nil {
		n = min(n, v.info.Bytes-w.Off)
	}
	g.mu.Unlock()
	if n <= 0 {
		return lost, nil
	}
	found, err := g.index.LookupNow(nil, w.Volume, w.Off, n, at)
	if err != nil {
		return lost, err
	}
	for _, p := range found {
		if w.is(p) {
			lost = append(lost, Place{w.Volume, p.Off, p.Len})
		}
	}
	return lost, nil
}

// is says whether the piece is of the version that is damaged.
func (w *wound) is(p index.Piece) bool {
	return w.Pos == 0 && p.In == index.InReplica || w.Pos != 0 && p.In == index.InLog && p.Pos == w.Pos && p.Number == w.Number
}

// join rounds places to blocks and makes those that touch one. It reuses ps.
func join(ps []Place) []Place {
	if invariant.Planted("journal/lost-first-only") && len(ps) > 1 {
		ps = ps[:1]
	}
	for i := range ps {
		p := &ps[i]
		end := (p.Off + p.Len + replica.BlockBytes - 1) &^ (replica.BlockBytes - 1)
		p.Off &^= replica.BlockBytes - 1
		p.Len = end - p.Off
	}
	slices.SortFunc(ps, func(a, b Place) int { return cmp.Or(cmp.Compare(a.Volume, b.Volume), cmp.Compare(a.Off, b.Off)) })
	out := ps[:0]
	for _, p := range ps {
		if n := len(out); n > 0 && out[n-1].Volume == p.Volume && out[n-1].Off+out[n-1].Len >= p.Off {
			out[n-1].Len = max(out[n-1].Len, p.Off+p.Len-out[n-1].Off)
			continue
		}
		out = append(out, p)
	}
	return out
}

package journal

import (
	"cmp"
	"fmt"
	"slices"
	"sort"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// damage is a part of what a group keeps that is not what was written: of the log, in
// places, or of a replica, in bytes of its volume.
type damage struct {
	volume   record.VolumeID // of the replica; 0: of the log
	from, to int64
	reason   string // of at most maxReason bytes
}

func (d damage) String() string {
	if d.volume == 0 {
		return fmt.Sprintf("log at %#x to %#x: %s", d.from, d.to, d.reason)
	}
	return fmt.Sprintf("replica of volume %d at %d to %d: %s", d.volume, d.from, d.to, d.reason)
}

// damages is all that is known, ordered by place, none touching another.
type damages []damage

// maxDamages bounds what is kept apart; beyond it the nearest become one, and what lies
// between them counts as damaged too.
const maxDamages = 256

// add returns ds with d in it. It is pure, and ds is not changed.
func (ds damages) add(d damage) damages {
	out := make(damages, 0, len(ds)+1)
	for _, have := range ds {
		if have.volume == d.volume && have.from <= d.to && have.to >= d.from {
			d = damage{d.volume, min(have.from, d.from), max(have.to, d.to), have.reason}
			continue
		}
		out = append(out, have)
	}
	at, _ := slices.BinarySearchFunc(out, d, func(a, b damage) int {
		return cmp.Or(cmp.Compare(a.volume, b.volume), cmp.Compare(a.from, b.from))
	})
	out = slices.Insert(out, at, d)
	if len(out) <= maxDamages {
		return out
	}
	nearest, gap := 0, int64(-1)
	for i := range len(out) - 1 {
		if g := out[i+1].from - out[i].to; out[i].volume == out[i+1].volume && (gap < 0 || g < gap) {
			nearest, gap = i, g
		}
	}
	if gap < 0 {
		return out // each of a volume of its own
	}
	out[nearest].to = out[nearest+1].to
	return slices.Delete(out, nearest+1, nearest+2)
}

// without returns ds with what d holds taken out. It is pure, and ds is not changed.
// Where a damage would come apart and there are too many, it stays whole.
func (ds damages) without(d damage) damages {
	out := make(damages, 0, len(ds)+1)
	for i, have := range ds {
		if have.volume != d.volume || have.to <= d.from || have.from >= d.to {
			out = append(out, have)
			continue
		}
		before, after := have, have
		before.to, after.from = d.from, d.to
		if before.from < before.to && after.from < after.to && len(out)+len(ds[i:]) >= maxDamages {
			out = append(out, have)
			continue
		}
		for _, part := range []damage{before, after} {
			if part.from < part.to {
				out = append(out, part)
			}
		}
	}
	return out
}

// holds says whether d is known already.
func (ds damages) holds(d damage) bool {
	return slices.ContainsFunc(ds, func(have damage) bool {
		return have.volume == d.volume && have.from <= d.from && have.to >= d.to
	})
}

// wound is a part of a volume that reads as damaged wherever a checkpoint holds the
// version that is.
type wound struct {
	index.Place // Pos 0: of the replica
	reason      string
}

// wounds are the parts of volumes that the damage concerns.
func (g *Group) wounds(ds damages) (ws []wound) {
	var spans []index.Span
	for _, d := range ds {
		if d.volume == 0 {
			spans = append(spans, index.Span{From: segment.Pos(d.from), To: segment.Pos(d.to)})
			continue
		}
		ws = append(ws, wound{index.Place{Volume: d.volume, Off: d.from, Len: d.to - d.from}, d.String()})
	}
	if len(spans) == 0 {
		return ws
	}
	stored, _ := g.versions.Stored(spans) // Versions never fails
	for _, p := range stored {
		reason := ""
		for _, d := range ds {
			if reason == "" && d.volume == 0 && segment.Pos(d.to) > p.Pos { // the first that may touch its record
				reason = d.String()
			}
		}
		ws = append(ws, wound{p, fmt.Sprintf("volume %d at %d: %s", p.Volume, p.Off, reason)})
	}
	return ws
}

// heldBy says whether the checkpoint holds the record that put the version there.
func (w *wound) heldBy(cp *Checkpoint) bool {
	return w.Pos == 0 || slices.ContainsFunc(cp.At, func(a index.StreamAt) bool { return a.Stream == w.Stream && a.Seq >= w.Seq })
}

// shows says whether a checkpoint at that place shows the version: nothing that it holds
// has covered it. Of checkpoints that hold it, the older ones show it and the newer,
// from some on, do not.
//
// An index that cannot tell counts as showing it: rather a good checkpoint called bad.
func (g *Group) shows(w *wound, cp *Checkpoint) bool {
	found, err := g.versions.Lookup(nil, w.Volume, w.Off, w.Len, g.versions.Vector(*cp))
	if err != nil {
		return true
	}
	for _, p := range found {
		if w.Pos == 0 && p.In == index.InReplica || w.Pos != 0 && p.In == index.InLog && p.Pos == w.Pos && p.Number == w.Number {
			return true
		}
	}
	return false
}

// hits says whether the checkpoint's image has the wound in it.
func (g *Group) hits(w *wound, cp *Checkpoint) bool {
	within := slices.ContainsFunc(cp.Volumes, func(v record.VolumeSize) bool { return v.ID == w.Volume && v.Bytes > w.Off })
	return within && w.heldBy(cp) && g.shows(w, cp)
}

// spoil marks the good ones of the checkpoints, ordered by number, that the wounds are
// in, and returns which. What each checkpoint holds it finds by halving: a wound costs
// as many lookups as the count of checkpoints has binary digits.
func (g *Group) spoil(cps []Checkpoint, ws []wound) (spoiled []int) {
	bad := make(map[int]bool)
	for i := range ws {
		w := &ws[i]
		first := sort.Search(len(cps), func(k int) bool { return w.heldBy(&cps[k]) })
		rest := cps[first:]
		count := sort.Search(len(rest), func(k int) bool { return !g.shows(w, &rest[k]) })
		if invariant.Planted("journal/spoil-one") {
			count = min(count, 1)
		}
		for k := range rest[:count] {
			cp := &rest[k]
			if cp.State == index.Good && g.hits(w, cp) {
				cp.State, cp.Reason = index.Bad, w.reason[:min(len(w.reason), maxReason)]
				bad[first+k] = true
			}
		}
	}
	for i := range cps {
		if bad[i] {
			spoiled = append(spoiled, i)
		}
	}
	return spoiled
}

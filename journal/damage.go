package journal

import (
	"cmp"
	"fmt"
	"slices"

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

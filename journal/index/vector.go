package index

import (
	"cmp"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Vector is a checkpoint's place in every stream, ready for lookups. The zero Vector
// holds nothing.
type Vector struct {
	number record.Seq
	at     []StreamAt // ordered by stream
}

// NewVector prepares a checkpoint's place: its number and At. What At holds is copied.
func NewVector(cp Checkpoint) Vector {
	v := Vector{number: record.Seq(cp.Number), at: slices.Clone(cp.At)}
	slices.SortFunc(v.at, func(a, b StreamAt) int { return cmp.Compare(a.Stream, b.Stream) })
	return v
}

// Upto is the highest seq of the stream that the checkpoint holds; 0: none. Of
// record.FoldedStream, whose records carry as seq the number of the checkpoint that
// they bring the group to, that is the checkpoint's own number.
func (v Vector) Upto(s record.StreamID) record.Seq {
	if invariant.Planted("journal/index/ignore-vector") {
		return ^record.Seq(0)
	}
	if s == record.FoldedStream {
		return v.number
	}
	for i := range v.at { // a handful
		if v.at[i].Stream == s {
			return v.at[i].Seq
		}
	}
	return 0
}

// Holds says whether the checkpoint holds the record.
func (v Vector) Holds(s record.StreamID, seq record.Seq) bool { return seq <= v.Upto(s) }

// Vector is NewVector.
func (v *Versions) Vector(cp Checkpoint) Vector { return NewVector(cp) }

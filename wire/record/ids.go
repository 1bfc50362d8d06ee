package record

import "fmt"

// The names of things on the wire and in the journal. They are distinct types so
// that one cannot be passed for another; zero is never a valid value of any.
type (
	// GroupID names a group, for all time and at both sites.
	GroupID uint64
	// StreamID names the records of one group from one source VRA to one target VRA.
	StreamID uint64
	// VolumeID names a volume within its group; it is never given out twice.
	VolumeID uint32
	// Epoch says which writer may append: a failover raises it.
	Epoch uint32
	// Incarnation is one life of a stream's source, from one loss of its window to the next.
	Incarnation uint32
	// Seq numbers the records of a stream; it grows by exactly one, from 1, through all incarnations.
	Seq uint64
	// Ticket is a write's place in the order of its group on one host; only
	// (incarnation, ticket) rises.
	Ticket uint64
)

// FoldedStream is the stream of all records that thinning made (KindFolded): no source
// has it. Their Seq is the number of the checkpoint that they bring the group to.
const FoldedStream = ^StreamID(0)

func (g GroupID) String() string  { return fmt.Sprintf("%016x", uint64(g)) }
func (s StreamID) String() string { return fmt.Sprintf("%016x", uint64(s)) }

// Identity is what makes a record itself: the same identity with other bytes is corruption.
type Identity struct {
	Stream      StreamID
	Epoch       Epoch
	Incarnation Incarnation
	Seq         Seq
}

func (id Identity) String() string {
	return fmt.Sprintf("%s/%d/%d/%d", id.Stream, id.Epoch, id.Incarnation, id.Seq)
}

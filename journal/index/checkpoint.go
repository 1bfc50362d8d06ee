package index

import "github.com/holdfast-dr/holdfast/wire/record"

// Checkpoint is a point in a group's order that the group can be brought back to.
type Checkpoint struct {
	Number  uint64 // rises within the group
	Time    record.Time
	Wall    int64 // the source's clock, ns since 1970; a label
	Tag     string
	State   State
	Reason  string        // why it is bad
	Pinned  bool          // kept, whatever its age
	Label   string        // of the pin; what the user says it is kept for
	Freeze  record.Freeze // of the guests, around its cut
	Volumes []record.VolumeSize
	At      []StreamAt // ordered by stream
}

// StreamAt says that a checkpoint holds the records of Stream up to Seq.
type StreamAt struct {
	Stream record.StreamID
	Seq    record.Seq
}

// State says whether a checkpoint may be trusted.
type State string

// The states of a checkpoint.
const (
	Good      State = "good"
	Verifying State = "verifying"
	Bad       State = "bad"
)

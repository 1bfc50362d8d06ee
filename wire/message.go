package wire

import "github.com/holdfast-dr/holdfast/wire/record"

// Limits of what a message may carry; more is refused by Send and is a protocol error from a peer.
const (
	MaxName    = 63   // bytes of a group's or volume's name
	MaxText    = 1024 // bytes of a reason
	MaxTag     = 256  // bytes of a checkpoint's tag
	MaxVolumes = 1024 // volumes of one group
)

// Message is one word on the control connection. The types of this file are all there are.
type Message interface {
	kind() frameType
	check() error
	encode(*encoder)
}

// OpenStream asks the target to take a stream's records; it answers Stand or Refused.
// Records of the stream may be sent only after a Stand.
type OpenStream struct {
	Group       record.GroupID
	GroupName   string
	Lineage     uint64
	Stream      record.StreamID
	Epoch       record.Epoch
	Incarnation record.Incarnation
	Acked       record.Seq // the highest seq the source has seen acknowledged; 0 for none
	Volumes     []Volume
}

// Volume is a volume of a group as its source knows it.
type Volume struct {
	ID    record.VolumeID
	Name  string
	Bytes int64
}

// Stand says where the target stands in a stream: what follows Durable may be sent.
type Stand struct {
	Stream      record.StreamID
	Durable     record.Seq         // 0 for none
	Incarnation record.Incarnation // of the newest record it has; 0 for none
	Epoch       record.Epoch
	NeedOpen    bool // the next record must open a resync
}

// Refused says that a stream is not taken, or no longer. The session goes on.
type Refused struct {
	Stream record.StreamID
	Code   Code
	Text   string
}

// CloseStream says that the source sends no more records of the stream in this session.
type CloseStream struct {
	Stream record.StreamID
}

// Durable acknowledges every record of the stream up to Seq.
type Durable struct {
	Stream record.StreamID
	Seq    record.Seq
}

// Listed says that a checkpoint is listed at the target.
type Listed struct {
	Group      record.GroupID
	Checkpoint uint64
	Wall       int64 // ns since 1970
	Tag        string
}

// Code says why a stream was refused or a session ended.
type Code uint16

// The codes. A peer may send others: they read as CodeOther does.
const (
	CodeOther      Code = 1 + iota // see the text
	CodeFenced                     // a higher epoch holds the stream: stand by
	CodeLineage                    // the histories differ
	CodeCorrupt                    // the same identity came with other bytes
	CodeGap                        // a seq is missing
	CodeStorage                    // the target cannot store
	CodeUnknown                    // the group is not taken here
	CodeVersion                    // no common version of the protocol
	CodeProtocol                   // the peer broke the protocol
	CodeSuperseded                 // a newer session of the same peer stands
	CodeStopping                   // the process ends in good order
	CodeBusy                       // too many sessions
)

package wire

import (
	"fmt"
	"unicode/utf8"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// Limits of what a message may carry; Send refuses more, and a peer that sends
// more breaks the protocol.
const (
	MaxName    = 63   // bytes of a name: [a-z0-9][a-z0-9._-]{0,62}
	MaxText    = 1024 // bytes of a reason; a longer one is cut by Send
	MaxTag     = record.MaxTag
	MaxVolumes = record.MaxVolumes
	MaxLacks   = 1024 // places in one Lacking
)

// Message is one word on the control connection. The types of this file and of compare.go are all there are.
type Message interface {
	kind() frameType
	since() uint16 // the first version of the protocol that has it
	check() error  // what both ends hold a message to
	appendTo(dst []byte) []byte
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
	Volumes     []Volume   // at least one, no id twice
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

// Fenced refuses a stream because its epoch is over: a failover has raised it. Granted says that the
// failover was rolled back and the source may go on in that epoch, with a new incarnation; else it
// stands by. Version 8; before it the same is Refused.
type Fenced struct {
	Stream  record.StreamID
	Epoch   record.Epoch // the one in force, not 0
	Granted bool
	Text    string
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

// Lacking says which places of a group's volumes the target cannot give back as they are
// now: what it holds of them is damaged. The source sends them again. Version 2.
type Lacking struct {
	Group  record.GroupID
	Places []Lack // at least one
}

// Lack is a part of a volume.
type Lack struct {
	Volume   record.VolumeID
	Off, Len int64
}

// Everywhere says that a checkpoint is listed at every target of its group: none of them
// needs to keep what only older ones hold.
type Everywhere struct {
	Group      record.GroupID
	Checkpoint uint64
}

// Code says why a stream was refused or a session ended.
type Code uint16

// The codes. A newer peer may send others, which mean what CodeOther means.
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
	CodeSuperseded                 // another session of the same peer stands
	CodeStopping                   // the process ends in good order
	CodeBusy                       // too many sessions
	CodeHeld                       // another session that is alive has the stream
)

func (c Code) String() string {
	names := [...]string{"", "other", "fenced", "lineage", "corrupt", "gap", "storage", "unknown",
		"version", "protocol", "superseded", "stopping", "busy", "held"}
	if c == 0 || int(c) >= len(names) {
		return fmt.Sprintf("code %d", uint16(c))
	}
	return names[c]
}

// decodeMessage takes apart the body of a frame of type t; nothing of p is kept.
func decodeMessage(t frameType, p []byte) (Message, error) {
	d := decoder{p: p}
	var m Message
	switch t {
	case typeOpenStream:
		m = decodeOpenStream(&d)
	case typeStand:
		m = &Stand{
			Stream: record.StreamID(d.u64()), Durable: record.Seq(d.u64()),
			Incarnation: record.Incarnation(d.u32()), Epoch: record.Epoch(d.u32()), NeedOpen: d.bool(),
		}
	case typeRefused:
		m = &Refused{Stream: record.StreamID(d.u64()), Code: Code(d.u16()), Text: d.string(MaxText)}
	case typeCloseStream:
		m = &CloseStream{Stream: record.StreamID(d.u64())}
	case typeDurable:
		m = &Durable{Stream: record.StreamID(d.u64()), Seq: record.Seq(d.u64())}
	case typeListed:
		m = &Listed{
			Group: record.GroupID(d.u64()), Checkpoint: d.u64(), Wall: int64(d.u64()), Tag: d.string(MaxTag),
		}
	case typeLacking:
		m = decodeLacking(&d)
	case typeEverywhere:
		m = &Everywhere{Group: record.GroupID(d.u64()), Checkpoint: d.u64()}
	case typeCompare:
		m = decodeCompare(&d)
	case typeSums:
		m = decodeSums(&d)
	case typeFenced:
		m = &Fenced{Stream: record.StreamID(d.u64()), Epoch: record.Epoch(d.u32()), Granted: d.bool(), Text: d.string(MaxText)}
	default:
		return nil, badFrame(BadType, "type %d on the control connection", t)
	}
	if err := d.end(fmt.Sprintf("%T", m)); err != nil {
		return nil, err
	}
	if err := m.check(); err != nil {
		return nil, badFrame(BadBody, "%w", err)
	}
	return m, nil
}

// volumeFixedBytes is a volume in an OpenStream, without its name.
const volumeFixedBytes = 4 + 8 + 2

func (m *OpenStream) kind() frameType { return typeOpenStream }
func (m *OpenStream) since() uint16   { return 1 }

func (m *OpenStream) appendTo(p []byte) []byte {
	p = putU64(p, uint64(m.Group))
	p = putU64(p, m.Lineage)
	p = putU64(p, uint64(m.Stream))
	p = putU32(p, uint32(m.Epoch))
	p = putU32(p, uint32(m.Incarnation))
	p = putU64(p, uint64(m.Acked))
	p = putString(p, m.GroupName)
	p = putU32(p, uint32(len(m.Volumes)))
	for _, v := range m.Volumes {
		p = putU32(p, uint32(v.ID))
		p = putU64(p, uint64(v.Bytes))
		p = putString(p, v.Name)
	}
	return p
}

func decodeOpenStream(d *decoder) *OpenStream {
	m := &OpenStream{
		Group: record.GroupID(d.u64()), Lineage: d.u64(), Stream: record.StreamID(d.u64()),
		Epoch: record.Epoch(d.u32()), Incarnation: record.Incarnation(d.u32()), Acked: record.Seq(d.u64()),
		GroupName: d.string(MaxName),
	}
	n := int(d.u32())
	// What the bytes cannot hold is not made room for.
	if n > MaxVolumes || n*volumeFixedBytes > len(d.p) {
		d.fail("more volumes than bytes")
		return m
	}
	m.Volumes = make([]Volume, n)
	for i := range m.Volumes {
		m.Volumes[i] = Volume{ID: record.VolumeID(d.u32()), Bytes: int64(d.u64()), Name: d.string(MaxName)}
	}
	return m
}

func (m *OpenStream) check() error {
	if m.Group == 0 || m.Stream == 0 || m.Lineage == 0 || m.Epoch == 0 || m.Incarnation == 0 {
		return fmt.Errorf("open stream %s: an id is zero", m.Stream)
	}
	if !validName(m.GroupName) {
		return fmt.Errorf("open stream %s: group name %q", m.Stream, m.GroupName)
	}
	if len(m.Volumes) == 0 || len(m.Volumes) > MaxVolumes {
		return fmt.Errorf("open stream %s: %d volumes", m.Stream, len(m.Volumes))
	}
	seen := make(map[record.VolumeID]bool, len(m.Volumes))
	for _, v := range m.Volumes {
		if v.ID == 0 || seen[v.ID] || !validName(v.Name) || v.Bytes <= 0 || v.Bytes > record.VolumeLimit {
			return fmt.Errorf("open stream %s: volume %d %q of %d bytes", m.Stream, v.ID, v.Name, v.Bytes)
		}
		seen[v.ID] = true
	}
	return nil
}

func (m *Stand) kind() frameType { return typeStand }
func (m *Stand) since() uint16   { return 1 }

func (m *Stand) appendTo(p []byte) []byte {
	p = putU64(p, uint64(m.Stream))
	p = putU64(p, uint64(m.Durable))
	p = putU32(p, uint32(m.Incarnation))
	p = putU32(p, uint32(m.Epoch))
	return putBool(p, m.NeedOpen)
}

func (m *Stand) check() error { return needIDs("stand", uint64(m.Stream)) }

func (m *Refused) kind() frameType { return typeRefused }
func (m *Refused) since() uint16   { return 1 }

func (m *Refused) appendTo(p []byte) []byte {
	return putString(putU16(putU64(p, uint64(m.Stream)), uint16(m.Code)), cutText(m.Text))
}

func (m *Refused) check() error { return needIDs("refused", uint64(m.Stream), uint64(m.Code)) }

func (m *Fenced) kind() frameType { return typeFenced }
func (m *Fenced) since() uint16   { return 8 }

func (m *Fenced) appendTo(p []byte) []byte {
	return putString(putBool(putU32(putU64(p, uint64(m.Stream)), uint32(m.Epoch)), m.Granted), cutText(m.Text))
}

func (m *Fenced) check() error { return needIDs("fenced", uint64(m.Stream), uint64(m.Epoch)) }

func (m *CloseStream) kind() frameType { return typeCloseStream }
func (m *CloseStream) since() uint16   { return 1 }

func (m *CloseStream) appendTo(p []byte) []byte { return putU64(p, uint64(m.Stream)) }

func (m *CloseStream) check() error { return needIDs("close stream", uint64(m.Stream)) }

func (m *Durable) kind() frameType { return typeDurable }
func (m *Durable) since() uint16   { return 1 }

func (m *Durable) appendTo(p []byte) []byte {
	return putU64(putU64(p, uint64(m.Stream)), uint64(m.Seq))
}

func (m *Durable) check() error { return needIDs("durable", uint64(m.Stream), uint64(m.Seq)) }

func (m *Listed) kind() frameType { return typeListed }
func (m *Listed) since() uint16   { return 1 }

func (m *Listed) appendTo(p []byte) []byte {
	p = putU64(putU64(p, uint64(m.Group)), m.Checkpoint)
	return putString(putU64(p, uint64(m.Wall)), m.Tag)
}

func (m *Listed) check() error {
	if len(m.Tag) > MaxTag || !utf8.ValidString(m.Tag) {
		return fmt.Errorf("listed: tag %.80q", m.Tag)
	}
	return needIDs("listed", uint64(m.Group), m.Checkpoint)
}

func (m *Everywhere) kind() frameType { return typeEverywhere }
func (m *Everywhere) since() uint16   { return 3 }

func (m *Everywhere) appendTo(p []byte) []byte {
	return putU64(putU64(p, uint64(m.Group)), m.Checkpoint)
}

func (m *Everywhere) check() error { return needIDs("everywhere", uint64(m.Group), m.Checkpoint) }

func (m *Lacking) kind() frameType { return typeLacking }
func (m *Lacking) since() uint16   { return 2 }

// lackBytes is a place in a Lacking.
const lackBytes = 4 + 8 + 8

func (m *Lacking) appendTo(p []byte) []byte {
	p = putU32(putU64(p, uint64(m.Group)), uint32(len(m.Places)))
	for _, l := range m.Places {
		p = putU64(putU64(putU32(p, uint32(l.Volume)), uint64(l.Off)), uint64(l.Len))
	}
	return p
}

func decodeLacking(d *decoder) *Lacking {
	m := &Lacking{Group: record.GroupID(d.u64())}
	n := int(d.u32())
	if n > MaxLacks || n*lackBytes > len(d.p) {
		d.fail("more places than bytes")
		return m
	}
	m.Places = make([]Lack, n)
	for i := range m.Places {
		m.Places[i] = Lack{record.VolumeID(d.u32()), int64(d.u64()), int64(d.u64())}
	}
	return m
}

func (m *Lacking) check() error {
	if len(m.Places) == 0 || len(m.Places) > MaxLacks {
		return fmt.Errorf("lacking: %d places", len(m.Places))
	}
	for _, l := range m.Places {
		if l.Volume == 0 || l.Off < 0 || l.Len <= 0 || l.Off > record.VolumeLimit-l.Len {
			return fmt.Errorf("lacking: volume %d, %d bytes at %d", l.Volume, l.Len, l.Off)
		}
	}
	return needIDs("lacking", uint64(m.Group))
}

func needIDs(what string, ids ...uint64) error {
	for _, id := range ids {
		if id == 0 {
			return fmt.Errorf("%s: an id is zero", what)
		}
	}
	return nil
}

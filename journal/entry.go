package journal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// entry is one fact in a group's manifest log. Which fields count depends on kind.
type entry struct {
	kind    entryKind
	lineage uint64          // group
	name    string          // group, volume
	volume  record.VolumeID // volume, disk; damaged, repaired: whose replica; 0: the log
	bytes   int64           // volume
	stream  record.StreamID // admitted, applied
	life    life            // admitted, applied; epoch: its epoch
	seq     record.Seq      // applied
	sum     uint32          // applied: the header checksum of record seq
	closed  bool            // applied: the initial sync is complete; from here on the log

	// number is, for bad, tag, pin, gone and promoted, the checkpoint; for abandoned the
	// segment, for folded the first of the old ones; for damaged and repaired where it begins.
	number uint64
	end    uint64 // abandoned: where the segment ends; damaged, repaired: where it ends; folded: the last old segment
	into   uint64 // folded: the new segment
	reason string // bad, damaged; tag: the text; pin: the label; policy, parity: what only its owner reads; disk: its path
	pinned bool   // pin
	first  int    // promoted: the place of at in the whole vector
	count  int    // promoted: the streams of the whole vector
	at     []index.StreamAt
	spans  []span // thinned

	failover failover.Failover
	ended    failover.Ended
	state    failover.State // plain: Passing or OnDisks
}

// entryKind says what an entry states.
type entryKind uint8

const (
	entryGroup     entryKind = 1 // the group's lineage and name
	entryVolume    entryKind = 2 // a volume, and that its replica exists
	entryEpoch     entryKind = 3 // no lower epoch may append
	entryAdmitted  entryKind = 4 // no older life of the stream may append
	entryApplied   entryKind = 5 // the replica holds the stream's initial sync up to seq
	entryBad       entryKind = 6 // a checkpoint cannot be restored whole; older releases wrote it
	entryAbandoned entryKind = 7 // a segment ends there, whatever lies beyond
	entryMark      entryKind = 8 // nothing: a witness of the entries before it
	entryDamaged   entryKind = 9 // a part of the log or of a replica is not what was written

	// Of version 2.
	entryTag      entryKind = 10 // a checkpoint's tag, whatever its cut said
	entryPin      entryKind = 11 // a checkpoint is kept, or not any more
	entryGone     entryKind = 12 // all checkpoints below it are gone
	entryPromoted entryKind = 13 // the replicas hold all of a checkpoint
	entryPolicy   entryKind = 14 // how long history is kept
	entryThinned  entryKind = 15 // between two checkpoints all that are not pinned are gone
	entryFolded   entryKind = 16 // segments became one
	entryRepaired entryKind = 17 // a part that was damaged is whole again
	entryParity   entryKind = 18 // how the group's files are protected

	// Of version 3.
	entryFailover entryKind = 19 // how far a live failover has come, and its epoch

	// Of version 4.
	entryReleased entryKind = 20 // the disks of the failover before it were given away
	entryDisk     entryKind = 21 // a volume's replica is a disk that stands elsewhere

	// Of version 5.
	entryEnded entryKind = 22 // a failover is over, or was given up before it began

	// Of version 6.
	entryPlain entryKind = 23 // the disks of the failover before it are plain

	// Of version 7.
	entryMoving entryKind = 24 // machines have begun to move onto those disks

	firstOfVersion2 = entryTag
	firstOfVersion3 = entryFailover
	firstOfVersion4 = entryReleased
	firstOfVersion5 = entryEnded
	firstOfVersion6 = entryPlain
	firstOfVersion7 = entryMoving
	lastKnown       = entryMoving
)

// version is that of the slots that hold such entries: a release that knows only the
// older kinds must refuse a newer one, and not take it for the torn end of the file.
func (k entryKind) version() byte {
	switch {
	case k >= firstOfVersion7:
		return 7
	case k >= firstOfVersion6:
		return 6
	case k >= firstOfVersion5:
		return 5
	case k >= firstOfVersion4:
		return 4
	case k >= firstOfVersion3:
		return 3
	case k >= firstOfVersion2:
		return 2
	}
	return 1
}

// known says whether this release reads such entries.
func (k entryKind) known() bool { return k != 0 && k <= lastKnown }

// The frame of an entry; see FORMAT.md. Entries begin at multiples of slotBytes, so
// that writing one never touches a sector that holds another.
const (
	manifestMagic = 0x314d4648 // "HFM1"
	slotBytes     = 512

	atMagic   = 0
	atVersion = 4
	atKind    = 5
	atLength  = 6
	atGroup   = 8
	atNumber  = 16
	atDurable = 24
	atPayload = 32

	maxPayload = slotBytes - atPayload - 4
	maxName    = 63
	maxReason  = 256 // bytes of a reason, tag or label
	maxOpaque  = maxPayload
	maxPath    = maxPayload - 4 // bytes of the path of a disk
	maxParts   = 28             // streams of a vector, or spans, in one entry
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frame is what stands around an entry.
type frame struct {
	group   record.GroupID
	number  uint64 // of the entry; rises by one through all files of the group
	durable uint64 // the number up to which entries were durable when this was written
}

// appendEntry appends the slot that holds e.
func appendEntry(dst []byte, f frame, e entry) []byte {
	start := len(dst)
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, manifestMagic)
	dst = append(dst, e.kind.version(), byte(e.kind), 0, 0)
	dst = le.AppendUint64(dst, uint64(f.group))
	dst = le.AppendUint64(dst, f.number)
	dst = le.AppendUint64(dst, f.durable)
	dst = appendPayload(dst, e)
	length := len(dst) - start - atPayload
	if length > maxPayload {
		panic(fmt.Sprintf("BUG: manifest entry of %d bytes", length))
	}
	le.PutUint16(dst[start+atLength:], uint16(length))
	dst = appendSum(dst, dst[start:])
	return append(dst, make([]byte, start+slotBytes-len(dst))...)
}

// appendSum appends the checksum of p.
func appendSum(dst, p []byte) []byte {
	return binary.LittleEndian.AppendUint32(dst, crc32.Checksum(p, castagnoli))
}

// parseEntry reads the slot p, whole. An error says that p is no valid entry of this
// group; ErrFormat that a newer release
// wrote it.
func parseEntry(p []byte, group record.GroupID) (frame, entry, error) {
	le := binary.LittleEndian
	if len(p) < slotBytes || le.Uint32(p[atMagic:]) != manifestMagic {
		return frame{}, entry{}, errNoEntry
	}
	length := int(le.Uint16(p[atLength:]))
	if length > maxPayload {
		return frame{}, entry{}, errNoEntry
	}
	end := atPayload + length
	if crc32.Checksum(p[:end], castagnoli) != le.Uint32(p[end:]) && !invariant.Planted("journal/manifest-no-crc") {
		return frame{}, entry{}, errNoEntry
	}
	kind := entryKind(p[atKind])
	if v := p[atVersion]; (!kind.known() || v != kind.version()) && !invariant.Planted("journal/manifest-unknown-kind") {
		return frame{}, entry{}, fmt.Errorf("manifest entry of kind %d in version %d, written by a newer release: %w", kind, v, ErrFormat)
	}
	f := frame{group: record.GroupID(le.Uint64(p[atGroup:])), number: le.Uint64(p[atNumber:]), durable: le.Uint64(p[atDurable:])}
	if f.group != group || f.number == 0 || f.durable >= f.number {
		return frame{}, entry{}, errNoEntry
	}
	for _, b := range p[end+4 : slotBytes] {
		if b != 0 {
			return frame{}, entry{}, errNoEntry
		}
	}
	e, ok := parsePayload(kind, p[atPayload:end])
	if !ok {
		return frame{}, entry{}, errNoEntry
	}
	return f, e, nil
}

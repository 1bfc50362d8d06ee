package journal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// entry is one fact in a group's manifest log. Which fields count depends on kind.
type entry struct {
	kind    entryKind
	lineage uint64          // group
	name    string          // group, volume
	volume  record.VolumeID // volume; damaged: whose replica; 0: the log
	bytes   int64           // volume
	stream  record.StreamID // admitted, applied
	life    life            // admitted, applied; epoch: its epoch
	seq     record.Seq      // applied
	sum     uint32          // applied: the header checksum of record seq
	closed  bool            // applied: the initial sync is complete; from here on the log
	number  uint64          // bad: the checkpoint; abandoned: the segment; damaged: where it begins
	reason  string          // bad, damaged
	end     uint64          // abandoned: where the segment ends; damaged: where it ends
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
)

// The frame of an entry; see FORMAT.md. Entries begin at multiples of slotBytes, so
// that writing one never touches a sector that holds another.
const (
	manifestMagic   = 0x314d4648 // "HFM1"
	manifestVersion = 1
	slotBytes       = 512

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
	maxReason  = 256
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
	dst = append(dst, manifestVersion, byte(e.kind), 0, 0)
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

func appendPayload(dst []byte, e entry) []byte {
	le := binary.LittleEndian
	appendLife := func() {
		dst = le.AppendUint64(dst, uint64(e.stream))
		dst = le.AppendUint32(dst, uint32(e.life.epoch))
		dst = le.AppendUint32(dst, uint32(e.life.inc))
	}
	switch e.kind {
	case entryGroup:
		dst = le.AppendUint64(dst, e.lineage)
		dst = append(dst, e.name...)
	case entryVolume:
		dst = le.AppendUint32(dst, uint32(e.volume))
		dst = le.AppendUint64(dst, uint64(e.bytes))
		dst = append(dst, e.name...)
	case entryEpoch:
		dst = le.AppendUint32(dst, uint32(e.life.epoch))
	case entryAdmitted:
		appendLife()
	case entryApplied:
		appendLife()
		dst = le.AppendUint64(dst, uint64(e.seq))
		dst = le.AppendUint32(dst, e.sum)
		closed := byte(1)
		if e.closed {
			closed = 2
		}
		dst = append(dst, closed)
	case entryBad:
		dst = le.AppendUint64(dst, e.number)
		dst = append(dst, e.reason...)
	case entryAbandoned:
		dst = le.AppendUint64(dst, e.number)
		dst = le.AppendUint64(dst, e.end)
	case entryDamaged:
		dst = le.AppendUint32(dst, uint32(e.volume))
		dst = le.AppendUint64(dst, e.number)
		dst = le.AppendUint64(dst, e.end)
		dst = append(dst, e.reason...)
	case entryMark:
	}
	return dst
}

// parseEntry reads the slot p, whole. An error says that p is no valid entry of this
// group; errEntryVersion that a newer version wrote it.
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
	if v := p[atVersion]; v != manifestVersion {
		return frame{}, entry{}, fmt.Errorf("manifest entry of version %d: %w", v, ErrFormat)
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
	e, ok := parsePayload(entryKind(p[atKind]), p[atPayload:end])
	if !ok {
		return frame{}, entry{}, errNoEntry
	}
	return f, e, nil
}

// parsePayload reads what appendPayload wrote.
func parsePayload(kind entryKind, p []byte) (entry, bool) {
	d := decoder{p: p}
	e := entry{kind: kind}
	readLife := func() {
		e.stream = record.StreamID(d.u64())
		e.life = life{record.Epoch(d.u32()), record.Incarnation(d.u32())}
		d.ok(e.stream != 0 && e.life.epoch != 0 && e.life.inc != 0)
	}
	switch kind {
	case entryGroup:
		e.lineage = d.u64()
		e.name = d.rest(maxName)
		d.ok(e.lineage != 0)
	case entryVolume:
		e.volume = record.VolumeID(d.u32())
		e.bytes = int64(d.u64())
		e.name = d.rest(maxName)
		d.ok(e.volume != 0 && e.bytes > 0 && e.bytes <= record.VolumeLimit)
	case entryEpoch:
		e.life.epoch = record.Epoch(d.u32())
		d.ok(e.life.epoch != 0)
	case entryAdmitted:
		readLife()
	case entryApplied:
		readLife()
		e.seq = record.Seq(d.u64())
		e.sum = d.u32()
		closed := d.u8()
		e.closed = closed == 2
		d.ok(e.seq != 0 && (closed == 1 || closed == 2))
	case entryBad:
		e.number = d.u64()
		e.reason = d.rest(maxReason)
		d.ok(e.number != 0)
	case entryAbandoned:
		e.number, e.end = d.u64(), d.u64()
		d.ok(e.number != 0)
	case entryDamaged:
		e.volume = record.VolumeID(d.u32())
		e.number, e.end = d.u64(), d.u64()
		e.reason = d.rest(maxReason)
		d.ok(e.end > e.number && e.end <= math.MaxInt64)
	case entryMark:
	default:
		return entry{}, false
	}
	return e, !d.bad && len(d.p) == 0
}

// decoder takes fields off p; after one that is not there, bad is set and all are zero.
type decoder struct {
	p   []byte
	bad bool
}

func (d *decoder) take(n int) []byte {
	if len(d.p) < n {
		d.bad, d.p = true, nil
		return make([]byte, n)
	}
	p := d.p[:n]
	d.p = d.p[n:]
	return p
}

func (d *decoder) u8() byte    { return d.take(1)[0] }
func (d *decoder) u32() uint32 { return binary.LittleEndian.Uint32(d.take(4)) }
func (d *decoder) u64() uint64 { return binary.LittleEndian.Uint64(d.take(8)) }

// rest takes all that is left, at most limit bytes.
func (d *decoder) rest(limit int) string {
	d.ok(len(d.p) <= limit)
	return string(d.take(len(d.p)))
}

func (d *decoder) ok(ok bool) { d.bad = d.bad || !ok }

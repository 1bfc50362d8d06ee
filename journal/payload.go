package journal

import (
	"encoding/binary"
	"math"
	"path"
	"time"

	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// appendPayload appends what e states, by its kind.
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
	case entryTag:
		dst = le.AppendUint64(dst, e.number)
		dst = append(dst, e.reason...)
	case entryPin:
		dst = le.AppendUint64(dst, e.number)
		pinned := byte(1)
		if e.pinned {
			pinned = 2
		}
		dst = append(append(dst, pinned), e.reason...)
	case entryGone:
		dst = le.AppendUint64(dst, e.number)
	case entryPromoted:
		dst = le.AppendUint64(dst, e.number)
		dst = le.AppendUint16(dst, uint16(e.count))
		dst = le.AppendUint16(dst, uint16(e.first))
		for _, a := range e.at {
			dst = le.AppendUint64(dst, uint64(a.Stream))
			dst = le.AppendUint64(dst, uint64(a.Seq))
		}
	case entryPolicy, entryParity:
		dst = append(dst, e.reason...)
	case entryThinned:
		for _, s := range e.spans {
			dst = le.AppendUint64(dst, s.lo)
			dst = le.AppendUint64(dst, s.hi)
		}
	case entryFolded:
		dst = le.AppendUint64(dst, e.number)
		dst = le.AppendUint64(dst, e.end)
		dst = le.AppendUint64(dst, e.into)
	case entryRepaired:
		dst = le.AppendUint32(dst, uint32(e.volume))
		dst = le.AppendUint64(dst, e.number)
		dst = le.AppendUint64(dst, e.end)
	case entryFailover:
		dst = appendFailover(dst, e.failover)
	case entryEnded:
		dst = append(dst, byte(e.ended.By))
		dst = le.AppendUint64(dst, uint64(e.ended.Wall))
		dst = le.AppendUint32(dst, e.ended.Machines)
		dst = append(dst, e.ended.ID...)
	case entryDisk:
		dst = le.AppendUint32(dst, uint32(e.volume))
		dst = append(dst, e.reason...)
	case entryPlain:
		dst = append(dst, byte(e.state))
	case entryReleased, entryMoving, entryMark:
	}
	return dst
}

// appendFailover appends what a failover is; its texts come last.
func appendFailover(dst []byte, f failover.Failover) []byte {
	le := binary.LittleEndian
	dst = append(dst, byte(f.State), byte(f.Then))
	dst = le.AppendUint32(dst, uint32(f.Epoch))
	for _, v := range [...]uint64{f.Checkpoint, f.View, uint64(f.Began), uint64(f.Timer), uint64(f.Left), uint64(f.At.Mono), uint64(f.At.Wall)} {
		dst = le.AppendUint64(dst, v)
	}
	dst = append(dst, f.At.Boot[:]...)
	dst = append(append(dst, byte(len(f.ID))), f.ID...)
	return append(dst, f.Note...)
}

// readFailover reads what appendFailover wrote.
func (d *decoder) readFailover() (f failover.Failover) {
	f.State, f.Then = failover.State(d.u8()), failover.End(d.u8())
	f.Epoch = record.Epoch(d.u32())
	f.Checkpoint, f.View, f.Began = d.u64(), d.u64(), int64(d.u64())
	f.Timer, f.Left = time.Duration(d.u64()), time.Duration(d.u64())
	f.At.Mono, f.At.Wall = time.Duration(d.u64()), int64(d.u64())
	copy(f.At.Boot[:], d.take(len(f.At.Boot)))
	f.ID = string(d.take(int(d.u8())))
	f.Note = d.rest(failover.MaxNote)
	d.ok(f.State > failover.None && f.State <= failover.Settled && (f.Then == failover.Rollback || f.Then == failover.Commit))
	d.ok(f.Epoch != 0 && f.Checkpoint != 0 && f.View != 0 && f.Timer >= 0 && f.Left >= 0 && f.Left <= f.Timer && f.ID != "" && len(f.ID) <= failover.MaxID)
	return f
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
	case entryTag:
		e.number = d.u64()
		e.reason = d.rest(maxReason)
		d.ok(e.number != 0)
	case entryPin:
		e.number = d.u64()
		pinned := d.u8()
		e.pinned = pinned == 2
		e.reason = d.rest(maxReason)
		d.ok(e.number != 0 && (e.pinned || pinned == 1 && e.reason == ""))
	case entryGone:
		e.number = d.u64()
		d.ok(e.number != 0)
	case entryPromoted:
		e.number, e.count, e.first = d.u64(), int(d.u16()), int(d.u16())
		n := len(d.p) / 16
		last := record.StreamID(0)
		for range n {
			a := index.StreamAt{Stream: record.StreamID(d.u64()), Seq: record.Seq(d.u64())}
			d.ok(a.Stream > last)
			last, e.at = a.Stream, append(e.at, a)
		}
		d.ok(e.number != 0 && n <= maxParts && e.first%maxParts == 0 && n == min(maxParts, e.count-e.first) && (n > 0 || e.count == 0))
	case entryPolicy, entryParity:
		e.reason = d.rest(maxOpaque)
		d.ok(len(e.reason) > 0 && e.reason[0] != 0 || kind == entryPolicy && e.reason == "")
	case entryThinned:
		n := len(d.p) / 16
		for range n {
			s := span{d.u64(), d.u64()}
			d.ok(s.hi > s.lo && s.hi-s.lo > 1)
			e.spans = append(e.spans, s)
		}
		d.ok(n > 0 && n <= maxParts)
	case entryFolded:
		e.number, e.end, e.into = d.u64(), d.u64(), d.u64()
		d.ok(e.number != 0 && e.end >= e.number && e.into != 0)
	case entryRepaired:
		e.volume = record.VolumeID(d.u32())
		e.number, e.end = d.u64(), d.u64()
		d.ok(e.end > e.number && e.end <= math.MaxInt64)
	case entryFailover:
		e.failover = d.readFailover()
	case entryEnded:
		e.ended = failover.Ended{By: failover.Ender(d.u8()), Wall: int64(d.u64()), Machines: d.u32()}
		e.ended.ID, d.p = string(d.p), nil
		d.bad = d.bad || e.ended.ID == "" || len(e.ended.ID) > failover.MaxID || e.ended.By < failover.ByWord || e.ended.By > failover.Succeeded
	case entryDisk:
		e.volume = record.VolumeID(d.u32())
		e.reason = d.rest(maxPath)
		d.ok(e.volume != 0 && path.IsAbs(e.reason))
	case entryPlain:
		e.state = failover.State(d.u8())
		d.ok(e.state == failover.Passing || e.state == failover.OnDisks)
	case entryReleased, entryMoving, entryMark:
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
func (d *decoder) u16() uint16 { return binary.LittleEndian.Uint16(d.take(2)) }
func (d *decoder) u32() uint32 { return binary.LittleEndian.Uint32(d.take(4)) }
func (d *decoder) u64() uint64 { return binary.LittleEndian.Uint64(d.take(8)) }

// rest takes all that is left, at most limit bytes.
func (d *decoder) rest(limit int) string {
	d.ok(len(d.p) <= limit)
	return string(d.take(len(d.p)))
}

func (d *decoder) ok(ok bool) { d.bad = d.bad || !ok }

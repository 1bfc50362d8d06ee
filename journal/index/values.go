package index

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// ErrCorrupt says that a value of the catalogue does not read. Opening the group again
// puts it right.
var ErrCorrupt = errors.New("corrupt value")

// Values begin with their version. See FORMAT.md.
const valueVersion = 1

// Limits of a checkpoint's value.
const (
	maxText    = 256 // bytes of tag, of reason
	maxStreams = 4096
)

var states = [...]State{1: Good, 2: Verifying, 3: Bad}

func appendCheckpoint(dst []byte, cp Checkpoint) []byte {
	le := binary.LittleEndian
	dst = append(dst, valueVersion, 0)
	for i, s := range states {
		if s == cp.State {
			dst[len(dst)-1] = byte(i)
		}
	}
	dst = le.AppendUint64(dst, uint64(cp.Time))
	dst = le.AppendUint64(dst, uint64(cp.Wall))
	dst = le.AppendUint16(dst, uint16(len(cp.Tag)))
	dst = append(dst, cp.Tag...)
	dst = le.AppendUint16(dst, uint16(len(cp.Reason)))
	dst = append(dst, cp.Reason...)
	dst = le.AppendUint16(dst, uint16(len(cp.Volumes)))
	for _, v := range cp.Volumes {
		dst = le.AppendUint32(dst, uint32(v.ID))
		dst = le.AppendUint64(dst, uint64(v.Bytes))
	}
	dst = le.AppendUint16(dst, uint16(len(cp.At)))
	for _, a := range cp.At {
		dst = le.AppendUint64(dst, uint64(a.Stream))
		dst = le.AppendUint64(dst, uint64(a.Seq))
	}
	return dst
}

func parseCheckpoint(p []byte, number uint64) (Checkpoint, error) {
	d := decoder{p: p}
	if v := d.u8(); v != valueVersion {
		return Checkpoint{}, fmt.Errorf("checkpoint %d: version %d: %w", number, v, ErrCorrupt)
	}
	cp := Checkpoint{Number: number}
	if s := int(d.u8()); s > 0 && s < len(states) {
		cp.State = states[s]
	} else {
		d.bad = true
	}
	cp.Time, cp.Wall = record.Time(d.u64()), int64(d.u64())
	cp.Tag, cp.Reason = d.text(), d.text()
	if n := d.count(record.MaxVolumes, 12); n > 0 {
		cp.Volumes = make([]record.VolumeSize, n)
		for i := range cp.Volumes {
			cp.Volumes[i] = record.VolumeSize{ID: record.VolumeID(d.u32()), Bytes: int64(d.u64())}
		}
	}
	if n := d.count(maxStreams, 16); n > 0 {
		cp.At = make([]StreamAt, n)
		for i := range cp.At {
			cp.At[i] = StreamAt{Stream: record.StreamID(d.u64()), Seq: record.Seq(d.u64())}
		}
	}
	if d.bad || len(d.p) != 0 || number == 0 {
		return Checkpoint{}, fmt.Errorf("checkpoint %d: %w", number, ErrCorrupt)
	}
	return cp, nil
}

func appendSegment(dst []byte, s segment.Info) []byte {
	le := binary.LittleEndian
	dst = append(dst, valueVersion, byte(s.State))
	dst = le.AppendUint64(dst, uint64(s.First))
	dst = le.AppendUint64(dst, uint64(s.End))
	return le.AppendUint32(dst, uint32(s.Records))
}

func parseSegment(p []byte, number uint64) (segment.Info, error) {
	d := decoder{p: p}
	version := d.u8()
	s := segment.Info{Number: number, State: segment.State(d.u8()), First: segment.Pos(d.u64()), End: segment.Pos(d.u64()), Records: int(d.u32())}
	if d.bad || len(d.p) != 0 || version != valueVersion || s.First < 0 || s.End < s.First || s.Records > math.MaxInt32 {
		return segment.Info{}, fmt.Errorf("segment %d: %w", number, ErrCorrupt)
	}
	return s, nil
}

// decoder takes fields off p; after one that is not there, bad is set and all are zero.
type decoder struct {
	p   []byte
	bad bool
}

func (d *decoder) take(n int) []byte {
	if len(d.p) < n {
		d.bad, d.p = true, nil
		return nil
	}
	p := d.p[:n]
	d.p = d.p[n:]
	return p
}

func (d *decoder) uint(n int) (v uint64) {
	for i, b := range d.take(n) {
		v |= uint64(b) << (8 * i)
	}
	return v
}

func (d *decoder) u8() byte    { return byte(d.uint(1)) }
func (d *decoder) u32() uint32 { return uint32(d.uint(4)) }
func (d *decoder) u64() uint64 { return d.uint(8) }

func (d *decoder) text() string {
	n := int(d.uint(2))
	d.bad = d.bad || n > maxText
	if d.bad {
		return ""
	}
	return string(d.take(n))
}

// count takes the number of things of so many bytes each, which must all be there.
func (d *decoder) count(limit, each int) int {
	n := int(d.uint(2))
	if n > limit || n*each > len(d.p) {
		d.bad = true
		return 0
	}
	return n
}

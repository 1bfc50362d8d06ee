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
const (
	valueVersion  = 1
	pinnedVersion = 2 // of a checkpoint that is pinned: it has a label too
	freezeVersion = 3 // of one whose guests were asked to come to rest: pinned u8 and freeze u8 follow the state
)

// Limits of a checkpoint's value.
const (
	maxText    = 256 // bytes of tag, of reason
	maxStreams = 4096
)

var states = [...]State{1: Good, 2: Verifying, 3: Bad}

func appendCheckpoint(dst []byte, cp Checkpoint) []byte {
	le := binary.LittleEndian
	dst = append(dst, valueVersion, 0)
	if cp.Pinned {
		dst[len(dst)-2] = pinnedVersion
	}
	for i, s := range states {
		if s == cp.State {
			dst[len(dst)-1] = byte(i)
		}
	}
	if cp.Freeze != record.NotAsked {
		dst[len(dst)-2] = freezeVersion
		pinned := byte(0)
		if cp.Pinned {
			pinned = 1
		}
		dst = append(dst, pinned, byte(cp.Freeze))
	}
	dst = le.AppendUint64(dst, uint64(cp.Time))
	dst = le.AppendUint64(dst, uint64(cp.Wall))
	dst = le.AppendUint16(dst, uint16(len(cp.Tag)))
	dst = append(dst, cp.Tag...)
	dst = le.AppendUint16(dst, uint16(len(cp.Reason)))
	dst = append(dst, cp.Reason...)
	if cp.Pinned {
		dst = le.AppendUint16(dst, uint16(len(cp.Label)))
		dst = append(dst, cp.Label...)
	}
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
	version := d.u8()
	if version != valueVersion && version != pinnedVersion && version != freezeVersion {
		return Checkpoint{}, fmt.Errorf("checkpoint %d: version %d: %w", number, version, ErrCorrupt)
	}
	cp := Checkpoint{Number: number, Pinned: version == pinnedVersion}
	if s := int(d.u8()); s > 0 && s < len(states) {
		cp.State = states[s]
	} else {
		d.bad = true
	}
	if version == freezeVersion {
		pinned, freeze := d.u8(), record.Freeze(d.u8())
		cp.Pinned, cp.Freeze = pinned == 1, freeze
		d.bad = d.bad || pinned > 1 || freeze != record.Frozen && freeze != record.FreezeFailed
	}
	cp.Time, cp.Wall = record.Time(d.u64()), int64(d.u64())
	cp.Tag, cp.Reason = d.text(), d.text()
	if cp.Pinned {
		cp.Label = d.text()
	}
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

// Marker says how much of a group the catalogue tells: all that the log held below Pos,
// of the segment and its life that Pos lies in.
type Marker struct {
	Pos     segment.Pos
	Segment uint64
	Life    uint64
}

func appendMarker(dst []byte, m Marker) []byte {
	le := binary.LittleEndian
	dst = append(dst, valueVersion)
	dst = le.AppendUint64(dst, uint64(m.Pos))
	dst = le.AppendUint64(dst, m.Segment)
	return le.AppendUint64(dst, m.Life)
}

func parseMarker(p []byte) (Marker, error) {
	d := decoder{p: p}
	version := d.u8()
	m := Marker{Pos: segment.Pos(d.u64()), Segment: d.u64(), Life: d.u64()}
	if d.bad || len(d.p) != 0 || version != valueVersion || m.Pos < 0 {
		return Marker{}, fmt.Errorf("marker: %w", ErrCorrupt)
	}
	return m, nil
}

// Counts are how many checkpoints of a group there are, by what they are.
type Counts struct {
	Good, Verifying, Bad int
	Tagged, Pinned       int // of all those
}

// Total is how many checkpoints there are.
func (c Counts) Total() int { return c.Good + c.Verifying + c.Bad }

// traits are what a checkpoint is counted by.
type traits struct {
	state          State
	tagged, pinned bool
}

func (cp *Checkpoint) traits() traits { return traits{cp.State, cp.Tag != "", cp.Pinned} }

// special says whether a list of few may be asked for such checkpoints.
func (t traits) special() bool { return t.state != Good || t.tagged || t.pinned }

// add counts a checkpoint, or with -1 takes it away.
func (c *Counts) add(t traits, n int) {
	switch t.state {
	case Good:
		c.Good += n
	case Verifying:
		c.Verifying += n
	case Bad:
		c.Bad += n
	}
	if t.tagged {
		c.Tagged += n
	}
	if t.pinned {
		c.Pinned += n
	}
}

func appendCounts(dst []byte, c Counts) []byte {
	dst = append(dst, valueVersion)
	for _, n := range []int{c.Good, c.Verifying, c.Bad, c.Tagged, c.Pinned} {
		dst = binary.LittleEndian.AppendUint64(dst, uint64(n))
	}
	return dst
}

func parseCounts(p []byte) (Counts, error) {
	d := decoder{p: p}
	version := d.u8()
	var c Counts
	for _, n := range []*int{&c.Good, &c.Verifying, &c.Bad, &c.Tagged, &c.Pinned} {
		*n = int(d.u64())
		d.bad = d.bad || *n < 0 || *n > math.MaxInt64/4
	}
	if d.bad || len(d.p) != 0 || version != valueVersion || c.Tagged > c.Total() || c.Pinned > c.Total() {
		return Counts{}, fmt.Errorf("counts: %w", ErrCorrupt)
	}
	return c, nil
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

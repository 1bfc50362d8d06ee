package wire

import (
	"bytes"
	"fmt"

	"github.com/holdfast-dr/holdfast/wire/delta"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Compare asks a target for sums of what it holds of a volume, so that only what differs
// need be sent. Version 7.
type Compare struct {
	Stream record.StreamID
	// After is a record that the target has acknowledged: the sums are of what all records up to
	// it made of the volume, at least.
	After record.Seq
	delta.Ask
}

// Sums answers a Compare; answers come in the order of the questions. A sum of zeros is of what
// the target cannot read, or does not have.
type Sums struct {
	Stream record.StreamID
	After  record.Seq // the question's
	delta.Ask
	Sums []byte
}

const (
	compareBytes = 8 + 8 + 4 + 1 + 8 + 2
	maxSums      = 16 << 10
)

func putAsk(p []byte, a delta.Ask) []byte {
	p = append(putU32(p, uint32(a.Volume)), byte(a.Level))
	return putU16(putU64(p, uint64(a.First)), uint16(a.Count))
}

func decodeAsk(d *decoder) delta.Ask {
	a := delta.Ask{Volume: record.VolumeID(d.u32())}
	if p := d.take(1); p != nil {
		a.Level = delta.Level(p[0])
	}
	a.First, a.Count = int64(d.u64()), int(d.u16())
	return a
}

func (m *Compare) kind() frameType { return typeCompare }
func (m *Compare) since() uint16   { return 7 }

func (m *Compare) appendTo(p []byte) []byte {
	return putAsk(putU64(putU64(p, uint64(m.Stream)), uint64(m.After)), m.Ask)
}

func decodeCompare(d *decoder) *Compare {
	return &Compare{Stream: record.StreamID(d.u64()), After: record.Seq(d.u64()), Ask: decodeAsk(d)}
}

func (m *Compare) check() error {
	if err := m.Ask.Check(); err != nil {
		return fmt.Errorf("compare: %w", err)
	}
	return needIDs("compare", uint64(m.Stream), uint64(m.After))
}

func (m *Sums) kind() frameType { return typeSums }
func (m *Sums) since() uint16   { return 7 }

func (m *Sums) appendTo(p []byte) []byte {
	return append(putAsk(putU64(putU64(p, uint64(m.Stream)), uint64(m.After)), m.Ask), m.Sums...)
}

func decodeSums(d *decoder) *Sums {
	m := &Sums{Stream: record.StreamID(d.u64()), After: record.Seq(d.u64()), Ask: decodeAsk(d)}
	if d.bad == "" && m.Ask.Check() == nil {
		m.Sums = bytes.Clone(d.take(m.AnswerBytes()))
	}
	return m
}

func (m *Sums) check() error {
	if err := m.Ask.Check(); err != nil {
		return fmt.Errorf("sums: %w", err)
	}
	if len(m.Sums) != m.AnswerBytes() {
		return fmt.Errorf("sums: %d bytes, not %d", len(m.Sums), m.AnswerBytes())
	}
	return needIDs("sums", uint64(m.Stream), uint64(m.After))
}

// Package dirty plans how what the target lacks is read and sent: a pass over the
// dirty maps of a group's volumes, and how long that will take. It is pure; the
// maps themselves are the filter's, who alone sets and clears marks.
//
// A pass asks for the dirty extents a page at a time and yields reads, cut at
// multiples of the read size, volume after volume, each in rising order. It never
// goes back: what becomes dirty behind it is the next pass's. It holds one page.
// A read of a pass of NewPass is dirty from end to end; that of one of NewSweep begins and ends with what is, and
// stands for all that is dirty between: where guests wrote here and there each read costs more than what it brings.
package dirty

import (
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Extent is a range of a volume, in bytes.
type Extent struct {
	Volume   record.VolumeID
	Off, Len int64
}

// Kind is what a pass wants next.
type Kind uint8

// The kinds of step.
const (
	Over Kind = iota // nothing is left to read in this pass
	Ask              // tell the dirty extents of Volume from Off on
	Read             // read what is dirty in the extent
)

// Step is what a pass wants next.
type Step struct {
	Kind Kind
	Extent
	Dirty int64 // bytes of a read that were told as dirty
}

// Pass walks the dirty maps once. It is not for concurrent use.
type Pass struct {
	readBytes int64
	sweep     bool
	volumes   []record.VolumeID
	from      int64    // in volumes[0]: what lies below was asked for
	page      []Extent // told and not yet read
	asked     bool
}

// NewPass returns a pass over the volumes; no read is longer than readBytes.
func NewPass(volumes []record.VolumeID, readBytes int64) *Pass {
	if readBytes <= 0 {
		panic(fmt.Sprintf("BUG: dirty: reads of %d bytes", readBytes))
	}
	return &Pass{readBytes: readBytes, volumes: volumes}
}

// NewSweep returns a pass over the volumes whose reads take in all that is told together between two multiples of readBytes.
func NewSweep(volumes []record.VolumeID, readBytes int64) *Pass {
	p := NewPass(volumes, readBytes)
	p.sweep = true
	return p
}

// Next returns the next step. After Ask comes Told, with nothing between.
func (p *Pass) Next() Step {
	if p.asked {
		panic("BUG: dirty: a question is open")
	}
	switch {
	case len(p.page) > 0:
		return p.read()
	case len(p.volumes) > 0:
		p.asked = true
		return Step{Kind: Ask, Extent: Extent{Volume: p.volumes[0], Off: p.from}}
	}
	return Step{Kind: Over}
}

// read takes the next read off the page.
func (p *Pass) read() Step {
	e := p.cut()
	s := Step{Read, e, e.Len}
	for cell := e.Off / p.readBytes; p.sweep && len(p.page) > 0 && p.page[0].Off/p.readBytes == cell; {
		e = p.cut()
		s.Len = e.Off + e.Len - s.Off
		s.Dirty += e.Len
		if invariant.Planted("dirty/sweep-short") {
			s.Len = e.Len
		}
	}
	return s
}

// cut takes the next extent off the page, or as much of it as a read may be of.
func (p *Pass) cut() Extent {
	e := &p.page[0]
	n := min(e.Len, p.readBytes-e.Off%p.readBytes)
	if invariant.Planted("dirty/skip-the-rest") {
		n = e.Len
	}
	read := Extent{e.Volume, e.Off, min(n, p.readBytes)}
	e.Off, e.Len = e.Off+n, e.Len-n
	if e.Len == 0 {
		p.page = p.page[1:]
	}
	return read
}

// Told answers Ask: dirty extents at or above the place asked for, rising and
// apart, as many as the teller likes; none means that none are left there. The
// answer comes from another process: a wrong one is an error.
func (p *Pass) Told(page []Extent) error {
	p.asked = false
	if len(page) == 0 {
		p.volumes, p.from = p.volumes[1:], 0
		return nil
	}
	at := p.from
	for _, e := range page {
		if e.Volume != p.volumes[0] || e.Off < at || e.Len <= 0 || e.Off+e.Len < e.Off {
			return fmt.Errorf("dirty extents of volume %d from %d: %+v is out of place", p.volumes[0], p.from, e)
		}
		at = e.Off + e.Len
	}
	p.page, p.from = page, at
	if invariant.Planted("dirty/one-page") {
		p.volumes, p.from = p.volumes[1:], 0
	}
	return nil
}

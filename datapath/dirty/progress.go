package dirty

import (
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Progress follows one synchronisation in bytes of disk, holes included. Its total
// is what was dirty when it began and what became dirty since; done is what was
// read and is durable at the target. Both only rise, but that the total comes to
// what was read once nothing is dirty any more. The zero value has not begun.
//
// Two things tell what is durable, neither ever too much: the records acknowledged,
// which lack what a read left to a guest's write, and tickets looked at now and then.
//
// read is the filters' count of bytes read for synchronisation, which only rises.
type Progress struct {
	base        uint64 // read, when it began
	total, done int64
	samples     []sample // not durable yet, rising
}

// sample says that everything read by then has a ticket up to this one.
type sample struct {
	read   int64
	ticket record.Ticket
}

// samplesMost bounds the memory; beyond it the newest is replaced.
const samplesMost = 256

// Begin starts anew.
func (p *Progress) Begin(read uint64) { *p = Progress{base: read, samples: p.samples[:0]} }

// Left takes what is dirty; read was read before that was asked, so that nothing is counted twice.
func (p *Progress) Left(read uint64, left int64) {
	n := int64(read - p.base)
	if left == 0 {
		p.total = n // what guests had under way may have been counted too
		return
	}
	p.total = max(p.total, n+left)
}

// Read takes a ticket that was looked at after read was.
func (p *Progress) Read(read uint64, ticket record.Ticket) {
	s, n := sample{int64(read - p.base), ticket}, len(p.samples)
	if invariant.Planted("dirty/done-when-read") {
		p.done = s.read
	}
	switch {
	case n == 0 && s.read <= p.done || n > 0 && s.read <= p.samples[n-1].read:
	case n == samplesMost:
		p.samples[n-1] = s
	default:
		p.samples = append(p.samples, s)
	}
}

// Acked says that records with so many bytes of this synchronisation are durable.
func (p *Progress) Acked(n int64) { p.done = max(p.done, n) }

// Durable says that everything with a ticket up to this one is durable at the target.
func (p *Progress) Durable(ticket record.Ticket) {
	n := 0
	for n < len(p.samples) && p.samples[n].ticket <= ticket {
		p.done = max(p.done, p.samples[n].read)
		n++
	}
	p.samples = append(p.samples[:0], p.samples[n:]...)
}

// Total is how much there is to do.
func (p *Progress) Total() int64 { return p.total }

// Done is how much of it is durable at the target.
func (p *Progress) Done() int64 { return min(p.done, p.total) }

package datapath

import (
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// slab is memory for one sealed record, of a power of two. The garbage collector
// takes back what a window no longer needs after a long outage.
type slab struct {
	p    []byte // the record; its capacity is the slab's
	home *sync.Pool
	out  atomic.Bool
}

// slabs are pools by size: 4 KiB, 8 KiB, ... 8 MiB, which holds the largest record.
type slabs [slabClasses]sync.Pool

const (
	slabMinBits = 12
	slabClasses = 12
)

// get gives a slab of at least n bytes, empty.
func (s *slabs) get(n int) *slab {
	class := max(0, bits.Len(uint(max(n, 1)-1))-slabMinBits)
	if class >= slabClasses {
		panic("BUG: a record larger than the largest slab")
	}
	b, _ := s[class].Get().(*slab)
	if b == nil {
		b = &slab{p: make([]byte, 0, 1<<(class+slabMinBits)), home: &s[class]}
	}
	b.p = b.p[:0]
	b.out.Store(true)
	return b
}

// fit gives the record in b, moved to a smaller slab where that saves half; it takes b.
func (s *slabs) fit(b *slab) *slab {
	if len(b.p) > cap(b.p)/2 || cap(b.p) == 1<<slabMinBits {
		return b
	}
	small := s.get(len(b.p))
	small.p = append(small.p, b.p...)
	b.Release()
	return small
}

// Bytes implements spill.Buffer.
func (b *slab) Bytes() []byte { return b.p }

// Held implements spill.Buffer.
func (b *slab) Held() int64 { return int64(cap(b.p)) }

// Release implements spill.Buffer.
func (b *slab) Release() {
	if !b.out.CompareAndSwap(true, false) {
		panic("BUG: a record's memory was released twice")
	}
	if invariant.Enabled {
		p := b.p[:cap(b.p)]
		for i := range p {
			p[i] = 0xCC
		}
	}
	b.home.Put(b)
}

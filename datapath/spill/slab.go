package spill

import (
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Slab is memory for one sealed record, of a power of two: of the heap, where the garbage collector takes back what a
// window no longer needs after a long outage, or of a file that outlives the process.
type Slab struct {
	P     []byte // the record; it is made where this begins, with the room that its capacity tells
	whole []byte // with the header before it, where it is of a file; nil: of the heap
	class int
	index int64 // of its class in the file
	told  bool  // the header says which record stands in it
	home  *Slabs
	out   atomic.Bool
}

// Slabs are those of one group, by size: 4 KiB, 8 KiB, ... 8 MiB, which holds the largest record. The zero value has
// those of the heap alone.
type Slabs struct {
	heap [slabClasses]sync.Pool
	kept *Kept // nil for none
}

const (
	slabMinBits = 12
	slabClasses = 12
	slabHead    = 64 // bytes of the header of one in a file
)

// KeepIn has records stand in the file from now on, as far as it has room.
func (s *Slabs) KeepIn(k *Kept) { s.kept = k }

// Get gives a slab of at least n bytes, empty.
func (s *Slabs) Get(n int) *Slab {
	if s.kept != nil {
		if b := s.kept.get(classOf(n + slabHead)); b != nil {
			return b.begin(s)
		}
	}
	class := classOf(n)
	b, _ := s.heap[class].Get().(*Slab)
	if b == nil {
		b = &Slab{P: make([]byte, 0, 1<<(class+slabMinBits)), class: class}
	}
	return b.begin(s)
}

func (b *Slab) begin(home *Slabs) *Slab {
	b.P, b.home = b.P[:0], home
	b.out.Store(true)
	return b
}

func classOf(n int) int {
	class := max(0, bits.Len(uint(max(n, 1)-1))-slabMinBits)
	if class >= slabClasses {
		panic("BUG: a record larger than the largest slab")
	}
	return class
}

// Fit gives the record in b, moved to a smaller slab where that saves half; it takes b.
func (s *Slabs) Fit(b *Slab) *Slab {
	if classOf(len(b.P)+slabHead) >= b.class {
		return b
	}
	small := s.Get(len(b.P))
	small.P = append(small.P, b.P...)
	b.Release()
	return small
}

// Bytes implements Buffer.
func (b *Slab) Bytes() []byte { return b.P }

// Held implements Buffer.
func (b *Slab) Held() int64 { return 1 << (b.class + slabMinBits) }

// Release implements Buffer.
func (b *Slab) Release() {
	if !b.out.CompareAndSwap(true, false) {
		panic("BUG: a record's memory was released twice")
	}
	if invariant.Enabled {
		p := b.P[:cap(b.P)]
		for i := range p {
			p[i] = 0xCC
		}
	}
	if b.whole != nil {
		b.home.kept.put(b)
		return
	}
	b.home.heap[b.class].Put(b)
}

// Package buf holds the buffers that bulk data lives in: aligned for direct I/O,
// pooled, and each with one owner at a time.
//
// Whoever gets a Buf owns it until it gives it away or releases it. Release panics
// the second time; under the tag invariants it also fills the memory with 0xCC, so
// that a late reader sees rubbish and not the next owner's data.
//
// A pool's memory is bytes times count, allocated when first needed and kept; that of large
// buffers is in huge pages where the system gives them.
package buf

import (
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Align is what the address of every buffer is a multiple of, and every pool's
// buffer size too: no file asks for more.
const Align = 4096

// Aligned returns n zero bytes whose address is a multiple of Align. It is for
// buffers that live as long as their owner; what comes and goes is from a Pool.
func Aligned(n int) []byte {
	b := make([]byte, n+Align-1)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (Align - 1))
	return b[skip : skip+n : skip+n]
}

// Row returns count buffers as Aligned does, of n bytes (raised to a multiple of Align) each,
// which lie in a row in huge pages where the system gives them: direct I/O pins and maps
// one page then instead of hundreds, at a third to two thirds of the CPU. It takes up to
// 4 MiB more of address space, and is for what is written or read a quarter of a
// megabyte or more at once.
func Row(n, count int) [][]byte {
	n = RoundUp(n)
	size := (n*count + hugeBytes - 1) &^ (hugeBytes - 1)
	b := make([]byte, size+hugeBytes-1)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (hugeBytes - 1))
	b = b[skip : skip+size]
	adviseHuge(b)
	row := make([][]byte, count)
	for i := range row {
		row[i] = b[i*n : (i+1)*n : (i+1)*n]
	}
	return row
}

// hugeBytes is the size of a huge page, and what its address is a multiple of.
const hugeBytes = 2 << 20

// RoundUp returns n, raised to a multiple of Align.
func RoundUp(n int) int { return (n + Align - 1) &^ (Align - 1) }

// IsAligned says whether p begins at a multiple of align, a power of two.
func IsAligned(p []byte, align int) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(p)))&uintptr(align-1) == 0
}

// Pool gives out buffers of one size. All methods may be called concurrently.
type Pool struct {
	bytes, count int

	mu   sync.Mutex
	home sync.Cond // a buffer came home
	free []*Buf    // last in, first out: the warmest goes first
	made int
	row  [][]byte // memory of buffers that were not made yet
}

// NewPool returns a pool of at most count buffers of bytes each (raised to a
// multiple of Align). A count of 0 sets no limit.
func NewPool(bytes, count int) *Pool {
	if bytes <= 0 || count < 0 {
		panic(fmt.Sprintf("BUG: pool of %d buffers of %d bytes", count, bytes))
	}
	p := &Pool{bytes: RoundUp(bytes), count: count}
	p.home.L = &p.mu
	return p
}

// Get gives a buffer, at its full length and with any content. It waits while all are out.
func (p *Pool) Get() *Buf {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if b, ok := p.takeLocked(); ok {
			return b
		}
		p.home.Wait()
	}
}

// TryGet is Get, but never waits: ok is false when all are out.
func (p *Pool) TryGet() (b *Buf, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.takeLocked()
}

func (p *Pool) takeLocked() (*Buf, bool) {
	if last := len(p.free) - 1; last >= 0 {
		b := p.free[last]
		p.free = p.free[:last]
		if !invariant.Planted("ioengine/buf/short") {
			b.len = len(b.mem)
		}
		b.out.Store(true)
		return b, true
	}
	if p.count > 0 && p.made == p.count && !invariant.Planted("ioengine/buf/unbounded") {
		return nil, false
	}
	p.made++
	b := &Buf{pool: p, mem: p.memoryLocked(), len: p.bytes}
	b.out.Store(true)
	return b, true
}

// memoryLocked returns the memory of one more buffer: of large ones out of a row.
func (p *Pool) memoryLocked() []byte {
	if p.bytes < rowFrom {
		return Aligned(p.bytes)
	}
	if len(p.row) == 0 {
		n := max(1, rowBytes/p.bytes)
		if p.count > 0 {
			n = min(n, p.count-p.made+1)
		}
		p.row = Row(p.bytes, n)
	}
	mem := p.row[0]
	p.row = p.row[1:]
	return mem
}

// Buffers of rowFrom bytes on are made in rows of about rowBytes.
const (
	rowFrom  = 64 << 10
	rowBytes = 8 << 20
)

// Out returns how many buffers are not at home.
func (p *Pool) Out() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.made - len(p.free)
}

// Bytes returns the size of each buffer.
func (p *Pool) Bytes() int { return p.bytes }

// Buf is one buffer. Its methods are for its owner alone.
type Buf struct {
	pool *Pool
	mem  []byte
	len  int
	out  atomic.Bool
}

// Bytes returns the buffer's content: the first Len bytes of its memory. It must
// not be used after the buffer was given away.
func (b *Buf) Bytes() []byte { return b.mem[:b.len] }

// SetLen sets how much of the memory is content, at most Cap.
func (b *Buf) SetLen(n int) {
	if n < 0 || n > len(b.mem) {
		panic(fmt.Sprintf("BUG: length %d in a buffer of %d", n, len(b.mem)))
	}
	b.len = n
}

// Len returns how much of the memory is content.
func (b *Buf) Len() int { return b.len }

// Cap returns the size of the memory.
func (b *Buf) Cap() int { return len(b.mem) }

// Release gives the buffer back to its pool. The owner must not touch it again.
func (b *Buf) Release() {
	if !b.out.CompareAndSwap(true, false) && !invariant.Planted("ioengine/buf/release-twice") {
		panic("BUG: buffer released twice")
	}
	if invariant.Enabled {
		for i := range b.mem {
			b.mem[i] = 0xCC
		}
	}
	p := b.pool
	p.mu.Lock()
	p.free = append(p.free, b)
	p.mu.Unlock()
	p.home.Signal()
}

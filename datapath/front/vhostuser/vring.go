package vhostuser

import (
	"fmt"
	"sync/atomic"
	"unsafe"
)

// vring is a split queue in the guest's memory, as the device uses it. It is for one user
// at a time, but for pop, which may run beside the others.
//
//	avail: flags u16, index u16, heads [size]u16, used event u16
//	used:  flags u16, index u16, [size]{head u32, written u32}, avail event u16
type vring struct {
	size        uint32
	desc        []byte
	avail, used []byte
	eventIdx    bool

	lastAvail uint16 // of the requests that were taken
	usedIdx   uint16 // of those that were answered
	told      uint16 // usedIdx when the guest was last told
}

const (
	atFlags = 0
	atIndex = 2
	atRing  = 4

	usedBytes = 8

	availNoInterrupt = 1
)

// newVring finds the queue's parts in the memory.
func newVring(m *memory, size uint32, a vringAddr, eventIdx bool) (*vring, error) {
	if size == 0 || size > maxQueueSize || size&(size-1) != 0 {
		return nil, fmt.Errorf("%w: queue of %d entries, want a power of two up to %d", ErrProtocol, size, maxQueueSize)
	}
	r := &vring{size: size, eventIdx: eventIdx}
	r.desc = m.user(a.desc, size*descBytes)
	r.avail = m.user(a.avail, atRing+2*size+2)
	r.used = m.user(a.used, atRing+usedBytes*size+2)
	if r.desc == nil || r.avail == nil || r.used == nil {
		return nil, fmt.Errorf("%w: queue at %#x, %#x, %#x is not in the guest's memory", ErrProtocol, a.desc, a.avail, a.used)
	}
	// Flags and index are read and written as one word, since there are no atomics of 16 bits.
	if address(r.avail)%4 != 0 || address(r.used)%4 != 0 {
		return nil, fmt.Errorf("%w: queue at %#x, %#x is not aligned to 4 bytes", ErrProtocol, a.avail, a.used)
	}
	r.usedIdx = uint16(word32(r.used).Load() >> 16)
	r.told, r.lastAvail = r.usedIdx, r.usedIdx
	return r, nil
}

func address(p []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(p))) }

// word32 is the first four bytes of p, which are aligned.
func word32(p []byte) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&p[:4][0])) }

// fence orders all before it against all behind it.
func fence() { fenceWord.Add(1) }

var fenceWord atomic.Uint32

// waiting is how many requests the guest has put there that were not taken.
func (r *vring) waiting() (n uint16, err error) {
	n = uint16(word32(r.avail).Load()>>16) - r.lastAvail
	if uint32(n) > r.size {
		return 0, fmt.Errorf("%w: %d requests in a queue of %d", errChain, n, r.size)
	}
	return n, nil
}

// pop takes the head of the next request; there is one.
func (r *vring) pop() (head uint16, err error) {
	head = le.Uint16(r.avail[atRing+2*(uint32(r.lastAvail)&(r.size-1)):])
	if uint32(head) >= r.size {
		return 0, fmt.Errorf("%w: head %d of %d", errChain, head, r.size)
	}
	r.lastAvail++
	return head, nil
}

// arm asks the guest for a kick when it puts the next request there. False: it has
// already, and may not kick.
func (r *vring) arm() bool {
	if r.eventIdx {
		le.PutUint16(r.used[atRing+usedBytes*r.size:], r.lastAvail)
	}
	fence()
	return uint16(word32(r.avail).Load()>>16) == r.lastAvail
}

// push answers a request, whose device wrote that much of its memory.
func (r *vring) push(head uint16, written uint32) {
	e := r.used[atRing+usedBytes*(uint32(r.usedIdx)&(r.size-1)):]
	le.PutUint32(e, uint32(head))
	le.PutUint32(e[4:], written)
	r.usedIdx++
	word32(r.used).Store(uint32(r.usedIdx) << 16)
}

// interrupts says whether the guest wants to hear of what was pushed since it was last told.
func (r *vring) interrupts() bool {
	before := r.told
	if before == r.usedIdx {
		return false
	}
	r.told = r.usedIdx
	fence()
	if !r.eventIdx {
		return le.Uint16(r.avail[atFlags:])&availNoInterrupt == 0
	}
	event := le.Uint16(r.avail[atRing+2*r.size:])
	return r.usedIdx-event-1 < r.usedIdx-before
}

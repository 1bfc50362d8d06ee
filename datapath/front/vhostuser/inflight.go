package vhostuser

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// The table in flight, for each queue, as the protocol has it:
//
//	 0 features u64      10 entries         u16
//	 8 version  u16      12 last batch head u16
//	14 used index u16    16 [entries]{in flight u8, zeros, next u16, counter u64}
//
// The front end keeps it for whoever serves next. An entry is entered before its request is
// begun, and taken out when it has been answered; between the two stand, in this order: last
// batch head, the queue's used index, the entry, used index here. Each is one atomic store, so that
// a successor knows from the two used indexes how far a killed predecessor came.
const (
	flightHead  = 16
	flightEntry = 16
	flightAlign = 64

	flightVersion = 1
)

// flightBytes is what a queue of that many entries takes.
func flightBytes(size uint16) int {
	return (flightHead + flightEntry*int(size) + flightAlign - 1) &^ (flightAlign - 1)
}

// flightFile is a mapped table of several queues.
type flightFile struct {
	info inflightInfo
	mem  []byte // as it was mapped
}

// newFlightFile makes one, all zeros, and returns the descriptor of its memory too.
func newFlightFile(queues, size uint16) (f *flightFile, fd int, err error) {
	f = &flightFile{info: inflightInfo{bytes: uint64(int(queues) * flightBytes(size)), queues: queues, size: size}}
	if fd, err = unix.MemfdCreate("in-flight", unix.MFD_CLOEXEC); err != nil {
		return nil, -1, err
	}
	if err = unix.Fallocate(fd, 0, 0, int64(f.info.bytes)); err == nil {
		f.mem, err = mapShared(fd, f.info.bytes)
	}
	if err != nil {
		return nil, -1, errors.Join(fmt.Errorf("table in flight: %w", err), unix.Close(fd))
	}
	return f, fd, nil
}

// openFlightFile maps what the front end has kept.
func openFlightFile(info inflightInfo, fd int) (*flightFile, error) {
	if info.bytes < uint64(int(info.queues)*flightBytes(info.size)) || info.bytes > MaxQueues*uint64(flightBytes(maxQueueSize)) || info.offset > maxRegionBytes || info.offset%flightAlign != 0 {
		return nil, fmt.Errorf("%w: table in flight %+v", ErrProtocol, info)
	}
	mem, err := mapShared(fd, info.offset+info.bytes)
	if err != nil {
		return nil, fmt.Errorf("table in flight: %w", err)
	}
	return &flightFile{info: info, mem: mem}, nil
}

func (f *flightFile) close() error { return unix.Munmap(f.mem) }

// flightTable is a queue's part. A nil one keeps nothing.
type flightTable struct {
	p       []byte
	size    uint32
	counter uint64 // of the next entry
}

// queue returns the part of queue i, of that many entries.
func (f *flightFile) queue(i int, size uint32) (*flightTable, error) {
	if i >= int(f.info.queues) || size > uint32(f.info.size) {
		return nil, fmt.Errorf("%w: table in flight of %d queues of %d has no place for queue %d of %d", ErrProtocol, f.info.queues, f.info.size, i, size)
	}
	n := flightBytes(f.info.size)
	return &flightTable{p: f.mem[int(f.info.offset)+i*n:][:n], size: size}, nil
}

func word64(p []byte) *atomic.Uint64 { return (*atomic.Uint64)(unsafe.Pointer(&p[:8][0])) }

func (t *flightTable) head() *atomic.Uint64 { return word64(t.p[8:]) }
func (t *flightTable) entry(i uint16) *atomic.Uint64 {
	return word64(t.p[flightHead+flightEntry*int(i):])
}
func (t *flightTable) count(i uint16) *atomic.Uint64 {
	return word64(t.p[flightHead+flightEntry*int(i)+8:])
}

// headOf is the word that holds version, entries, last batch head and used index.
func headOf(size uint32, last, used uint16) uint64 {
	return flightVersion | uint64(size)<<16 | uint64(last)<<32 | uint64(used)<<48
}

// recover returns, in the order in which they came, what a predecessor had begun and not
// answered, when the queue's used index is used.
func (t *flightTable) recover(used uint16) []uint16 {
	if t == nil {
		return nil
	}
	switch was := t.head().Load(); {
	case uint16(was) == 0: // new
	case uint16(was>>48) != used: // it died between the queue and here
		if last := uint16(was >> 32); uint32(last) < t.size {
			t.entry(last).Store(0)
		}
	}
	t.head().Store(headOf(t.size, 0, used))
	var redo []uint16
	for i := range uint16(t.size) {
		if t.entry(i).Load()&0xff != 0 && !invariant.Planted("vhostuser/redo-forgotten") {
			redo = append(redo, i)
			t.counter = max(t.counter, t.count(i).Load()+1)
		}
	}
	slices.SortStableFunc(redo, func(a, b uint16) int { return cmp.Compare(t.count(a).Load(), t.count(b).Load()) })
	return redo
}

// enter notes a request that is about to begin.
func (t *flightTable) enter(head uint16) {
	if t == nil {
		return
	}
	t.count(head).Store(t.counter)
	t.counter++
	t.entry(head).Store(1)
}

// answering notes which request the queue will show as answered next.
func (t *flightTable) answering(head, used uint16) {
	if t != nil {
		t.head().Store(headOf(t.size, head, used))
	}
}

// answered takes it out, when the queue's used index has become used.
func (t *flightTable) answered(head, used uint16) {
	if t == nil {
		return
	}
	if !invariant.Planted("vhostuser/kept-in-flight") {
		t.entry(head).Store(0)
	}
	t.head().Store(headOf(t.size, head, used))
}

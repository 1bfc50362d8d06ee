package guest

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// queue is a driver's. A slot is one request: its header, status, payload and descriptors lie
// at fixed places.
type queue struct {
	g                *Guest
	mem              []byte
	at               uint64 // in the guest's memory
	size             uint32
	availAt, usedAt  uint64
	slotsAt, payload uint64

	kick, call int
	rang       *os.File // call, as we read it
	reader     sync.WaitGroup

	mu    sync.Mutex
	avail uint16
	seen  uint16
	free  chan int
	slots []slot
}

type slot struct {
	done chan error // capacity 1
	n    uint32     // what was written
}

const (
	slotHead    = 4096 // header, status and indirect table of a slot
	atStatus    = 16
	atTable     = 32
	tableEntry  = 16
	descPerSlot = 3
	maxPieces   = (slotHead - atTable) / tableEntry
)

func sizeOf(o Options) uint32 { return 1 << bits.Len(uint(o.Slots*descPerSlot-1)) }

func pages(n int) int { return (n + 4095) &^ 4095 }

func queueBytes(o Options) int {
	size := int(sizeOf(o))
	return pages(16*size) + pages(6+2*size) + pages(6+8*size) + o.Slots*(slotHead+pages(o.SlotBytes))
}

func newQueue(g *Guest, mem []byte, at uint64) (q *queue, err error) {
	size := sizeOf(g.o)
	q = &queue{g: g, mem: mem, at: at, size: size, free: make(chan int, g.o.Slots), slots: make([]slot, g.o.Slots)}
	q.availAt = uint64(pages(16 * int(size)))
	q.usedAt = q.availAt + uint64(pages(6+2*int(size)))
	q.slotsAt = q.usedAt + uint64(pages(6+8*int(size)))
	q.payload = q.slotsAt + uint64(g.o.Slots*slotHead)
	for i := range q.slots {
		q.slots[i].done = make(chan error, 1)
		q.free <- i
	}
	var kick *os.File
	if q.kick, kick, err = eventfd(); err != nil {
		return nil, err
	}
	if q.call, q.rang, err = eventfd(); err != nil {
		return nil, errors.Join(err, kick.Close(), unix.Close(q.kick))
	}
	q.reader.Go(q.read)
	return q, kick.Close()
}

func (q *queue) close() error {
	err := errors.Join(q.endReader(), unix.Close(q.kick), unix.Close(q.call))
	return err
}

// endReader ends who hands out answers.
func (q *queue) endReader() (err error) {
	if q.rang != nil {
		err = q.rang.Close()
		q.reader.Wait()
		q.rang = nil
	}
	return err
}

func word32(p []byte) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&p[:4][0])) }

func (q *queue) usedIndex() uint16 { return uint16(word32(q.mem[q.usedAt:]).Load() >> 16) }

func (q *queue) slotAt(i int) uint64    { return q.slotsAt + uint64(i*slotHead) }
func (q *queue) payloadAt(i int) uint64 { return q.payload + uint64(i*pages(q.g.o.SlotBytes)) }

// guest is the machine's own address of a place in the queue's memory.
func (q *queue) guest(at uint64) uint64 { return Base + q.at + at }

func putDesc(p []byte, addr uint64, n uint32, flags, next uint16) {
	le.PutUint64(p, addr)
	le.PutUint32(p[8:], n)
	le.PutUint16(p[12:], flags)
	le.PutUint16(p[14:], next)
}

// Flags of a descriptor.
const (
	next     = 1
	write    = 2
	indirect = 4
)

// describe writes the descriptors of a request of n bytes of payload.
func (q *queue) describe(i int, n int, toGuest bool) {
	var flags uint16
	if toGuest {
		flags = write
	}
	first := uint16(descPerSlot * i)
	head, status, payload := q.guest(q.slotAt(i)), q.guest(q.slotAt(i)+atStatus), q.guest(q.payloadAt(i))
	table := q.mem[uint64(first)*tableEntry:]
	if step := q.g.o.Scatter; step > 0 && n > step {
		own := q.mem[q.slotAt(i)+atTable:]
		putDesc(own, head, 16, next, 1)
		k := uint16(1)
		for off := 0; off < n; off += step {
			putDesc(own[tableEntry*int(k):], payload+uint64(off), uint32(min(step, n-off)), next|flags, k+1)
			k++
		}
		putDesc(own[tableEntry*int(k):], status, 1, write, 0)
		putDesc(table, q.guest(q.slotAt(i)+atTable), uint32(tableEntry*(int(k)+1)), indirect, 0)
		return
	}
	putDesc(table, head, 16, next, first+1)
	at := 1
	if n > 0 {
		putDesc(table[tableEntry:], payload, uint32(n), next|flags, first+2)
		at = 2
	}
	putDesc(table[tableEntry*at:], status, 1, write, 0)
}

// submit puts the request of slot i there, and kicks if it is asked to.
func (q *queue) submit(i int) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.submitLocked(uint16(descPerSlot * i))
}

func (q *queue) submitLocked(head uint16) error {
	a, u := q.mem[q.availAt:], q.mem[q.usedAt:]
	le.PutUint16(a[4+2*(uint32(q.avail)&(q.size-1)):], head)
	q.avail++
	word32(a).Store(uint32(q.avail) << 16) // also the fence before the event is read
	kick := le.Uint16(u)&1 == 0
	if q.g.features&featEventIdx != 0 {
		kick = le.Uint16(u[4+8*q.size:]) == q.avail-1
	}
	if !kick {
		return nil
	}
	_, err := unix.Write(q.kick, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	return err
}

// read hands answers to who waits for them, until the queue is closed, or who made the machine has cut
// its memory.
func (q *queue) read() {
	debug.SetPanicOnFault(true)
	defer func() {
		if p := recover(); p != nil {
			if _, fault := p.(interface{ Addr() uintptr }); !fault {
				panic(p)
			}
		}
	}()
	var count [8]byte
	for {
		for q.reap() {
		}
		if _, err := q.rang.Read(count[:]); err != nil {
			return
		}
	}
}

// reap takes the next answer; false: there is none, and the back end has been asked to ring.
func (q *queue) reap() bool {
	u := q.mem[q.usedAt:]
	if q.usedIndex() == q.seen {
		le.PutUint16(q.mem[q.availAt+4+2*uint64(q.size):], q.seen)
		fence.Add(1)
		if q.usedIndex() == q.seen {
			return false
		}
	}
	e := u[4+8*(uint32(q.seen)&(q.size-1)):]
	head, n := le.Uint32(e), le.Uint32(e[4:])
	q.seen++
	i := int(head / descPerSlot)
	if head%descPerSlot != 0 || i >= len(q.slots) {
		return true // who put nonsense there waits for no answer
	}
	q.mu.Lock() // as submit did: the race detector does not see the back end between us
	q.slots[i].n = n
	q.mu.Unlock()
	select {
	case q.slots[i].done <- statusError(q.mem[q.slotAt(i)+atStatus]):
	default:
		panic(fmt.Sprintf("BUG: slot %d was answered twice", i))
	}
	return true
}

var fence atomic.Uint32

// Errors that a disk answers.
var (
	ErrIO          = errors.New("the disk answers: error")
	ErrUnsupported = errors.New("the disk answers: not supported")
	ErrNoStatus    = errors.New("the disk left no status")
)

func statusError(s byte) error {
	switch s {
	case 0:
		return nil
	case 1:
		return ErrIO
	case 2:
		return ErrUnsupported
	}
	return fmt.Errorf("%w: %d", ErrNoStatus, s)
}

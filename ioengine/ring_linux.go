package ioengine

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ring is one io_uring. Any goroutine starts operations; while there are any in flight
// one goroutine of the ring's waits for them, and ends when there are none. At most
// ringEntries are in the kernel, so that no completion is ever without a place; what is
// more waits here, in order.
type ring struct {
	fd     int
	polled syscall.RawConn // waits for completions in the runtime's poller; nil: in the kernel
	file   *os.File        // that polled is of, and owns fd
	ringMemory

	mu      sync.Mutex
	closed  bool
	slots   [ringEntries]*ringOp // by user data
	free    []uint32
	queue   []*ringOp
	flying  int
	reaping bool
}

// ringOp is one operation. What it names must stay until done was called, once, from
// the ring's goroutine or from start; it must not block.
type ringOp struct {
	code uint8
	fd   int
	off  int64
	done func(op *ringOp, res int32)

	parts   [][]byte     // of a write or read, at most MaxParts
	vectors []unix.Iovec // where they are, for the kernel
	pin     runtime.Pinner
}

// ringEntries is how many operations are in the kernel at most: a few for each group
// that writes, or the syncs of a round.
const ringEntries = 256

const (
	opReadv  = 1
	opWritev = 2
	opFsync  = 3

	ringEnterGetEvents = 1
	ringFsyncData      = 1
	ringRegisterProbe  = 8
	ringRegisterIOWQ   = 19

	featSingleMmap = 1 << 0
	featNoDrop     = 1 << 1

	offSQRing = 0
	offSQEs   = 0x10000000

	// ringSyncers is how many threads the kernel may use for what blocks: the flushes
	// of a round that wait for each other.
	ringSyncers = 32
)

// ringMemory is what a ring shares with the kernel.
type ringMemory struct {
	mem, sqes []byte // mapped
	sq, cq    ringQueue
}

// open maps the ring of fd, which was made with p. After an error unmap is still due.
func (m *ringMemory) open(fd int, p *ringParams) (err error) {
	if p.features&(featSingleMmap|featNoDrop) != featSingleMmap|featNoDrop {
		return fmt.Errorf("io_uring: features %#x: %w", p.features, unix.ENOSYS)
	}
	size := max(p.sq.array+4*p.sqEntries, p.cq.cqes+16*p.cqEntries)
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if m.mem, err = unix.Mmap(fd, offSQRing, int(size), prot, flags); err != nil {
		return fmt.Errorf("io_uring: map: %w", err)
	}
	if m.sqes, err = unix.Mmap(fd, offSQEs, int(p.sqEntries)*64, prot, flags); err != nil {
		return fmt.Errorf("io_uring: map: %w", err)
	}
	at := func(off uint32) unsafe.Pointer { return unsafe.Pointer(&m.mem[off]) }
	m.sq = ringQueue{(*uint32)(at(p.sq.head)), (*uint32)(at(p.sq.tail)), *(*uint32)(at(p.sq.mask)), at(p.sq.array)}
	m.cq = ringQueue{(*uint32)(at(p.cq.head)), (*uint32)(at(p.cq.tail)), *(*uint32)(at(p.cq.mask)), at(p.cq.cqes)}
	return nil
}

func (m *ringMemory) unmap() {
	for _, mem := range [][]byte{m.mem, m.sqes} {
		if mem != nil {
			_ = unix.Munmap(mem) // it is a mapping
		}
	}
}

// putAt makes s submission i, which the kernel sees once the tail is beyond it.
func (m *ringMemory) putAt(i uint32, s sqe) {
	i &= m.sq.mask
	*(*sqe)(unsafe.Pointer(&m.sqes[64*i])) = s
	*(*uint32)(unsafe.Add(m.sq.array, 4*i)) = i
}

// completion is number i of those that the kernel gave.
func (m *ringMemory) completion(i uint32) cqe {
	return *(*cqe)(unsafe.Add(m.cq.array, 16*(i&m.cq.mask)))
}

// ringQueue is one of the two queues, in memory shared with the kernel.
type ringQueue struct {
	head, tail *uint32
	mask       uint32
	array      unsafe.Pointer // of uint32 indices, or of completions
}

type ringParams struct {
	sqEntries, cqEntries, flags, threadCPU, threadIdle, features, wqFD uint32
	zero                                                               [3]uint32
	sq                                                                 struct {
		head, tail, mask, entries, flags, dropped, array, zero uint32
		user                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, zero uint32
		user                                                   uint64
	}
}

// sqe is a submission, cqe a completion.
type sqe struct {
	code, flags uint8
	priority    uint16
	fd          int32
	off, addr   uint64
	len, opArgs uint32
	user        uint64
	zero        [3]uint64
}

type cqe struct {
	user  uint64
	res   int32
	flags uint32
}

var (
	_ [120]byte = [unsafe.Sizeof(ringParams{})]byte{}
	_ [64]byte  = [unsafe.Sizeof(sqe{})]byte{}
	_ [16]byte  = [unsafe.Sizeof(cqe{})]byte{}
)

// newRing makes a ring, or says why this system has none that will do: an old kernel,
// one that forbids it (seccomp, kernel.io_uring_disabled), or no memory.
func newRing() (*ring, error) {
	var p ringParams
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, ringEntries, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	r := &ring{fd: int(fd)}
	if err := r.open(&p); err != nil {
		r.unmap()
		return nil, err
	}
	return r, nil
}

func (r *ring) open(p *ringParams) (err error) {
	unix.CloseOnExec(r.fd)
	if p.sqEntries < ringEntries || p.cqEntries < ringEntries {
		return fmt.Errorf("io_uring: %d and %d entries: %w", p.sqEntries, p.cqEntries, unix.ENOSYS)
	}
	if err := r.probe(); err != nil {
		return err
	}
	if err := r.ringMemory.open(r.fd, p); err != nil {
		return err
	}
	for i := range uint32(ringEntries) {
		r.free = append(r.free, i)
	}
	// More threads for what blocks; an older kernel does with those it has.
	workers := [2]uint32{ringSyncers, 0}
	_, _, _ = unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), ringRegisterIOWQ, uintptr(unsafe.Pointer(&workers)), 2, 0, 0)
	return nil
}

// probe asks whether the kernel knows the operations.
func (r *ring) probe() error {
	var p struct {
		last, n uint8
		zero    [14]byte
		ops     [opFsync + 1]struct {
			code, zero uint8
			flags      uint16
			zero2      uint32
		}
	}
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), ringRegisterProbe, uintptr(unsafe.Pointer(&p)), uintptr(len(p.ops)), 0, 0)
	if errno != 0 {
		return fmt.Errorf("io_uring: probe: %w", errno)
	}
	for _, code := range []uint8{opFsync, opWritev, opReadv} {
		if p.last < code || p.ops[code].flags&1 == 0 {
			return fmt.Errorf("io_uring: operation %d: %w", code, unix.ENOSYS)
		}
	}
	return nil
}

// close ends a ring that has nothing in flight.
func (r *ring) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.flying > 0 || len(r.queue) > 0 {
		panic("BUG: a ring is closed under its operations")
	}
	r.closed = true
	r.unmap()
}

func (r *ring) unmap() {
	r.ringMemory.unmap()
	if r.file != nil {
		_ = r.file.Close()
		return
	}
	_ = unix.Close(r.fd) // nothing is buffered in it
}

// poll has the runtime's poller wait for completions. Who waits in the kernel keeps one of
// the few threads that run Go code until the runtime finds out, some tens of microseconds later: for
// reads, which come and end one by one, that is more than what they cost otherwise. In return a
// completion is seen only when such a thread has nothing else to do, or 10 ms later.
func (r *ring) poll() {
	if unix.SetNonblock(r.fd, true) != nil {
		return
	}
	r.file = os.NewFile(uintptr(r.fd), "io_uring")
	polled, err := r.file.SyscallConn()
	if err == nil && r.file.SetReadDeadline(time.Time{}) == nil { // else the poller does not take it
		r.polled = polled
	}
}

// start begins the operations. Those that the kernel does not take end with EAGAIN.
func (r *ring) start(ops ...*ringOp) {
	r.mu.Lock()
	r.queue = append(r.queue, ops...)
	refused := r.submitLocked()
	if r.flying > 0 && !r.reaping {
		r.reaping = true
		go r.reap()
	}
	r.mu.Unlock()
	end(refused, -int32(unix.EAGAIN))
}

func end(ops []*ringOp, res int32) {
	for _, op := range ops {
		op.done(op, res)
	}
}

// submitLocked gives to the kernel what there is room for, and returns what it refused.
func (r *ring) submitLocked() (refused []*ringOp) {
	n := min(len(r.queue), len(r.free))
	if n == 0 {
		return nil
	}
	tail := *r.sq.tail // ours alone
	for _, op := range r.queue[:n] {
		slot := r.free[len(r.free)-1]
		r.free = r.free[:len(r.free)-1]
		r.slots[slot] = op
		r.put(tail, slot, op)
		tail++
	}
	clear(r.queue[:n])
	if r.queue = r.queue[n:]; len(r.queue) == 0 {
		r.queue = nil
	}
	atomic.StoreUint32(r.sq.tail, tail)
	r.flying += n
	for n > 0 {
		taken, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(n), 0, 0, 0, 0)
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			refused = r.takeBackLocked(n)
			n = 0
		default:
			n -= int(taken)
		}
	}
	return refused
}

// takeBackLocked takes the last n submissions, which the kernel has not looked at, out
// of the queue.
func (r *ring) takeBackLocked(n int) (refused []*ringOp) {
	tail := *r.sq.tail
	for i := tail - uint32(n); i != tail; i++ {
		s := (*sqe)(unsafe.Pointer(&r.sqes[64*(i&r.sq.mask)]))
		refused = append(refused, r.releaseLocked(uint32(s.user)))
	}
	atomic.StoreUint32(r.sq.tail, tail-uint32(n))
	return refused
}

func (r *ring) put(tail, slot uint32, op *ringOp) {
	s := sqe{code: op.code, fd: int32(op.fd), user: uint64(slot)}
	switch op.code {
	case opReadv, opWritev:
		op.vectors = op.vectors[:0]
		for _, p := range op.parts {
			if len(p) > 0 {
				op.pin.Pin(unsafe.SliceData(p))
				op.vectors = append(op.vectors, unix.Iovec{Base: unsafe.SliceData(p), Len: uint64(len(p))})
			}
		}
		first := unsafe.SliceData(op.vectors)
		op.pin.Pin(first)
		s.addr, s.len, s.off = uint64(uintptr(unsafe.Pointer(first))), uint32(len(op.vectors)), uint64(op.off)
	case opFsync:
		s.opArgs = ringFsyncData
	}
	r.putAt(tail, s)
}

func (r *ring) releaseLocked(slot uint32) *ringOp {
	op := r.slots[slot]
	r.slots[slot] = nil
	r.free = append(r.free, slot)
	r.flying--
	op.pin.Unpin()
	return op
}

// reap waits for completions until nothing is in flight. Once it has said so under the
// lock it does not look at the ring again: that may be closed.
func (r *ring) reap() {
	var ops, refused []*ringOp
	var results []int32
	for more := true; more; {
		r.wait()
		ops, results = ops[:0], results[:0]
		r.mu.Lock()
		head, tail := *r.cq.head, atomic.LoadUint32(r.cq.tail)
		for ; head != tail; head++ {
			c := r.completion(head)
			ops = append(ops, r.releaseLocked(uint32(c.user)))
			results = append(results, c.res)
		}
		atomic.StoreUint32(r.cq.head, head)
		refused = r.submitLocked()
		more = r.flying > 0
		r.reaping = more
		r.mu.Unlock()
		for i, op := range ops {
			op.done(op, results[i])
		}
		end(refused, -int32(unix.EAGAIN))
		clear(ops)
	}
}

// wait returns when there is a completion, or none can be waited for right now.
func (r *ring) wait() {
	if r.polled != nil {
		if r.polled.Read(func(uintptr) bool { return atomic.LoadUint32(r.cq.tail) != *r.cq.head }) == nil {
			return
		}
	}
	for atomic.LoadUint32(r.cq.tail) == *r.cq.head { // only reap moves the head
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), 0, 1, ringEnterGetEvents, 0, 0)
		if errno != 0 && errno != unix.EINTR {
			runtime.Gosched() // EAGAIN, EBUSY: the kernel is short of memory for a while
		}
	}
}

package ioengine

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Loop carries out reads and writes for one goroutine that starts many of them and takes
// their ends itself: an io_uring without a goroutine or a lock between. It costs the least there is for
// a queue of a guest's disk, where requests come in bursts.
//
// All methods but Wake and Pulse belong to the goroutine that made it, which the Loop holds to its
// thread until Close.
type Loop struct {
	fd int
	ringMemory
	vectors []loopVector // LoopParts for each operation, in memory where the kernel may look at any time
	vecmap  []byte       // that memory

	ops    []loopOp
	free   []uint32
	tail   uint32 // of the submissions that were put there,
	given  uint32 // and of those that the kernel has taken
	begun  int    // bytes of operations since the kernel last had taken all
	flying int

	heard map[int]func() // of watched descriptors that somebody is told of
	roomy map[int]func() // of those that are waited for until they take bytes

	pulse atomic.Uint64 // rises with each turn; odd while the goroutine is in the kernel
	shown atomic.Int64  // flying, when it went there

	wake   int // eventfd; -1 once closed
	waking sync.Mutex
}

// loopOp is one operation in flight.
type loopOp struct {
	file *osFile
	done func(n int, err error)
	want int
	code uint8
}

// loopVector is a part as the kernel wants it. The address is a number: these stand outside of Go's memory,
// and a pointer there, of a part that is long gone, would be taken for one of Go's own when
// the next is written over it while garbage is collected.
type loopVector struct {
	at uintptr
	n  uint64
}

// LoopParts is how many parts one operation takes.
const LoopParts = MaxParts

// What is begun is given to the kernel once it is so many operations, or so many bytes, without waiting for Step: the
// disk works on them while the goroutine prepares the next. All at once would have the two wait for each other, each
// alone would cost a system call for each.
const (
	giveOps   = 4
	giveBytes = 64 << 10
)

// ErrNoLoop says that this system has no io_uring that will do, or that a file is not one
// that a Loop can use.
var ErrNoLoop = errors.New("no io_uring loop")

const (
	opPollAdd = 6

	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13

	pollMultishot  = 1 << 0
	cqeMore        = 1 << 1
	watchUser      = 1 << 32 // and the descriptor
	roomUser       = 1 << 33 // and the descriptor
	maxLoopEntries = 1024
)

// NewLoop makes a loop for that many operations in flight, at most 1024, on files like f. The
// calling goroutine keeps its thread to itself until Close. ErrNoLoop: it must do without.
func NewLoop(f File, entries int) (*Loop, error) {
	file, ok := f.(*osFile)
	if !ok || entries < 1 || entries > maxLoopEntries {
		return nil, fmt.Errorf("%w: %d entries on a %T", ErrNoLoop, entries, f)
	}
	if why := file.fs.engine.without(); why != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoLoop, why)
	}
	runtime.LockOSThread()
	l, err := newLoop(entries)
	if err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("%w: %w", ErrNoLoop, err)
	}
	return l, nil
}

func newLoop(entries int) (_ *Loop, err error) {
	var p ringParams
	var fd uintptr
	var errno unix.Errno
	// Who alone submits and waits needs no interrupt to hear of an end; older kernels do not know it.
	for _, flags := range []uint32{setupSingleIssuer | setupDeferTaskrun, 0} {
		p = ringParams{flags: flags}
		fd, _, errno = unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries+1), uintptr(unsafe.Pointer(&p)), 0)
		if errno != unix.EINVAL {
			break
		}
	}
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	l := &Loop{fd: int(fd), wake: -1, heard: make(map[int]func()), roomy: make(map[int]func())}
	defer func() {
		if err != nil {
			l.unmap()
		}
	}()
	unix.CloseOnExec(l.fd)
	if err := l.ringMemory.open(l.fd, &p); err != nil {
		return nil, err
	}
	l.tail = *l.sq.tail
	l.given = l.tail
	const each = int(unsafe.Sizeof(loopVector{}))
	if l.vecmap, err = unix.Mmap(-1, 0, entries*LoopParts*each, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return nil, fmt.Errorf("io_uring: map: %w", err)
	}
	l.vectors = unsafe.Slice((*loopVector)(unsafe.Pointer(unsafe.SliceData(l.vecmap))), entries*LoopParts)
	l.ops = make([]loopOp, entries)
	for i := range l.ops {
		l.free = append(l.free, uint32(len(l.ops)-1-i))
	}
	if l.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, err
	}
	return l, l.Watch(l.wake)
}

func (l *Loop) unmap() {
	l.ringMemory.unmap()
	if l.vecmap != nil {
		_ = unix.Munmap(l.vecmap)
	}
	_ = unix.Close(l.fd)
	if l.wake >= 0 {
		_ = unix.Close(l.wake)
	}
	l.wake = -1
}

// Close ends the loop; nothing may be in flight. The goroutine is free of its thread.
func (l *Loop) Close() {
	if l.flying > 0 {
		panic("BUG: a loop is closed under its operations")
	}
	l.waking.Lock()
	defer l.waking.Unlock()
	l.unmap()
	runtime.UnlockOSThread()
}

// Flying is how many operations have not ended.
func (l *Loop) Flying() int { return l.flying }

// Wake makes a Wait return. Any goroutine may call it, also after Close.
func (l *Loop) Wake() {
	l.waking.Lock()
	defer l.waking.Unlock()
	if l.wake >= 0 {
		_, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // full has woken it
	}
}

// Watch has Wait return whenever fd, an eventfd, is written to. It is not read. It must stay
// open until Close.
func (l *Loop) Watch(fd int) error {
	l.put(sqe{code: opPollAdd, fd: int32(fd), len: pollMultishot, opArgs: unix.POLLIN, user: watchUser | uint64(uint32(fd))})
	return l.enter(0)
}

// Hear has Wait return, and Step call heard, whenever bytes have come to the socket fd, or its end; it is not
// read: who is told reads until there is nothing left. It must stay open until Close.
func (l *Loop) Hear(fd int, heard func()) error {
	l.heard[fd] = heard
	return l.Watch(fd)
}

// Room calls roomy from Step, once, when the socket fd takes bytes again, or never will. It must
// stay open until then, or until Close.
func (l *Loop) Room(fd int, roomy func()) error {
	l.roomy[fd] = roomy
	l.put(sqe{code: opPollAdd, fd: int32(fd), opArgs: unix.POLLOUT, user: roomUser | uint64(uint32(fd))})
	return l.enter(0)
}

// Read begins to fill the parts from off on, and calls done from Step when that has ended: with
// how many bytes were read, or an error. False: it is not begun, since there are too many parts or no
// room, or the file is none of OS or is being closed. Align of the file holds for off and each part.
// What the parts hold must be reachable until then; the parts themselves are not kept.
func (l *Loop) Read(f File, parts [][]byte, off int64, done func(n int, err error)) bool {
	return l.start(opReadv, f, parts, off, done)
}

// Write begins to write the parts, as Read.
func (l *Loop) Write(f File, parts [][]byte, off int64, done func(n int, err error)) bool {
	return l.start(opWritev, f, parts, off, done)
}

// WriteNow writes the parts in the call: what is to stand in the page cache is there sooner than another could be told of it. It may wait for
// the disk all the same, as where too much is dirty, and the Pulse says so.
func (l *Loop) WriteNow(f File, parts [][]byte, off int64) error {
	l.flying++ // as the watchdog sees it: others may wait for this write
	l.Leave()
	err := f.WriteParts(parts, off)
	l.Return()
	l.flying--
	return err
}

func (l *Loop) start(code uint8, f File, parts [][]byte, off int64, done func(int, error)) bool {
	file, ok := f.(*osFile)
	if !ok || len(parts) > LoopParts || len(l.free) == 0 || !file.open.TryRLock() { // until its end: Close waits
		return false
	}
	if file.open.closed {
		file.open.RUnlock()
		return false
	}
	i := l.free[len(l.free)-1]
	l.free = l.free[:len(l.free)-1]
	vectors := l.vectors[int(i)*LoopParts:][:LoopParts]
	for k, p := range parts {
		vectors[k] = loopVector{uintptr(unsafe.Pointer(unsafe.SliceData(p))), uint64(len(p))}
	}
	bytes := Bytes(parts)
	l.ops[i] = loopOp{file, done, bytes, code}
	l.flying++
	l.begun += bytes
	l.put(sqe{code: code, fd: int32(file.fd), off: uint64(off), addr: uint64(uintptr(unsafe.Pointer(&vectors[0]))), len: uint32(len(parts)), user: uint64(i)})
	if l.tail-l.given >= giveOps || l.begun >= giveBytes {
		l.Leave()     // a slow disk may hold up who gives it something
		_ = l.give(0) // what the kernel does not take now it is given again by the next one, Step or Wait, and these tell why not
		l.Return()
	}
	return true
}

// put queues a submission; there is one place more than operations, and Watch gives its at once.
func (l *Loop) put(s sqe) {
	l.putAt(l.tail, s)
	l.tail++
}

// give gives the kernel what was put there, waits for so many ends, and takes in what has ended and what was heard: with
// setupDeferTaskrun nobody learns of either but by a call that asks for it, and what ends while it is given would
// else be all that Step ever sees.
func (l *Loop) give(wait int) unix.Errno {
	atomic.StoreUint32(l.sq.tail, l.tail)
	taken, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(l.fd), uintptr(l.tail-l.given), uintptr(wait), ringEnterGetEvents, 0, 0)
	switch {
	case errno == 0:
		l.given += uint32(taken)
	case invariant.Planted("ioengine/loop-refused-is-given"):
		l.given = l.tail
	}
	if l.given == l.tail {
		l.begun = 0
	}
	return errno
}

// enter gives the kernel what is queued, and waits for so many ends, but returns early when it is
// interrupted.
func (l *Loop) enter(wait int) error {
	l.Leave()
	defer l.Return()
	for {
		switch errno := l.give(wait); {
		case errno == 0 && l.given != l.tail: // the rest, again
		case errno == 0:
			return nil
		case errno == unix.EINTR && l.given == l.tail:
			return nil
		case errno == unix.EINTR:
		case errno == unix.EAGAIN || errno == unix.EBUSY: // the kernel is short of memory for a while
			runtime.Gosched()
			if l.given == l.tail {
				return nil
			}
		default:
			return fmt.Errorf("io_uring_enter: %w", errno)
		}
	}
}

// Wait gives the kernel what was begun, and returns when something has ended, a watched descriptor
// was written to, or Wake was called; sometimes earlier.
func (l *Loop) Wait() error {
	if l.ended() {
		return nil
	}
	return l.enter(1)
}

// Leave says that the goroutine now waits in the kernel for what is not the loop's, and Return that it is back: the
// Pulse is odd meanwhile.
func (l *Loop) Leave() {
	l.shown.Store(int64(l.flying))
	l.pulse.Add(1)
}

// Return ends what Leave began.
func (l *Loop) Return() { l.pulse.Add(1) }

// Pulse rises whenever the loop has turned: one that stays as it is, and even, is of a loop whose goroutine is at
// neither Wait nor Step, nor waits elsewhere between Leave and Return. flying is what was in flight when it was in the kernel last. Any goroutine may call it.
func (l *Loop) Pulse() (pulse uint64, flying int) { return l.pulse.Load(), int(l.shown.Load()) }

// ended says that there are ends to be taken.
func (l *Loop) ended() bool { return atomic.LoadUint32(l.cq.tail) != *l.cq.head }

// Step gives the kernel what was begun, and calls done of all that has ended. It says whether there
// was anything, or a watched descriptor was written to.
func (l *Loop) Step() (bool, error) {
	l.pulse.Add(2)
	if l.given != l.tail || l.flying > 0 && !l.ended() {
		if err := l.enter(0); err != nil {
			return false, err
		}
	}
	some := false
	for head := *l.cq.head; head != atomic.LoadUint32(l.cq.tail); some = true {
		c := l.completion(head)
		head++
		atomic.StoreUint32(l.cq.head, head)
		switch {
		case c.user&watchUser != 0:
			if err := l.watched(c); err != nil {
				return true, err
			}
		case c.user&roomUser != 0:
			l.room(c)
		default:
			l.end(c)
		}
	}
	return some, nil
}

// watched takes what is said of a watched descriptor. The kernel may stop watching, for want of
// memory; it is asked again.
func (l *Loop) watched(c cqe) error {
	fd := int(uint32(c.user))
	if heard := l.heard[fd]; heard != nil {
		heard() // also when it is not watched any more: what came meanwhile nobody tells
	}
	switch {
	case c.flags&cqeMore != 0:
		return nil
	case c.res < 0 && c.res != -int32(unix.ECANCELED) && c.res != -int32(unix.ENOMEM):
		return fmt.Errorf("watch descriptor %d: %w", fd, unix.Errno(-c.res))
	}
	return l.Watch(fd)
}

// room ends a wait. Whatever it says, a try to write says it better.
func (l *Loop) room(c cqe) {
	fd := int(uint32(c.user))
	roomy := l.roomy[fd]
	delete(l.roomy, fd)
	roomy()
}

func (l *Loop) end(c cqe) {
	i := uint32(c.user)
	op := l.ops[i]
	l.ops[i] = loopOp{}
	l.free = append(l.free, i)
	l.flying--
	op.file.open.RUnlock()
	n, err := int(c.res), error(nil)
	if n < 0 {
		n, err = 0, pathError(map[uint8]string{opReadv: "read", opWritev: "write"}[op.code], op.file.name, unix.Errno(-c.res))
	} else if n < op.want && !invariant.Planted("ioengine/loop-short-is-whole") {
		err = pathError(map[uint8]string{opReadv: "read", opWritev: "write"}[op.code], op.file.name, io.ErrUnexpectedEOF)
	}
	op.done(n, err)
}

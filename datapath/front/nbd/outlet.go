package nbd

import (
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// outlet is where the answers of a connection go that a lane serves: any goroutine adds, and the
// lane's sends what the socket takes, without waiting for it. It also says when that goroutine may wait.
type outlet struct {
	fd   int
	wake func() // ends the goroutine's wait

	mu struct {
		sync.Mutex
		queue, spare *outgoing
		err          error     // sending failed: everything is dropped
		room         sync.Cond // the queue was taken over for sending, or sending failed
		at           laneState
		cut          bool // nothing comes any more, by us
		news         bool // what the goroutine may have looked for, and not found, is there
	}

	// What is being sent, and what is left of it: the goroutine's.
	sending *outgoing
	left    cursor
	iov     []syscall.Iovec
	head    syscall.Msghdr
}

// laneState is what a lane's goroutine is at.
type laneState int

const (
	laneTakes    laneState = iota // it takes requests in and sends answers
	laneWaits                     // it waits for its loop
	laneReceives                  // it waits for the socket
	laneSteps                     // it lets requests end; after that it takes and sends
	laneOver                      // it has ended
)

func newOutlet(fd int, wake func()) *outlet {
	o := &outlet{fd: fd, wake: wake, iov: make([]syscall.Iovec, 0, maxIovecs)}
	o.mu.queue, o.mu.spare = new(outgoing), new(outgoing)
	o.mu.room.L = &o.mu
	return o
}

// add is put for those who may wait, while too much is queued; the lane's goroutine may not.
func (o *outlet) add(head, p []byte, home releaser) int {
	o.mu.Lock()
	for o.mu.queue.bytes >= waitingBytes && o.mu.err == nil {
		o.mu.room.Wait()
	}
	o.mu.Unlock()
	return o.put(head, p, home)
}

// put queues head (copied) and p (lent until home is told). After a failure all is dropped.
func (o *outlet) put(head, p []byte, home releaser) (queued int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.mu.err != nil {
		if home != nil {
			home.release()
		}
		return 0
	}
	o.mu.queue.add(head, p, home)
	return o.mu.queue.bytes
}

// flush has the lane's goroutine look again at what there is to send, and to take.
func (o *outlet) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stirLocked()
}

func (o *outlet) stirLocked() {
	switch o.mu.at {
	case laneTakes:
		o.mu.news = true
	case laneWaits:
		o.wake()
	}
}

// interrupt is flush for who stops the connection: the goroutine does not wait for the socket either.
func (o *outlet) interrupt() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.mu.at == laneReceives {
		o.mu.cut = true
		_ = unix.Shutdown(o.fd, unix.SHUT_RD) // nothing is being carried out, and nothing is taken in any more
		return
	}
	o.stirLocked()
}

// wasCut says whether interrupt has had nothing come any more, as if the client were gone.
func (o *outlet) wasCut() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.mu.cut
}

// becomes says what the goroutine is at.
func (o *outlet) becomes(at laneState) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mu.at, o.mu.news = at, false
}

// waits says that the goroutine begins to wait; it may not when there are news, which it is to look at first.
func (o *outlet) waits(at laneState) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.mu.news {
		o.mu.at = at
	}
	return !o.mu.news
}

// queued is how many bytes wait to be sent, with all of what is being sent. The goroutine's.
func (o *outlet) queued() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := o.mu.queue.bytes
	if o.sending != nil {
		n += o.sending.bytes
	}
	return n
}

// fail makes it drop everything from now on.
func (o *outlet) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.mu.err == nil {
		o.mu.err = err
	}
	o.mu.queue.release()
	o.mu.room.Broadcast()
	o.stirLocked()
}

// failed is why nothing is sent any more; or nil.
func (o *outlet) failed() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.mu.err
}

// send sends what there is, as far as the socket takes it. Full: it takes no more for now. The error is
// why nothing is sent any more.
func (o *outlet) send() (full bool, err error) {
	for o.next() {
		for !o.left.done() {
			n, errno := o.try()
			switch errno {
			case 0:
				if o.left.skip(n); invariant.Planted("nbd/lane-rest-lost") {
					o.left.bufs = o.left.bufs[:o.left.i]
				}
			case unix.EINTR:
			case unix.EAGAIN:
				return true, nil
			default:
				o.fail(os.NewSyscallError("sendmsg", errno))
				o.left.bufs = o.left.bufs[:o.left.i] // the rest goes nowhere
			}
		}
	}
	return false, o.failed()
}

// next says whether there is something to send, and takes the queue over when all before it was sent.
func (o *outlet) next() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if s := o.sending; s != nil && (o.left.done() || o.mu.err != nil) {
		s.release()
		o.sending, o.mu.spare = nil, s
	}
	if o.sending != nil {
		return true
	}
	if o.mu.queue.bytes == 0 {
		return false
	}
	o.sending = o.mu.queue
	o.mu.queue, o.mu.spare = o.mu.spare, nil
	o.left = cursor{bufs: o.sending.buffers()}
	o.mu.room.Broadcast()
	return true
}

// try asks the socket once to take what is left.
func (o *outlet) try() (int, syscall.Errno) {
	o.iov = o.iov[:0]
	for i, p := range o.left.bufs[o.left.i:] {
		if i == 0 {
			p = p[o.left.at:]
		}
		if len(o.iov) == maxIovecs {
			break
		}
		o.iov = append(o.iov, syscall.Iovec{Base: unsafe.SliceData(p), Len: uint64(len(p))})
	}
	sawSend(o.fd)
	o.head.Iov, o.head.Iovlen = &o.iov[0], uint64(len(o.iov))
	n, _, errno := syscall.Syscall(syscall.SYS_SENDMSG, uintptr(o.fd), uintptr(unsafe.Pointer(&o.head)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return int(n), errno
}

// close gives back what was never sent; nobody adds any more. The socket may be closed.
func (o *outlet) close() {
	o.fail(os.ErrClosed)
	o.next()
	o.becomes(laneOver)
}

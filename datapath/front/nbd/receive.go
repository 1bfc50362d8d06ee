package nbd

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// receiver takes bytes in from a connection: headers and small payload through its
// buffer, large payload straight to where it belongs (readv). One goroutine at a
// time uses it.
type receiver struct {
	conn net.Conn
	raw  syscall.RawConn // nil when the connection is no socket: then plain reads
	fd   int             // the socket, when it is a lane's; or -1
	// waits says that a lane's goroutine waits for the socket, that is, has nothing else to do; otherwise errLater.
	waits bool
	short bool           // the last call of a lane's took all that the socket held
	loop  *ioengine.Loop // the lane's, which hears of that; nil: there is none
	// before is called when the buffer is used up and the socket must be asked.
	before func()
	// waited says that the last call found the socket empty at first.
	waited bool

	buf   []byte // buf[r:w] is taken in and not used yet
	r, w  int
	ahead int // how much of buf the next call may fill

	into cursor // what get fills
	drop int    // what get drops, in bytes

	iov   []syscall.Iovec
	head  syscall.Msghdr
	readv func(fd uintptr) bool // made once, since a closure costs an allocation
	got   int
	errno syscall.Errno
}

// maxIovecs bounds one call; a payload of 1 MiB in slots of 8 KiB needs 128.
const maxIovecs = 256

// errLater says that the rest has not come yet: who asked asks again, once it may have.
var errLater = errors.New("not there yet")

func newReceiver(conn net.Conn, before func()) *receiver {
	r := &receiver{conn: conn, fd: -1, before: before, buf: make([]byte, receiveBytes), ahead: receiveBytes}
	if s, ok := conn.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			r.raw = raw
			r.iov = make([]syscall.Iovec, 0, maxIovecs)
			r.readv = r.tryReadv
		}
	}
	return r
}

// buffered is how many bytes can be had without asking the socket.
func (r *receiver) buffered() int { return r.w - r.r }

// next returns the next n bytes, at most receiveBytes; they are good until the next
// call. io.EOF is an end before the first of them.
func (r *receiver) next(n int) ([]byte, error) {
	if r.buffered() < n {
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	}
	for r.buffered() < n {
		got, err := r.read(r.buf[r.w:max(n, r.ahead)])
		r.w += got
		if err == io.EOF && r.buffered() > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
	}
	p := r.buf[r.r : r.r+n]
	r.r += n
	return p, nil
}

// fill fills all of bufs, in order.
func (r *receiver) fill(bufs [][]byte) error {
	r.want(bufs, 0)
	return r.get()
}

// discard drops the next n bytes.
func (r *receiver) discard(n int) error {
	r.want(nil, n)
	return r.get()
}

// want says what comes next: what fills bufs, in order, and then drop bytes that nobody needs.
func (r *receiver) want(bufs [][]byte, drop int) {
	if len(bufs) > 0 {
		r.aim(bufs)
	}
	r.into, r.drop = cursor{bufs: bufs}, drop
	r.into.skip(0)
}

// get takes in what is wanted. After errLater it goes on where it stood.
func (r *receiver) get() error {
	c := &r.into
	for !c.done() && r.buffered() > 0 {
		n := copy(c.rest(), r.buf[r.r:r.w])
		r.r += n
		c.skip(n)
	}
	for !c.done() {
		n, err := r.straight(c)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		c.skip(n)
	}
	r.into.bufs = nil
	for r.drop > 0 {
		p, err := r.next(min(r.drop, receiveBytes))
		if err != nil {
			return err
		}
		r.drop -= len(p)
	}
	return nil
}

// aim decides how far to read ahead from now on: the next payload is likely of the
// size of this one, and a large one is not to pass through the buffer.
func (r *receiver) aim(bufs [][]byte) {
	total := 0
	for _, p := range bufs {
		total += len(p)
	}
	r.ahead = receiveBytes
	if total >= straightBytes {
		r.ahead = requestBytes
	}
}

// straight asks the socket once for the rest of c; what comes after that goes to
// the buffer, which is empty. It returns how much came for c.
func (r *receiver) straight(c *cursor) (int, error) {
	if r.raw == nil {
		return r.read(c.rest())
	}
	r.iov = r.iov[:0]
	room, whole := 0, true
	for i, p := range c.bufs[c.i:] {
		if i == 0 {
			p = p[c.at:]
		}
		if len(p) == 0 {
			continue
		}
		if len(r.iov) == maxIovecs-1 {
			whole = false
			break
		}
		r.addIovec(p)
		room += len(p)
	}
	r.r, r.w = 0, 0
	if whole {
		r.addIovec(r.buf[:r.ahead])
	}
	n, err := r.call()
	if n > room {
		r.w = n - room
	}
	return min(n, room), err
}

// read asks the socket once for up to len(p) bytes.
func (r *receiver) read(p []byte) (int, error) {
	if r.raw == nil {
		r.before()
		n, err := r.conn.Read(p)
		if n > 0 {
			err = nil
		}
		return n, err
	}
	r.iov = r.iov[:0]
	r.addIovec(p)
	return r.call()
}

func (r *receiver) addIovec(p []byte) {
	r.iov = append(r.iov, syscall.Iovec{Base: &p[0], Len: uint64(len(p))})
}

// call waits until the socket has something and takes it in by one readv.
func (r *receiver) call() (int, error) {
	r.before()
	r.waited, r.got, r.errno = false, 0, 0
	var err error
	if r.fd < 0 {
		err = r.raw.Read(r.readv)
	} else if !r.tryRecv() {
		err = errLater
	}
	switch {
	case err != nil:
		return 0, err
	case r.errno != 0:
		return 0, os.NewSyscallError("readv", r.errno)
	case r.got == 0:
		return 0, io.EOF
	}
	return r.got, nil
}

func (r *receiver) tryReadv(fd uintptr) (done bool) {
	for {
		n, _, errno := syscall.Syscall(syscall.SYS_READV, fd, uintptr(unsafe.Pointer(&r.iov[0])), uintptr(len(r.iov)))
		if errno != syscall.EINTR {
			return r.took(fd, int(n), errno)
		}
	}
}

// tryRecv is tryReadv of a socket that a lane has.
func (r *receiver) tryRecv() (done bool) {
	flags := uintptr(syscall.MSG_DONTWAIT)
	if r.waits {
		flags = 0
		if !invariant.Planted("nbd/lane-seems-hung") {
			r.loop.Leave()
			defer r.loop.Return()
		}
	}
	room := 0
	for _, v := range r.iov {
		room += int(v.Len)
	}
	r.head.Iov, r.head.Iovlen = &r.iov[0], uint64(len(r.iov))
	for {
		n, _, errno := syscall.Syscall(syscall.SYS_RECVMSG, uintptr(r.fd), uintptr(unsafe.Pointer(&r.head)), flags)
		if errno != syscall.EINTR {
			r.short = int(n) < room
			return r.took(uintptr(r.fd), int(n), errno)
		}
	}
}

// took notes what the socket said; false: there is nothing yet.
func (r *receiver) took(fd uintptr, n int, errno syscall.Errno) bool {
	if errno == syscall.EAGAIN {
		r.waited = true
		return false
	}
	sawRead(fd)
	r.got, r.errno = n, errno
	if errno != 0 {
		r.got = 0
	}
	return true
}

// cursor is a place in a row of buffers: bufs[i][at] is the next byte.
type cursor struct {
	bufs  [][]byte
	i, at int
}

func (c *cursor) done() bool   { return c.i == len(c.bufs) }
func (c *cursor) rest() []byte { return c.bufs[c.i][c.at:] }

// skip goes n bytes on, and past buffers that are full.
func (c *cursor) skip(n int) {
	c.at += n
	for c.i < len(c.bufs) && c.at >= len(c.bufs[c.i]) {
		c.at -= len(c.bufs[c.i])
		c.i++
	}
}

package nbd

import (
	"net"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// watched is a front.Connection.
type watched struct {
	net.Conn
	left atomic.Bool
}

func (w *watched) Gone() bool { return hungUp(w.Conn) }
func (w *watched) Left() bool { return w.left.Load() }
func (w *watched) Drop()      { w.Close() }

// Process asks the kernel who connected to a unix socket.
func (w *watched) Process() (pid int) {
	c, ok := w.Conn.(*net.UnixConn)
	if !ok {
		return 0
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}

// hungUp says whether the other end has closed the connection, though there may be requests of its to be read still. One that
// cannot be asked counts as closed.
func hungUp(nc net.Conn) bool {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	gone := true
	err = raw.Control(func(fd uintptr) { gone = hungUpFD(int(fd)) })
	return gone || err != nil
}

func hungUpFD(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	for {
		n, err := unix.Poll(p, 0)
		if err != unix.EINTR {
			return err != nil || n > 0 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
		}
	}
}

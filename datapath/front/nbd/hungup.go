package nbd

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// watched is a front.Connection.
type watched struct{ net.Conn }

func (w watched) Gone() bool { return hungUp(w.Conn) }
func (w watched) Drop()      { w.Close() }

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
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		for {
			n, err := unix.Poll(p, 0)
			if err != unix.EINTR {
				gone = err != nil || n > 0 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
				return
			}
		}
	})
	return gone || err != nil
}

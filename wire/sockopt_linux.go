package wire

import (
	"math"
	"net"
	"syscall"
	"time"
)

// Of linux/tcp.h; package syscall stopped before them.
const (
	tcpUserTimeout  = 18
	tcpNotSentLowat = 25
	soMaxPacingRate = 47 // of asm/socket.h
)

// tune sets what a long-lived connection needs. The control connection is given
// up by the kernel too when nothing is acknowledged for twice deadAfter. The data
// connection is not: that option would also end it while the target is merely slow
// to read, so its death is found by heartbeats (stall).
func tune(c net.Conn, control bool) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	// Failure changes nothing but how fast a death is noticed.
	tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: deadAfter, Interval: time.Second, Count: 5})
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		if control {
			syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(2*deadAfter/time.Millisecond))
		} else {
			syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotSentLowat, unsentBytes)
		}
	})
}

// pace bounds what the kernel sends of a data connection, in bytes of TCP payload a
// second, 0 for no bound, and how much may wait there unsent. Without it, what waited
// while a link stood still would leave in one burst.
func pace(c net.Conn, rate uint64, unsent int) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	most := uint64(math.MaxUint32) // none
	if rate > 0 {
		most = min(rate, most-1)
	}
	raw.Control(func(fd uintptr) { // a kernel that refuses leaves bursts to the link
		syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, soMaxPacingRate, int(most))
		syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotSentLowat, unsent)
	})
}

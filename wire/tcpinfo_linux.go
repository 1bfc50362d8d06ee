//go:build !386

package wire

import (
	"encoding/binary"
	"net"
	"syscall"
	"time"
	"unsafe"
)

// Places in struct tcp_info of linux/tcp.h, which only ever grows at its end.
const (
	atRetransmits  = 2   // u8: timeouts in a row without an answer
	atOptions      = 5   // u8, bits: 1 is timestamps
	atMSS          = 16  // u32
	atUnacked      = 24  // u32, segments
	atPMTU         = 60  // u32
	atRTT          = 68  // u32, us
	atTotalRetrans = 100 // u32, segments
	atSegsOut      = 136 // u32, what is sent again and bare acknowledgements included
	atNotSent      = 144 // u32
	atDataSegsOut  = 156 // u32
	tcpInfoBytes   = 160
	atBytesSent    = 200 // u64, since Linux 4.19: payload, with what is sent again
	tcpInfoCounts  = 208
)

// tcpOf asks the kernel; false when c is no TCP connection or is closed.
func tcpOf(c net.Conn) (tcpState, bool) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return tcpState{}, false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return tcpState{}, false
	}
	var info [tcpInfoCounts]byte
	size := uint32(len(info))
	var errno syscall.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, syscall.IPPROTO_TCP, syscall.TCP_INFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	})
	if err != nil || errno != 0 || size < tcpInfoBytes {
		return tcpState{}, false
	}
	u32 := func(at int) uint32 { return binary.NativeEndian.Uint32(info[at:]) }
	return tcpState{
		TCPStats: TCPStats{
			Segments: uint64(u32(atDataSegsOut)), Retransmitted: uint64(u32(atTotalRetrans)),
			RTT: time.Duration(u32(atRTT)) * time.Microsecond, MSS: u32(atMSS), PathMTU: u32(atPMTU),
		},
		unacked: u32(atUnacked), timeouts: int(info[atRetransmits]),
		counted: size >= tcpInfoCounts, sent: binary.NativeEndian.Uint64(info[atBytesSent:]), segments: uint64(u32(atSegsOut)),
		unsent: uint64(u32(atNotSent)), stamped: info[atOptions]&1 != 0,
	}, true
}

// setMSS bounds the segments of a connection that is being made, both ways: the peer
// is told in the SYN.
func setMSS(c syscall.RawConn, mss int) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, mss)
	})
	if err != nil {
		return err
	}
	return failed
}

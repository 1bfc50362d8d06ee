//go:build !linux || 386

package wire

import (
	"net"
	"syscall"
)

// tcpState is what the kernel knows of a connection.
type tcpState struct {
	TCPStats
	unacked  uint32 // segments
	timeouts int    // in a row, with nothing acknowledged between
	counted  bool   // what follows is known
	sent     uint64 // bytes of payload, with what was sent again
	segments uint64 // of any kind
	unsent   uint64 // bytes the kernel has and has not sent
	stamped  bool   // with timestamps
}

// tcpOf asks the kernel, where we know how to.
func tcpOf(net.Conn) (tcpState, bool) { return tcpState{}, false }

// setMSS bounds the segments of a connection that is being made.
func setMSS(syscall.RawConn, int) error { return nil }

//go:build !linux

package wire

import (
	"net"
	"time"
)

// tune sets what a long-lived connection needs.
func tune(c net.Conn, control bool) {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: deadAfter, Interval: time.Second, Count: 5})
	}
}

// pace bounds what the kernel sends, where we know how to.
func pace(net.Conn, uint64, int) {}

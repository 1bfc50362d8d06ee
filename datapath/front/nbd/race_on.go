//go:build race

package nbd

import (
	"net"
	"syscall"
)

// The race detector sees only calls of package syscall and not readv or writev; for
// it the two ends of a socket in one process are ordered by these calls of no bytes.

func sawRead(fd uintptr) { syscall.Read(int(fd), nil) }

func sawSend(fd int) { syscall.Write(fd, nil) }

func sawWrite(conn net.Conn) {
	if _, ok := conn.(syscall.Conn); ok {
		conn.Write(nil)
	}
}

package wire

import (
	"net"
	"syscall"
	"testing"
	"time"
)

func TestUnsentAt(t *testing.T) {
	for _, c := range []struct {
		rate uint64 // bytes/s
		want int
	}{
		{0, 512 << 10}, {6_250_000, 512 << 10}, {200e6, 512 << 10}, {210e6, 1 << 20}, {420e6, 2 << 20}, {800e6, 2 << 20}, {840e6, 4 << 20}, {1 << 62, 4 << 20},
	} {
		if got := unsentAt(c.rate, time.Second); got != c.want {
			t.Errorf("%d bytes/s: %d", c.rate, got)
		}
		if got := unsentAt(2*c.rate, 2*time.Second); got != c.want {
			t.Errorf("%d bytes/s over two seconds: %d", c.rate, got)
		}
	}
}

// A fast connection may have more waiting in the kernel than a slow one, and not for what
// was fast for a moment only, nor under a cap.
func TestUnsentFollowsTheRate(t *testing.T) {
	h := newHandler(t)
	_, config := overRelay(t, 0, newHandler(t))
	connected(t, config, h)
	s := <-h.opened
	l := s.all()[0]
	unsent := func(want int) {
		t.Helper()
		raw, err := l.socket.Conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var got int
		raw.Control(func(fd uintptr) { got, err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotSentLowat) })
		if err != nil || got != want {
			t.Errorf("%d bytes may wait, %v; want %d", got, err, want)
		}
	}
	unsent(unsentBytes)
	s.carried(l, 1<<30, time.Second)
	unsent(mostUnsent)
	s.carried(l, 6<<20, time.Second)
	unsent(unsentBytes)
	s.carried(l, 1<<30, time.Millisecond)
	unsent(unsentBytes)
	s.Bound(100e6)
	capped := int(100e6 / 8 * pacedUnsent)
	s.carried(l, 1<<30, time.Second)
	unsent(min(capped, unsentBytes))
	s.Bound(0)
	unsent(mostUnsent)
}

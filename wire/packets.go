package wire

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// A path may carry smaller packets than its ends believe, and drop the ICMP that would
// tell them: a black hole, in which full-size segments vanish and all else arrives.
// Linux can find its way out by itself (net.ipv4.tcp_mtu_probing), but has that off,
// and for all sockets or none. So the control connection always uses small packets,
// which costs nothing there, and the data connection does once a session showed the
// marks of a hole. TCP_MAXSEG, set before the SYN, binds both directions.

// smallPackets get through wherever IPv6 does; in bytes from the IP header on.
const smallPackets = 1280

// ErrBlackHole ends a session whose full-size segments do not arrive.
var ErrBlackHole = errors.New("full-size segments vanish on the path: trying smaller ones")

// probeAgain is how long small packets must have carried a session before its
// successor tries full-size ones once more: a path changes.
const probeAgain = time.Hour

// packets decides what the data connection of the next attempt uses.
type packets struct{ small bool }

// size is for newDialer: 0 leaves it to the kernel.
func (p *packets) size() int {
	if p.small {
		return smallPackets
	}
	return 0
}

// ended takes in how an attempt ended that had a session for so long, and says whether
// the next one uses others. Small ones that do not help either are given up again.
func (p *packets) ended(err error, lasted time.Duration) (changed bool) {
	before := p.small
	switch {
	case p.small && lasted >= probeAgain:
		p.small = false
	case lasted == 0 && isMute(err):
		p.small = !p.small
	case errors.Is(err, ErrBlackHole) || errors.Is(err, ErrStalled):
		p.small = !invariant.Planted("wire/stays-in-the-hole")
	}
	return p.small != before
}

// isMute is a connection that was made, and on which nothing came.
func isMute(err error) bool {
	var op *net.OpError
	return isStuck(err) && !(errors.As(err, &op) && op.Op == "dial")
}

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

// holed says whether a connection shows what a black hole leaves: the same full-size
// segment was sent again and again, each time after a timeout. That the target would
// answer, the caller knows from the control connection.
func holed(t tcpState) bool {
	return t.unacked > 0 && t.timeouts >= 3 && t.MSS > smallPackets-40
}

// hole finds a black hole in what the kernel says at each heartbeat that came.
type hole struct{ marks int }

// beat is true at the second heartbeat in a row with its marks.
func (h *hole) beat(t tcpState) bool {
	if !holed(t) {
		h.marks = 0
		return false
	}
	h.marks++
	return h.marks >= 2 || invariant.Planted("wire/one-mark-is-a-hole")
}

// watchHole ends the context, for ErrBlackHole, once a connection that is being opened
// shows the marks: the first words of TLS fill a segment.
func watchHole(ctx context.Context, conn net.Conn) (_ context.Context, done func()) {
	if _, ok := tcpOf(conn); !ok {
		return ctx, func() {}
	}
	ctx, end := context.WithCancelCause(ctx)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if tcp, _ := tcpOf(conn); holed(tcp) {
					end(ErrBlackHole)
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, func() { end(nil); <-stopped }
}

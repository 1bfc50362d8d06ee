package wire

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"
)

func TestPacketsGetSmallerAfterAHole(t *testing.T) {
	mute := &lostError{"data", context.DeadlineExceeded}
	dial := &net.OpError{Op: "dial", Err: context.DeadlineExceeded}
	var p packets
	step := func(err error, lasted time.Duration, want int) {
		t.Helper()
		p.ended(err, lasted)
		if got := p.size(); got != want {
			t.Errorf("after %v, %v: %d, want %d", err, lasted, got, want)
		}
	}
	step(errors.New("refused"), 0, 0)
	step(dial, 0, 0)
	step(&lostError{"control", ErrDead}, time.Minute, 0)
	step(ErrBlackHole, time.Second, smallPackets)
	step(&lostError{"control", ErrDead}, time.Minute, smallPackets) // a cut link says nothing about packets
	step(dial, 0, smallPackets)
	step(ErrDead, 2*time.Hour, 0) // the path may have changed
	step(ErrStalled, time.Minute, smallPackets)
	step(mute, 0, 0) // they do not help
	step(mute, 0, smallPackets)
	step(ErrBlackHole, time.Minute, smallPackets)
}

func TestHole(t *testing.T) {
	full := TCPStats{MSS: 1448}
	f := func(want bool, states ...tcpState) {
		t.Helper()
		var h hole
		got := false
		for _, s := range states {
			got = h.beat(s)
		}
		if got != want {
			t.Errorf("%+v: %v", states, got)
		}
	}
	lost := tcpState{TCPStats: full, unacked: 10, timeouts: 3}
	f(true, lost, lost)
	f(true, tcpState{TCPStats: full, unacked: 10, timeouts: 0}, lost, tcpState{TCPStats: full, unacked: 4, timeouts: 5})
	f(false, lost)
	f(false, lost, tcpState{TCPStats: full, unacked: 10, timeouts: 1}, lost) // one got through between
	f(false, lost, tcpState{TCPStats: full, unacked: 0, timeouts: 3})        // nothing is on its way
	f(false, tcpState{TCPStats: TCPStats{MSS: 1228}, unacked: 10, timeouts: 5}, tcpState{TCPStats: TCPStats{MSS: 1228}, unacked: 10, timeouts: 6})
}

package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Counters count over all sessions they are handed to. Bytes are those of TLS on
// the socket, handshakes and refused connections included.
type Counters struct {
	ControlSent, ControlReceived atomic.Uint64 // bytes
	DataSent, DataReceived       atomic.Uint64 // bytes
	RecordsSent, RecordsReceived atomic.Uint64
	RecordsEarly                 atomic.Uint64 // received before their turn, and held
	RecordsAgain                 atomic.Uint64 // received again, or too late, and dropped
	Sessions                     atomic.Uint64 // opened
	ConnectionsLost              atomic.Uint64 // data connections of sessions that went on
	LinkTests                    atomic.Uint64
	refused                      [reasons]atomic.Uint64
	bad                          [badKinds]atomic.Uint64
}

// BadFrames returns how many sessions and link tests ended because the peer broke the
// protocol, by the kinds of what it sent, all of them.
func (c *Counters) BadFrames() map[Bad]uint64 {
	m := make(map[Bad]uint64, badKinds)
	for k := range c.bad {
		m[Bad(k)] = c.bad[k].Load()
	}
	return m
}

// broke counts the end of a session, if that is what ended it.
func (c *Counters) broke(reason error) {
	if k, ok := badKind(reason); ok && !invariant.Planted("wire/bad-frames-uncounted") {
		c.bad[k].Add(1)
	}
}

// Refusals returns how often a connection was refused, by each reason there was.
func (c *Counters) Refusals() map[Reason]uint64 {
	m := make(map[Reason]uint64)
	for r := range c.refused {
		if n := c.refused[r].Load(); n > 0 {
			m[Reason(r)] = n
		}
	}
	return m
}

// Traffic is the bytes of TLS on one session's sockets.
type Traffic struct {
	ControlSent, ControlReceived uint64
	DataSent, DataReceived       uint64
}

// Reason is why a connection was refused before it was part of a session.
type Reason int

// The reasons.
const (
	ReasonPlain   Reason = iota // not TLS
	ReasonTLS                   // TLS, but older than 1.3, or broken
	ReasonNoCert                // no certificate
	ReasonCA                    // not signed by the pinned CA of its site
	ReasonExpired               // or not yet valid
	ReasonSite                  // a site that is not pinned
	ReasonRole                  // not a VRA
	ReasonName                  // no holdfast name, or not the one expected
	ReasonHello                 // the first frame is none
	ReasonVersion               // no common version
	ReasonToken                 // a data connection that belongs to no session
	ReasonTimeout               // silent for too long
	ReasonFull                  // too many connections or sessions
	reasons
)

func (r Reason) String() string {
	return [reasons]string{"plain", "tls", "no-certificate", "ca", "expired", "site", "role",
		"name", "hello", "version", "token", "timeout", "full"}[r]
}

// refusedHere says why a source refused a target: err is no failure of the network, and
// not the target's own refusal.
func refusedHere(err error) (Reason, bool) {
	var refused *refusal
	var network *net.OpError
	switch {
	case errors.As(err, &refused):
		return refused.reason, !invariant.Planted("wire/refuses-in-silence")
	case !errors.Is(err, errTLS) || errors.Is(err, io.EOF) || isStuck(err) || errors.Is(err, ErrBlackHole) || errors.Is(err, context.Canceled):
		return 0, false
	case errors.As(err, &network) && network.Op != "local error":
		return 0, false
	}
	return reasonOf(err), true
}

// reasonOf sorts an error of a connection's first seconds.
func reasonOf(err error) Reason {
	var refused *refusal
	var notTLS tls.RecordHeaderError
	switch {
	case errors.As(err, &refused):
		return refused.reason
	case errors.As(err, &notTLS):
		return ReasonPlain
	case isTimeout(err), errors.Is(err, context.DeadlineExceeded):
		return ReasonTimeout
	case errors.Is(err, ErrProtocol):
		return ReasonHello
	}
	return ReasonTLS
}

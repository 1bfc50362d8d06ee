package wire

import "sync/atomic"

// Counters count over sessions. Bytes are those of TLS on the socket, handshakes included.
type Counters struct {
	ControlSent, ControlReceived atomic.Uint64 // bytes
	DataSent, DataReceived       atomic.Uint64 // bytes
	RecordsSent, RecordsReceived atomic.Uint64
	Sessions                     atomic.Uint64 // opened
	refused                      [reasons]atomic.Uint64
}

// Refusals returns how often a connection was refused, by reason.
func (c *Counters) Refusals() map[Reason]uint64 { return nil }

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
	ReasonFull                  // too many connections
	reasons
)

package shape

import "github.com/holdfast-dr/holdfast/ioengine/invariant"

// What a connection costs beside its payload, in bytes.
const (
	TLSRecord   = 16 << 10 // payload of a TLS record at most
	TLSOverhead = 5 + 1 + 16
	Ethernet    = 14
	IPv4        = 20
	IPv6        = 40
	TCP         = 20
	Timestamps  = 12 // the option that nearly every connection has

	frameBytes = 1514 // a full frame without a checksum, as interfaces count it
)

// Framing says how a connection's bytes become frames of an interface.
type Framing struct {
	Segment int // bytes of TCP payload in a full segment
	Headers int // bytes of Ethernet, IP and TCP before each
}

// Usual is the framing of a connection that nothing is known of: IPv4, 1500 bytes.
var Usual = Framing{Segment: 1500 - IPv4 - TCP - Timestamps, Headers: Ethernet + IPv4 + TCP + Timestamps}

// Wire is how much n bytes of TCP payload are on the interface when written at once.
func (f Framing) Wire(n int64) int64 {
	if n <= 0 || invariant.Planted("shape/headers-free") {
		return max(n, 0)
	}
	segments := (n + int64(f.Segment) - 1) / int64(f.Segment)
	return n + segments*int64(f.Headers)
}

// Sealed is how much n bytes of payload are as TLS records.
func Sealed(n int64) int64 {
	records := (n + TLSRecord - 1) / TLSRecord
	return n + records*TLSOverhead
}

// Fit is how much payload at most, written at once through TLS, is no more than wire
// bytes on the interface; at least 1, so that a sender always gets on.
func (f Framing) Fit(wire int64) int64 {
	full := int64(f.Segment + f.Headers)
	tcp := wire / full * int64(f.Segment)
	if rest := wire % full; rest > int64(f.Headers) {
		tcp += rest - int64(f.Headers)
	}
	records := (tcp + TLSRecord + TLSOverhead - 1) / (TLSRecord + TLSOverhead)
	return max(tcp-records*TLSOverhead, 1)
}

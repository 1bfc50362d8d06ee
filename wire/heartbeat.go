package wire

import (
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// The times of a session.
const (
	heartbeatEvery = time.Second
	deadAfter      = 5 * time.Second  // nothing heard on the control connection
	stalledAfter   = 10 * time.Second // nothing taken from the data connection by a peer that would
	handshakeTime  = 10 * time.Second // from a connection to its session, each end
	tlsTime        = 5 * time.Second  // of that, for TLS
	byeTime        = 200 * time.Millisecond
)

// heartbeat goes each way every second, first of all that waits to be sent.
type heartbeat struct {
	sent uint64 // ns, by the sender's clock of this session; never 0
	echo uint64 // the newest sent that the sender has received, 0 for none
	held uint64 // ns between that receipt and now
	// taken is how many bytes of frames the sender has taken off the data connection;
	// busy, that it is not taking more because it is storing what it took.
	taken uint64
	busy  bool
}

const heartbeatBytes = 4*8 + 1

func (h heartbeat) appendTo(p []byte) []byte {
	return putBool(putU64(putU64(putU64(putU64(p, h.sent), h.echo), h.held), h.taken), h.busy)
}

func parseHeartbeat(p []byte) (heartbeat, error) {
	d := decoder{p: p}
	h := heartbeat{d.u64(), d.u64(), d.u64(), d.u64(), d.bool()}
	if d.bad == "" && h.sent == 0 {
		d.fail("no time")
	}
	return h, d.end("heartbeat")
}

// stall finds a data connection that is dead while the control connection lives:
// bytes are on their way, and for long the peer took none though it would.
// A target that is busy storing is slow, not dead.
type stall struct {
	taken uint64
	since time.Time // of the last sign of life
}

// beat takes in a heartbeat's news and says whether the connection is stuck. sent
// is how many bytes of frames were given to the connection.
func (s *stall) beat(now time.Time, sent, taken uint64, busy bool) bool {
	if invariant.Planted("wire/busy-is-dead") {
		busy = false
	}
	if busy || taken != s.taken || taken >= sent || s.since.IsZero() {
		s.taken, s.since = taken, now
	}
	return now.Sub(s.since) >= stalledAfter
}

// roundTrip is what an echo says, 0 for nothing: now is our clock of this session.
func (h heartbeat) roundTrip(now uint64) time.Duration {
	if h.echo == 0 || h.echo > now || h.held > now-h.echo {
		return 0
	}
	return time.Duration(now - h.echo - h.held)
}

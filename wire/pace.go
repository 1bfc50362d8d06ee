package wire

import (
	"net"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/shape"
)

// Pace says when a record goes.
type Pace interface {
	// Next waits until some of the left bytes of a frame may be written, and says how
	// many. It must end with the session's Context; an error before anything of the
	// record was written leaves the session whole only if that is whole.
	Next(left int) (int, error)
}

// atOnce is no pace.
type atOnce struct{}

func (atOnce) Next(left int) (int, error) { return left, nil }

// Spent is what a session has put on the interface, as that counts it: payload and
// headers of every segment, acknowledgements and what was sent again too.
type Spent struct {
	Sent    uint64        // bytes
	Unsent  uint64        // bytes that the kernel has and has not sent yet
	Framing shape.Framing // of the data connection
}

// Spent asks the kernel. Of a connection that is no TCP, or closed, it is an estimate.
func (s *Session) Spent() Spent {
	control, _ := s.control.spent()
	s.lines.Lock()
	defer s.lines.Unlock()
	all := Spent{Sent: control.Sent + s.lines.gone.Sent, Unsent: control.Unsent, Framing: shape.Usual}
	for i, l := range s.lines.up {
		one, framing := l.spent()
		if i == 0 {
			all.Framing = framing
		}
		all.Sent += one.Sent
		// What its writer has is on its way too.
		all.Unsent += one.Unsent + uint64(framing.Wire(shape.Sealed(l.queued.Load())))
	}
	return all
}

func (l *link) spent() (Spent, shape.Framing) {
	f := shape.Usual
	ip, isTCP := l.RemoteAddr().(*net.TCPAddr)
	if isTCP && ip.IP.To4() == nil {
		f.Headers += shape.IPv6 - shape.IPv4
	}
	t, ok := tcpOf(l.socket.Conn)
	if !ok || !t.counted || t.MSS == 0 {
		return Spent{Sent: uint64(f.Wire(int64(l.socket.sent.Load())))}, f
	}
	if !t.stamped {
		f.Headers -= shape.Timestamps
	}
	f.Segment = int(t.MSS)
	return Spent{Sent: t.sent + t.segments*uint64(f.Headers), Unsent: uint64(f.Wire(int64(t.unsent)))}, f
}

const (
	// pacingOver is by how much the kernel may be faster than the cap: it only smooths
	// what a shaper has counted already, and must not be what limits it, not even when that
	// makes up for lost time.
	pacingOver = 1.02 * shape.CatchUp
	// pacedUnsent is how much of the cap's time may wait in the kernel unsent.
	pacedUnsent = 0.1
	// unsentBytes is how much may wait there without a cap. More would only be lag that nobody
	// sees, and bytes that a cut throws away.
	unsentBytes = 512 << 10
	// On a fast connection it is what goes in unsentTime, up to mostUnsent: less runs dry while
	// its writer waits for a processor.
	unsentTime = 5 * time.Millisecond
	mostUnsent = 4 << 20
)

// unsentAt is how much may wait unsent on a connection without a cap that carried so many
// bytes in a time. It goes by powers of two, so that it seldom changes.
func unsentAt(bytes uint64, in time.Duration) int {
	want := float64(bytes) * float64(unsentTime) / float64(in)
	unsent := unsentBytes
	for unsent < mostUnsent && float64(2*unsent) <= want {
		unsent *= 2
	}
	return unsent
}

// carried has the kernel keep as much unsent as a connection's rate calls for: so many bytes
// arrived between two reports. Reports that came close to each other had waited for something,
// and say nothing of the rate.
func (s *Session) carried(l *line, bytes uint64, in time.Duration) {
	if in < heartbeatEvery/2 && !invariant.Planted("wire/rate-of-a-moment") {
		return
	}
	unsent := unsentAt(bytes, in)
	s.lines.Lock()
	defer s.lines.Unlock()
	if unsent == l.unsent {
		return
	}
	l.unsent = unsent
	if s.lines.cap == 0 {
		pace(l.socket.Conn, 0, unsent)
	}
}

// boundTo has the kernel keep the connection below its part of the cap, one of so many; 0 is no cap.
func (l *line) boundTo(cap shape.Rate, parts int) {
	if cap == 0 {
		pace(l.socket.Conn, 0, l.unsent)
		return
	}
	_, f := l.spent()
	rate := cap.BytesPerSecond() * pacingOver / float64(parts)
	payload := rate * float64(f.Segment) / float64(f.Segment+f.Headers)
	unsent := int(min(max(cap.BytesPerSecond()*pacedUnsent/float64(parts), 16<<10), unsentBytes))
	pace(l.socket.Conn, max(uint64(payload), 1), unsent)
}

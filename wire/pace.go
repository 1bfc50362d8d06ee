package wire

import (
	"net"

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
	data, framing := s.data.spent()
	return Spent{Sent: control.Sent + data.Sent, Unsent: control.Unsent + data.Unsent, Framing: framing}
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
)

// Bound has the kernel keep the data connection below the cap too; 0 is no cap.
func (s *Session) Bound(cap shape.Rate) {
	if cap == 0 {
		pace(s.data.socket.Conn, 0, unsentBytes)
		return
	}
	_, f := s.data.spent()
	rate := cap.BytesPerSecond() * pacingOver
	payload := rate * float64(f.Segment) / float64(f.Segment+f.Headers)
	unsent := int(min(max(cap.BytesPerSecond()*pacedUnsent, 16<<10), unsentBytes))
	pace(s.data.socket.Conn, max(uint64(payload), 1), unsent)
}

package wire

import (
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// taken is a target's report of its data connections; it follows each of its heartbeats.
type taken struct{ lines []takenLine }

type takenLine struct {
	number uint32
	taken  uint64 // bytes of frames taken off it
	held   uint64 // ns in which it was not read because of the target
	busy   bool   // it is so now
}

const takenLineBytes = 4 + 8 + 8 + 1

func (t taken) appendTo(p []byte) []byte {
	p = append(p, byte(len(t.lines)))
	for _, l := range t.lines {
		p = putBool(putU64(putU64(putU32(p, l.number), l.taken), l.held), l.busy)
	}
	return p
}

func parseTaken(p []byte) (taken, error) {
	d := decoder{p: p}
	var t taken
	n := 0
	if b := d.take(1); b != nil {
		n = int(b[0])
	}
	if n > maxLines {
		d.fail("connections")
	}
	for i := 0; i < n && d.bad == ""; i++ {
		l := takenLine{d.u32(), d.u64(), d.u64(), d.bool()}
		if i > 0 && d.bad == "" && l.number <= t.lines[i-1].number {
			d.fail("numbers")
		}
		t.lines = append(t.lines, l)
	}
	return t, d.end("taken")
}

// takenNow is what a target reports.
func (s *Session) takenNow() (t taken) {
	for _, l := range s.all() {
		held, busy := s.heldUp(l)
		t.lines = append(t.lines, takenLine{l.number, l.taken.Load(), held, busy})
	}
	return t
}

// InTransit is how many bytes were given to the data connections that stand and have not arrived,
// as far as the target said, in so many reports: they come about once a second.
func (s *Session) InTransit() (n int64, reports uint64) {
	reports = s.reports.Load()
	for _, l := range s.all() {
		arrived := l.arrived.Load() // before: what arrived was sent
		n += int64(l.sent.Load() - arrived)
	}
	return n, reports
}

// missedReports is in how many reports in a row a connection must be missing to be gone
// at the target: one may have been on its way when the connection was made.
const missedReports = 3

// heardTaken takes in a report: what arrived counts, and a connection that is stuck, or
// that the target does not have, is given up.
func (s *Session) heardTaken(t taken) error {
	for _, l := range s.all() {
		at := -1
		for i := range t.lines {
			if t.lines[i].number == l.number {
				at = i
			}
		}
		if at < 0 {
			if l.told.missed++; l.told.missed >= missedReports {
				s.heardLost(l, &lostError{"data", errHungUp})
			}
			continue
		}
		l.told.missed = 0
		r, sent := t.lines[at], l.sent.Load()
		if r.taken > sent || r.taken < l.told.taken || r.held < l.told.held {
			return protocolError("the peer took %d bytes of %d", r.taken, sent)
		}
		now := time.Now()
		if !l.told.at.IsZero() {
			s.carried(l, r.taken-l.told.taken, now.Sub(l.told.at))
		}
		l.told.at = now
		s.arrived.Add(r.taken - l.told.taken)
		s.heldUpThere.Add(int64(r.held - l.told.held))
		l.told.taken, l.told.held = r.taken, r.held
		l.arrived.Store(r.taken)
		if l.told.stall.beat(now, sent, r.taken, r.busy) && !invariant.Planted("wire/no-stall") {
			s.heardLost(l, ErrStalled)
			continue
		}
		if tcp, ok := tcpOf(l.socket.Conn); ok && l.told.hole.beat(tcp) {
			return ErrBlackHole
		}
	}
	s.reports.Add(1)
	select {
	case s.reported <- time.Now():
	default: // the one before is not looked at yet
	}
	return nil
}

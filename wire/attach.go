package wire

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/breadth"
)

// run says whether further data connections may be attached to a session.
func (s *Server) run(session *Session, running bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if running && session.version >= OrderedSince {
		s.mu.running[session.token] = session
	} else {
		delete(s.mu.running, session.token)
	}
}

// takeAttach gives a data connection to the open session it names, of the same peer.
func (s *Server) takeAttach(l *link, body []byte, whole func() bool) {
	defer whole()
	conn := l.socket.Conn
	a, err := parseAttach(body)
	if err != nil {
		l.hangUp()
		s.refuse(conn, err)
		return
	}
	s.mu.Lock()
	session := s.mu.running[a.token]
	s.mu.Unlock()
	if session == nil || session.Peer() != l.peer && !invariant.Planted("wire/attach-any-peer") {
		writeHandshake(l, typeBye, bye{CodeProtocol, "no such session"}.appendTo)
		l.hangUp()
		s.refuse(conn, &refusal{ReasonToken, fmt.Errorf("%v attaches to no session of its own", l.peer)})
		return
	}
	if err := session.lines.mayAdd(a.number); err != nil {
		writeHandshake(l, typeBye, bye{CodeBusy, err.Error()}.appendTo)
		l.hangUp()
		s.refuse(conn, &refusal{ReasonFull, err})
		return
	}
	// The answer goes first: once the session has the connection, it is the session's.
	if writeHandshake(l, typeJoined, nil) != nil || !whole() || session.addLine(l, a.number) != nil {
		l.hangUp()
	}
}

// spread keeps as many data connections as pay, until the session ends. It looks at each
// report of the target's, about one a second: between them nothing is known of what arrived.
func (s *Session) spread(c *ClientConfig, b *breadth.Breadth, packet int) {
	var wait backoff
	var next time.Time // no attempt before
	refused := false
	for {
		var now time.Time
		select {
		case now = <-s.reported:
		case <-s.ctx.Done():
			return
		}
		up := s.Connections()
		want := b.Step(now, breadth.Sample{
			Bytes: s.arrived.Load(), Waited: time.Duration(s.waited.Load()), Held: time.Duration(s.heldUpThere.Load()),
			Up: up, Refused: refused,
		})
		refused = false
		s.wanted.Store(int32(want))
		for ; up > want; up-- {
			s.retire()
		}
		for ; up < want && !time.Now().Before(next); up++ {
			if err := s.attach(c, packet); err != nil {
				if s.ctx.Err() != nil {
					return
				}
				s.log.Info("no further data connection", "error", err)
				var peer *PeerError
				refused = errors.As(err, &peer)
				next = time.Now().Add(wait.next(0, rand.Float64))
				break
			}
			s.log.Info("one more data connection", "connections", s.Connections())
			wait = backoff{}
		}
	}
}

// attach makes one more data connection.
func (s *Session) attach(c *ClientConfig, packet int) error {
	ctx, cancel := context.WithTimeout(s.ctx, handshakeTime)
	defer cancel()
	l, err := c.dataLink(ctx, s.control, packet)
	if err != nil {
		return err
	}
	whole := l.guard(ctx, handshakeTime)
	defer whole()
	s.lines.Lock()
	number := s.lines.next
	s.lines.Unlock()
	_, err = ask(l, typeAttach, attach{s.token, number}.appendTo, typeJoined)
	if err == nil && !whole() {
		err = context.Cause(ctx)
	}
	if err == nil {
		l.socket.cork()
		err = s.addLine(l, number)
	}
	if err != nil {
		l.hangUp()
	}
	return err
}

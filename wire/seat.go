package wire

import (
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// A peer has one seat. Who sits there keeps it for as long as it is heard of: a clone of a source,
// which has its name and certificate, does not get in while its original lives. A source that was
// started anew finds the seat free, or waits until what is left of its session before has been silent
// for deadAfter.

// seatTime is how long a session waits for the one before to leave: until that is found dead, and
// what it had under way is done. The peer waits for handshakeTime.
const seatTime = deadAfter + 3*time.Second

// enter counts a session in; false when there are too many peers.
func (s *Server) enter(session *Session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	peer := session.Peer()
	place := s.mu.peers[peer]
	if place == nil {
		if len(s.mu.peers) >= s.c.MaxSessions {
			return false
		}
		place = &seat{free: make(chan struct{}, 1)}
		place.free <- struct{}{}
		s.mu.peers[peer] = place
	}
	place.users++
	if invariant.Planted("wire/newest-sits") && place.sits != nil {
		place.sits.end(ErrSuperseded)
	}
	return true
}

// leave undoes enter.
func (s *Server) leave(session *Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	peer := session.Peer()
	place := s.mu.peers[peer]
	if place.users--; place.users == 0 {
		delete(s.mu.peers, peer)
	}
}

// sit waits until the peer's session before has left; an error says why it cannot be waited for.
func (s *Server) sit(session *Session, deadline time.Time) (left func(), err error) {
	s.mu.Lock()
	place := s.mu.peers[session.Peer()]
	s.mu.Unlock()
	if invariant.Planted("wire/two-at-once") {
		return func() {}, nil
	}
	t := time.NewTimer(min(seatTime, time.Until(deadline)))
	defer t.Stop()
	select {
	case <-place.free:
		s.sits(place, session)
		return func() {
			s.sits(place, nil)
			place.free <- struct{}{}
		}, nil
	case <-t.C:
		return nil, fmt.Errorf("another source that shows the name %v has a session, and is alive: this one is a clone of it, or the other", session.Peer())
	case <-session.ctx.Done():
		return nil, session.reason()
	}
}

func (s *Server) sits(place *seat, session *Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	place.sits = session
}

package wire

import (
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// enter counts a session in and makes it the newest of its peer, which ends the
// one before; false when there are too many.
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
	if place.newest != nil {
		place.newest.end(ErrSuperseded)
	}
	place.newest = session
	return true
}

// leave undoes enter.
func (s *Server) leave(session *Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	peer := session.Peer()
	place := s.mu.peers[peer]
	if place.newest == session {
		place.newest = nil
	}
	if place.users--; place.users == 0 {
		delete(s.mu.peers, peer)
	}
}

// sit waits until the peer's session before has left; ok is false when this one
// was superseded itself or waited too long.
func (s *Server) sit(session *Session, deadline time.Time) (left func(), ok bool) {
	s.mu.Lock()
	place := s.mu.peers[session.Peer()]
	s.mu.Unlock()
	if invariant.Planted("wire/two-at-once") {
		return func() {}, true
	}
	t := time.NewTimer(time.Until(deadline))
	defer t.Stop()
	select {
	case <-place.free:
		return func() { place.free <- struct{}{} }, true
	case <-t.C:
	case <-session.ctx.Done():
	}
	return nil, false
}

package vhostuser

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"

	"github.com/holdfast-dr/holdfast/datapath/front"
)

// Server offers one disk to one virtual machine at a time. Device is needed.
type Server struct {
	Device front.Device
	// Name is what the guest may ask the disk's name by; it sees 20 bytes of it.
	Name string
	// Log takes what an operator wants to see: who came, and why he left. Nil is silent.
	Log *slog.Logger

	mu struct {
		sync.Mutex
		session *net.UnixConn // of who is served; nil: nobody
		ended   chan struct{} // closed when that has ended
	}
	channel channel // of the session
}

// Resized tells the front end that is connected that the device has another size than it was told of; a front end that
// cannot be told, or comes later, asks.
func (s *Server) Resized() {
	switch told, err := s.channel.tell(tellConfig); {
	case err != nil:
		s.log().Warn("the front end is not told of the disk's new size", "error", err)
	default:
		s.log().Info("the disk has another size", "bytes", s.Device.Size(), "front_end_told", told)
	}
}

// Serve answers front ends on l until ctx ends, and then closes l, answers what is in
// flight, and returns nil once nothing of the guest is in use. Another error is the
// listener's. A second front end is refused while the first is connected.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	return front.Accept(ctx, l, "vhost-user", s.log(), s.serveConn)
}

func (s *Server) serveConn(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	if !s.enter(ctx, conn) {
		s.log().Warn("vhost-user front end refused: another is connected")
		return
	}
	defer s.leave()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	s.log().Info("vhost-user front end connected")
	e := &session{dev: s.Device, name: s.Name, log: s.log(), conn: conn, channel: &s.channel}
	err := e.serve()
	if ctx.Err() != nil && errors.Is(err, net.ErrClosed) {
		err = nil // we ended it
	}
	s.log().Info("vhost-user front end gone", "err", err)
}

// enter makes conn the one that is served. It waits while one that has left is being
// answered still; false: one is there and stays, or ctx ended.
func (s *Server) enter(ctx context.Context, conn *net.UnixConn) bool {
	for {
		s.mu.Lock()
		other, ended := s.mu.session, s.mu.ended
		if other == nil {
			s.mu.session, s.mu.ended = conn, make(chan struct{})
			s.mu.Unlock()
			return true
		}
		s.mu.Unlock()
		if connected(other) {
			return false
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return false
		}
	}
}

// Connected says whether a front end is served, or was and is being answered still.
func (s *Server) Connected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.session != nil
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.mu.ended)
	s.mu.session = nil
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

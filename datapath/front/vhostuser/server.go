package vhostuser

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"

	"github.com/holdfast-dr/holdfast/datapath/front"
)

// Server offers one disk to one virtual machine at a time. Device, or an Open, is needed.
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

	holding sync.Mutex // while front ends are held, or one's session begins; before mu
	live    *session   // that has begun, and has not ended; under holding
	open    Open       // nil: each is served by Device. Under holding
}

// Open opens a device for one front end. An error refuses the front end, which may come again.
type Open func() (Opened, error)

// Opened is a device of one front end. It is closed once that has left, and nothing of it is in use.
type Opened interface {
	front.Device
	Close() error
}

// OpenEach has a device opened for each front end from now on, where Device is none: before Serve.
func (s *Server) OpenEach(open Open) { s.open = open }

// Hold has the front end take nothing more: what is in flight is answered when it returns, what the guest asks for waits, and so does a front end that
// comes. That is for a moment: go on must follow, and nothing else of the server is to be called before. With an Open, whoever is connected and who comes later is
// served by what it opens, under the same tables in flight; Device is not used any more, in any way. Without, all goes on as it was.
func (s *Server) Hold() (goOn func(Open)) {
	s.holding.Lock()
	e := s.live
	if e != nil {
		e.hold()
	}
	return func(open Open) {
		defer s.holding.Unlock()
		if open != nil {
			s.open = open
		}
		if e == nil {
			return
		}
		var dev Opened
		var err error
		if open != nil {
			dev, err = s.open()
		}
		e.goOn(dev, err)
	}
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
	e, err := s.begin(conn)
	if err != nil {
		s.log().Warn("vhost-user front end refused: its disk is not to be had", "err", err)
		return
	}
	if u, is := e.dev.(front.Used); is {
		defer u.Begins()()
	}
	s.log().Info("vhost-user front end connected")
	err = errors.Join(e.serve(), s.end(e))
	if ctx.Err() != nil && errors.Is(err, net.ErrClosed) {
		err = nil // we ended it
	}
	s.log().Info("vhost-user front end gone", "err", err)
}

// begin makes a session, for a front end that is not held.
func (s *Server) begin(conn *net.UnixConn) (*session, error) {
	s.holding.Lock()
	defer s.holding.Unlock()
	e := &session{dev: s.Device, name: s.Name, log: s.log(), conn: conn, channel: &s.channel}
	if s.open != nil {
		var err error
		if e.opened, err = s.open(); err != nil {
			return nil, err
		}
		e.dev = e.opened
	}
	s.live = e
	return e, nil
}

// end gives back what a session had that is over.
func (s *Server) end(e *session) error {
	s.holding.Lock()
	defer s.holding.Unlock()
	s.live = nil
	return e.close()
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

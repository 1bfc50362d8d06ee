package nbd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Server offers exports to whoever connects. The zero value is ready.
type Server struct {
	// Log takes what an operator wants to see: connections and why they ended. Nil
	// is silent.
	Log *slog.Logger

	bufs readBufs

	mu struct {
		sync.Mutex
		exports map[string]*export
		conns   int
	}
}

// Export is one disk on offer.
type Export struct {
	Name        string // at most MaxName bytes; "" is the default export
	Description string // for people, at most MaxName bytes; may be empty
	Device      front.Device
}

// export is an Export and the connections that use it.
type export struct {
	Export
	conns map[*conn]struct{} // guarded by Server.mu
	gone  bool               // guarded by Server.mu
	users sync.WaitGroup
}

// Errors of Add and Remove.
var (
	ErrExists   = errors.New("nbd: an export of that name exists")
	ErrNoExport = errors.New("nbd: no such export")
)

// Add offers e from now on.
func (s *Server) Add(e Export) error {
	if len(e.Name) > MaxName || len(e.Description) > MaxName {
		return fmt.Errorf("nbd: name or description longer than %d bytes", MaxName)
	}
	if e.Device == nil || e.Device.Size() < 0 {
		return fmt.Errorf("nbd: export %q has no device", e.Name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.exports == nil {
		s.mu.exports = make(map[string]*export)
	}
	if s.mu.exports[e.Name] != nil {
		return fmt.Errorf("%w: %q", ErrExists, e.Name)
	}
	s.mu.exports[e.Name] = &export{Export: e, conns: make(map[*conn]struct{})}
	return nil
}

// Remove withdraws the export, ends its connections and waits for the requests in
// flight, which are answered where the client still listens. The device is the
// caller's again when it returns.
func (s *Server) Remove(name string) error {
	s.mu.Lock()
	e := s.mu.exports[name]
	if e == nil {
		s.mu.Unlock()
		return fmt.Errorf("%w: %q", ErrNoExport, name)
	}
	delete(s.mu.exports, name)
	e.gone = true
	for c := range e.conns {
		c.stop()
	}
	s.mu.Unlock()
	if !invariant.Planted("nbd/remove-in-flight") {
		e.users.Wait()
	}
	return nil
}

// Clients returns how many connections use the exports.
func (s *Server) Clients() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.mu.exports {
		n += len(e.conns)
	}
	return n
}

// lookup returns the export, or nil.
func (s *Server) lookup(name string) *export {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.exports[name]
}

// exports returns all there are.
func (s *Server) exports() []Export {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Export, 0, len(s.mu.exports))
	for _, e := range s.mu.exports {
		list = append(list, e.Export)
	}
	return list
}

// attach makes c a user of the export; false when it was removed meanwhile.
func (s *Server) attach(e *export, c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.gone {
		return false
	}
	e.conns[c] = struct{}{}
	e.users.Add(1)
	return true
}

func (s *Server) detach(e *export, c *conn) {
	s.mu.Lock()
	delete(e.conns, c)
	s.mu.Unlock()
	e.users.Done()
}

// Serve answers connections on l until ctx ends, and then closes l, answers what is
// in flight, and returns nil once every connection is closed. Several listeners may
// be served at once. Another error is the listener's.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	return front.Accept(ctx, l, "nbd", s.log(), s.serveConn)
}

// serveConn is one connection from its first byte to its last.
func (s *Server) serveConn(ctx context.Context, nc net.Conn) {
	defer nc.Close()
	if !s.enter() {
		s.log().Warn("nbd connection refused: too many", "limit", maxConns)
		return
	}
	defer s.leave()
	c := newConn(s, nc)
	defer context.AfterFunc(ctx, c.stop)()
	log := s.log().With("client", nc.RemoteAddr().String())

	c.within(time.Now().Add(handshakeTime))
	e, err := c.negotiate()
	if err != nil {
		log.Info("nbd handshake ended", "err", err)
		return
	}
	if e == nil {
		return // it only looked around
	}
	defer s.detach(e, c)
	about := &watched{Conn: nc}
	if w, is := e.Device.(front.Watched); is {
		defer w.Connected(about)()
	}
	if u, is := e.Device.(front.Used); is {
		defer u.Begins()()
	}
	c.within(time.Time{})
	log = log.With("export", e.Name)
	log.Info("nbd client connected")
	err = c.transmit(log)
	about.left.Store(c.parted)
	log.Info("nbd client gone", "err", err, "device_errors", c.deviceErrors.Load())
}

func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.conns == maxConns {
		return false
	}
	s.mu.conns++
	return true
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.conns--
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

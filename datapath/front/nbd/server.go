package nbd

import (
	"context"
	"errors"
	"log/slog"
	"net"

	"github.com/holdfast-dr/holdfast/datapath/front"
)

// Server offers exports to whoever connects. The zero value with a Log is ready.
type Server struct {
	// Log takes what an operator wants to see: connections and why they ended. Nil
	// is silent.
	Log *slog.Logger
}

// Export is one disk on offer.
type Export struct {
	Name        string // at most MaxName bytes; "" is the default export
	Description string // for people; may be empty
	Device      front.Device
}

// Errors of Add and Remove.
var (
	ErrExists   = errors.New("nbd: an export of that name exists")
	ErrNoExport = errors.New("nbd: no such export")
)

// Add offers e from now on.
func (s *Server) Add(e Export) error { return errors.ErrUnsupported }

// Remove withdraws the export, ends its connections and waits for the requests in
// flight, which are answered where the client still listens. The device is the
// caller's again when it returns.
func (s *Server) Remove(name string) error { return errors.ErrUnsupported }

// Serve answers connections on l until ctx ends, and then closes l, answers what is
// in flight, and returns nil once every connection is closed. Several listeners may
// be served at once. Another error is the listener's.
func (s *Server) Serve(ctx context.Context, l net.Listener) error { return errors.ErrUnsupported }

package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"time"
)

// Pin is a peer site's CA, trusted for that site alone.
type Pin struct {
	Site string
	CA   *x509.CertPool
}

// Credentials are who we are and whom we talk to.
type Credentials struct {
	Certificate tls.Certificate
	Pins        []Pin
	// Now is the clock certificates are judged by; nil is time.Now.
	Now func() time.Time
}

// LoadCredentials reads our certificate with its key, and the CA of each peer
// site: a PEM file with one certificate whose URI names the site.
func LoadCredentials(certFile, keyFile string, peerCAs ...string) (Credentials, error) {
	return Credentials{}, errNotBuilt
}

// ServerConfig is a target's end.
type ServerConfig struct {
	ListenControl string // host:port; port 0 picks one
	ListenData    string
	Credentials   Credentials
	// ReceiveBytes bounds the memory of records received and not yet released, over
	// all sessions; at least two of the largest records. 0 is 64 MiB.
	ReceiveBytes int64
	MaxSessions  int       // 0 is 64
	Counters     *Counters // nil makes one
	Log          *slog.Logger
	// Listen replaces net.Listen.
	Listen func(network, address string) (net.Listener, error)
}

// Server takes sessions.
type Server struct{}

// Listen opens both ports. Connections are taken once Serve runs.
func Listen(c ServerConfig) (*Server, error) { return nil, errNotBuilt }

// Serve takes sessions until ctx ends or a port fails; then all sessions are over. It closes both ports.
func (s *Server) Serve(ctx context.Context, h Handler) error { return errNotBuilt }

// Close closes the ports of a server that is not to Serve.
func (s *Server) Close() {}

// ControlAddr is the address of the control port.
func (s *Server) ControlAddr() net.Addr { return nil }

// DataAddr is the address of the data port.
func (s *Server) DataAddr() net.Addr { return nil }

// Counters of all sessions, ever.
func (s *Server) Counters() *Counters { return nil }

// ClientConfig is a source's end towards one target VRA.
type ClientConfig struct {
	Control     string // host:port
	Data        string
	Credentials Credentials
	// Target, where set, is the only peer to talk to; else any VRA of a pinned site is.
	Target   Peer
	Counters *Counters // nil makes one
	Log      *slog.Logger
	// Failed is told why an attempt or a session ended, before the next attempt.
	Failed func(error)
	// Dial replaces net.Dialer.DialContext.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Connect keeps one session with a target until ctx ends: it dials, hands the
// session to h, and dials again when it ended, after 0.2 s to 5 s. It returns
// when the last session is over; an error only for a useless configuration.
func Connect(ctx context.Context, c ClientConfig, h Handler) error { return errNotBuilt }

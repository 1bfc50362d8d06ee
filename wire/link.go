package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/wire/tape"
)

// link is one of a session's two connections: TLS over a socket whose bytes are
// counted. After open its peer is known and trusted.
type link struct {
	*tls.Conn
	socket *socket
	peer   Peer
	test   bool // a data connection whose first frame was Test

	tape    *tape.Connection // nil but for debugging, and so are out and in
	out, in *taping
}

// errTLS is a connection that did not get through TLS.
var errTLS = errors.New("TLS")

// open takes a new connection through TLS; the connection is closed if that fails
// or ctx ends.
func open(ctx context.Context, conn net.Conn, client bool, config *tls.Config, sent, received *atomic.Uint64) (*link, error) {
	s := &socket{Conn: conn, totalSent: sent, totalReceived: received}
	l := &link{socket: s}
	if client {
		l.Conn = tls.Client(s, config)
	} else {
		l.Conn = tls.Server(s, config)
	}
	ctx, cancel := context.WithTimeout(ctx, tlsTime)
	defer cancel()
	err := l.HandshakeContext(ctx)
	if err == nil {
		l.peer, err = peerOf(l.ConnectionState().PeerCertificates[0])
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("%w: %w", errTLS, err)
	}
	return l, nil
}

// cut closes the socket at once: what was not sent yet never is, and there is no
// waiting for a peer that may be gone.
func (l *link) cut() {
	l.tape.Close()
	if tcp, ok := l.socket.Conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	l.socket.Close()
}

// hangUp closes the socket; what was written is still delivered if it can be.
func (l *link) hangUp() {
	l.tape.Close()
	l.socket.Close()
}

// guard closes the link when ctx ends or the time is over, until the returned
// function is called; that says whether the link is still whole.
func (l *link) guard(ctx context.Context, d time.Duration) (release func() bool) {
	l.SetDeadline(time.Now().Add(d))
	stop := context.AfterFunc(ctx, l.cut)
	return func() bool {
		return stop() && l.SetDeadline(time.Time{}) == nil
	}
}

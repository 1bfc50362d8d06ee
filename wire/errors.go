package wire

import (
	"errors"
	"fmt"
	"net"
)

// How a session or an attempt at one ends; use errors.Is.
var (
	ErrClosed     = errors.New("session closed here")
	ErrDead       = errors.New("peer is silent")
	ErrStalled    = errors.New("data connection is stuck")
	ErrSlow       = errors.New("peer does not take its control messages")
	ErrSuperseded = errors.New("another session of the same peer stands")
	ErrProtocol   = errors.New("protocol broken")
	ErrVersion    = errors.New("no common protocol version")
	ErrUntrusted  = errors.New("certificate refused")
	ErrDirection  = errors.New("records travel from source to target only")
)

// VersionError says which versions each end speaks. It is an ErrVersion.
type VersionError struct {
	Ours, Theirs Versions
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("%v: this end speaks %v, the peer %v", ErrVersion, e.Ours, e.Theirs)
}

// Is makes it an ErrVersion.
func (e *VersionError) Is(target error) bool { return target == ErrVersion }

// PeerError is the reason the peer gave for ending the session.
type PeerError struct {
	Code Code
	Text string
}

func (e *PeerError) Error() string { return fmt.Sprintf("ended by the peer: %v: %s", e.Code, e.Text) }

// Is makes an end by CodeSuperseded an ErrSuperseded.
func (e *PeerError) Is(target error) bool {
	return target == ErrSuperseded && e.Code == CodeSuperseded
}

// lostError is a connection that broke: there is nobody to say goodbye to.
type lostError struct {
	conn string
	err  error
}

func (e *lostError) Error() string { return e.conn + " connection: " + e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

func isLost(err error) bool {
	var lost *lostError
	return errors.As(err, &lost)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// codeFor is how the peer is told why we end a session.
func codeFor(err error) Code {
	switch {
	case errors.Is(err, ErrSuperseded):
		return CodeSuperseded
	case errors.Is(err, ErrClosed):
		return CodeStopping
	case errors.Is(err, ErrProtocol):
		return CodeProtocol
	}
	return CodeOther
}

// polite says whether the peer may still hear why the session ends.
func polite(err error) bool {
	var peer *PeerError
	return !isLost(err) && !errors.As(err, &peer)
}

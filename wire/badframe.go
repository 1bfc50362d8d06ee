package wire

import (
	"errors"
	"fmt"
	"net"
)

// Bad is how a peer broke the protocol.
type Bad int

// The kinds.
const (
	BadHeader Bad = iota // no frame at all: magic, checksum, reserved bytes
	BadType              // unknown, or in the wrong place or version
	BadLength            // beyond the type's limit, or not that of what is in it
	BadBody              // a message that does not read, or says what no sender may
	BadRecord            // a record whose header does not verify
	BadSense             // well formed, and wrong where it comes
	BadTLS               // bytes that were changed on the way
	badKinds
)

func (b Bad) String() string {
	return [badKinds]string{"header", "type", "length", "body", "record", "sense", "tls"}[b]
}

// badError is what a peer did that no peer may do. It is an ErrProtocol.
type badError struct {
	kind Bad
	err  error
}

func (e *badError) Error() string        { return fmt.Sprintf("%v: bad %v: %v", ErrProtocol, e.kind, e.err) }
func (e *badError) Unwrap() error        { return e.err }
func (e *badError) Is(target error) bool { return target == ErrProtocol }

func badFrame(kind Bad, format string, args ...any) error {
	return &badError{kind, fmt.Errorf(format, args...)}
}

// protocolError is a frame that is well formed, and wrong where it comes.
func protocolError(format string, args ...any) error { return badFrame(BadSense, format, args...) }

// badKind sorts the reason of an end that the peer's bytes brought about.
func badKind(err error) (Bad, bool) {
	var bad *badError
	var local *net.OpError
	switch {
	case errors.As(err, &bad):
		return bad.kind, true
	case errors.Is(err, ErrProtocol): // of a handler
		return BadSense, true
	case errors.As(err, &local) && local.Op == "local error": // an alert of our own TLS
		return BadTLS, true
	}
	return 0, false
}

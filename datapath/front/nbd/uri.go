package nbd

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
)

// URI names an export: nbd+unix:///NAME?socket=PATH or nbd://HOST[:PORT]/NAME.
type URI struct {
	Network string // "unix" or "tcp"
	Address string // the socket's path, or host:port
	Export  string
}

const defaultPort = "10809"

// ParseURI reads the form that the NBD project defines; TLS and vsock are refused.
func ParseURI(s string) (URI, error) {
	u, err := parseURI(s)
	if err != nil {
		return URI{}, fmt.Errorf("NBD URI %q: %w", s, err)
	}
	return u, nil
}

func parseURI(s string) (URI, error) {
	u, err := url.Parse(s)
	if err != nil {
		return URI{}, errors.Unwrap(err)
	}
	// The path is /NAME; a second slash in front belongs to the name.
	export := strings.TrimPrefix(u.Path, "/")
	if len(export) > MaxName {
		return URI{}, fmt.Errorf("export name of %d bytes", len(export))
	}
	switch socket := u.Query().Get("socket"); {
	case u.Opaque != "" || u.User != nil || u.Fragment != "":
		return URI{}, errors.New("want nbd+unix:///NAME?socket=PATH or nbd://HOST[:PORT]/NAME")
	case u.Scheme == "nbd+unix" && u.Host != "":
		return URI{}, errors.New("a unix socket has no host: want nbd+unix:///NAME?socket=PATH")
	case u.Scheme == "nbd+unix" && socket == "":
		return URI{}, errors.New("no socket: want nbd+unix:///NAME?socket=PATH")
	case u.Scheme == "nbd+unix":
		return URI{Network: "unix", Address: socket, Export: export}, nil
	case u.Scheme == "nbd" && u.Hostname() == "":
		return URI{}, errors.New("no host: want nbd://HOST[:PORT]/NAME")
	case u.Scheme == "nbd" && strings.Contains(u.Hostname(), ":") && u.Host[0] != '[':
		return URI{}, errors.New("an IPv6 address stands in brackets: nbd://[::1]/NAME")
	case u.Scheme == "nbd":
		port := u.Port()
		if port == "" {
			port = defaultPort
		}
		return URI{Network: "tcp", Address: net.JoinHostPort(u.Hostname(), port), Export: export}, nil
	default:
		return URI{}, fmt.Errorf("scheme %q: want nbd or nbd+unix", u.Scheme)
	}
}

// String is the URI with all that needs it escaped.
func (u URI) String() string {
	path := "/" + u.Export
	if u.Network == "unix" {
		// Slashes stay as they are in a query, which keeps the socket's path legible.
		socket := strings.ReplaceAll(url.QueryEscape(u.Address), "%2F", "/")
		return "nbd+unix://" + (&url.URL{Path: path}).EscapedPath() + "?socket=" + strings.ReplaceAll(socket, "+", "%20")
	}
	return (&url.URL{Scheme: "nbd", Host: u.Address, Path: path}).String()
}

package sidecar

import (
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/control/pairing"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// limited takes at most maxConns connections at once, and of one host maxPerHost; more are closed as they come. With
// certificates of one name there are at most maxPerName.
type limited struct {
	net.Listener
	count *counters

	mu struct {
		sync.Mutex
		open  int
		hosts map[netip.Prefix]int // without zeroes, as names
		names map[string]int
		known map[*counted]tls.ConnectionState // those whose handshake is done, with what it showed
	}
}

func newLimited(l net.Listener, count *counters) *limited {
	limit := &limited{Listener: l, count: count}
	limit.mu.hosts, limit.mu.names, limit.mu.known = make(map[netip.Prefix]int), make(map[string]int), make(map[*counted]tls.ConnectionState)
	return limit
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		host := hostOf(c.RemoteAddr())
		if why := l.take(host); why != "" {
			l.count.refused(why)
			c.Close()
			continue
		}
		return &counted{Conn: c, of: l, host: host}, nil
	}
}

// hostOf is what counts as one host: an address, of IPv6 the network of 64 bits that a host may choose its addresses from.
func hostOf(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	host, _ := ip.Prefix(min(64, ip.BitLen())) // of a length that fits
	return host
}

// take counts one more connection of a host, or says what it is refused for.
func (l *limited) take(host netip.Prefix) (why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case invariant.Planted("control/sidecar/any-number"):
	case l.mu.open >= maxConns:
		return "connections"
	case l.mu.hosts[host] >= maxPerHost && !invariant.Planted("control/sidecar/one-host"):
		return "connections-of-host"
	}
	l.mu.open++
	l.mu.hosts[host]++
	return ""
}

// judge closes the connections that verify refuses, by where they are from and what their handshake showed.
func (l *limited) judge(verify func(from net.Addr, shown tls.ConnectionState) error) {
	l.mu.Lock()
	known := maps.Clone(l.mu.known)
	l.mu.Unlock()
	for c, shown := range known {
		if verify(c.RemoteAddr(), shown) != nil {
			c.Close()
		}
	}
}

// counted is a connection that leaves room when it is closed.
type counted struct {
	net.Conn
	of     *limited
	host   netip.Prefix
	name   string // guarded by of.mu, as closed; empty until the handshake
	closed bool
	stuck  atomic.Bool // something was not taken in in time
}

// Write fails for good once something was not taken in in time. TLS is broken by then, and would all the same wait 5 s to say that it ends.
func (c *counted) Write(p []byte) (int, error) {
	if c.stuck.Load() {
		return 0, os.ErrDeadlineExceeded
	}
	n, err := c.Conn.Write(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.stuck.Store(true)
	}
	return n, err
}

// named counts a connection by the name of its certificate, which pairing has found good, or refuses it.
func (c *counted) named(shown tls.ConnectionState) error {
	name, err := pairing.NameOf(shown.PeerCertificates[0])
	if err != nil {
		return err
	}
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	switch {
	case c.closed:
		return net.ErrClosed
	case c.of.mu.names[name.String()] >= maxPerName:
		c.of.count.refused("connections-of-name")
		return fmt.Errorf("%s has %d connections already", name, maxPerName)
	}
	c.name = name.String()
	c.of.mu.names[c.name]++
	c.of.mu.known[c] = shown
	return nil
}

func (c *counted) Close() error {
	c.of.mu.Lock()
	if !c.closed {
		c.closed = true
		c.of.mu.open--
		less(c.of.mu.hosts, c.host)
		if c.name != "" {
			less(c.of.mu.names, c.name)
		}
		delete(c.of.mu.known, c)
	}
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// less takes one from a count, and leaves no zero.
func less[K comparable](counts map[K]int, key K) {
	if counts[key]--; counts[key] == 0 {
		delete(counts, key)
	}
}

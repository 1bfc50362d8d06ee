package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

const (
	// addressTime is how long one address of a name may take to answer; all of them
	// together take at most dialTime. An address that is the only one has all of it.
	addressTime = 3 * time.Second
	dialTime    = 14 * time.Second
	// maxAddresses of a name are tried.
	maxAddresses = 8
)

// dialer reaches host:port. It keeps nothing between two dials: a name is looked up
// each time, so that a target that moved is found.
type dialer struct {
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
}

// newDialer uses the network. Packets, in both directions, are of at most packet bytes
// from the IP header on; 0 leaves them to the kernel.
func newDialer(packet int) dialer {
	d := net.Dialer{}
	if packet > 0 {
		d.Control = func(network, _ string, c syscall.RawConn) error {
			headers := 20 + 20
			if network == "tcp6" {
				headers = 40 + 20
			}
			return setMSS(c, packet-headers)
		}
	}
	return dialer{
		lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		},
		dial: d.DialContext,
	}
}

// reach tries the addresses of a name in the resolver's order, one after the other.
func (d dialer) reach(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return d.dial(ctx, "tcp", address)
	}
	addrs, err := d.lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("%s has no address", host)
	}
	var failed []error
	for i, a := range addrs[:min(len(addrs), maxAddresses)] {
		if i > 0 && invariant.Planted("wire/first-address-only") {
			break
		}
		one, done := ctx, context.CancelFunc(func() {})
		if len(addrs) > 1 {
			one, done = context.WithTimeout(ctx, addressTime)
		}
		conn, err := d.dial(one, "tcp", net.JoinHostPort(a.Unmap().String(), port))
		done()
		if err == nil {
			return conn, nil
		}
		failed = append(failed, err)
		if ctx.Err() != nil {
			failed = append(failed, fmt.Errorf("%d of %d addresses of %s tried", i+1, len(addrs), host))
			break
		}
	}
	return nil, errors.Join(failed...)
}

// sameHost gives the address with the host that conn is connected to, where address
// and dialled name the same host: a name with several addresses may be several
// machines, and both connections of a session belong to one.
func sameHost(conn net.Conn, dialled, address string) string {
	host, _, err := net.SplitHostPort(dialled)
	other, port, otherErr := net.SplitHostPort(address)
	remote, isTCP := conn.RemoteAddr().(*net.TCPAddr)
	if err != nil || otherErr != nil || !isTCP || host != other || invariant.Planted("wire/data-goes-elsewhere") {
		return address
	}
	at := remote.AddrPort().Addr().Unmap()
	return net.JoinHostPort(at.String(), port)
}

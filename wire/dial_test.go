package wire

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// addressedConn is one that a fake dialer made; it has an address and nothing else.
type addressedConn struct {
	net.Conn
	remote net.Addr
}

func (c addressedConn) RemoteAddr() net.Addr { return c.remote }

func TestAllAddressesOfANameAreTried(t *testing.T) {
	f := func(name, address string, addrs []string, answer func(ctx context.Context, address string) error, want string, within time.Duration, tries int) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			tried := 0
			d := dialer{
				lookup: func(_ context.Context, host string) (all []netip.Addr, err error) {
					if host != "target.example" {
						t.Errorf("%s: looked up %q", name, host)
					}
					for _, a := range addrs {
						all = append(all, netip.MustParseAddr(a))
					}
					return all, nil
				},
				dial: func(ctx context.Context, _, address string) (net.Conn, error) {
					tried++
					if err := answer(ctx, address); err != nil {
						return nil, err
					}
					return addressedConn{remote: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(address))}, nil
				},
			}
			start := time.Now()
			c, err := d.reach(context.Background(), address)
			got := ""
			if err == nil {
				got = c.RemoteAddr().String()
			}
			if took := time.Since(start); got != want || took > within || tried != tries {
				t.Errorf("%s: %q after %v and %d tries, want %q: %v", name, got, took, tried, want, err)
			}
		})
	}
	silent := func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
	only := func(live string) func(context.Context, string) error {
		return func(ctx context.Context, address string) error {
			if strings.HasPrefix(address, live) {
				return nil
			}
			return silent(ctx, address)
		}
	}
	refused := func(context.Context, string) error { return errors.New("refused") }
	three := []string{"2001:db8::1", "192.0.2.1", "192.0.2.2"}
	f("the first", "target.example:4007", three, only("[2001:db8::1]:4007"), "[2001:db8::1]:4007", 0, 1)
	f("the last", "target.example:4007", three, only("192.0.2.2"), "192.0.2.2:4007", 2*addressTime, 3)
	f("none", "target.example:4007", three, refused, "", 0, 3)
	f("all silent", "target.example:4007", append(three, "192.0.2.3", "192.0.2.4", "192.0.2.5"), silent, "", dialTime, 5)
	f("too many", "target.example:4007", strings.Fields(strings.Repeat("192.0.2.9 ", 20)), refused, "", 0, maxAddresses)
	f("the only one has time", "target.example:4007", three[1:2], func(ctx context.Context, _ string) error {
		time.Sleep(2 * addressTime)
		return ctx.Err()
	}, "192.0.2.1:4007", 2*addressTime, 1)
	f("no name", "192.0.2.7:4007", nil, only("192.0.2.7"), "192.0.2.7:4007", 0, 1)
	f("mapped", "target.example:4007", []string{"::ffff:192.0.2.8"}, only("192.0.2.8"), "192.0.2.8:4007", 0, 1)
	f("nothing", "target.example:4007", nil, silent, "", 0, 0)
}

// A target that moved is found at the next attempt: nothing is kept of an earlier look-up.
func TestNamesAreLookedUpAtEachDial(t *testing.T) {
	now := "192.0.2.1"
	d := dialer{
		lookup: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr(now)}, nil
		},
		dial: func(_ context.Context, _, address string) (net.Conn, error) {
			return addressedConn{remote: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(address))}, nil
		},
	}
	for _, now = range []string{"192.0.2.1", "192.0.2.2"} {
		c, err := d.reach(context.Background(), "target.example:1")
		if err != nil || c.RemoteAddr().String() != now+":1" {
			t.Errorf("%v, %v, want %s", c, err, now)
		}
	}
}

// Both connections of a session go to one machine.
func TestDataGoesWhereControlWent(t *testing.T) {
	f := func(remote, control, data, want string) {
		t.Helper()
		c := addressedConn{remote: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(remote))}
		if got := sameHost(c, control, data); got != want {
			t.Errorf("control %s is %s, data %s: dialled %s, want %s", control, remote, data, got, want)
		}
	}
	f("192.0.2.2:4007", "t:4007", "t:4008", "192.0.2.2:4008")
	f("[2001:db8::2]:4007", "t:4007", "t:4008", "[2001:db8::2]:4008")
	f("192.0.2.2:4007", "t:4007", "other:4008", "other:4008") // advertised apart
	f("192.0.2.2:4007", "192.0.2.2:4007", "192.0.2.3:1", "192.0.2.3:1")
}

package wire

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/wire/delta"
	"github.com/holdfast-dr/holdfast/wire/faultlink"
)

// Who may not talk to a target: each is refused before a session, and counted.
func TestTargetRefuses(t *testing.T) {
	east, west, north := sites().east, sites().west, sites().north
	f := func(name string, want Reason, cert tls.Certificate) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, &faultlink.Net{}, func(c *ServerConfig) {
					// Two sites are pinned: neither may speak for the other.
					c.Credentials.Pins = []Pin{east.pin(), north.pin()}
				})
				defer w.stop()
				source := newHandler(t)
				failed := make(chan error, 100)
				stop := w.connect(source, func(c *ClientConfig) {
					c.Credentials.Certificate = cert
					c.Failed = func(err error, _ time.Duration) { failed <- err }
				})
				if err := next(t, failed); err != nil && !strings.Contains(err.Error(), "tls") {
					t.Errorf("the source learned: %v", err)
				}
				stop()
				synctest.Wait()
				refused(t, w, want)
			})
		})
	}
	const s1 = "holdfast://east/vra/s1"
	f("another site's CA, both pinned", ReasonCA, north.leaf(s1, nil))
	f("a CA nobody pinned", ReasonCA, newAuthority("east").leaf(s1, nil))
	f("a site nobody pinned", ReasonSite, west.leaf("holdfast://west/vra/s1", nil))
	f("a manager's role", ReasonRole, east.leaf("holdfast://east/zvm/s1", nil))
	f("expired", ReasonExpired, east.leaf(s1, func(c *x509.Certificate) { c.NotAfter = year1999.AddDate(0, 6, 0) }))
	f("not yet valid", ReasonExpired, east.leaf(s1, func(c *x509.Certificate) { c.NotBefore = year1999.AddDate(2, 0, 0) }))
	f("for servers only", ReasonCA, east.leaf(s1, func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}))
	f("another scheme", ReasonName, east.leaf("https://east/vra/s1", nil))
	f("a path too long", ReasonName, east.leaf(s1+"/x", nil))
	f("a query", ReasonName, east.leaf(s1+"?x", nil))
	f("a user", ReasonName, east.leaf("holdfast://x@east/vra/s1", nil))
	f("a port", ReasonName, east.leaf("holdfast://east:1/vra/s1", nil))
	f("no id", ReasonName, east.leaf("holdfast://east/vra/", nil))
	f("escapes", ReasonName, east.leaf("holdfast://east/vra/s%31", nil))
	f("no name", ReasonName, east.leaf(s1, func(c *x509.Certificate) { c.URIs = nil }))
	f("two names", ReasonName, east.leaf(s1, func(c *x509.Certificate) {
		c.URIs = append(c.URIs, &url.URL{Scheme: "holdfast", Host: "east", Path: "/vra/s2"})
	}))
	// A leaf that signs: its chain is presented whole.
	leaf := sites().source
	rogue := &authority{"east", leaf.Leaf, leaf.PrivateKey.(*ecdsa.PrivateKey)}
	forged := rogue.leaf("holdfast://east/vra/s9", nil)
	forged.Certificate = append(forged.Certificate, leaf.Certificate...)
	f("signed by a leaf", ReasonCA, forged)
}

// next waits for the source's next failure.
func next(t *testing.T, failed <-chan error) error {
	t.Helper()
	select {
	case err := <-failed:
		return err
	case <-time.After(time.Minute):
		t.Error("nobody objects")
		return nil
	}
}

// refused checks that a target refused for this reason alone, and let nobody in.
func refused(t *testing.T, w *world, want Reason) {
	t.Helper()
	got := w.server.Counters().Refusals()
	if got[want] == 0 || len(got) != 1 {
		t.Errorf("refused for %v, want %v", got, want)
	}
	if line := "msg=\"connection refused\""; !strings.Contains(w.log.String(), line) || !strings.Contains(w.log.String(), "reason="+want.String()+" error=") {
		t.Errorf("the log does not name %v:\n%s", want, w.log)
	}
	if said := w.target.said(); len(said) > 0 || w.server.Counters().Sessions.Load() > 0 {
		t.Errorf("the handler saw %q", said)
	}
}

// What talks to the ports without being a VRA.
func TestTargetRefusesStrangers(t *testing.T) {
	good := func() *tls.Config { return (&ClientConfig{Credentials: sourceCredentials()}).tls(Peer{}) }
	f := func(name, port string, want Reason, talk func(t *testing.T, conn net.Conn) error) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, &faultlink.Net{}, nil)
				defer w.stop()
				conn, err := w.net.Dial(context.Background(), "tcp", port)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				start := time.Now()
				if err := talk(t, conn); err != nil {
					t.Error(err)
				}
				conn.SetReadDeadline(time.Now().Add(time.Minute))
				if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
					t.Error("the connection is still open")
				}
				if took := time.Since(start); took > handshakeTime+time.Second {
					t.Errorf("it was refused after %v", took)
				}
				synctest.Wait()
				refused(t, w, want)
			})
		})
	}
	plain := func(text string) func(*testing.T, net.Conn) error {
		return func(_ *testing.T, c net.Conn) error {
			_, err := io.WriteString(c, text)
			return err
		}
	}
	for _, port := range []string{"control", "data"} {
		f("plain text to "+port, port, ReasonPlain, plain("GET / HTTP/1.1\r\nHost: target\r\n\r\n"))
		f("a frame without TLS to "+port, port, ReasonPlain, plain(string(appendFrame(nil, typeHello, hello{ours}.appendTo))))
		f("silence to "+port, port, ReasonTimeout, plain(""))
		f("TLS 1.2 to "+port, port, ReasonTLS, func(t *testing.T, c net.Conn) error {
			config := good()
			config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			if err := tls.Client(c, config).Handshake(); err == nil || !strings.Contains(err.Error(), "version") {
				t.Errorf("TLS 1.2: %v", err)
			}
			return nil
		})
		f("no certificate to "+port, port, ReasonNoCert, func(_ *testing.T, c net.Conn) error {
			config := good()
			config.Certificates = nil
			return tls.Client(c, config).Handshake()
		})
		f("silence after TLS to "+port, port, ReasonTimeout, func(_ *testing.T, c net.Conn) error {
			return tls.Client(c, good()).Handshake()
		})
		f("rubbish after TLS to "+port, port, ReasonHello, func(_ *testing.T, c net.Conn) error {
			_, err := tls.Client(c, good()).Write(make([]byte, 1000))
			return err
		})
		f("a record first to "+port, port, ReasonHello, func(_ *testing.T, c net.Conn) error {
			_, err := tls.Client(c, good()).Write(appendFrame(nil, typeRecord, func(p []byte) []byte { return append(p, small(1)...) }))
			return err
		})
	}
	f("a data connection that joins nothing", "data", ReasonToken, func(t *testing.T, c net.Conn) error {
		l := tls.Client(c, good())
		if err := writeHandshake(l, typeJoin, func(p []byte) []byte { return append(p, make([]byte, tokenBytes)...) }); err != nil {
			return err
		}
		var peer *PeerError
		if _, err := readHandshake(l, typeJoined); !errors.As(err, &peer) || peer.Code != CodeProtocol {
			t.Errorf("a data connection that joins nothing was told %v", err)
		}
		return nil
	})
	f("a control connection without its data", "control", ReasonTimeout, func(t *testing.T, c net.Conn) error {
		l := tls.Client(c, good())
		if err := writeHandshake(l, typeHello, hello{ours}.appendTo); err != nil {
			return err
		}
		_, err := readHandshake(l, typeWelcome)
		return err
	})
}

// A token is for one data connection, of the peer it was given to.
func TestTokenIsForOnePeerOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, func(c *ServerConfig) {
			c.Credentials.Pins = []Pin{sites().east.pin()}
		})
		defer w.stop()
		var open []net.Conn
		defer func() {
			for _, c := range open {
				c.Close()
			}
		}()
		dial := func(port string, cert tls.Certificate) *tls.Conn {
			c, err := w.net.Dial(context.Background(), "tcp", port)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, c)
			credentials := sourceCredentials()
			credentials.Certificate = cert
			return tls.Client(c, (&ClientConfig{Credentials: credentials}).tls(Peer{}))
		}
		control := dial("control", sites().source)
		if err := writeHandshake(control, typeHello, hello{ours}.appendTo); err != nil {
			t.Fatal(err)
		}
		body, err := readHandshake(control, typeWelcome)
		if err != nil {
			t.Fatal(err)
		}
		welcome, err := parseWelcome(body)
		if err != nil {
			t.Fatal(err)
		}
		joins := func(cert tls.Certificate) error {
			c := dial("data", cert)
			if err := writeHandshake(c, typeJoin, func(p []byte) []byte { return append(p, welcome.token[:]...) }); err != nil {
				return err
			}
			_, err := readHandshake(c, typeJoined)
			return err
		}
		if err := joins(sites().other); err == nil {
			t.Error("another peer joined the session")
		}
		if err := joins(sites().source); err != nil {
			t.Errorf("its own peer could not join: %v", err)
		}
		if err := joins(sites().source); err == nil {
			t.Error("a second data connection joined the session")
		}
		synctest.Wait()
		if got := w.server.Counters().Refusals()[ReasonToken]; got != 2 {
			t.Errorf("%d tokens refused", got)
		}
	})
}

// A source is as careful as a target.
func TestSourceRefuses(t *testing.T) {
	f := func(name string, cert tls.Certificate, want Peer, reason Reason) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, &faultlink.Net{}, func(c *ServerConfig) { c.Credentials.Certificate = cert })
				defer w.stop()
				failed := make(chan error, 100)
				source, log := newHandler(t), new(logged)
				defer w.connect(source, func(c *ClientConfig) {
					c.Target, c.Log = want, slog.New(slog.NewTextHandler(log, nil))
					c.Failed = func(err error, _ time.Duration) { failed <- err }
				})()
				if err := next(t, failed); !errors.Is(err, ErrUntrusted) {
					t.Errorf("the source found %v", err)
				}
				if said := source.said(); len(said) > 0 {
					t.Errorf("the source saw %q", said)
				}
				if !strings.Contains(log.String(), "reason="+reason.String()+" ") {
					t.Errorf("the log does not name %v:\n%s", reason, log)
				}
			})
		})
	}
	east, west, north := sites().east, sites().west, sites().north
	t1 := Peer{"west", RoleVRA, "t1"}
	f("another site's CA", north.leaf(t1.URI(), nil), t1, ReasonCA)
	f("a site nobody pinned", east.leaf("holdfast://east/vra/t1", nil), Peer{}, ReasonSite)
	f("another role", west.leaf("holdfast://west/zvm/t1", nil), Peer{}, ReasonRole)
	f("another id", west.leaf("holdfast://west/vra/t2", nil), t1, ReasonName)
	f("expired", west.leaf(t1.URI(), func(c *x509.Certificate) { c.NotAfter = year1999.AddDate(0, 6, 0) }), t1, ReasonExpired)
	f("for clients only", west.leaf(t1.URI(), func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}), t1, ReasonCA)
}

// What answers at the target's address without being a VRA of this protocol.
func TestSourceRefusesStrangers(t *testing.T) {
	f := func(name, log string, answer func(net.Conn)) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			n := &faultlink.Net{}
			port, err := n.Listen("tcp", "control")
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan bool)
			go func() {
				defer close(done)
				for {
					conn, err := port.Accept()
					if err != nil {
						return
					}
					answer(conn)
					conn.Close()
				}
			}()
			w := &world{t: t, net: n}
			failed, text, source := make(chan error, 100), new(logged), newHandler(t)
			stop := w.connect(source, func(c *ClientConfig) {
				c.Log = slog.New(slog.NewTextHandler(text, nil))
				c.Failed = func(err error, _ time.Duration) { failed <- err }
			})
			next(t, failed)
			stop()
			port.Close()
			<-done
			if !strings.Contains(text.String(), log) || strings.Contains(text.String(), "reason=") != strings.Contains(log, "reason=") {
				t.Errorf("%s: the log says\n%s", name, text)
			}
			if said := source.said(); len(said) > 0 {
				t.Errorf("%s: the source saw %q", name, said)
			}
		})
	}
	f("plain text", "reason=plain", func(c net.Conn) { io.WriteString(c, "220 mail.example ESMTP\r\n"); io.ReadFull(c, make([]byte, 100)) })
	f("TLS 1.2", "protocol version not supported", func(c net.Conn) {
		config := (&ClientConfig{Credentials: Credentials{Certificate: sites().target}}).tls(Peer{})
		config.MinVersion, config.MaxVersion, config.VerifyConnection = tls.VersionTLS12, tls.VersionTLS12, nil
		l := tls.Server(c, config)
		l.Handshake()
	})
	f("a hang-up", "no session with the target", func(net.Conn) {})
	f("silence", "deadline exceeded", func(c net.Conn) { c.SetReadDeadline(time.Now().Add(time.Minute)); io.Copy(io.Discard, c) })
}

func TestVersions(t *testing.T) {
	f := func(source, target Versions, want uint16) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, &faultlink.Net{}, func(c *ServerConfig) { c.speaks = target })
			defer w.stop()
			failed := make(chan error, 100)
			h := newHandler(t)
			defer w.connect(h, func(c *ClientConfig) {
				c.speaks = source
				c.Failed = func(err error, _ time.Duration) { failed <- err }
			})()
			if want > 0 {
				if s := <-h.opened; s.version != want {
					t.Errorf("%v and %v speak %d", source, target, s.version)
				}
				return
			}
			err := next(t, failed)
			var mismatch *VersionError
			if !errors.Is(err, ErrVersion) || !errors.As(err, &mismatch) || *mismatch != (VersionError{source, target}) {
				t.Errorf("%v and %v: %v", source, target, err)
			}
			synctest.Wait()
			refused(t, w, ReasonVersion)
		})
	}
	f(Versions{1, 1}, Versions{1, 1}, 1)
	f(Versions{1, 2}, Versions{1, 1}, 1)
	f(Versions{1, 2}, Versions{2, 3}, 2)
	f(Versions{1, 4}, Versions{2, 9}, 4)
	f(Versions{2, 3}, Versions{1, 1}, 0)
	f(Versions{1, 1}, Versions{2, 3}, 0)
}

// TestOlderPeerIsNotToldOfLacks: a peer of version 1 would end the session over what it
// does not know.
func TestOlderPeerIsNotToldOfLacks(t *testing.T) {
	older(t, &Lacking{1, []Lack{{1, 0, 4096}}}, 2)
}

// TestOlderPeerIsNotAsked: nor does one of version 6 know what it is to compare.
func TestOlderPeerIsNotAsked(t *testing.T) {
	older(t, &Compare{1, 1, delta.Ask{Volume: 1, Level: delta.Node, Count: 1}}, 7)
}

// older sends a message to a peer of the version that has it, and to one of the version before.
func older(t *testing.T, m Message, since uint16) {
	for _, version := range []uint16{since - 1, since} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, &faultlink.Net{}, nil)
			defer w.stop()
			h := newHandler(t)
			defer w.connect(h, func(c *ClientConfig) { c.speaks = Versions{1, version} })()
			s := <-h.opened
			err := s.Send(m)
			if sent := version >= since; (err == nil) != sent || s.Speaks(m) != sent || !sent && !errors.Is(err, ErrVersion) {
				t.Errorf("version %d: %v", version, err)
			}
			synctest.Wait()
			if s.Context().Err() != nil {
				t.Errorf("version %d: the session ended: %v", version, context.Cause(s.Context()))
			}
		})
	}
}

func TestTooManySessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, func(c *ServerConfig) { c.MaxSessions = 1 })
		defer w.stop()
		first, second := newHandler(t), newHandler(t)
		stop := w.connect(first, nil)
		defer stop()
		<-first.opened
		failed := make(chan error, 100)
		defer w.connect(second, func(c *ClientConfig) {
			c.Credentials.Certificate = sites().other
			c.Failed = func(err error, _ time.Duration) { failed <- err }
		})()
		var peer *PeerError
		if err := next(t, failed); !errors.As(err, &peer) || peer.Code != CodeBusy {
			t.Errorf("one too many was told %v", err)
		}
		stop()
		<-second.opened // there is room now
	})
}

// These files were made by control/pairing: the two packages agree on names.
func TestLoadCredentials(t *testing.T) {
	c, err := LoadCredentials("testdata/pairing/leaf.pem", "testdata/pairing/leaf.key", "testdata/pairing/ca.pem")
	if err != nil {
		t.Fatal(err)
	}
	peer, err := peerOf(c.Certificate.Leaf)
	if err != nil || peer != (Peer{"west-1.a", RoleVRA, "host_7"}) || c.Pins[0].Site != "west-1.a" {
		t.Errorf("loaded %v with a pin for %v, %v", peer, c.Pins[0].Site, err)
	}
	c.Now = func() time.Time { return c.Certificate.Leaf.NotBefore.Add(time.Hour) }
	state := tls.ConnectionState{Version: tls.VersionTLS13, PeerCertificates: []*x509.Certificate{c.Certificate.Leaf}}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if err := c.verify(state, usage, peer); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range [][3]string{{"leaf.key", "leaf.pem", "ca.pem"}, {"ca.pem", "leaf.key", "ca.pem"},
		{"leaf.pem", "leaf.key", "leaf.pem"}, {"leaf.pem", "leaf.key", "leaf.key"}, {"leaf.pem", "leaf.key", "missing"}} {
		for i := range bad {
			bad[i] = "testdata/pairing/" + bad[i]
		}
		if _, err := LoadCredentials(bad[0], bad[1], bad[2]); err == nil || !strings.Contains(err.Error(), "certificate") && !strings.Contains(err.Error(), "CA") {
			t.Errorf("loaded %v: %v", bad, err)
		}
	}
	ca, err := os.ReadFile("testdata/pairing/ca.pem")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parsePin(append(ca, ca...)); err == nil {
		t.Error("one file pins two CAs")
	}
}

func TestUselessConfigurationsAreRefused(t *testing.T) {
	if _, err := Listen(ServerConfig{}); err == nil || !strings.Contains(err.Error(), "address") || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("listening with nothing: %v", err)
	}
	if err := Connect(context.Background(), ClientConfig{Control: "a", Data: "b"}, nil); err == nil {
		t.Error("connecting without credentials")
	}
	n := &faultlink.Net{}
	c := ServerConfig{ListenControl: "a", ListenData: "a", Listen: n.Listen, Credentials: sourceCredentials()}
	if _, err := Listen(c); err == nil {
		t.Error("both ports are one")
	}
	if _, err := n.Listen("tcp", "a"); err != nil {
		t.Errorf("a port was left open: %v", err)
	}
}

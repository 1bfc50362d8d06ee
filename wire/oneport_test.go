package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/wire/faultlink"
)

func onePort(c *ServerConfig) { c.ListenControl, c.ListenData = "one", "" }

// One port takes control, data and link tests, told apart by their first frame, and
// counts each as what it is.
func TestOnePortTakesAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var near, far Counters
		w := newWorld(t, &faultlink.Net{}, func(c *ServerConfig) { onePort(c); c.Counters = &far })
		defer w.stop()
		source := newHandler(t)
		stop := w.connect(source, func(c *ClientConfig) { c.Control, c.Data, c.Counters = "one", "", &near })
		s := <-source.opened
		target := <-w.target.opened
		if err := errors.Join(s.Send(openStream()), s.SendRecord(context.Background(), large(1, 100_000)), target.Send(&CloseStream{testStream})); err != nil {
			t.Fatal(err)
		}
		if w.server.ControlAddr().String() != w.server.DataAddr().String() {
			t.Error("two addresses of one port")
		}
		if _, err := linkTest(w, LinkTest{Bytes: 1 << 16}, func(c *ClientConfig) { c.Control, c.Data, c.Counters = "one", "one", &near }); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		stop()
		w.stop()
		if said := w.target.said(); len(said) != 4 {
			t.Errorf("the target saw %q", said)
		}
		if near.DataSent.Load() != far.DataReceived.Load() || near.ControlSent.Load() != far.ControlReceived.Load() ||
			near.DataReceived.Load() != far.DataSent.Load() || far.DataReceived.Load() < 100_000 {
			t.Errorf("sent %d and %d, received %d and %d of control and data", near.ControlSent.Load(), near.DataSent.Load(), far.ControlReceived.Load(), far.DataReceived.Load())
		}
	})
}

// What is neither is refused there too, and by its name.
func TestOnePortRefusesStrangers(t *testing.T) {
	good := (&ClientConfig{Credentials: sourceCredentials()}).tls(Peer{})
	f := func(name string, want Reason, talk func(net.Conn) error) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, &faultlink.Net{}, onePort)
			defer w.stop()
			conn, err := w.net.Dial(context.Background(), "tcp", "one")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := talk(conn); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			conn.SetReadDeadline(time.Now().Add(time.Minute))
			if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
				t.Errorf("%s: the connection is still open", name)
			}
			synctest.Wait()
			refused(t, w, want)
		})
	}
	token := func(typ frameType) func(net.Conn) error {
		return func(c net.Conn) error {
			return writeHandshake(tls.Client(c, good), typ, func(p []byte) []byte { return append(p, make([]byte, tokenBytes)...) })
		}
	}
	f("plain text", ReasonPlain, func(c net.Conn) error { _, err := io.WriteString(c, "GET / HTTP/1.1\r\n\r\n"); return err })
	f("silence", ReasonTimeout, func(net.Conn) error { return nil })
	f("silence after TLS", ReasonTimeout, func(c net.Conn) error { return tls.Client(c, good).Handshake() })
	f("a frame of sessions", ReasonHello, func(c net.Conn) error {
		return writeHandshake(tls.Client(c, good), typeHeartbeat, heartbeat{sent: 1}.appendTo)
	})
	f("a data connection of no session", ReasonToken, token(typeJoin))
	f("a test of no session", ReasonToken, token(typeTest))
}

// A control connection's port takes no data, and the other way round, where there are two.
func TestTwoPortsTakeTheirOwn(t *testing.T) {
	for _, c := range []struct{ control, data string }{{"data", "control"}, {"control", "control"}, {"data", "data"}} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, &faultlink.Net{}, nil)
			defer w.stop()
			failed := make(chan error, 100)
			stop := w.connect(newHandler(t), func(cc *ClientConfig) {
				cc.Control, cc.Data = c.control, c.data
				cc.Failed = func(err error, _ time.Duration) { failed <- err }
			})
			if err := next(t, failed); err == nil {
				t.Errorf("%v: a session", c)
			}
			stop()
			if w.server.Counters().Sessions.Load() > 0 {
				t.Errorf("%v: a session", c)
			}
		})
	}
}

// A target behind a translation of addresses: its own address is one that the source
// could not dial, and only what the source is configured with matters. The target is
// on IPv6, the way in on IPv4, and one port leads there.
func TestOnePortBehindATranslation(t *testing.T) {
	s, err := Listen(ServerConfig{ListenControl: "[::1]:0", Credentials: Credentials{Certificate: sites().target, Pins: []Pin{sites().east.pin()}}})
	if err != nil {
		t.Skip("no IPv6 on this machine: ", err)
	}
	way, err := faultlink.OpenRelay(faultlink.RelayConfig{Routes: []faultlink.Route{{Listen: "127.0.0.1:0", Target: s.ControlAddr().String()}}})
	if err != nil {
		t.Fatal(err)
	}
	h := newHandler(t)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 2)
	go func() { served <- s.Serve(ctx, h) }()
	go func() { served <- way.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-served; err != nil {
				t.Error(err)
			}
		}
	})
	for _, address := range []string{way.Addrs()[0].String(), s.ControlAddr().String()} { // by IPv4, and by IPv6 itself
		c := ClientConfig{Control: address, Credentials: sourceCredentials()}
		source, run := newHandler(t), make(chan error, 1)
		ctx, stop := context.WithCancel(ctx)
		go func() { run <- Connect(ctx, c, source) }()
		session := <-source.opened
		<-h.opened
		if err := session.SendRecord(ctx, small(1)); err != nil {
			t.Error(err)
		}
		r, err := RunLinkTest(ctx, c, LinkTest{Bytes: 1 << 20})
		if err != nil || r.Up.Bytes < 1<<20 {
			t.Errorf("%s: %+v, %v", address, r, err)
		}
		stop()
		if err := <-run; err != nil {
			t.Error(err)
		}
		<-h.closed
	}
}

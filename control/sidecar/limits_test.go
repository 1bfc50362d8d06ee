package sidecar

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
)

func TestLimits(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLimits(10, 3, func() time.Time { return now })
	f := func(who string, stream bool, want why) func() {
		t.Helper()
		end, got := l.begin(who, stream)
		if got != want {
			t.Errorf("%s is refused for %q, want %q", who, got, want)
		}
		return end
	}
	for range 10 * burstSeconds {
		if end := f("ann", false, ""); end != nil {
			end()
		}
	}
	f("ann", false, tooFast)
	if end := f("bob", false, ""); end != nil {
		end()
	}
	now = now.Add(100 * time.Millisecond)
	if end := f("ann", false, ""); end != nil {
		end()
		end() // once is enough
	}
	f("ann", false, tooFast)
	now = now.Add(time.Hour)
	var ends []func()
	for range 3 {
		ends = append(ends, f("ann", false, ""))
	}
	f("ann", false, tooMany)
	for range maxStreams {
		ends = append(ends, f("ann", true, ""))
	}
	f("ann", true, tooStreams)
	for _, end := range ends {
		if end != nil {
			end()
		}
	}
	f("ann", true, "")
	for i := range maxCallers {
		if end, _ := l.begin(fmt.Sprint("caller ", i), false); end != nil {
			end()
		}
	}
	f("one more", false, tooCallers)
	now = now.Add(2 * callerLife)
	f("one more", false, "")
	if len(l.mu.callers) > 3 {
		t.Errorf("%d callers are remembered", len(l.mu.callers))
	}
}

// TestLimitsHold: over the wire, with words; other callers are not held up.
func TestLimitsHold(t *testing.T) {
	w := open(t, func(c *config.Sidecar) { c.Limits.Rate = 1 })
	c := w.client(api.RoleOperator)
	for range burstSeconds {
		if _, err := c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{})
	failure(t, "too fast", err, api.Exhausted, "west/operator/ann is over its limit of rate", "call again in a second")
	if _, err := c.Checkpoints.List(t.Context(), &holdfastv1.CheckpointsServiceListRequest{}); err != nil {
		t.Errorf("the port of checkpoints is held up by that of commands: %v", err)
	}
	if _, err := w.client(api.RoleMonitor).Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{}); err != nil {
		t.Errorf("another caller is held up: %v", err)
	}
}

// TestLimitsDoNotKill: a sidecar that refuses is alive, and one that has ended is not.
func TestLimitsDoNotKill(t *testing.T) {
	w := open(t, func(c *config.Sidecar) { c.Limits.Rate = 1 })
	for range 3 * burstSeconds {
		if err := w.car.Alive(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	w.stop()
	if err := w.car.Alive(t.Context()); err == nil || strings.Contains(err.Error(), "%!") {
		t.Error(err)
	}
}

// TestAuditIsNotFilledByTheDenied: who may not change anything cannot push what others changed out of the audit.
func TestAuditIsNotFilledByTheDenied(t *testing.T) {
	w := open(t, nil)
	c := w.client(api.RoleMonitor)
	for range 50 {
		_, err := c.Checkpoints.Pin(t.Context(), &holdfastv1.CheckpointsServicePinRequest{})
		failure(t, "a monitor's pin", err, api.PermissionDenied)
	}
	if n := len(w.records()); n < burstSeconds || n > 3*burstSeconds {
		t.Errorf("%d records of 50 calls", n)
	}
}

// TestConnectionsAreLimited at each port by itself, of one host to less than of all; one that ends makes room.
func TestConnectionsAreLimited(t *testing.T) {
	w := open(t, nil)
	dial := func(host int) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(host))}}
		c, err := d.Dial("tcp", w.addresses().Commands)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	var held []net.Conn
	refused := func(what string, one net.Conn) {
		t.Helper()
		one.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := one.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s stays: %v", what, err)
		}
	}
	for host := 2; len(held) < maxConns-1; host++ {
		for range min(maxPerHost, maxConns-1-len(held)) {
			held = append(held, dial(host))
		}
		if host == 2 {
			refused("one more of a host", dial(2))
		}
	}
	last := w.client(api.RoleMonitor)
	if _, err := last.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{}); err != nil {
		t.Errorf("another host: %v", err)
	}
	refused("one more of all", dial(1))
	if _, err := w.client(api.RoleMonitor).Checkpoints.List(t.Context(), &holdfastv1.CheckpointsServiceListRequest{}); err != nil {
		t.Errorf("another port: %v", err)
	}
	for _, c := range held {
		c.Close()
	}
	last.Close()
	c := w.client(api.RoleMonitor)
	for range 100 { // until the sidecar has seen that they ended
		if _, err := c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{}); err == nil {
			return
		}
		<-time.After(20 * time.Millisecond)
	}
	t.Error("the connections that ended leave no room")
}

// TestConnectionsOfAName: those with certificates of one name are few, and others are not held up.
func TestConnectionsOfAName(t *testing.T) {
	w := open(t, nil)
	get := func(role string) error {
		c := w.client(role)
		_, err := c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{})
		return err
	}
	for range maxPerName {
		if err := get(api.RoleMonitor); err != nil {
			t.Fatal(err)
		}
	}
	if err := get(api.RoleMonitor); err == nil {
		t.Error("one more of a name is let in")
	}
	if err := get(api.RoleAdmin); err != nil {
		t.Errorf("another name: %v", err)
	}
}

// TestSlowRequestIsGivenUp: who sends part of a request and then nothing does not hold a place for ever, however it is sent and whatever
// is asked. An answer may come later than requests may.
func TestSlowRequestIsGivenUp(t *testing.T) {
	w := open(t, nil)
	for _, p := range w.car.ports {
		p.gate.sendWait, p.gate.lookingWait = 100*time.Millisecond, 300*time.Millisecond
	}
	client := func(h2 bool) *http.Client {
		c := w.plain(w.trust(api.RoleAdmin, "ann").Client(api.RoleSidecar))
		c.Transport.(*http.Transport).ForceAttemptHTTP2 = h2
		return c
	}
	h1, h2 := client(false), client(true)
	paths := []string{"/holdfast.v1.StatusService/Get", "/holdfast.v1.GroupsService/Pause", "/nowhere"}
	for path := range streams {
		if !slices.Contains(dialogues, path) { // whoever asks on is silent for as long as he likes
			paths = append(paths, path)
		}
	}
	if len(paths) < 8 {
		t.Errorf("only %q", paths)
	}
	for _, path := range paths {
		address, kind, part := w.addresses().Commands, "application/json", "{"
		if rules[path].ports == Logs {
			address = w.addresses().Logs
		}
		if streams[path] {
			kind, part = "application/connect+json", "\x00\x00\x00\x00\x0a{"
		}
		for _, c := range []*http.Client{h1, h2} {
			ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
			rest, writer := io.Pipe() // nothing comes, until it is closed
			context.AfterFunc(ctx, func() { writer.Close() })
			body := struct {
				io.Reader
				io.Closer
			}{io.MultiReader(strings.NewReader(part), rest), rest} // HTTP/2 waits for who reads, until it closes it
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+address+path, body)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", kind)
			req.ContentLength = 100
			if res, err := c.Do(req); err == nil { // HTTP/1 may see its connection closed as it waits to send
				var text []byte
				text, err = io.ReadAll(res.Body)
				res.Body.Close()
				if err == nil && !strings.Contains(string(text), `"code":`) && path != "/nowhere" {
					t.Errorf("%s over %s: it is answered %s %q", path, res.Proto, res.Status, text)
				}
			}
			late := ctx.Err() != nil
			stop()
			if late {
				t.Fatalf("%s over HTTP/2 %v: it is waited for", path, c == h2)
			}
		}
	}
	w.vra.set(func() { w.vra.hangs = true })
	for _, c := range []*http.Client{h1, h2} {
		res, err := c.Post("https://"+w.addresses().Commands+"/holdfast.v1.StatusService/Get", "application/json", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || !strings.Contains(string(text), "did not answer in time") || (res.ProtoMajor == 2) != (c == h2) {
			t.Errorf("%s: %s, %v", res.Proto, text, err)
		}
	}
}

// TestStuckForGood: what follows a piece of TLS that was not taken in could not be read, and is not sent.
func TestStuckForGood(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	c := &counted{Conn: ours, of: newLimited(nil, newCounters())}
	defer c.Close()
	c.SetWriteDeadline(time.Unix(1, 0))
	for range 2 {
		if n, err := c.Write([]byte("x")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%d, %v", n, err)
		}
		c.SetWriteDeadline(time.Time{})
		go io.Copy(io.Discard, theirs)
	}
}

func TestHostOf(t *testing.T) {
	for at, want := range map[string]string{"10.1.2.3:5": "10.1.2.3/32", "[::ffff:10.1.2.3]:5": "10.1.2.3/32", "[2001:db8:1:2:3:4:5:6]:7": "2001:db8:1:2::/64", "[fe80::1%lo]:7": "fe80::/64"} {
		if got := hostOf(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(at))).String(); got != want {
			t.Errorf("%s is of %s, want %s", at, got, want)
		}
	}
	if got := hostOf(&net.UnixAddr{}); got.IsValid() {
		t.Error(got)
	}
}

// TestCertificatesEnd also on a connection that was made before.
func TestCertificatesEnd(t *testing.T) {
	w := open(t, nil)
	trust := w.trust(api.RoleMonitor, "ann")
	ends, _ := trust.Ends()
	var now atomic.Pointer[time.Time]
	at := func(d time.Duration) { then := ends.Add(d); now.Store(&then) }
	for _, p := range w.car.ports {
		p.gate.now = func() time.Time { return *now.Load() }
	}
	at(-time.Minute)
	var connections atomic.Int64
	tr := &http.Transport{ForceAttemptHTTP2: true, DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		connections.Add(1)
		c := trust.Client(api.RoleSidecar)
		c.NextProtos = []string{"h2"}
		return (&tls.Dialer{Config: c}).DialContext(ctx, network, address)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	get := func() string {
		t.Helper()
		res, err := (&http.Client{Transport: tr}).Post("https://"+w.addresses().Commands+"/holdfast.v1.StatusService/Get", "application/json", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil || res.ProtoMajor != 2 {
			t.Error(res.Proto, err)
		}
		return string(text)
	}
	if got := get(); !strings.Contains(got, `"site"`) {
		t.Errorf("while it is good: %s", got)
	}
	at(time.Second)
	for want := range int64(2) { // the first on the connection of before, and then that one is closed
		got := get()
		if !strings.Contains(got, "the certificate of west/monitor/ann ended at "+ends.UTC().Format(time.RFC3339)) || !strings.Contains(got, "permission_denied") || connections.Load() != want+1 {
			t.Errorf("after its end, on connection %d: %s", connections.Load(), got)
		}
	}
	at(-50 * time.Millisecond) // and stands still: so long may a stream last
	err := w.client(api.RoleMonitor).Watch.Watch(t.Context(), &holdfastv1.WatchServiceWatchRequest{}, func(*holdfastv1.WatchServiceWatchResponse) error { return nil })
	failure(t, "a stream beyond the end", err, api.TimedOut)
	local := api.DialUnix(w.cfg.Socket)
	defer local.Close()
	at(time.Hour)
	if _, err := local.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{}); err != nil {
		t.Errorf("the unix socket: %v", err)
	}
}

// TestAliveIsBounded: one that takes connections and does not answer, or not to the end, does not get on.
func TestAliveIsBounded(t *testing.T) {
	dir, err := os.MkdirTemp("", "hf") // short: it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket) // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := &Sidecar{cfg: &config.Sidecar{Socket: socket}, aliveWait: 50 * time.Millisecond}
	if err := s.Alive(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one that does not answer: %v", err)
	}
	s.aliveWait = time.Minute
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 2 { // the one from above, and this one
			c, err := l.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
			}
			c.Close()
		}
	}()
	if err := s.Alive(t.Context()); err == nil || !strings.Contains(err.Error(), "200 OK: unexpected EOF") {
		t.Errorf("one that breaks off: %v", err)
	}
	<-done
}

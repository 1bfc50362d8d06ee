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
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// summary is a message in one line.
func summary(m *holdfastv1.WatchServiceWatchResponse) string {
	if m == nil {
		return "-"
	}
	var words []string
	if m.Complete {
		words = append(words, "all")
	}
	for _, g := range m.Groups {
		words = append(words, fmt.Sprintf("%s=%s/%d", g.Name, g.State, g.GuestBytesTotal))
	}
	for _, name := range m.Gone {
		words = append(words, "-"+name)
	}
	if m.Unreachable != "" {
		words = append(words, "away: "+m.Unreachable)
	}
	return strings.Join(words, " ")
}

func group(name, state string, bytes int64) *holdfastv1.Group {
	return &holdfastv1.Group{Name: name, State: state, GuestBytesTotal: bytes}
}

// TestWatchSteps: after each message the watcher knows how things stand, and hears nothing that it knows.
func TestWatchSteps(t *testing.T) {
	var know told
	f := func(now *picture, only string, all bool, want string) {
		t.Helper()
		if got := summary(know.step(now, only, all)); got != want {
			t.Errorf("told %q, want %q", got, want)
		}
	}
	at := func(groups ...*holdfastv1.Group) *picture { return &picture{groups: groups} }
	f(at(group("a", "protected", 1), group("b", "behind", 1)), "", false, "all a=protected/1 b=behind/1")
	f(at(group("a", "protected", 2), group("b", "behind", 2)), "", false, "-")
	f(at(group("a", "protected", 2), group("b", "behind", 1)), "", true, "a=protected/2")
	f(at(group("a", "resync", 3), group("b", "behind", 3)), "", false, "a=resync/3")
	f(at(group("b", "behind", 3), group("c", "error", 0)), "", false, "c=error/0 -a")
	f(&picture{unreachable: "gone"}, "", false, "away: gone")
	f(&picture{unreachable: "gone"}, "", true, "-")
	f(at(group("b", "behind", 3)), "", false, "all b=behind/3")
	f(at(), "", false, "-b")
	know = told{}
	f(at(), "", false, "all")
	f(at(group("a", "protected", 1), group("b", "behind", 1)), "b", false, "b=behind/1")
	know = told{}
	f(&picture{unreachable: "x"}, "", false, "away: x")
	f(&picture{unreachable: "y"}, "", false, "away: y")
}

// TestWatch: the vra is asked only while somebody watches, once for all; each is told at once, and progress as
// often as it asked for.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		var fail atomic.Bool
		began := time.Now()
		w := newWatch(func(context.Context) ([]*holdfastv1.Group, error) {
			asked.Add(1)
			if fail.Load() {
				return nil, errors.New("away")
			}
			return []*holdfastv1.Group{group("a", "protected", int64(time.Since(began)/time.Second))}, nil
		}, newCounters())
		watch := func(progress time.Duration) (heard *[]string, end func() error) {
			ctx, cancel := context.WithCancel(t.Context())
			var all []string
			done := make(chan error, 1)
			r := &holdfastv1.WatchServiceWatchRequest{}
			if progress != 0 {
				r.Progress = api.Span(progress)
			}
			go func() {
				done <- w.Watch(ctx, r, func(m *holdfastv1.WatchServiceWatchResponse) error {
					all = append(all, summary(m))
					return nil
				})
			}()
			return &all, func() error { cancel(); return <-done }
		}
		quiet, endQuiet := watch(0)
		busy, endBusy := watch(2 * time.Second)
		time.Sleep(5*time.Second + time.Millisecond)
		if n := asked.Load(); n != 11 {
			t.Errorf("asked %d times in 5 s", n)
		}
		fail.Store(true)
		time.Sleep(time.Second)
		if err := errors.Join(endQuiet(), endBusy()); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if got := strings.Join(*quiet, "; "); got != "all a=protected/0; away: away" {
			t.Errorf("who wants no progress heard %s", got)
		}
		if got := strings.Join(*busy, "; "); got != "all a=protected/0; a=protected/2; a=protected/4; away: away" {
			t.Errorf("who wants progress heard %s", got)
		}
		before := asked.Load()
		time.Sleep(time.Minute)
		if asked.Load() != before || w.count.watchers.Load() != 0 {
			t.Error("it asks though nobody watches")
		}
		if err := w.Watch(t.Context(), &holdfastv1.WatchServiceWatchRequest{Progress: api.Span(time.Millisecond)}, nil); api.AsFailure(err).Code != api.InvalidArgument {
			t.Errorf("progress every 1ms: %v", err)
		}
		var ends []func() error
		for range maxWatchers {
			_, end := watch(0)
			ends = append(ends, end)
		}
		synctest.Wait()
		if err := w.Watch(t.Context(), &holdfastv1.WatchServiceWatchRequest{}, nil); api.AsFailure(err).Code != api.Exhausted {
			t.Errorf("one more: %v", err)
		}
		for _, end := range ends {
			end()
		}
	})
}

// TestNothingForNobody: the asking is ended before another watcher can come, so that it is told nothing of before.
func TestNothingForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		w := newWatch(func(ctx context.Context) ([]*holdfastv1.Group, error) {
			if asked++; asked > 1 {
				<-ctx.Done() // an answer that comes when nobody watches any more
			}
			return []*holdfastv1.Group{group("a", "protected", 0)}, nil
		}, newCounters())
		leave, err := w.join()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(lookEvery)
		synctest.Wait()
		w.mu.Lock()
		if asked != 2 || w.mu.now == nil {
			t.Errorf("asked %d times: %v", asked, w.mu.now)
		}
		stop, stopped := w.mu.stop, false
		w.mu.stop = func() {
			if stopped = true; w.mu.TryLock() {
				t.Error("between the last watcher's leaving and the end of asking another may come")
				w.mu.Unlock()
			}
			stop()
		}
		w.mu.Unlock()
		if leave(); !stopped || w.mu.now != nil {
			t.Errorf("after the last: %t, %v", stopped, w.mu.now)
		}
	})
}

// TestWatchOverTheWire goes on while the vra is killed and started anew.
func TestWatchOverTheWire(t *testing.T) {
	w := open(t, nil)
	w.vra.set(func() { w.vra.groups = []*holdfastv1.Group{group("a", "protected", 0)} })
	c := w.client(api.RoleMonitor)
	heard := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- c.Watch.Watch(ctx, &holdfastv1.WatchServiceWatchRequest{}, func(m *holdfastv1.WatchServiceWatchResponse) error {
			heard <- summary(m)
			return nil
		})
	}()
	next := func(want string) {
		t.Helper()
		select {
		case got := <-heard:
			if !strings.HasPrefix(got, want) {
				t.Errorf("heard %q, want %q", got, want)
			}
		case err := <-done:
			t.Fatalf("the watch ended: %v", err)
		}
	}
	next("all a=protected/0")
	w.vra.set(func() { w.vra.groups = []*holdfastv1.Group{group("a", "behind", 0)} })
	next("a=behind/0")
	w.vraEnd()
	next("away: the vra does not answer at")
	w.vraEnd = w.vra.serve(t, w.cfg.VRASocket)
	next("all a=behind/0")
	cancel()
	if err := <-done; api.AsFailure(err).Code != api.Canceled {
		t.Error(err)
	}
}

// manyGroups are more than a connection takes in by itself, as JSON.
func manyGroups() (groups []*holdfastv1.Group) {
	for i := range 1000 {
		g := group(fmt.Sprint("group-", i), "protected", 0)
		g.Reason = strings.Repeat("because ", 1000)
		groups = append(groups, g)
	}
	return groups
}

// until20s waits until something is as it should be, for which nobody can be asked to tell.
func until20s(t *testing.T, what string, is func() bool) {
	t.Helper()
	for limit := time.Now().Add(20 * time.Second); !is(); <-time.After(20 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal(what)
		}
	}
}

// opened is how many connections a port has.
func (l *limited) opened() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.open
}

// TestSlowWatcherIsDropped: who takes nothing does not stay, nor does his connection.
func TestSlowWatcherIsDropped(t *testing.T) {
	w := open(t, nil)
	for _, p := range w.car.ports {
		p.gate.writeWait = 100 * time.Millisecond
	}
	w.vra.set(func() { w.vra.groups = manyGroups() })
	conn, err := net.Dial("tcp", w.addresses().Commands)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.(*net.TCPConn).SetReadBuffer(4096)
	c := w.trust(api.RoleMonitor, "slow").Client(api.RoleSidecar)
	c.NextProtos = []string{"http/1.1"}
	s := tls.Client(conn, c)
	body := "\x00\x00\x00\x00\x02{}"
	fmt.Fprintf(s, "POST /holdfast.v1.WatchService/Watch HTTP/1.1\r\nHost: x\r\nContent-Type: application/connect+json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	if line, err := bufio.NewReaderSize(s, 16).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
		t.Fatalf("%q, %v", line, err)
	}
	// From here on nothing is taken.
	until20s(t, "it is still told", func() bool { return w.car.count.watchers.Load() == 0 && w.car.ports[0].opened() == 0 })
}

// silent is a connection of which nothing is read any more from some moment on.
type silent struct {
	net.Conn
	from chan struct{} // closed at that moment
	end  context.Context
}

func (s silent) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	select {
	case <-s.from:
		<-s.end.Done()
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

// TestStuckConnectionIsClosed: over HTTP/2, too, where what is too slow is a stream and not all of the connection.
func TestStuckConnectionIsClosed(t *testing.T) {
	w := open(t, nil)
	for _, p := range w.car.ports {
		if p.limited == nil {
			continue
		}
		if got := p.server.HTTP2.WriteByteTimeout; got != writeWait {
			t.Errorf("a connection at the port of %s may take in nothing for %v", p.at, got)
		}
		p.server.HTTP2.WriteByteTimeout = 100 * time.Millisecond
	}
	c, from := w.trust(api.RoleMonitor, "slow").Client(api.RoleSidecar), make(chan struct{})
	c.NextProtos = []string{"h2"}
	end, stop := context.WithCancel(context.Background())
	tr := &http.Transport{ForceAttemptHTTP2: true, DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := net.Dial(network, address)
		if err != nil {
			return nil, err
		}
		conn.(*net.TCPConn).SetReadBuffer(4096)
		s := tls.Client(silent{conn, from, end}, c)
		return s, s.HandshakeContext(ctx)
	}}
	defer tr.CloseIdleConnections()
	defer stop()
	for range 4 { // each stream may send as much as a connection takes in by itself
		req, err := http.NewRequestWithContext(end, http.MethodPost, "https://"+w.addresses().Commands+"/holdfast.v1.WatchService/Watch", strings.NewReader("\x00\x00\x00\x00\x02{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/connect+json")
		res, err := tr.RoundTrip(req)
		if err != nil || res.ProtoMajor != 2 {
			t.Fatal(res, err)
		}
		defer res.Body.Close()
	}
	close(from)
	w.vra.set(func() { w.vra.groups = manyGroups() })
	until20s(t, "it is still open", func() bool { return w.car.count.watchers.Load() == 0 && w.car.ports[0].opened() == 0 })
}

// TestAnswersMayBeLongInComing: a watcher that hears nothing for long stays, and so does a connection on which nothing
// is asked for long; only to take what is told it has little time.
func TestAnswersMayBeLongInComing(t *testing.T) {
	w := open(t, nil)
	const wait = 500 * time.Millisecond
	for _, p := range w.car.ports {
		p.gate.writeWait = wait
	}
	w.vra.set(func() { w.vra.groups = []*holdfastv1.Group{group("a", "protected", 0)} })
	c := w.client(api.RoleMonitor)
	ctx, cancel := context.WithCancel(t.Context())
	heard, done := make(chan string, 10), make(chan error, 1)
	go func() {
		done <- c.Watch.Watch(ctx, &holdfastv1.WatchServiceWatchRequest{}, func(m *holdfastv1.WatchServiceWatchResponse) error {
			heard <- summary(m)
			return nil
		})
	}()
	next := func(want string) {
		t.Helper()
		select {
		case got := <-heard:
			if got != want {
				t.Errorf("heard %q, want %q", got, want)
			}
		case err := <-done:
			t.Fatalf("the watch ended: %v", err)
		}
	}
	next("all a=protected/0")
	old := w.plain(w.trust(api.RoleMonitor, "old").Client(api.RoleSidecar))
	old.Transport.(*http.Transport).ForceAttemptHTTP2 = false
	old.Transport.(*http.Transport).TLSClientConfig.NextProtos = []string{"http/1.1"}
	for _, path := range []string{"/holdfast.v1.StatusService/About", "/holdfast.v1.CheckpointsService/List", "/holdfast.v1.StatusService/About"} {
		reused := false
		trace := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { reused = c.Reused }})
		req, err := http.NewRequestWithContext(trace, http.MethodPost, "https://"+w.addresses().Commands+path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		res, err := old.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if path == "/holdfast.v1.CheckpointsService/List" && !reused {
			t.Error("the connection was closed meanwhile")
		}
		<-time.After(wait + wait/2)
	}
	w.vra.set(func() { w.vra.groups = []*holdfastv1.Group{group("a", "behind", 0)} })
	next("a=behind/0")
	cancel()
	<-done
}

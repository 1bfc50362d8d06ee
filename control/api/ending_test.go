package api

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// pipes is a listener whose connections are made by dial, without a network.
type pipes struct {
	conns  chan net.Conn
	closed context.Context
	close  context.CancelFunc

	mu struct {
		sync.Mutex
		theirs []net.Conn // the server's ends
	}
}

func newPipes() *pipes {
	p := &pipes{conns: make(chan net.Conn)}
	p.closed, p.close = context.WithCancel(context.Background())
	return p
}

func (p *pipes) dial(context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		p.mu.Lock()
		defer p.mu.Unlock()
		p.mu.theirs = append(p.mu.theirs, theirs)
		return ours, nil
	case <-p.closed.Done():
		return nil, net.ErrClosed
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed.Done():
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.close(); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes", Net: "unix"} }

// watching tells nothing, until it is told to end.
type watching struct{ began chan struct{} }

func (w watching) Watch(ctx context.Context, _ *holdfastv1.WatchServiceWatchRequest, tell func(*holdfastv1.WatchServiceWatchResponse) error) error {
	if err := tell(&holdfastv1.WatchServiceWatchResponse{Complete: true}); err != nil {
		return err
	}
	close(w.began)
	<-ctx.Done()
	return ctx.Err()
}

// stopping is a server that is asked to end.
type stopping struct {
	*testing.T
	*pipes
	*Client
	asked time.Time
	end   context.CancelFunc
	done  chan error
}

func stoppingServer(t *testing.T, h Handlers) *stopping {
	s := &stopping{T: t, pipes: newPipes(), done: make(chan error, 1)}
	var ctx context.Context
	ctx, s.end = context.WithCancel(context.Background())
	go func() {
		s.done <- ServeHTTP(ctx, s.pipes, &http.Server{Handler: h.mux(maxRequest, newOnce().wrap)}, slog.New(slog.DiscardHandler))
	}()
	s.Client = DialVia(s.dial)
	return s
}

func (s *stopping) stop() {
	s.asked = time.Now()
	s.end()
	synctest.Wait()
}

// ends waits for it: it takes so long from when it was asked. A server looks at what is under way at growing intervals of at most
// half a second. The connections end at both ends, or it would give each a second to see that it is going.
func (s *stopping) ends(takes time.Duration) {
	s.Helper()
	s.Client.Close()
	s.mu.Lock()
	for _, c := range s.mu.theirs {
		c.Close()
	}
	s.mu.Unlock()
	if err := <-s.done; err != nil || time.Since(s.asked) < takes || time.Since(s.asked) > takes+500*time.Millisecond {
		s.Errorf("%v, ended after %v, want %v", err, time.Since(s.asked), takes)
	}
}

// opening is a call that lasts until release is closed, or its context ends if it heeds that.
func opening(heeds bool) (v *vra, began, release chan struct{}) {
	began, release = make(chan struct{}), make(chan struct{})
	return &vra{open: func(ctx context.Context, _ int) (*holdfastv1.ViewsServiceOpenResponse, error) {
		close(began)
		if !heeds {
			ctx = context.Background()
		}
		select {
		case <-release:
			return &holdfastv1.ViewsServiceOpenResponse{View: &holdfastv1.View{Id: "v1"}}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}, began, release
}

// open makes the call.
func (s *stopping) open() <-chan error {
	done := make(chan error, 1)
	go func() {
		res, err := s.Views.Open(context.Background(), &holdfastv1.ViewsServiceOpenRequest{IdempotencyKey: "k"})
		if err == nil && res.View.Id != "v1" {
			s.Errorf("answered %v", res)
		}
		done <- err
	}()
	return done
}

// isEnding holds an error to what callers hear of a server that ends.
func (s *stopping) isEnding(err error) {
	s.Helper()
	if f := AsFailure(err); f == nil || f.Code != Unavailable || f.Message != "this server is ending" || !strings.HasPrefix(f.Next, "connect again") {
		s.Errorf("%+v", f)
	}
}

// TestStop: a call that is under way may come to its end, for so long; streams end at once; nothing new begins.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, began, release := opening(true)
		s := stoppingServer(t, Handlers{Views: v})
		answer := s.open()
		<-began
		s.stop()
		if _, err := s.Views.Close(context.Background(), &holdfastv1.ViewsServiceCloseRequest{}); AsFailure(err).Code != Unavailable {
			t.Errorf("a call after the end began: %v", err)
		}
		time.Sleep(time.Second) // of the bubble
		close(release)
		if err := <-answer; err != nil {
			t.Errorf("a call that was under way: %v", err)
		}
		s.ends(time.Second)
	})
	synctest.Test(t, func(t *testing.T) {
		v, began, _ := opening(true)
		s := stoppingServer(t, Handlers{Views: v})
		answer := s.open()
		<-began
		s.stop()
		s.isEnding(<-answer)
		s.ends(stopWait)
	})
	synctest.Test(t, func(t *testing.T) {
		v, began, release := opening(false)
		s := stoppingServer(t, Handlers{Views: v})
		answer := s.open()
		<-began
		s.stop()
		if f := AsFailure(<-answer); f == nil || f.Code != Unavailable {
			t.Errorf("a call that does not heed its context: %+v", f)
		}
		s.ends(stopWait + lastWait)
		close(release)
	})
	synctest.Test(t, func(t *testing.T) {
		w := watching{make(chan struct{})}
		s := stoppingServer(t, Handlers{Watch: w})
		told, ended := 0, make(chan error, 1)
		go func() {
			ended <- s.Watch.Watch(context.Background(), &holdfastv1.WatchServiceWatchRequest{}, func(*holdfastv1.WatchServiceWatchResponse) error { told++; return nil })
		}()
		<-w.began
		s.stop()
		s.isEnding(<-ended)
		if told != 1 || time.Since(s.asked) > 0 {
			t.Errorf("told %d times, and ended %v after", told, time.Since(s.asked))
		}
		s.ends(0)
	})
}

// TestLateCalls: one that comes once the server was asked to end, as over a connection whose handshake was under way, is refused.
func TestLateCalls(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	calls := context.WithValue(t.Context(), servingKey{}, ctx)
	h := refusing(Handlers{Metrics: &vra{}}.mux(maxRequest, newOnce().wrap))
	f := func(want int) {
		t.Helper()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(calls, http.MethodGet, "/metrics", nil))
		if w.Code != want || w.Header().Get("Connection") == "close" != (want != http.StatusOK) {
			t.Errorf("%d %v, want %d", w.Code, w.Header(), want)
		}
	}
	f(http.StatusOK)
	stop()
	f(http.StatusServiceUnavailable)
}

// TestCanceledByTheCaller: who gives up by himself is not told that the server ends.
func TestCanceledByTheCaller(t *testing.T) {
	if err := givenUp(t.Context(), context.Canceled); err != context.Canceled {
		t.Errorf("%v", err)
	}
}

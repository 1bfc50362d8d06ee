package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// vra answers as a test wants.
type vra struct {
	mu     sync.Mutex
	opened int
	open   func(ctx context.Context, nth int) (*holdfastv1.ViewsServiceOpenResponse, error)
}

func (v *vra) Get(context.Context, *holdfastv1.StatusServiceGetRequest) (*holdfastv1.StatusServiceGetResponse, error) {
	return &holdfastv1.StatusServiceGetResponse{Site: "west", Groups: []*holdfastv1.Group{{
		Name: "lab", State: StateProtected, Since: Timestamp(time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)),
	}}}, nil
}

func (v *vra) Open(ctx context.Context, _ *holdfastv1.ViewsServiceOpenRequest) (*holdfastv1.ViewsServiceOpenResponse, error) {
	v.mu.Lock()
	v.opened++
	nth := v.opened
	v.mu.Unlock()
	return v.open(ctx, nth)
}

func (v *vra) List(context.Context, *holdfastv1.ViewsServiceListRequest) (*holdfastv1.ViewsServiceListResponse, error) {
	return nil, errors.New("the disk is on fire")
}

func (v *vra) Close(context.Context, *holdfastv1.ViewsServiceCloseRequest) (*holdfastv1.ViewsServiceCloseResponse, error) {
	return nil, Errorf(NotFound, "see holdfast view list", "view %s: no such view", "v9")
}

// ServeHTTP answers as metrics.
func (*vra) ServeHTTP(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "holdfast_x 1\n") }

// start serves v to uids until the test ends and returns the socket.
func start(t *testing.T, v *vra, uids ...int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, l, Handlers{Status: v, Views: v, Metrics: v}, uids, slog.New(slog.NewTextHandler(io.Discard, nil)))
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return path
}

func TestCallsAndFailures(t *testing.T) {
	c := DialUnix(start(t, &vra{}, os.Getuid()))
	defer c.Close()
	got, err := c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{})
	if err != nil || got.Site != "west" || len(got.Groups) != 1 || got.Groups[0].LagSeconds != nil {
		t.Fatalf("Get: %v, %v", got, err)
	}
	if since := Time(got.Groups[0].Since); since.Format(time.RFC3339Nano) != "2026-01-02T03:04:05.006Z" {
		t.Errorf("since = %v", since)
	}
	_, err = c.Views.Close(t.Context(), &holdfastv1.ViewsServiceCloseRequest{})
	if f := AsFailure(err); f.Code != NotFound || f.Message != "view v9: no such view" || f.Next != "see holdfast view list" {
		t.Errorf("Close: %+v", f)
	}
	_, err = c.Views.List(t.Context(), &holdfastv1.ViewsServiceListRequest{})
	if f := AsFailure(err); f.Code != Internal || f.Message != "the disk is on fire" {
		t.Errorf("List: %+v", f)
	}
	_, err = c.Checkpoints.List(t.Context(), &holdfastv1.CheckpointsServiceListRequest{})
	if f := AsFailure(err); f.Code != Unimplemented {
		t.Errorf("a service that is not offered: %+v", f)
	}
}

func TestFailureOfAnAbsentServer(t *testing.T) {
	c := DialUnix(filepath.Join(t.TempDir(), "none"))
	defer c.Close()
	_, err := c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{})
	if f := AsFailure(err); f.Code != Unavailable || !strings.Contains(f.Message, "no such file") {
		t.Errorf("%+v", f)
	}
	if AsFailure(nil) != nil {
		t.Error("a failure of nil")
	}
}

// TestOthersAreRefused: a socket that anybody may open still answers its users alone.
func TestOthersAreRefused(t *testing.T) {
	path := start(t, &vra{}, os.Getuid()+1)
	c := DialUnix(path)
	defer c.Close()
	if got, err := c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{}); err == nil {
		t.Errorf("user %d is answered: %v", os.Getuid(), got)
	}
}

func TestJSONWorksForCurl(t *testing.T) {
	path := start(t, &vra{}, os.Getuid())
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) },
	}}
	res, err := client.Post("http://vra/holdfast.v1.StatusService/Get", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var got struct {
		Site   string
		Groups []map[string]any
	}
	if err := json.NewDecoder(res.Body).Decode(&got); err != nil || got.Site != "west" || got.Groups[0]["since"] != "2026-01-02T03:04:05.006Z" {
		t.Errorf("%+v, %v", got, err)
	}
	metrics, err := client.Get("http://vra/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer metrics.Body.Close()
	if text, err := io.ReadAll(metrics.Body); err != nil || string(text) != "holdfast_x 1\n" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestTooLargeIsRefused(t *testing.T) {
	c := DialUnix(start(t, &vra{}, os.Getuid()))
	defer c.Close()
	_, err := c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{Group: string(bytes.Repeat([]byte("x"), maxRequest+1))})
	if f := AsFailure(err); f == nil || f.Code != Exhausted {
		t.Errorf("%+v", f)
	}
}

func TestKeyMakesACallHappenOnce(t *testing.T) {
	first, both := make(chan struct{}), make(chan struct{})
	v := &vra{open: func(_ context.Context, nth int) (*holdfastv1.ViewsServiceOpenResponse, error) {
		if nth == 1 {
			close(first)
			<-both
		}
		return &holdfastv1.ViewsServiceOpenResponse{View: &holdfastv1.View{Id: string(rune('0' + nth))}}, nil
	}}
	c := DialUnix(start(t, v, os.Getuid()))
	defer c.Close()
	open := func(key string) string {
		res, err := c.Views.Open(t.Context(), &holdfastv1.ViewsServiceOpenRequest{IdempotencyKey: key})
		if err != nil {
			t.Error(err)
			return ""
		}
		return res.View.Id
	}
	key := NewKey()
	var ids [2]string
	var wg sync.WaitGroup
	wg.Go(func() { ids[0] = open(key) })
	<-first
	wg.Go(func() { ids[1] = open(key) })
	close(both)
	wg.Wait()
	if ids != [2]string{"1", "1"} || open(key) != "1" {
		t.Errorf("one key gave %q", ids)
	}
	if a, b := open(NewKey()), open(""); a != "2" || b != "3" || open("") != "4" {
		t.Errorf("other keys gave %s, %s", a, b)
	}
}

func TestAFailedCallMayBeTriedAgain(t *testing.T) {
	v := &vra{open: func(_ context.Context, nth int) (*holdfastv1.ViewsServiceOpenResponse, error) {
		if nth == 1 {
			return nil, Errorf(Unavailable, "", "not yet")
		}
		return &holdfastv1.ViewsServiceOpenResponse{View: &holdfastv1.View{Id: "x"}}, nil
	}}
	c := DialUnix(start(t, v, os.Getuid()))
	defer c.Close()
	req := &holdfastv1.ViewsServiceOpenRequest{IdempotencyKey: "k"}
	if _, err := c.Views.Open(t.Context(), req); AsFailure(err).Code != Unavailable {
		t.Fatal(err)
	}
	if res, err := c.Views.Open(t.Context(), req); err != nil || res.View.Id != "x" {
		t.Errorf("%v, %v", res, err)
	}
	req.IdempotencyKey = strings.Repeat("k", maxKey+1)
	if _, err := c.Views.Open(t.Context(), req); AsFailure(err).Code != InvalidArgument {
		t.Error(err)
	}
}

func TestOnceForgetsTheOldest(t *testing.T) {
	o := newOnce()
	calls := 0
	call := func() (connect.AnyResponse, error) { calls++; return nil, nil }
	for i := range onceKeys + 1 {
		o.do(t.Context(), "p", string(rune(i)), nil, call)
	}
	if len(o.mu.answers) != onceKeys || len(o.mu.order) != onceKeys {
		t.Errorf("%d answers, %d keys, want %d", len(o.mu.answers), len(o.mu.order), onceKeys)
	}
	o.do(t.Context(), "p", string(rune(1)), nil, call) // still known
	o.do(t.Context(), "p", string(rune(0)), nil, call) // forgotten
	if calls != onceKeys+2 {
		t.Errorf("%d calls, want %d", calls, onceKeys+2)
	}
}

// linkTester tells twice and then what it was asked for.
type linkTester struct{}

func (linkTester) Test(ctx context.Context, r *holdfastv1.LinksServiceTestRequest, tell func(*holdfastv1.LinksServiceTestResponse) error) error {
	for i := range int64(2) {
		if err := tell(&holdfastv1.LinksServiceTestResponse{Bytes: i}); err != nil {
			return err
		}
	}
	if r.Group == "none" {
		return Errorf(NotFound, "name one", "no such group")
	}
	if r.Group == "waits" {
		<-ctx.Done()
		return ctx.Err()
	}
	return tell(&holdfastv1.LinksServiceTestResponse{Report: &holdfastv1.LinkReport{Cap: r.Cap}})
}

func TestStreamAndItsFailures(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, l, Handlers{Links: linkTester{}}, []int{os.Getuid()}, slog.New(slog.DiscardHandler))
	}()
	defer func() { stop(); <-done }()
	c := DialUnix(path)
	defer c.Close()
	var came []*holdfastv1.LinksServiceTestResponse
	keep := func(m *holdfastv1.LinksServiceTestResponse) error { came = append(came, m); return nil }
	if err := c.Links.Test(ctx, &holdfastv1.LinksServiceTestRequest{Cap: 7}, keep); err != nil || len(came) != 3 || came[2].GetReport().GetCap() != 7 {
		t.Errorf("%v, %v", came, err)
	}
	err = c.Links.Test(ctx, &holdfastv1.LinksServiceTestRequest{Group: "none"}, keep)
	if f := AsFailure(err); f == nil || f.Code != NotFound || f.Next != "name one" {
		t.Errorf("%v", err)
	}
	enough := errors.New("enough")
	err = c.Links.Test(ctx, &holdfastv1.LinksServiceTestRequest{Group: "waits"}, func(*holdfastv1.LinksServiceTestResponse) error { return enough })
	if !errors.Is(err, enough) {
		t.Errorf("%v", err)
	}
}

func (*vra) About(context.Context, *holdfastv1.StatusServiceAboutRequest) (*holdfastv1.StatusServiceAboutResponse, error) {
	return &holdfastv1.StatusServiceAboutResponse{ApiMajor: Major, ApiMinor: Minor}, nil
}

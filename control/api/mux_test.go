package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/grpcreflect"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1/holdfastv1connect"
)

// TestReflection: what a port offers is what reflection tells of it.
func TestReflection(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	around := func(_ context.Context, _ Call, do func() error) error { return do() }
	h := Handlers{Status: &vra{}, Links: linkTester{}, Healthy: func(context.Context) bool { return true }}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- ServeHTTP(ctx, l, &http.Server{Handler: Mux(h, 1000, around)}, slog.New(slog.DiscardHandler))
	}()
	defer func() { stop(); <-done }()
	c := DialUnix(path)
	defer c.Close()
	stream := grpcreflect.NewClient(&http.Client{Transport: c.transport}, "http://vra").NewStream(t.Context())
	defer stream.Close()
	names, err := stream.ListServices()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"holdfast.v1.StatusService", "holdfast.v1.LinksService", "grpc.health.v1.Health"} {
		if !slices.Contains([]string{string(names[0]), string(names[1]), string(names[len(names)-1])}, want) {
			t.Errorf("%s is not among %q", want, names)
		}
	}
	if len(names) != 3 {
		t.Errorf("%q", names)
	}
	files, err := stream.FileContainingSymbol("holdfast.v1.StatusService")
	if err != nil || len(files) == 0 {
		t.Errorf("%v, %v", files, err)
	}
}

// TestStrictRequests: what is mistyped in JSON is refused, and so is what a newer caller says of any call that changes something.
func TestStrictRequests(t *testing.T) {
	v := opener()
	path := start(t, v, os.Getuid())
	c := DialUnix(path)
	defer c.Close()
	post := func(kind, call, text string) string {
		t.Helper()
		res, err := (&http.Client{Transport: c.transport}).Post("http://vra/holdfast.v1."+call, kind, strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		all, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(all)
	}
	for _, kind := range []string{"application/json", "application/json; charset=utf-8"} {
		for what, want := range map[string]string{`{"grup":"shop"}`: `unknown field`, ``: `an empty request is {}`, `{`: `unexpected EOF`, `{"group":"shop"}`: `"view"`, `{"group":7}`: `invalid value for string field group`} {
			if got := post(kind, "ViewsService/Open", what); !strings.Contains(got, want) {
				t.Errorf("%s: %s is answered %s", kind, what, got)
			}
		}
		if got := post(kind, "StatusService/Get", `{"grup":"shop"}`); !strings.Contains(got, "unknown field") {
			t.Errorf("%s", got)
		}
	}
	newer := protowire.AppendVarint(protowire.AppendTag(nil, 9999, protowire.VarintType), 1)
	asked := &holdfastv1.StatusServiceGetRequest{}
	asked.ProtoReflect().SetUnknown(newer)
	if _, err := c.Status.Get(t.Context(), asked); err != nil {
		t.Errorf("what changes nothing: %v", err)
	}
	all := Handlers{
		Checkpoints: holdfastv1connect.UnimplementedCheckpointsServiceHandler{}, Views: holdfastv1connect.UnimplementedViewsServiceHandler{},
		Stores: holdfastv1connect.UnimplementedStoresServiceHandler{}, Groups: holdfastv1connect.UnimplementedGroupsServiceHandler{},
		Recovery: holdfastv1connect.UnimplementedRecoveryServiceHandler{}, Shaping: holdfastv1connect.UnimplementedShapingServiceHandler{},
	}.mux(maxRequest, newOnce().wrap)
	for _, p := range Procedures() {
		if !p.Changes {
			continue
		}
		for text, want := range map[string]string{string(newer): fmt.Sprintf("does not know (services %d.%d)", Major, Minor), "": "is not implemented"} {
			w, r := httptest.NewRecorder(), httptest.NewRequest("POST", p.Path, strings.NewReader(text))
			r.Header.Set("Content-Type", "application/proto")
			if all.ServeHTTP(w, r); !strings.Contains(w.Body.String(), want) {
				t.Errorf("%s of %x is answered %s, want that it %s", p.Path, text, w.Body, want)
			}
		}
	}

	deep, err := structpb.NewStruct(map[string]any{"a": []any{1, map[string]any{"b": "c"}}})
	if err != nil || understood(deep) != nil || understood(7) != nil {
		t.Errorf("%v, %v", err, understood(deep))
	}
	deep.Fields["a"].GetListValue().Values[1].GetStructValue().Fields["b"].ProtoReflect().SetUnknown(newer)
	if understood(deep) == nil {
		t.Error("a field that is not known deep inside is not seen")
	}
}

// TestAnswersInPieces: who asks for one in a way that has no pieces is told how to ask.
func TestAnswersInPieces(t *testing.T) {
	mux := Handlers{Watch: watching{make(chan struct{})}, Links: linkTester{}}.mux(maxRequest, newOnce().wrap)
	f := func(path, kind, text string, status int, want string) {
		t.Helper()
		ctx, stop := context.WithCancel(t.Context())
		w, r := httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "POST", path, strings.NewReader(text))
		stop() // what is let through ends soon
		r.Header.Set("Content-Type", kind)
		if mux.ServeHTTP(w, r); w.Code != status || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s as %s: %d %q", path, kind, w.Code, w.Body)
		}
	}
	for _, path := range []string{"/holdfast.v1.WatchService/Watch", "/holdfast.v1.LinksService/Test"} {
		f(path, "application/json", "{}", 400, `"invalid_argument","message":"the answer to `+path+" comes in pieces")
		f(path, "application/json; charset=utf-8", "{}", 400, "comes in pieces")
		f(path, "application/proto", "", 400, "comes in pieces")
	}
	f("/holdfast.v1.WatchService/Watch", "application/connect+json", "\x00\x00\x00\x00\x02{}", 200, "canceled")
}

// TestLocalAnswersArePlain: nothing is compressed that stays on the machine.
func TestLocalAnswersArePlain(t *testing.T) {
	p, asked := newPipes(), 0
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		mux := Handlers{Status: &vra{}, Links: linkTester{}}.mux(maxRequest, newOnce().wrap)
		done <- ServeHTTP(ctx, p, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked++
			for name, values := range r.Header {
				if strings.Contains(strings.Join(values, " "), "gzip") {
					t.Errorf("%s: %s", name, values)
				}
			}
			mux.ServeHTTP(w, r)
		})}, slog.New(slog.DiscardHandler))
	}()
	c := DialVia(p.dial)
	if _, err := c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{}); err != nil {
		t.Error(err)
	}
	c.Links.Test(t.Context(), &holdfastv1.LinksServiceTestRequest{}, func(*holdfastv1.LinksServiceTestResponse) error { return io.EOF })
	c.Close()
	stop()
	if err := <-done; err != nil || asked != 2 {
		t.Error(asked, err)
	}
}

// TestAroundStandsBefore each call, sees what it is, and may refuse it.
func TestAroundStandsBefore(t *testing.T) {
	var seen Call
	h := Handlers{Views: &vra{open: func(context.Context, int) (*holdfastv1.ViewsServiceOpenResponse, error) {
		return &holdfastv1.ViewsServiceOpenResponse{}, nil
	}}}
	refuse := error(nil)
	mux := Mux(h, 1000, func(_ context.Context, c Call, do func() error) error {
		if seen = c; refuse != nil {
			return refuse
		}
		return do()
	})
	call := func() (int, string) {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("POST", "/holdfast.v1.ViewsService/Open", strings.NewReader(`{"group":"shop","idempotencyKey":"k"}`))
		r.Header.Set("Content-Type", "application/json")
		mux.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	if code, text := call(); code != 200 {
		t.Errorf("%d %s", code, text)
	}
	if seen.Procedure != "/holdfast.v1.ViewsService/Open" || seen.Key != "k" || seen.Group != "shop" || !strings.Contains(seen.JSON(100), `"shop"`) || seen.JSON(4) != seen.JSON(100)[:4]+"..." {
		t.Errorf("%+v, %s, %s", seen, seen.JSON(100), seen.JSON(4))
	}
	refuse = Errorf(PermissionDenied, "ask another", "not you")
	if code, text := call(); code != 403 || !strings.Contains(text, "not you") {
		t.Errorf("%d %s", code, text)
	}
	refuse = errors.New("odd")
	if code, text := call(); code != 500 || !strings.Contains(text, "internal") {
		t.Errorf("%d %s", code, text)
	}
}

// TestRefuse speaks the words of whatever protocol was asked in.
func TestRefuse(t *testing.T) {
	f := func(kind, method string, err error, status int, words string) {
		t.Helper()
		w, r := httptest.NewRecorder(), httptest.NewRequest(method, "/x", nil)
		r.Header.Set("Content-Type", kind)
		Refuse(w, r, err)
		said := w.Body.String() + w.Header().Get("Grpc-Message") + w.Result().Trailer.Get("Grpc-Message")
		if w.Code != status || !strings.Contains(said, words) {
			t.Errorf("%s: %d %q", kind, w.Code, said)
		}
	}
	denied := Errorf(PermissionDenied, "ask another", "not you")
	f("application/json", "POST", denied, 403, "not you")
	f("application/grpc", "POST", denied, 200, "not you")
	f("application/connect+json", "POST", denied, 200, "not you")
	f("", "GET", denied, 403, "not you")
	f("", "GET", Errorf(Exhausted, "", "slower"), 429, "slower")
	f("text/plain", "POST", denied, 403, "not you; ask another")
}

func TestSameGroup(t *testing.T) {
	lag := 1.0
	a := &holdfastv1.Group{Name: "a", State: StateProtected, GuestBytesTotal: 1, LagSeconds: &lag, Volumes: []*holdfastv1.Volume{{Name: "v", Bytes: 5}}}
	f := func(change func(*holdfastv1.Group), same, all bool) {
		t.Helper()
		later := 2.0
		b := &holdfastv1.Group{Name: "a", State: StateProtected, GuestBytesTotal: 1, LagSeconds: &later, Volumes: []*holdfastv1.Volume{{Name: "v", Bytes: 5}}}
		change(b)
		if SameGroup(a, b, false) != same || SameGroup(a, b, true) != all {
			t.Errorf("%v and %v", a, b)
		}
	}
	f(func(g *holdfastv1.Group) { g.LagSeconds = &lag }, true, true)
	f(func(g *holdfastv1.Group) {}, true, false)
	f(func(g *holdfastv1.Group) { g.LagSeconds = nil }, false, false)
	f(func(g *holdfastv1.Group) { g.State = StateBehind }, false, false)
	f(func(g *holdfastv1.Group) { g.Volumes[0].Bytes = 6 }, false, false)
	f(func(g *holdfastv1.Group) { g.Volumes = nil }, false, false)
}

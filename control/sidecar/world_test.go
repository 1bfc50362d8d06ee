package sidecar

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/pairing"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// standIn answers at the vra's socket with the real services: what it was asked it remembers.
type standIn struct {
	mu     sync.Mutex
	asked  []string
	groups []*holdfastv1.Group
	fail   error
	major  uint32
	hangs  bool // in Status.Get
	older  bool // it knows only the calls of 1.0
}

func (s *standIn) ask(what string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, what)
	return s.fail
}

func (s *standIn) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *standIn) calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.asked...)
}

func (s *standIn) Get(ctx context.Context, _ *holdfastv1.StatusServiceGetRequest) (*holdfastv1.StatusServiceGetResponse, error) {
	err := s.ask("Status.Get")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hangs {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &holdfastv1.StatusServiceGetResponse{Site: "west", Id: "vra-1", Groups: s.groups}, err
}

func (s *standIn) About(context.Context, *holdfastv1.StatusServiceAboutRequest) (*holdfastv1.StatusServiceAboutResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.older {
		return nil, api.Errorf(api.Unimplemented, "", "unimplemented")
	}
	major := s.major
	if major == 0 {
		major = api.Major
	}
	return &holdfastv1.StatusServiceAboutResponse{Site: "west", Id: "vra-1", Version: "v9.9", ApiMajor: major, ApiMinor: api.Minor}, nil
}

// standInCheckpoints answers some of CheckpointsService.
type standInCheckpoints struct{ *standIn }

func (s standInCheckpoints) List(context.Context, *holdfastv1.CheckpointsServiceListRequest) (*holdfastv1.CheckpointsServiceListResponse, error) {
	return &holdfastv1.CheckpointsServiceListResponse{NextPageToken: "7"}, s.ask("Checkpoints.List")
}

func (s standInCheckpoints) Get(context.Context, *holdfastv1.CheckpointsServiceGetRequest) (*holdfastv1.CheckpointsServiceGetResponse, error) {
	return nil, api.Errorf(api.NotFound, "see the list", "no such checkpoint")
}

func (s standInCheckpoints) Tag(_ context.Context, r *holdfastv1.CheckpointsServiceTagRequest) (*holdfastv1.CheckpointsServiceTagResponse, error) {
	return &holdfastv1.CheckpointsServiceTagResponse{}, s.ask("Checkpoints.Tag")
}

func (s standInCheckpoints) Pin(_ context.Context, r *holdfastv1.CheckpointsServicePinRequest) (*holdfastv1.CheckpointsServicePinResponse, error) {
	return &holdfastv1.CheckpointsServicePinResponse{}, s.ask("Checkpoints.Pin")
}

func (s standInCheckpoints) Unpin(_ context.Context, r *holdfastv1.CheckpointsServiceUnpinRequest) (*holdfastv1.CheckpointsServiceUnpinResponse, error) {
	return &holdfastv1.CheckpointsServiceUnpinResponse{}, s.ask("Checkpoints.Unpin")
}

func (s standInCheckpoints) Create(_ context.Context, r *holdfastv1.CheckpointsServiceCreateRequest) (*holdfastv1.CheckpointsServiceCreateResponse, error) {
	if err := s.ask("Checkpoints.Create " + r.Tag); err != nil {
		return nil, err
	}
	return &holdfastv1.CheckpointsServiceCreateResponse{Checkpoint: &holdfastv1.Checkpoint{Id: fmt.Sprint(len(s.calls()))}}, nil
}

func (s standInCheckpoints) LeadCut(_ context.Context, r *holdfastv1.CheckpointsServiceLeadCutRequest) (*holdfastv1.CheckpointsServiceLeadCutResponse, error) {
	if err := s.ask("Checkpoints.LeadCut " + r.Tag); err != nil {
		return nil, err
	}
	return &holdfastv1.CheckpointsServiceLeadCutResponse{Checkpoint: &holdfastv1.Checkpoint{Id: fmt.Sprint(len(s.calls()))}}, nil
}

// ServeHTTP is the stand-in's metrics.
func (s *standIn) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	io.WriteString(w, "# TYPE holdfast_x gauge\nholdfast_x 1\n")
}

// serve answers at a socket until stop is called.
func (s *standIn) serve(t *testing.T, socket string) (stop func()) {
	t.Helper()
	os.Remove(socket)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	h := api.Handlers{Status: s, Metrics: s}
	if s.set(func() {}); !s.older {
		h.Checkpoints = standInCheckpoints{s}
	}
	go func() { done <- api.Serve(ctx, l, h, []int{os.Getuid()}, slog.New(slog.DiscardHandler)) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the stand-in: %v", err)
		}
	})
}

// world is a sidecar before a stand-in, and the certificates of its site.
type world struct {
	t      *testing.T
	dir    string
	cfg    *config.Sidecar
	ca     *pairing.CA
	vra    *standIn
	car    *Sidecar
	said   *said
	stop   func()
	vraEnd func()
}

// said is a log that tests read.
type said struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// open makes a world; change may change the sidecar's configuration. Worlds have nothing in common, and much of what
// happens in them is waiting: tests with one run beside each other.
func open(t *testing.T, change func(*config.Sidecar)) *world {
	t.Helper()
	t.Parallel()
	w := &world{t: t, dir: t.TempDir(), vra: &standIn{}, said: &said{}}
	at := func(name string) string { return filepath.Join(w.dir, name) }
	var err error
	if w.ca, err = pairing.NewCA("west", time.Now()); err != nil {
		t.Fatal(err)
	}
	leaf, err := w.ca.IssueAt(pairing.Identity{Role: api.RoleSidecar, ID: "vra-1"}, pairing.Hosts{"127.0.0.1"}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.ca.Save(at("ca.pem"), at("ca-key.pem")), leaf.Save(at("cert.pem"), at("key.pem"))); err != nil {
		t.Fatal(err)
	}
	w.cfg = &config.Sidecar{
		ID: "vra-1", VRASocket: at("vra.sock"), Socket: at("sidecar.sock"), DataDir: at("data"),
		TLS:    config.SidecarTLS{CA: at("ca.pem"), Cert: at("cert.pem"), Key: at("key.pem")},
		Listen: config.SidecarListen{Logs: "127.0.0.1:0", Commands: "127.0.0.1:0", Checkpoints: "127.0.0.1:0"},
		Limits: config.SidecarLimits{Rate: 10000},
	}
	if change != nil {
		change(w.cfg)
	}
	if err := errors.Join(w.cfg.Validate(), CheckFiles(w.cfg)); err != nil {
		t.Fatal(err)
	}
	w.vraEnd = w.vra.serve(t, w.cfg.VRASocket)
	t.Cleanup(func() { w.vraEnd() })
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

// start runs the sidecar until stop is called.
func (w *world) start() {
	w.t.Helper()
	log := slog.New(slog.NewTextHandler(w.said, nil))
	car, err := Open(w.cfg, log)
	for late := time.Now().Add(time.Minute); errors.Is(err, syscall.EADDRINUSE) && time.Now().Before(late); car, err = Open(w.cfg, log) {
		<-time.After(10 * time.Millisecond) // a connection of some other test has one of its ports for a moment
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.car = car
	a := car.Addresses() // it is found again at the same places
	w.cfg.Listen = config.SidecarListen{Logs: a.Logs, Commands: a.Commands, Checkpoints: a.Checkpoints}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- car.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("the sidecar: %v", err)
		}
	})
}

// addresses are where the sidecar is found, also after it was started anew.
func (w *world) addresses() api.Addresses {
	l := w.cfg.Listen
	return api.Addresses{Commands: l.Commands, Checkpoints: l.Checkpoints, Logs: l.Logs}
}

// trust makes a certificate of a role.
func (w *world) trust(role, id string) *pairing.Trust {
	w.t.Helper()
	leaf, err := w.ca.Issue(pairing.Identity{Role: role, ID: id}, time.Now(), time.Hour)
	if err != nil {
		w.t.Fatal(err)
	}
	tr, err := pairing.NewTrust(w.ca.Certificate(), leaf.TLS(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return tr
}

// client calls as somebody of a role.
func (w *world) client(role string) *api.Client {
	w.t.Helper()
	c := api.DialTLS(w.addresses(), w.trust(role, "ann").Client(api.RoleSidecar))
	w.t.Cleanup(c.Close)
	return c
}

// plain is an HTTP client with a TLS configuration.
func (w *world) plain(c *tls.Config) *http.Client {
	tr := &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: true}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// failure holds an error to what it should say.
func failure(t *testing.T, what string, err error, code api.Code, words ...string) {
	t.Helper()
	f := api.AsFailure(err)
	if f == nil || f.Code != code {
		t.Errorf("%s: %+v, want %s", what, f, code)
		return
	}
	for _, word := range words {
		if !strings.Contains(f.Error(), word) {
			t.Errorf("%s: %q does not say %q", what, f.Error(), word)
		}
	}
}

package sidecar

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/daemon"
	"github.com/holdfast-dr/holdfast/control/pairing"
	"github.com/holdfast-dr/holdfast/control/version"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// dialogues are the paths whose callers go on asking while they are answered.
var dialogues = []string{"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"}

// streams are the paths whose answers come in pieces.
var streams = func() map[string]bool {
	all := map[string]bool{"/grpc.health.v1.Health/Watch": true}
	for _, path := range dialogues {
		all[path] = true
	}
	for _, p := range api.Procedures() {
		if p.Streams {
			all[p.Path] = true
		}
	}
	return all
}()

// Sidecar is one that was opened: its ports are taken.
type Sidecar struct {
	cfg   *config.Sidecar
	log   *slog.Logger
	trust atomic.Pointer[pairing.Trust]
	vra   *vra
	audit *audit
	count *counters
	ports []port
	// aliveWait is how long the own socket may take to answer.
	aliveWait time.Duration
}

// port is a place to listen, and what answers there.
type port struct {
	at       Port
	listener net.Listener
	server   *http.Server
	gate     *gate
	// What of a port that speaks TLS judges who connects, and those that are connected; nil of the unix socket.
	*handshakes
	*limited
}

// CheckFiles tells what of the files that the configuration names would keep a sidecar from running; it makes nothing.
func CheckFiles(cfg *config.Sidecar) error {
	if err := cfg.CheckFiles(); err != nil {
		return err
	}
	_, err := loadTrust(cfg)
	return err
}

// loadTrust reads the certificates, and holds them to the configuration.
func loadTrust(cfg *config.Sidecar) (*pairing.Trust, error) {
	t, err := pairing.LoadTrust(cfg.TLS.CA, cfg.TLS.Cert, cfg.TLS.Key)
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	if name := t.Name(); name.Role != api.RoleSidecar || name.ID != cfg.ID {
		return nil, fmt.Errorf("tls.cert: %s is a certificate of %s, and this is the %s %s", cfg.TLS.Cert, name, api.RoleSidecar, cfg.ID)
	}
	return t, nil
}

// Open takes the ports and the audit of a configuration that was checked. The vra need not be there yet.
func Open(cfg *config.Sidecar, log *slog.Logger) (_ *Sidecar, err error) {
	s := &Sidecar{cfg: cfg, log: log, count: newCounters(), aliveWait: aliveWait}
	if err := s.Reload(); err != nil {
		return nil, err
	}
	if s.audit, err = openAudit(cfg.DataDir, int64(cfg.Audit.Size), cfg.Audit.Keep, time.Now); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	s.vra = newVRA(cfg.VRASocket, log)
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	status := &status{vra: s.vra, id: cfg.ID, began: time.Now(), built: version.Read(), lookWait: lookWait}
	numbers := &metrics{vra: s.vra, count: s.count, trust: s.trust.Load, began: status.began}
	bundle := &bundler{vra: s.vra, metrics: numbers, logs: cfg.Logs, configs: cfg.Configs, audit: s.audit.files, now: time.Now}
	services := api.Handlers{
		Status: status, Checkpoints: checkpointsOf{s.vra}, Views: viewsOf{s.vra}, Stores: storesOf{s.vra}, Groups: groupsOf{s.vra}, Recovery: recoveryOf{s.vra}, Shaping: shapingOf{s.vra}, Links: linksOf{s.vra},
		Watch: newWatch(status.groups, s.count), Logs: newLogs(cfg.Logs, bundle), Metrics: numbers,
		Healthy: func(ctx context.Context) bool { return s.vra.answers(ctx) == nil },
	}
	for _, p := range []struct {
		at     Port
		listen string
	}{{Commands, cfg.Listen.Commands}, {Checkpoints, cfg.Listen.Checkpoints}, {Logs, cfg.Listen.Logs}} {
		l, err := net.Listen("tcp", p.listen)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.at, err)
		}
		g, h, conns := s.gate(p.at, services, certified), &handshakes{s.trust.Load, rolesAt(p.at), p.at, s.count, log}, newLimited(l, s.count)
		// The time that a stream has to take in an answer ends the stream; this ends a connection that takes in nothing at all.
		h2 := &http.HTTP2Config{MaxConcurrentStreams: maxPerConn, WriteByteTimeout: writeWait}
		srv := &http.Server{Handler: g, TLSConfig: h.config(), HTTP2: h2}
		s.ports = append(s.ports, port{p.at, conns, srv, g, h, conns})
	}
	l, err := daemon.Listen(cfg.Socket, -1)
	if err != nil {
		return nil, err
	}
	g := s.gate(Local, services, local)
	s.ports = append(s.ports, port{at: Local, listener: api.OwnersOnly(l, []int{os.Getuid(), 0}, log), server: &http.Server{Handler: g, ConnContext: withUID}, gate: g})
	return s, nil
}

// gate makes what answers at a port: the services that have anything to answer there, behind the port's own limits.
func (s *Sidecar) gate(at Port, services api.Handlers, who func(*http.Request) (caller, error)) *gate {
	g := &gate{port: at, limits: newLimits(s.cfg.Limits.Rate, s.cfg.Limits.Concurrent, time.Now), denied: newLimits(1, 1, time.Now), count: s.count, audit: s.audit, log: s.log, writeWait: writeWait, sendWait: sendWait, lookingWait: lookingWait, who: who, now: time.Now}
	switch at { // so that reflection tells what the port is for
	case Commands:
		services.Checkpoints, services.Logs = nil, nil
	case Checkpoints:
		services = api.Handlers{Status: services.Status, Checkpoints: services.Checkpoints, Healthy: services.Healthy}
	case Logs:
		services = api.Handlers{Status: services.Status, Logs: services.Logs, Healthy: services.Healthy}
	}
	g.next = api.Mux(services, maxBody, g.around)
	return g
}

// Reload reads the certificates again: connections are judged by them from then on, and those that there are. After an error
// the present ones stay.
func (s *Sidecar) Reload() error {
	t, err := loadTrust(s.cfg)
	if err != nil {
		return err
	}
	s.trust.Store(t)
	if invariant.Planted("control/sidecar/old-trust") {
		return nil
	}
	for _, p := range s.ports {
		if p.limited != nil {
			p.judge(func(from net.Addr, shown tls.ConnectionState) error { return p.verify(t, from, shown) })
		}
	}
	return nil
}

// aliveWait is how long the sidecar's own socket may take to answer, an answer of the vra within.
const aliveWait = 15 * time.Second

// Alive asks the sidecar for its metrics over its own socket, by way of all that a caller goes through. Whether the vra
// answers is no matter, nor is what is answered: one that refuses for its limits gets on.
func (s *Sidecar) Alive(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.aliveWait)
	defer cancel()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", s.cfg.Socket)
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://sidecar/metrics", nil)
	if err != nil {
		return err
	}
	res, err := transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("the own socket: %w", err)
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return fmt.Errorf("the own socket: %s: %w", res.Status, err)
	}
	return nil
}

// Addresses are where it listens.
func (s *Sidecar) Addresses() (a api.Addresses) {
	for _, p := range s.ports {
		switch address := p.listener.Addr().String(); p.at {
		case Commands:
			a.Commands = address
		case Checkpoints:
			a.Checkpoints = address
		case Logs:
			a.Logs = address
		}
	}
	return a
}

// Run answers until ctx ends or a port fails; then all is closed.
func (s *Sidecar) Run(ctx context.Context) error {
	run, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	s.log.Info("vra-sidecar runs", "commands", s.cfg.Listen.Commands, "checkpoints", s.cfg.Listen.Checkpoints, "logs", s.cfg.Listen.Logs, "socket", s.cfg.Socket)
	var wg sync.WaitGroup
	for _, p := range s.ports {
		wg.Go(func() {
			err := api.ServeHTTP(run, p.listener, p.server, s.log)
			if err == nil && run.Err() == nil {
				err = errors.New("ended by itself")
			}
			if err != nil {
				fail(fmt.Errorf("%s: %w", p.at, err))
			}
		})
	}
	wg.Wait()
	err := s.close()
	s.log.Info("vra-sidecar ends")
	if ctx.Err() != nil {
		return err
	}
	return errors.Join(context.Cause(run), err)
}

func (s *Sidecar) close() error {
	for _, p := range s.ports {
		p.listener.Close() // once more, where Run had it closed
	}
	s.vra.close()
	return s.audit.close()
}

// status answers for the vra, and says who is in between.
type status struct {
	vra   *vra
	id    string
	began time.Time
	built version.Version
	// lookWait is how long the vra may take to tell watchers how things stand.
	lookWait time.Duration
}

// Get implements api.StatusHandler.
func (s *status) Get(ctx context.Context, r *holdfastv1.StatusServiceGetRequest) (*holdfastv1.StatusServiceGetResponse, error) {
	return pass(ctx, s.vra, r, s.vra.Status.Get)
}

// About implements api.StatusHandler.
func (s *status) About(ctx context.Context, r *holdfastv1.StatusServiceAboutRequest) (*holdfastv1.StatusServiceAboutResponse, error) {
	res, err := pass(ctx, s.vra, r, s.vra.Status.About)
	if f := api.AsFailure(err); f != nil && f.Code == api.Unimplemented { // it is older than the question
		res, err = &holdfastv1.StatusServiceAboutResponse{ApiMajor: 1}, nil
	}
	if err == nil {
		res.Sidecar = &holdfastv1.Sidecar{Id: s.id, Version: s.built.Version, Commit: s.built.Commit, Started: api.Timestamp(s.began)}
	}
	return res, err
}

// groups is what watchers are told about. A vra that does not answer in time is one that is away.
func (s *status) groups(ctx context.Context) ([]*holdfastv1.Group, error) {
	asking, cancel := context.WithTimeout(ctx, s.lookWait)
	defer cancel()
	res, err := api.All(asking, &holdfastv1.StatusServiceGetRequest{}, s.vra.Status.Get)
	if f := api.AsFailure(err); f != nil && f.Code == api.TimedOut && !over(ctx) {
		return nil, api.Errorf(api.Unavailable, "see in its log whether it is still opening, or ends; if it hangs, restart it",
			"the vra at %s has not told how its groups stand within %v", s.vra.socket, s.lookWait)
	}
	return res.GetGroups(), s.vra.explain(ctx, err)
}

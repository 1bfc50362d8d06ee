package scenario

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/faultlink"
)

// Restart waits: the first after firstWait, then twice as long each, up to maxWait;
// a daemon that lived for steadyLife starts over at the first. All are below the
// second within which a killed daemon is back.
const (
	firstWait  = 50 * time.Millisecond
	maxWait    = 800 * time.Millisecond
	steadyLife = 10 * time.Second
)

// stopWait is how long a daemon may take to stop when asked; then it is killed.
const stopWait = 10 * time.Second

// logEvery is how often the logs' sizes are looked at.
const logEvery = 5 * time.Second

// Supervise runs a lab's daemons and its link until ctx ends or it is told to stop
// over its socket; then all of them have ended. It is what the hidden command does
// that Up starts. The error is nil after a clean stop.
func Supervise(ctx context.Context, dir string, log *slog.Logger) error {
	m, err := loadManifest(dir)
	if err != nil {
		return err
	}
	s := &supervisor{dir: dir, log: log, m: m}
	s.mu.lives, s.mu.down = make(map[string]*life), make(map[string]chan struct{})
	for _, d := range m.Daemons {
		s.mu.lives[d.Name] = &life{}
	}
	if m.Supervisor.alive(m.Boot) {
		return fmt.Errorf("%s has a supervisor already, process %d", dir, m.Supervisor.PID)
	}
	if m.Supervisor, err = identify(os.Getpid()); err != nil {
		return err
	}
	if err := m.save(dir); err != nil {
		return err
	}
	if s.relay, err = openLink(m, log); err != nil {
		return err
	}
	s.alone = m.direct()
	l, err := net.Listen("unix", m.runPath(supervisorSocket))
	if err != nil {
		s.relay.Close()
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	var linkErr error
	wg.Go(func() {
		if s.alone {
			return
		}
		defer stop() // a lab without its link is none
		linkErr = s.relay.Serve(ctx)
	})
	wg.Go(func() { s.answer(ctx, l, stop) })
	wg.Go(func() { s.rotate(ctx) })
	s.run(ctx)
	stop()
	wg.Wait()
	return errors.Join(linkErr, s.forget())
}

// openLink makes the link's relay: the source dials it in the target's stead. Where the sites dial each other it has no ports.
func openLink(m *manifest, log *slog.Logger) (*faultlink.Relay, error) {
	if m.direct() {
		return faultlink.OpenRelay(faultlink.RelayConfig{Log: log})
	}
	rate, err := config.ParseRate(m.Link)
	if err != nil {
		return nil, err
	}
	return faultlink.OpenRelay(faultlink.RelayConfig{
		Routes: []faultlink.Route{
			{Listen: loopback(m.Ports[portLinkControl]), Target: loopback(m.Ports[portTargetControl])},
			{Listen: loopback(m.Ports[portLinkData]), Target: loopback(m.Ports[portTargetData])},
		},
		Rate: int64(rate),
		Log:  log,
	})
}

// supervisor is a running lab.
type supervisor struct {
	dir   string
	log   *slog.Logger
	relay *faultlink.Relay
	alone bool // the sites dial each other: the relay has nothing to carry

	mu struct {
		sync.Mutex
		lives map[string]*life
		down  map[string]chan struct{} // sites that are; each is closed when it is up again
	}
	m *manifest // its Daemons' processes are guarded by mu, and so is its file
}

// life is what became of a daemon so far.
type life struct {
	since    time.Time // of the present process
	restarts int
	died     time.Time // the last time; UTC
	lastExit string
}

// run keeps every daemon up until ctx ends, then ends them one by one, the last first.
func (s *supervisor) run(ctx context.Context) {
	// Each daemon has a context of its own, which ends after that of the next.
	var stops []func()
	for _, d := range s.m.Daemons {
		own, cancel := context.WithCancel(context.WithoutCancel(ctx))
		done := make(chan struct{})
		go func() { defer close(done); s.keep(own, d) }()
		stops = append(stops, func() { cancel(); <-done })
	}
	<-ctx.Done()
	for i := len(stops) - 1; i >= 0; i-- {
		stops[i]()
	}
}

// keep starts a daemon again and again until ctx ends; then it has ended.
func (s *supervisor) keep(ctx context.Context, d *daemon) {
	log := s.log.With("daemon", d.Name)
	wait := firstWait
	for {
		if !s.awaitSite(ctx, siteOf(d.Name)) {
			return
		}
		began := time.Now()
		err := s.once(ctx, d)
		if ctx.Err() != nil {
			log.Info("daemon ended")
			return
		}
		if time.Since(began) >= steadyLife {
			wait = firstWait
		}
		log.Warn("daemon died, starting it again", "err", err, "after", time.Since(began), "in", wait)
		s.note(d, process{}, fmt.Sprint(err))
		if invariant.Planted("scenario/no-restart") {
			<-ctx.Done()
			return
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		wait = min(2*wait, maxWait)
	}
}

// once runs a daemon until it dies, or until ctx ends and it has stopped.
func (s *supervisor) once(ctx context.Context, d *daemon) error {
	out, err := openLog(s.logPath(d.Name))
	if err != nil {
		return err
	}
	defer out.Close()
	info, err := out.Stat()
	if err != nil {
		return err
	}
	cmd := exec.Command(d.Command[0], d.Command[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Dir = "/"
	// A group of its own: a Ctrl-C meant for another does not reach it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	p, err := identify(cmd.Process.Pid)
	if err == nil {
		err = s.note(d, p, "")
	}
	if err != nil {
		// Nobody could end it later if this process were killed: better not to run it.
		return errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	died := make(chan error, 1)
	go func() { died <- cmd.Wait() }()
	select {
	case err := <-died:
		return errors.New(whyDead(err, d.Command[0], out.Name(), info.Size()))
	case <-ctx.Done():
	}
	cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-died:
		return err
	case <-time.After(stopWait):
	}
	s.log.Warn("daemon does not stop, killing it", "daemon", d.Name)
	cmd.Process.Kill()
	return <-died
}

// note keeps the manifest true about which process a daemon is.
func (s *supervisor) note(d *daemon, p process, exit string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.PID != 0 && s.mu.down[siteOf(d.Name)] != nil {
		return errSiteDown
	}
	life := s.mu.lives[d.Name]
	if p.PID == 0 {
		life.restarts++
		life.lastExit, life.died = exit, time.Now().UTC()
	}
	life.since = time.Now()
	d.process = p
	return s.m.save(s.dir)
}

// ready notes that the lab has come up: its maker has nothing to clean up any more.
func (s *supervisor) ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m.Maker = process{}
	return s.m.save(s.dir)
}

// keepRate notes the link's rate, for when the lab is started again.
func (s *supervisor) keepRate(r config.Rate) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m.Link = r.String()
	return s.m.save(s.dir)
}

// forget takes the processes out of the manifest: all have ended.
func (s *supervisor) forget() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m.Supervisor = process{}
	for _, d := range s.m.Daemons {
		d.process = process{}
	}
	return s.m.save(s.dir)
}

func (s *supervisor) logPath(name string) string { return logPath(s.dir, name) }

func logPath(dir, name string) string { return filepath.Join(dir, "logs", name+".log") }

// rotate turns logs over until ctx ends.
func (s *supervisor) rotate(ctx context.Context) {
	look := time.NewTicker(logEvery)
	defer look.Stop()
	for {
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
		names := []string{"supervisor"}
		for _, d := range s.m.Daemons {
			names = append(names, d.Name)
		}
		for _, name := range names {
			if err := turnOver(s.logPath(name), logBytes, oldLogs); err != nil && !errors.Is(err, os.ErrNotExist) {
				s.log.Warn("log not turned over", "log", name, "err", err)
			}
		}
	}
}

// lastOf returns the last line of text that is not empty.
func lastOf(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	line := strings.TrimSpace(lines[len(lines)-1])
	return line[:min(len(line), 500)]
}

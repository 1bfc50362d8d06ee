package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/control/config"
)

// Status is how a lab stands.
type Status struct {
	Dir       string          `json:"dir"`
	Group     string          `json:"group"`
	Link      LinkStatus      `json:"link"`
	Processes []ProcessStatus `json:"processes"`
	Volumes   []Volume        `json:"volumes"`
	Ports     map[string]int  `json:"ports"`
	// Supervisor is its process; 0 when it does not run.
	Supervisor int `json:"supervisor"`
}

// LinkStatus is the link between the sites.
type LinkStatus struct {
	Rate string `json:"rate"` // as in 50Mbit, or none
	Up   bool   `json:"up"`
	// What went through since the lab was started, in bytes of the TCP streams.
	SourceToTarget int64 `json:"source_to_target_bytes"`
	TargetToSource int64 `json:"target_to_source_bytes"`
}

// ProcessStatus is one daemon.
type ProcessStatus struct {
	Name     string    `json:"name"`
	PID      int       `json:"pid"` // 0 while it is being started again
	Since    time.Time `json:"since"`
	Restarts int       `json:"restarts"`
	// How it ended the last time it died, and what it said of it, as in
	// "exit status 2: panic: ..." or "signal: killed".
	LastExit  string     `json:"last_exit,omitempty"`
	LastDeath *time.Time `json:"last_death,omitempty"`
	Log       string     `json:"log"`
	SiteDown  bool       `json:"site_down,omitempty"` // its site was taken down, and it is not started again until that is up
}

// request is what the supervisor is asked: one JSON object a connection.
type request struct {
	Do   string      `json:"do"`             // status, link, site, ready, stop
	Rate config.Rate `json:"rate,omitempty"` // link: bits per second
	Set  string      `json:"set,omitempty"`  // link: rate, up, down; site: up, down
	Site string      `json:"site,omitempty"`
}

// reply is its answer.
type reply struct {
	Error  string  `json:"error,omitempty"`
	Status *Status `json:"status,omitempty"`
}

// Bounds of an exchange: the runtime folder belongs to the user alone, but a client
// may hang.
const (
	askWait    = 5 * time.Second
	maxAnswers = 16
)

// answer serves the socket until ctx ends; stop is called when a client asks for it,
// before it is answered.
func (s *supervisor) answer(ctx context.Context, l net.Listener, stop func()) {
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	room := make(chan struct{}, maxAnswers)
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.log.Warn("supervisor's socket", "err", err)
			return
		}
		room <- struct{}{}
		wg.Go(func() {
			defer func() { c.Close(); <-room }()
			c.SetDeadline(time.Now().Add(askWait))
			var req request
			if json.NewDecoder(c).Decode(&req) == nil {
				json.NewEncoder(c).Encode(s.do(req, stop))
			}
		})
	}
}

func (s *supervisor) do(req request, stop func()) reply {
	switch req.Do {
	case "status":
	case "stop":
		stop()
	case "ready":
		if err := s.ready(); err != nil {
			return reply{Error: err.Error()}
		}
	case "link":
		if s.alone {
			return reply{Error: "the sites of this lab dial each other: it has no link, which one made without --link direct has"}
		}
		switch req.Set {
		case "rate":
			err := s.relay.SetRate(int64(req.Rate))
			if err == nil {
				err = s.keepRate(req.Rate)
			}
			if err != nil {
				return reply{Error: err.Error()}
			}
		case "up":
			s.relay.Up()
		case "down":
			s.relay.Down()
		default:
			return reply{Error: "link: unknown setting " + req.Set}
		}
		s.log.Info("link changed", "set", req.Set, "up", !s.relay.IsDown(), "rate", config.Rate(s.relay.Rate()))
	case "site":
		if err := s.setSite(req.Site, req.Set == "up"); err != nil {
			return reply{Error: err.Error()}
		}
		s.log.Info("site changed", "site", req.Site, "set", req.Set)
	default:
		return reply{Error: "unknown request " + req.Do}
	}
	return reply{Status: s.status()}
}

func (s *supervisor) status() *Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.m.status(s.dir)
	st.Link = LinkStatus{Rate: config.Rate(s.relay.Rate()).String(), Up: !s.relay.IsDown()}
	if s.alone {
		st.Link.Rate = directLink
	}
	st.Link.SourceToTarget, st.Link.TargetToSource = s.relay.Carried()
	for i := range st.Processes {
		d := &st.Processes[i]
		if life := s.mu.lives[d.Name]; life != nil {
			d.Since, d.Restarts, d.LastExit = life.since.UTC(), life.restarts, life.lastExit
			d.SiteDown = s.mu.down[siteOf(d.Name)] != nil
			if !life.died.IsZero() {
				d.LastDeath = &life.died
			}
		}
	}
	return st
}

// status is what the manifest alone can say.
func (m *manifest) status(dir string) *Status {
	st := &Status{Dir: dir, Group: m.Group, Volumes: m.Volumes, Ports: m.Ports, Link: LinkStatus{Rate: m.Link}}
	if m.Supervisor.alive(m.Boot) {
		st.Supervisor = m.Supervisor.PID
	}
	for _, d := range m.Daemons {
		ds := ProcessStatus{Name: d.Name, Log: logPath(dir, d.Name)}
		if d.alive(m.Boot) {
			ds.PID = d.PID
		}
		st.Processes = append(st.Processes, ds)
	}
	return st
}

// ask puts one request to the supervisor of m.
func (m *manifest) ask(ctx context.Context, req request) (*Status, error) {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", m.runPath(supervisorSocket))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Now()) })()
	if err := json.NewEncoder(c).Encode(req); err != nil {
		return nil, err
	}
	var got reply
	if err := json.NewDecoder(c).Decode(&got); err != nil {
		return nil, fmt.Errorf("the lab's supervisor: %w", err)
	}
	if got.Error != "" {
		return nil, errors.New(got.Error)
	}
	return got.Status, nil
}

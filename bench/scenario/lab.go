package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/control/config"
)

// Lab is a lab that was brought up, by this process or another.
type Lab struct {
	dir string
	m   *manifest
}

// Open finds the lab in dir, whether it runs or not.
func Open(dir string) (*Lab, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	m, err := loadManifest(dir)
	if err != nil {
		return nil, err
	}
	return &Lab{dir: dir, m: m}, nil
}

// Dir is the lab's folder, as an absolute path.
func (lab *Lab) Dir() string { return lab.dir }

// Context is the file for holdfast --context.
func (lab *Lab) Context() string { return filepath.Join(lab.dir, contextName) }

// Jobs is the folder of recovery's jobs.
func (lab *Lab) Jobs() string { return filepath.Join(lab.dir, jobsName) }

// Group is the name of the lab's group.
func (lab *Lab) Group() string { return lab.m.Group }

// Volumes are the protected disks.
func (lab *Lab) Volumes() []Volume { return lab.m.Volumes }

// SourceSocket is where the source vra answers control/api.
func (lab *Lab) SourceSocket() string { return lab.m.runPath(sourceSocket) }

// TargetSocket is where the target vra answers control/api.
func (lab *Lab) TargetSocket() string { return lab.m.runPath(targetSocket) }

func (lab *Lab) logPath(name string) string { return logPath(lab.dir, name) }

// Status says how the lab stands. Without its supervisor it says what the manifest
// still can: Supervisor is 0 then, and the link is down.
func (lab *Lab) Status(ctx context.Context) (*Status, error) {
	st, err := lab.m.ask(ctx, request{Do: "status"})
	if err == nil {
		return st, nil
	}
	m, loadErr := loadManifest(lab.dir)
	if loadErr != nil {
		return nil, loadErr
	}
	if m.Supervisor.alive(m.Boot) {
		return nil, fmt.Errorf("the lab's supervisor, process %d, does not answer: %w", m.Supervisor.PID, err)
	}
	return m.status(lab.dir), nil
}

// SetRate limits the link; it does not bring it up or down.
func (lab *Lab) SetRate(ctx context.Context, r config.Rate) (*Status, error) {
	return lab.setLink(ctx, request{Do: "link", Set: "rate", Rate: r})
}

// SetLinkUp cuts the link, connections and all, or makes it take connections again.
func (lab *Lab) SetLinkUp(ctx context.Context, up bool) (*Status, error) {
	if up {
		return lab.setLink(ctx, request{Do: "link", Set: "up"})
	}
	return lab.setLink(ctx, request{Do: "link", Set: "down"})
}

// SetSite takes a site down whole, as a power cut does (its daemons are killed, and stay away), or has it up again. The runtime folder
// stays, and with it what a host's memory holds.
func (lab *Lab) SetSite(ctx context.Context, site string, up bool) (*Status, error) {
	set := "down"
	if up {
		set = "up"
	}
	return lab.setLink(ctx, request{Do: "site", Site: site, Set: set})
}

func (lab *Lab) setLink(ctx context.Context, r request) (*Status, error) {
	st, err := lab.m.ask(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("the lab in %s does not run (%w): start it with: %s", lab.dir, err, Command("lab", "start", "--dir", lab.dir))
	}
	return st, nil
}

// downWait is how long a supervisor may take to end its daemons, one after the other.
const downWait = 3*(stopWait+killWait) + 5*time.Second

// Down ends the lab: by its supervisor, and where that is gone or hangs, process by
// process. It removes the runtime folder. With purge it also deletes what the
// manifest names; what others put beside it stays, and is returned.
func (lab *Lab) Down(ctx context.Context, purge bool) (stays []string, err error) {
	if maker := lab.m.Maker; maker.PID != os.Getpid() && maker.alive(lab.m.Boot) {
		return nil, fmt.Errorf("the lab is still being brought up by process %d: end that with Ctrl-C, it cleans up", maker.PID)
	}
	if err := lab.stop(ctx); err != nil {
		return nil, err
	}
	m, err := loadManifest(lab.dir)
	if err != nil {
		return nil, err
	}
	if err := m.removeRunDir(); err != nil {
		return nil, err
	}
	if !purge {
		return nil, nil
	}
	return m.purge(lab.dir)
}

// stop ends all processes of the lab.
func (lab *Lab) stop(ctx context.Context) error {
	if lab.m.Supervisor.alive(lab.m.Boot) {
		if _, err := lab.m.ask(ctx, request{Do: "stop"}); err == nil {
			lab.m.Supervisor.gone(ctx, lab.m.Boot, downWait)
		}
	}
	// Its manifest is the newest word on who the daemons are. The supervisor goes
	// first, or it would start them again.
	m, err := loadManifest(lab.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range append([]process{lab.m.Supervisor}, m.processes()...) {
		errs = append(errs, p.end(ctx, m.Boot, downWait))
	}
	// What it started between the reading and its end.
	if m, err = loadManifest(lab.dir); err != nil {
		return err
	}
	for _, p := range m.processes() {
		errs = append(errs, p.end(ctx, m.Boot, stopWait))
	}
	return errors.Join(errs...)
}

// advise makes one line of a daemon's last words and adds what the user can do,
// where that is known.
func advise(said string) string {
	said = strings.ReplaceAll(strings.TrimSpace(said), "\n", "; ")
	switch {
	case strings.Contains(said, "address already in use"):
		return said + ": another process took the port: run the command again, it picks others"
	case strings.Contains(said, "no space left on device"):
		return said + ": make room, or name a folder on another file system"
	}
	return said
}

// Beside is the folder of the running program, where its companions are.
func Beside() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		return "", err
	}
	return filepath.Dir(self), nil
}

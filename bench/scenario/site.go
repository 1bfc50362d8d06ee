package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// The lab's sites.
const (
	SourceSite = sourceSite
	TargetSite = targetSite
)

var errSiteDown = errors.New("its site is down")

// siteOf is where a daemon runs.
func siteOf(daemon string) string {
	if strings.HasSuffix(daemon, "-target") {
		return targetSite
	}
	return sourceSite
}

// setSite kills all daemons of a site and keeps them away, or lets them be started again. It returns once they are gone.
func (s *supervisor) setSite(site string, up bool) error {
	if site != sourceSite && site != targetSite {
		return fmt.Errorf("the lab has no site %q: want %s or %s", site, sourceSite, targetSite)
	}
	s.mu.Lock()
	was := s.mu.down[site]
	switch {
	case up && was != nil:
		close(was)
		delete(s.mu.down, site)
	case !up && was == nil:
		s.mu.down[site] = make(chan struct{})
	}
	var killed []process
	if !up && !invariant.Planted("scenario/site-lives") {
		for _, d := range s.m.Daemons {
			if siteOf(d.Name) == site && d.alive(s.m.Boot) {
				killed = append(killed, d.process)
			}
		}
	}
	s.mu.Unlock()
	// All at once: none sees the others go.
	for _, p := range killed {
		if err := p.kill(s.m.Boot); err != nil {
			return fmt.Errorf("process %d: %w", p.PID, err)
		}
	}
	for _, p := range killed {
		if !p.gone(context.Background(), s.m.Boot, killWait) {
			return fmt.Errorf("process %d was killed and is there still", p.PID)
		}
	}
	return nil
}

// kill ends a process at once, and no other one that has got its number.
func (p process) kill(boot string) error {
	proc, err := os.FindProcess(p.PID)
	if err != nil {
		return err
	}
	defer proc.Release()
	if !p.alive(boot) {
		return nil
	}
	if err := proc.Kill(); !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// awaitSite waits while a site is down; it says whether ctx goes on.
func (s *supervisor) awaitSite(ctx context.Context, site string) bool {
	for { // it may be down again by the time that it is seen to be up
		s.mu.Lock()
		down := s.mu.down[site]
		s.mu.Unlock()
		if down == nil {
			return true
		}
		select {
		case <-down:
		case <-ctx.Done():
			return false
		}
	}
}

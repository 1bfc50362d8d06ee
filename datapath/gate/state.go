package gate

import (
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/wire/shape"
)

// State is how the gate stands.
type State struct {
	Policy shape.Policy
	Own    bool
	Cap    shape.Rate
	Window string
	Since  time.Time
	Spent  int64
	Groups []GroupHeld // by name
}

// GroupHeld says for how long only the cap held a group: a part of the last second, and all in all.
type GroupHeld struct {
	Name  string
	Held  float64
	Total time.Duration
}

func (g *Gate) State(now time.Time) State {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := State{Policy: g.mu.shaper.Policy(), Own: g.mu.own, Since: g.mu.since, Spent: g.spent.Load()}
	var w *shape.Window
	if s.Cap, w = g.mu.shaper.Cap(now); w != nil {
		s.Window = w.String()
	}
	for name, t := range g.mu.turns {
		s.Groups = append(s.Groups, GroupHeld{name, t.held, g.mu.shaper.Held(now, name)})
	}
	slices.SortFunc(s.Groups, func(a, b GroupHeld) int { return strings.Compare(a.Name, b.Name) })
	return s
}

// Configure takes in that the configuration says something else: it holds at once, unless a user has set a policy. ErrPolicy is
// in the error when it cannot hold; then nothing has changed.
func (g *Gate) Configure(p shape.Policy) error {
	g.changing.Lock()
	defer g.changing.Unlock()
	if err := p.Validate(); err != nil {
		return err
	}
	if _, err := g.zone(p.Zone); err != nil {
		return err
	}
	g.file.Configure(p)
	g.mu.Lock()
	own := g.mu.own
	g.mu.Unlock()
	if own {
		return nil
	}
	return g.set(p, false)
}

// Change puts into force what f makes of the present policy, or, after defaults, of the
// configuration's; with nothing to change that itself.
func (g *Gate) Change(defaults, nothing bool, f func(*shape.Policy) error) error {
	g.changing.Lock()
	defer g.changing.Unlock()
	if nothing {
		if err := g.file.Clear(); err != nil {
			return err
		}
		return g.set(g.file.Configured(), false)
	}
	p := g.Policy()
	if defaults {
		p = g.file.Configured().Clone()
	}
	if err := f(&p); err != nil {
		return err
	}
	return g.set(p, true)
}

package datapath

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/wire/shape"
)

// shapingHandler implements api.ShapingHandler.
type shapingHandler struct{ *handler }

// Get tells what may leave this VRA, and who waits for it.
func (h shapingHandler) Get(context.Context, *holdfastv1.ShapingServiceGetRequest) (*holdfastv1.ShapingServiceGetResponse, error) {
	if h.source == nil {
		return nil, noSource
	}
	return &holdfastv1.ShapingServiceGetResponse{Shaping: shapingMessage(h.source.gate)}, nil
}

var noSource = api.Errorf(api.Precondition, "ask the source", "this VRA is the target: what is sent is shaped at the source")

// Set changes what is asked, and leaves the rest.
func (h shapingHandler) Set(_ context.Context, r *holdfastv1.ShapingServiceSetRequest) (*holdfastv1.ShapingServiceSetResponse, error) {
	if h.source == nil {
		return nil, noSource
	}
	g := h.source.gate
	nothing := r.Cap == nil && r.Windows == nil && r.Zone == nil && len(r.Priorities) == 0
	if nothing && !r.Defaults {
		return nil, api.Errorf(api.InvalidArgument, "say what", "there is nothing to change")
	}
	err := g.change(r.Defaults, nothing, func(p *shape.Policy) error { return h.changeShaping(p, r) })
	if errors.Is(err, shape.ErrPolicy) {
		return nil, api.Errorf(api.InvalidArgument, "choose another", "%s", strings.ReplaceAll(err.Error(), ": "+shape.ErrPolicy.Error(), ""))
	}
	if err != nil {
		return nil, err
	}
	return &holdfastv1.ShapingServiceSetResponse{Shaping: shapingMessage(g)}, nil
}

// changeShaping makes p what is asked.
func (h shapingHandler) changeShaping(p *shape.Policy, r *holdfastv1.ShapingServiceSetRequest) error {
	if r.Cap != nil {
		p.Cap = shape.Rate(*r.Cap)
	}
	if r.Windows != nil {
		p.Windows = nil
		for _, text := range r.Windows.Windows {
			w, err := shape.ParseWindow(text)
			if err != nil {
				return err
			}
			p.Windows = append(p.Windows, w)
		}
	}
	if r.Zone != nil {
		p.Zone = *r.Zone
	}
	for _, gp := range r.Priorities {
		if !slices.ContainsFunc(h.source.flows, func(f *flow) bool { return f.cfg.Name == gp.Group }) {
			return noGroup(gp.Group)
		}
		pr, err := shape.ParsePriority(gp.Priority)
		if err != nil {
			return err
		}
		if p.Priorities == nil {
			p.Priorities = make(map[string]shape.Priority)
		}
		p.Priorities[gp.Group] = pr
	}
	return nil
}

func shapingMessage(g *gate) *holdfastv1.Shaping {
	s := g.state(time.Now())
	m := &holdfastv1.Shaping{
		Policy: &holdfastv1.ShapingPolicy{Cap: int64(s.policy.Cap), Zone: s.policy.Zone},
		Own:    s.own, CapNow: int64(s.cap), Window: s.window, Since: api.Timestamp(s.since), WireBytesTotal: s.spent,
	}
	for _, w := range s.policy.Windows {
		m.Policy.Windows = append(m.Policy.Windows, w.String())
	}
	for _, t := range s.groups {
		m.Groups = append(m.Groups, &holdfastv1.ShapedGroup{
			Name: t.name, Priority: s.policy.Of(t.name).String(), Held: t.held, HeldSecondsTotal: t.total.Seconds(),
		})
	}
	return m
}

// gateState is how the gate stands.
type gateState struct {
	policy shape.Policy
	own    bool
	cap    shape.Rate
	window string
	since  time.Time
	spent  int64
	groups []groupHeld // by name
}

// groupHeld says for how long only the cap held a group: a part of the last second, and all in all.
type groupHeld struct {
	name  string
	held  float64
	total time.Duration
}

func (g *gate) state(now time.Time) gateState {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := gateState{policy: g.mu.shaper.Policy(), own: g.mu.own, since: g.mu.since, spent: g.spent.Load()}
	var w *shape.Window
	if s.cap, w = g.mu.shaper.Cap(now); w != nil {
		s.window = w.String()
	}
	for name, t := range g.mu.turns {
		s.groups = append(s.groups, groupHeld{name, t.held, g.mu.shaper.Held(now, name)})
	}
	slices.SortFunc(s.groups, func(a, b groupHeld) int { return strings.Compare(a.name, b.name) })
	return s
}

// change puts into force what f makes of the present policy, or, after defaults, of the
// configuration's; with nothing to change that itself.
func (g *gate) change(defaults, nothing bool, f func(*shape.Policy) error) error {
	g.changing.Lock()
	defer g.changing.Unlock()
	if nothing {
		return g.reset()
	}
	p := g.policy()
	if defaults {
		p = g.file.configured.Clone()
	}
	if err := f(&p); err != nil {
		return err
	}
	return g.set(p, true)
}

package datapath

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath/gate"
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
	err := g.Change(r.Defaults, nothing, func(p *shape.Policy) error { return h.changeShaping(p, r) })
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

func shapingMessage(g *gate.Gate) *holdfastv1.Shaping {
	s := g.State(time.Now())
	m := &holdfastv1.Shaping{
		Policy: &holdfastv1.ShapingPolicy{Cap: int64(s.Policy.Cap), Zone: s.Policy.Zone},
		Own:    s.Own, CapNow: int64(s.Cap), Window: s.Window, Since: api.Timestamp(s.Since), WireBytesTotal: s.Spent,
	}
	for _, w := range s.Policy.Windows {
		m.Policy.Windows = append(m.Policy.Windows, w.String())
	}
	for _, t := range s.Groups {
		m.Groups = append(m.Groups, &holdfastv1.ShapedGroup{
			Name: t.Name, Priority: s.Policy.Of(t.Name).String(), Held: t.Held, HeldSecondsTotal: t.Total.Seconds(),
		})
	}
	return m
}

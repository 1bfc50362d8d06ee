package datapath

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/journal"
)

// Identity is who a VRA says it is.
type Identity struct {
	Site, ID, Version, Commit string
}

// Handlers answer the local socket for a VRA that is a source, a target, or both;
// one of them may be nil.
func Handlers(who Identity, s *Source, t *Target) api.Handlers {
	h := &handler{who: who, source: s, target: t, began: time.Now()}
	registry := prometheus.NewRegistry()
	registry.MustRegister(Metrics(who, s, t))
	return api.Handlers{
		Status: h, Checkpoints: checkpoints{h}, Views: viewsHandler{h}, Groups: groupsHandler{h}, Stores: storesHandler{h}, Shaping: shapingHandler{h}, Links: linksHandler{h}, Recovery: recoveryHandler{h},
		Metrics: promhttp.HandlerFor(registry, promhttp.HandlerOpts{}),
	}
}

type handler struct {
	who    Identity
	source *Source
	target *Target
	began  time.Time
}

// Get implements api.StatusHandler.
func (h *handler) Get(ctx context.Context, r *holdfastv1.StatusServiceGetRequest) (*holdfastv1.StatusServiceGetResponse, error) {
	res := &holdfastv1.StatusServiceGetResponse{
		Site: h.who.Site, Id: h.who.ID, Version: h.who.Version, Commit: h.who.Commit, Started: api.Timestamp(h.began),
	}
	if h.source != nil {
		for _, f := range h.source.flows {
			if r.Group == "" || r.Group == f.cfg.Name {
				res.Groups = append(res.Groups, h.source.status(ctx, f))
			}
		}
	}
	if h.target != nil {
		for _, g := range h.target.groups() {
			if r.Group == "" || r.Group == g.Info().Name {
				res.Groups = append(res.Groups, h.target.status(g))
			}
		}
	}
	if r.Group != "" && len(res.Groups) == 0 {
		return nil, noGroup(r.Group)
	}
	res.Groups, res.NextPageToken = api.Page(res.Groups, r.PageSize, r.PageToken, func(g *holdfastv1.Group) string { return g.Role + " " + g.Name })
	return res, nil
}

// About implements api.StatusHandler.
func (h *handler) About(context.Context, *holdfastv1.StatusServiceAboutRequest) (*holdfastv1.StatusServiceAboutResponse, error) {
	return &holdfastv1.StatusServiceAboutResponse{
		Site: h.who.Site, Id: h.who.ID, Version: h.who.Version, Commit: h.who.Commit, Started: api.Timestamp(h.began),
		ApiMajor: api.Major, ApiMinor: api.Minor,
	}, nil
}

func noGroup(name string) error {
	if name == "" {
		return api.Errorf(api.InvalidArgument, "name one of those that status shows", "which group is not said, and there is not exactly one")
	}
	return api.Errorf(api.NotFound, "see the groups with status", "no group %q here", name)
}

func (h *handler) targetGroup(name string) (*journal.Group, error) {
	if h.target == nil {
		return nil, api.Errorf(api.Precondition, "ask the target", "this VRA is the source: checkpoints and views are at the target")
	}
	g := h.target.group(name)
	if g == nil {
		return nil, noGroup(name)
	}
	return g, nil
}

package datapath

import (
	"context"
	"strconv"
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
	registry.MustRegister(Metrics(s, t))
	return api.Handlers{
		Status: h, Checkpoints: checkpoints{h}, Views: viewsHandler{h},
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
		for _, g := range h.target.store.Groups() {
			if r.Group == "" || r.Group == g.Info().Name {
				res.Groups = append(res.Groups, h.target.status(g))
			}
		}
	}
	if r.Group != "" && len(res.Groups) == 0 {
		return nil, noGroup(r.Group)
	}
	return res, nil
}

func noGroup(name string) error {
	if name == "" {
		return api.Errorf(api.InvalidArgument, "name one of those that status shows", "which group is not said, and there is not exactly one")
	}
	return api.Errorf(api.NotFound, "see the groups with status", "no group %q here", name)
}

// checkpoints implements api.CheckpointsHandler.
type checkpoints struct{ *handler }

// The size of a page of checkpoints, when none or too large a one is asked for.
const (
	pageDefault = 1000
	pageMax     = 10000
)

// List tells the checkpoints of a target.
func (h checkpoints) List(_ context.Context, r *holdfastv1.CheckpointsServiceListRequest) (*holdfastv1.CheckpointsServiceListResponse, error) {
	g, err := h.targetGroup(r.Group)
	if err != nil {
		return nil, err
	}
	after := uint64(0)
	if r.PageToken != "" {
		if after, err = strconv.ParseUint(r.PageToken, 10, 64); err != nil {
			return nil, api.Errorf(api.InvalidArgument, "begin at the first page", "page token %q is not one of ours", r.PageToken)
		}
	}
	size := int(r.PageSize)
	switch {
	case size < 0:
		return nil, api.Errorf(api.InvalidArgument, "ask for 1 to "+strconv.Itoa(pageMax), "a page of %d", size)
	case size == 0:
		size = pageDefault
	}
	size = min(size, pageMax)
	cs, err := g.Checkpoints(after, size)
	if err != nil {
		return nil, err
	}
	res := &holdfastv1.CheckpointsServiceListResponse{}
	for _, c := range cs {
		res.Checkpoints = append(res.Checkpoints, checkpointMessage(c))
	}
	if len(cs) == size {
		res.NextPageToken = strconv.FormatUint(cs[len(cs)-1].Number, 10)
	}
	return res, nil
}

// Create cuts a checkpoint at a source and waits until it is listed.
func (h checkpoints) Create(ctx context.Context, r *holdfastv1.CheckpointsServiceCreateRequest) (*holdfastv1.CheckpointsServiceCreateResponse, error) {
	if h.source == nil {
		return nil, api.Errorf(api.Precondition, "ask the source", "this VRA is the target: checkpoints are made at the source")
	}
	f := h.source.flow(r.Group)
	if f == nil {
		return nil, noGroup(r.Group)
	}
	if err := api.CheckTag(r.Tag); err != nil {
		return nil, api.Errorf(api.InvalidArgument, "choose another", "tag %v", err)
	}
	c, err := f.create(ctx, r.Tag)
	if err != nil {
		return nil, err
	}
	return &holdfastv1.CheckpointsServiceCreateResponse{Checkpoint: c}, nil
}

func checkpointMessage(c journal.Checkpoint) *holdfastv1.Checkpoint {
	return &holdfastv1.Checkpoint{
		Id: strconv.FormatUint(c.Number, 10), Time: api.Timestamp(time.Unix(0, c.Wall)), Tag: c.Tag,
		State: string(c.State), Reason: c.Reason,
	}
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

package datapath

import (
	"context"
	"errors"
	"strconv"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/journal/retain"
)

// groupsHandler implements api.GroupsHandler.
type groupsHandler struct{ *handler }

// minLimit is the least that a journal may be held to: below it hardly anything fits
// beside the segment that is being written.
const minLimit = 1 << 30

// GetRetention tells how groups are kept.
func (h groupsHandler) GetRetention(_ context.Context, r *holdfastv1.GroupsServiceGetRetentionRequest) (*holdfastv1.GroupsServiceGetRetentionResponse, error) {
	res := &holdfastv1.GroupsServiceGetRetentionResponse{}
	if r.Group != "" {
		g, err := h.targetGroup(r.Group)
		if err != nil {
			return nil, err
		}
		res.Retention = append(res.Retention, retentionMessage(g))
		return res, nil
	}
	if h.target == nil {
		return nil, api.Errorf(api.Precondition, "ask the target", "this VRA is the source: history is kept at the target")
	}
	for _, g := range h.target.groups() {
		res.Retention = append(res.Retention, retentionMessage(g))
	}
	res.Retention, res.NextPageToken = api.Page(res.Retention, r.PageSize, r.PageToken, func(m *holdfastv1.Retention) string { return m.Group })
	return res, nil
}

// SetRetention changes what is asked, and leaves the rest.
func (h groupsHandler) SetRetention(_ context.Context, r *holdfastv1.GroupsServiceSetRetentionRequest) (*holdfastv1.GroupsServiceSetRetentionResponse, error) {
	g, err := h.targetGroup(r.Group)
	if err != nil {
		return nil, err
	}
	nothing := r.History == nil && r.Limit == nil && r.WarnPercent == nil && r.Minimum == nil && r.Thin == nil
	if nothing && !r.Defaults {
		return nil, api.Errorf(api.InvalidArgument, "say what", "there is nothing to change")
	}
	if nothing {
		err = g.ClearRetention()
	} else {
		p := g.Retention().Policy
		if r.Defaults {
			p = h.target.store.DefaultRetention()
		}
		if err := change(&p, r); err != nil {
			return nil, err
		}
		err = g.SetRetention(p)
	}
	if errors.Is(err, retain.ErrPolicy) {
		return nil, api.Errorf(api.InvalidArgument, "choose another", "%v", err)
	}
	if err != nil {
		return nil, err
	}
	return &holdfastv1.GroupsServiceSetRetentionResponse{Retention: retentionMessage(g)}, nil
}

// change makes p what is asked.
func change(p *retain.Policy, r *holdfastv1.GroupsServiceSetRetentionRequest) (err error) {
	if r.History != nil {
		p.History = r.History.AsDuration()
	}
	if r.Limit != nil {
		p.Limit = *r.Limit
	}
	if r.WarnPercent != nil {
		p.WarnPercent = int(*r.WarnPercent)
	}
	if r.Minimum != nil {
		p.Minimum = r.Minimum.AsDuration()
	}
	if r.Thin != nil {
		if p.Tiers, err = retain.ParseTiers(*r.Thin); err != nil {
			return api.Errorf(api.InvalidArgument, "write them as in \"all for 1h, minute for 1d, hour for 30d\"", "%v", err)
		}
	}
	if p.Limit != 0 && p.Limit < minLimit {
		return api.Errorf(api.InvalidArgument, "give at least 1 GiB, or 0 for none but the disk's", "a limit of %s is too small", retain.FormatSize(p.Limit))
	}
	if err := p.Validate(); err != nil {
		return api.Errorf(api.InvalidArgument, "choose another", "%v", err)
	}
	return nil
}

func retentionMessage(g *journal.Group) *holdfastv1.Retention {
	r := g.Retention()
	m := &holdfastv1.Retention{
		Group: g.Info().Name,
		Policy: &holdfastv1.RetentionPolicy{History: api.Span(r.Policy.History), Limit: r.Policy.Limit, WarnPercent: int32(r.Policy.WarnPercent),
			Minimum: api.Span(r.Policy.Minimum), Thin: retain.FormatTiers(r.Policy.Tiers)},
		Own: r.Own, Held: api.Span(r.Held),
		LogBytes: r.Usage.Log, IndexBytes: r.Usage.Index, ScratchBytes: r.Usage.Scratch, ReplicaBytes: r.Usage.Replica,
		Level: r.Level.String(), Reason: r.Reason, Since: api.Timestamp(r.Since), PromotedBytes: r.Promoted,
	}
	if r.Oldest != 0 {
		m.Oldest = strconv.FormatUint(r.Oldest, 10)
	}
	if m.Reason == "" && r.Err != nil {
		m.Reason = r.Err.Error()
	}
	return m
}

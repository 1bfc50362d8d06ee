package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// retentionOf is the site's service of groups.
type retentionOf struct{ *site }

func (s retentionOf) GetRetention(context.Context, *holdfastv1.GroupsServiceGetRetentionRequest) (*holdfastv1.GroupsServiceGetRetentionResponse, error) {
	res := &holdfastv1.GroupsServiceGetRetentionResponse{}
	for _, g := range s.groups {
		res.Retention = append(res.Retention, &holdfastv1.Retention{
			Group:  g.Name,
			Policy: &holdfastv1.RetentionPolicy{History: api.Span(7 * 24 * time.Hour), Limit: 200 << 30, WarnPercent: 75, Minimum: api.Span(time.Hour), Thin: "none"},
			Own:    true, Held: api.Span(90 * time.Hour), Oldest: "12", LogBytes: 190 << 30, IndexBytes: 1 << 30, ScratchBytes: 1 << 20, ReplicaBytes: 500 << 30,
			Level: "shortened", Reason: "191.0 GiB of 200.0 GiB are taken; history is being shortened", Since: api.Timestamp(moment), PromotedBytes: 5 << 30,
		})
	}
	return res, nil
}

func (s retentionOf) SetRetention(ctx context.Context, r *holdfastv1.GroupsServiceSetRetentionRequest) (*holdfastv1.GroupsServiceSetRetentionResponse, error) {
	s.retention = r
	res, err := s.GetRetention(ctx, nil)
	return &holdfastv1.GroupsServiceSetRetentionResponse{Retention: res.Retention[0]}, err
}

// What a user says of retention reaches the target, and nothing else does.
func TestRetentionSet(t *testing.T) {
	source, target := twoSites()
	both := contextFile(t, source, target)
	code, _, errs := holdfast(t, both, "vpg", "retention", "set", "lab", "--history", "7d", "--limit", "200GiB", "--thin", "none")
	r := target.retention
	if code != 0 || r.GetGroup() != "lab" || r.GetHistory().AsDuration() != 7*24*time.Hour || r.GetLimit() != 200<<30 || r.Thin == nil ||
		r.Minimum != nil || r.WarnPercent != nil || r.GetDefaults() || r.GetIdempotencyKey() == "" {
		t.Errorf("exit %d, %s: asked for %v", code, errs, r)
	}
	if code, _, _ = holdfast(t, both, "group", "retention", "set", "lab", "--limit", "none"); code != 0 || target.retention.Limit == nil || *target.retention.Limit != 0 {
		t.Errorf("no limit: exit %d, %v", code, target.retention)
	}
	target.retention = nil
	for _, args := range []string{"lab", "lab --history x", "lab --history 7", "lab --limit 0GiB", "lab --limit much", "lab --minimum 1.5h", "--defaults", "a b --defaults"} {
		if code, _, _ := holdfast(t, both, append([]string{"group", "retention", "set"}, strings.Fields(args)...)...); code != 2 || target.retention != nil {
			t.Errorf("%q: exit %d, asked for %v", args, code, target.retention)
		}
	}
}

package main

import (
	"context"
	"slices"
	"testing"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// shapingOf is the site's service of shaping.
type shapingOf struct{ *site }

func (s shapingOf) Get(context.Context, *holdfastv1.ShapingServiceGetRequest) (*holdfastv1.ShapingServiceGetResponse, error) {
	return &holdfastv1.ShapingServiceGetResponse{Shaping: &holdfastv1.Shaping{
		Policy: &holdfastv1.ShapingPolicy{Cap: 20e6, Windows: []string{"mon-fri 08:00-18:00 5Mbit", "sat,sun none"}, Zone: "Europe/Zurich"},
		Own:    true, CapNow: 5e6, Window: "mon-fri 08:00-18:00 5Mbit", Since: api.Timestamp(moment), WireBytesTotal: 123456789,
		Groups: []*holdfastv1.ShapedGroup{
			{Name: "lab", Priority: "high", Held: 0.97, HeldSecondsTotal: 754},
			{Name: "archive", Priority: "low"},
		},
	}}, nil
}

func (s shapingOf) Set(ctx context.Context, r *holdfastv1.ShapingServiceSetRequest) (*holdfastv1.ShapingServiceSetResponse, error) {
	s.shaped = r
	res, err := s.Get(ctx, nil)
	return &holdfastv1.ShapingServiceSetResponse{Shaping: res.Shaping}, err
}

// What a user says of shaping reaches the source, and nothing else does.
func TestShapingSet(t *testing.T) {
	source, target := twoSites()
	both := contextFile(t, source, target)
	code, _, errs := holdfast(t, both, "shaping", "set", "--cap", "20Mbps", "--window", "mon-fri 08:00-18:00 5Mbps", "--window", "daily none", "--priority", "lab=high")
	r := source.shaped
	if code != 0 || r.GetCap() != 20e6 || !slices.Equal(r.GetWindows().GetWindows(), []string{"mon-fri 08:00-18:00 5Mbit", "daily none"}) ||
		len(r.Priorities) != 1 || r.Priorities[0].Group != "lab" || r.Priorities[0].Priority != "high" || r.Zone != nil || r.Defaults || r.IdempotencyKey == "" {
		t.Errorf("exit %d, %s: asked for %v", code, errs, r)
	}
	if code, _, _ = holdfast(t, both, "shaping", "set", "--cap", "none", "--window", "none", "--zone", ""); code != 0 ||
		source.shaped.Cap == nil || *source.shaped.Cap != 0 || source.shaped.Windows == nil || len(source.shaped.Windows.Windows) > 0 || source.shaped.Zone == nil {
		t.Errorf("no cap: exit %d, %v", code, source.shaped)
	}
	source.shaped = nil
	for _, args := range [][]string{nil, {"--cap", "5"}, {"--cap", "0Mbit"}, {"--cap", "5MBps"}, {"--window", "monday 5Mbit"}, {"--window", "none", "--window", "daily none"},
		{"--priority", "lab"}, {"--priority", "lab=urgent"}, {"--priority", "=high"}, {"lab", "--cap", "5Mbit"}} {
		if code, _, errs := holdfast(t, both, append([]string{"shaping", "set"}, args...)...); code != 2 || source.shaped != nil {
			t.Errorf("%q: exit %d, %s, asked for %v", args, code, errs, source.shaped)
		}
	}
}

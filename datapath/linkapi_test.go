package datapath

import (
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// TestLinkTestBesideReplication: the link is measured over the trust that replication
// has, and the groups stay protected.
func TestLinkTestBesideReplication(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.size = 1 << 20 })
	w.start()
	w.awaitState(api.StateProtected)
	source, target := Handlers(Identity{Site: "west"}, w.s, nil), Handlers(Identity{Site: "east"}, nil, w.tg)
	var stages []string
	var report *holdfastv1.LinkReport
	keep := func(m *holdfastv1.LinksServiceTestResponse) error {
		stages = append(stages, m.Stage)
		if m.Report != nil {
			report = m.Report
		}
		return nil
	}
	r := &holdfastv1.LinksServiceTestRequest{Group: "shop", Duration: api.Span(30 * time.Second), Bytes: 1 << 20}
	if err := source.Links.Test(t.Context(), r, keep); err != nil {
		t.Fatal(err)
	}
	if report == nil || report.Up.GetBytes() < 1<<20 || report.Down.GetBytes() < 1<<20 || report.RoundTrip.GetCount() == 0 || len(report.Findings) < 3 || report.Control == "" {
		t.Errorf("stages %q, report %v", stages, report)
	}
	if w.status().GetState() != api.StateProtected {
		w.awaitState(api.StateProtected)
	}
	for name, c := range map[string]struct {
		ask  api.Handlers
		r    *holdfastv1.LinksServiceTestRequest
		want api.Code
	}{
		"the target":      {target, r, api.Precondition},
		"no group":        {source, &holdfastv1.LinksServiceTestRequest{Group: "x"}, api.NotFound},
		"without an end":  {source, &holdfastv1.LinksServiceTestRequest{Duration: api.Span(time.Hour)}, api.InvalidArgument},
		"without a bound": {source, &holdfastv1.LinksServiceTestRequest{Bytes: 1 << 40}, api.InvalidArgument},
	} {
		err := c.ask.Links.Test(t.Context(), c.r, keep)
		if f := api.AsFailure(err); f == nil || f.Code != c.want || f.Next == "" {
			t.Errorf("%s: %v, want %s and what to do", name, err, c.want)
		}
	}
	policy := w.s.gate.Policy()
	policy.Cap = 10_000_000
	if err := w.s.gate.Set(policy, false); err != nil {
		t.Fatal(err)
	}
	if f := api.AsFailure(source.Links.Test(t.Context(), &holdfastv1.LinksServiceTestRequest{Cap: 20_000_000}, keep)); f == nil || f.Code != api.Precondition || f.Next == "" {
		t.Errorf("a test above the site's cap: %v", f)
	}
	w.s.peers[0].testing.Store(true)
	if f := api.AsFailure(source.Links.Test(t.Context(), r, keep)); f == nil || f.Code != api.Unavailable {
		t.Errorf("two tests of one link: %v", f)
	}
}

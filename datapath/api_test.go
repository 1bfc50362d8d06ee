package datapath

import (
	"context"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
	"github.com/holdfast-dr/holdfast/journal/retain"
)

// TestAPI asks what a user asks, of the source and of the target.
func TestAPI(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.size = 1 << 20 })
	w.start()
	ctx := t.Context()
	s, tg := Handlers(Identity{Site: "west"}, w.s, nil), Handlers(Identity{Site: "east"}, nil, w.tg)
	code := func(want api.Code, err error) {
		t.Helper()
		if f := api.AsFailure(err); f == nil || f.Code != want || f.Next == "" {
			t.Errorf("%v, want %s and what to do", err, want)
		}
	}
	w.awaitState(api.StateProtected)
	checkShapingAPI(t, s, tg, code)
	first := w.checkpoint("first")
	for i := range 4 {
		w.checkpoint(fmt.Sprint("t", i))
	}

	var all []*holdfastv1.Checkpoint
	for token := ""; ; {
		res, err := tg.Checkpoints.List(ctx, &holdfastv1.CheckpointsServiceListRequest{PageSize: 2, PageToken: token, Group: "shop"})
		if err != nil || len(res.Checkpoints) > 2 {
			t.Fatal(res, err)
		}
		all = append(all, res.Checkpoints...)
		if token = res.NextPageToken; token == "" {
			break
		}
	}
	tags := ""
	for i, c := range all {
		tags += c.Tag
		if c.State == api.CheckpointBad || time.Since(api.Time(c.Time)) > time.Hour || i > 0 && number(t, c.Id) <= number(t, all[i-1].Id) {
			t.Errorf("checkpoint %v", c)
		}
	}
	if len(all) < 6 || tags != "firstt0t1t2t3" {
		t.Errorf("%d checkpoints with tags %q", len(all), tags)
	}

	id := all[1].Id
	tagged, err := tg.Checkpoints.Tag(ctx, &holdfastv1.CheckpointsServiceTagRequest{Id: id, Tag: "by hand"})
	if err != nil || tagged.Checkpoint.Tag != "by hand" {
		t.Errorf("%v, %v", tagged, err)
	}
	_, err = tg.Checkpoints.Pin(ctx, &holdfastv1.CheckpointsServicePinRequest{Id: id, Label: "audit"})
	if err != nil {
		t.Error(err)
	}
	got, err := tg.Checkpoints.Get(ctx, &holdfastv1.CheckpointsServiceGetRequest{Id: id})
	if c := got.GetCheckpoint(); err != nil || c.GetTag() != "by hand" || !c.GetPinned() || c.GetLabel() != "audit" {
		t.Errorf("%v, %v", got, err)
	}
	for _, r := range []*holdfastv1.CheckpointsServiceListRequest{{Tag: "by hand"}, {Pinned: true}, {Tagged: true, NewestFirst: true, From: all[1].Time, To: all[2].Time}} {
		res, err := tg.Checkpoints.List(ctx, r)
		if err != nil || len(res.Checkpoints) != 1 || res.Checkpoints[0].Id != id || res.Counts.Pinned != 1 || res.Counts.Good+res.Counts.Verifying < int64(len(all)) {
			t.Errorf("%v: %v, %v", r, res, err)
		}
	}
	if _, err := tg.Checkpoints.Unpin(ctx, &holdfastv1.CheckpointsServiceUnpinRequest{Id: id}); err != nil {
		t.Error(err)
	}
	_, err = tg.Checkpoints.Pin(ctx, &holdfastv1.CheckpointsServicePinRequest{Id: "999999"})
	code(api.NotFound, err)
	_, err = tg.Checkpoints.Pin(ctx, &holdfastv1.CheckpointsServicePinRequest{Id: id, Label: "a\nb"})
	code(api.InvalidArgument, err)
	_, err = tg.Checkpoints.Tag(ctx, &holdfastv1.CheckpointsServiceTagRequest{Id: id, Tag: strings.Repeat("x", 257)})
	code(api.InvalidArgument, err)
	_, err = tg.Checkpoints.Tag(ctx, &holdfastv1.CheckpointsServiceTagRequest{Id: id, Tag: api.Latest})
	code(api.InvalidArgument, err)
	_, err = s.Checkpoints.Create(ctx, &holdfastv1.CheckpointsServiceCreateRequest{Tag: "-2026"})
	code(api.InvalidArgument, err)
	_, err = tg.Checkpoints.List(ctx, &holdfastv1.CheckpointsServiceListRequest{State: "fine"})
	code(api.InvalidArgument, err)
	_, err = s.Checkpoints.Unpin(ctx, &holdfastv1.CheckpointsServiceUnpinRequest{Id: id})
	code(api.Precondition, err)
	_, err = tg.Checkpoints.List(ctx, &holdfastv1.CheckpointsServiceListRequest{PageToken: "x"})
	code(api.InvalidArgument, err)
	_, err = tg.Checkpoints.List(ctx, &holdfastv1.CheckpointsServiceListRequest{PageSize: -1})
	code(api.InvalidArgument, err)
	_, err = tg.Checkpoints.List(ctx, &holdfastv1.CheckpointsServiceListRequest{Group: "none"})
	code(api.NotFound, err)
	_, err = s.Checkpoints.List(ctx, &holdfastv1.CheckpointsServiceListRequest{})
	code(api.Precondition, err)
	_, err = tg.Checkpoints.Create(ctx, &holdfastv1.CheckpointsServiceCreateRequest{})
	code(api.Precondition, err)
	for _, tag := range []string{"", strings.Repeat("x", 257), "a\x1b[31mb", "a\nb", "\xff", " a"} {
		_, err = s.Checkpoints.Create(ctx, &holdfastv1.CheckpointsServiceCreateRequest{Tag: tag})
		code(api.InvalidArgument, err)
	}
	_, err = s.Status.Get(ctx, &holdfastv1.StatusServiceGetRequest{Group: "none"})
	code(api.NotFound, err)
	_, err = tg.Views.Open(ctx, &holdfastv1.ViewsServiceOpenRequest{Checkpoint: "999999"})
	code(api.NotFound, err)
	_, err = tg.Views.Open(ctx, &holdfastv1.ViewsServiceOpenRequest{Checkpoint: "x"})
	code(api.NotFound, err)
	_, err = tg.Views.Close(ctx, &holdfastv1.ViewsServiceCloseRequest{Id: "v99"})
	code(api.NotFound, err)

	testRetention(t, ctx, s, tg, code)
	testScratch(t, ctx, tg, first)
	testPassing(t, ctx, w, tg, first)
	testConfiguredRetention(t, w, tg)
	testStatus(t, w, tg)
}

// testScratch writes to one view of a checkpoint and sees that another does not have it.
func testScratch(t *testing.T, ctx context.Context, tg api.Handlers, checkpoint string) {
	open := func(readOnly bool) (*holdfastv1.View, *nbd.Client) {
		t.Helper()
		res, err := tg.Views.Open(ctx, &holdfastv1.ViewsServiceOpenRequest{Checkpoint: checkpoint, ReadOnly: readOnly})
		if err != nil {
			t.Fatal(err)
		}
		c, err := nbd.Dial(ctx, res.View.Volumes[0].Nbd)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return res.View, c
	}
	a, ac := open(false)
	b, bc := open(false)
	c, cc := open(true)
	if _, err := ac.WriteAt([]byte("scratch"), 12345); err != nil {
		t.Fatal(err)
	}
	if err := ac.Flush(); err != nil {
		t.Fatal(err)
	}
	p, q := make([]byte, 7), make([]byte, 7)
	_, err1 := ac.ReadAt(p, 12345)
	_, err2 := bc.ReadAt(q, 12345)
	if err1 != nil || err2 != nil || string(p) != "scratch" || string(q) == "scratch" {
		t.Errorf("the view that was written to has %q (%v), the other %q (%v)", p, err1, q, err2)
	}
	if _, err := cc.WriteAt(p, 0); err == nil {
		t.Error("a read-only view was written to")
	}
	res, err := tg.Views.List(ctx, &holdfastv1.ViewsServiceListRequest{Group: "shop"})
	if err != nil || len(res.Views) != 3 || res.Views[0].Id != a.Id || res.Views[2].Id != c.Id || res.Views[1].Checkpoint != checkpoint {
		t.Errorf("views %v, %v", res, err)
	}
	for _, v := range []*holdfastv1.View{a, b, c} {
		if _, err := tg.Views.Close(ctx, &holdfastv1.ViewsServiceCloseRequest{Id: v.Id}); err != nil {
			t.Error(err)
		}
	}
	if res, _ := tg.Views.List(ctx, &holdfastv1.ViewsServiceListRequest{}); len(res.Views) != 0 {
		t.Errorf("after the last was closed there are %v", res.Views)
	}
}

// testPassing opens a passing view, as an export does whose command is then killed.
func testPassing(t *testing.T, ctx context.Context, w *world, tg api.Handlers, checkpoint string) {
	_, err := tg.Views.Open(ctx, &holdfastv1.ViewsServiceOpenRequest{Checkpoint: checkpoint, Passing: true, Live: true})
	if f := api.AsFailure(err); f == nil || f.Code != api.InvalidArgument {
		t.Errorf("passing and live: %v", err)
	}
	open := func(passing bool) *holdfastv1.View {
		t.Helper()
		res, err := tg.Views.Open(ctx, &holdfastv1.ViewsServiceOpenRequest{Checkpoint: checkpoint, ReadOnly: true, Passing: passing})
		if err != nil {
			t.Fatal(err)
		}
		return res.View
	}
	stays, used, never := open(false), open(true), open(true)
	c, err := nbd.Dial(ctx, used.Volumes[0].Nbd)
	if err != nil {
		t.Fatal(err)
	}
	w.await("a client of the view", func() bool { return w.tg.views.list("")[1].clients == 1 })
	have := func(what string, want ...*holdfastv1.View) {
		t.Helper()
		var ids, wantIDs []string
		res, err := tg.Views.List(ctx, &holdfastv1.ViewsServiceListRequest{})
		for _, v := range res.GetViews() {
			ids = append(ids, v.Id)
		}
		for _, v := range want {
			wantIDs = append(wantIDs, v.Id)
		}
		if err != nil || !slices.Equal(ids, wantIDs) {
			t.Errorf("%s: views %v, %v; want %v", what, ids, err, wantIDs)
		}
	}
	now := time.Now()
	w.tg.views.closePassed(now.Add(passingWait - time.Second))
	have("before it is time", stays, used, never)
	now = now.Add(2 * passingWait)
	w.tg.views.closePassed(now)
	have("when nobody came", stays, used)
	c.Close()
	w.await("no client of the view", func() bool { return w.tg.views.list("")[1].clients == 0 })
	w.tg.views.closePassed(now.Add(passingWait - 1))
	have("when its user has just gone", stays, used)
	w.tg.views.closePassed(now.Add(passingWait))
	have("when its user is gone", stays)
	if _, err := tg.Views.Close(ctx, &holdfastv1.ViewsServiceCloseRequest{Id: stays.Id}); err != nil {
		t.Error(err)
	}
}

// testStatus holds what both ends say of a group that is well.
func testStatus(t *testing.T, w *world, tg api.Handlers) {
	w.await("a quiet group", func() bool { return *w.status().BytesBehind == 0 })
	g := w.status()
	if g.Role != api.RoleSource || g.LagSeconds == nil || *g.LagSeconds > 5 || g.EtaSeconds == nil || g.Sync != nil ||
		g.WireBytesTotal == 0 || g.PackStoredBytesTotal == 0 || g.WindowLimit != w.window || len(g.Volumes) != 1 || g.Volumes[0].DirtyBytes == nil || *g.Volumes[0].DirtyBytes != 0 ||
		g.Reason != "" || g.Checkpoints != nil {
		t.Errorf("the source says %v", g)
	}
	if n := g.Volumes[0].Connections; n == nil || *n != 0 {
		t.Errorf("the source says that %v guests are connected", n)
	}
	over := w.f.Device("vol1").(front.Used).Begins()
	if n := w.status().Volumes[0].Connections; n == nil || *n != 1 {
		t.Errorf("the source says that %v guests are connected, and one is", n)
	}
	over()
	res, err := tg.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{})
	if err != nil || len(res.Groups) != 1 || res.Site != "east" {
		t.Fatal(res, err)
	}
	g = res.Groups[0]
	if g.Role != api.RoleTarget || g.State != api.StateProtected || g.LagSeconds != nil || *g.Checkpoints < 6 || g.Oldest == nil ||
		number(t, g.Newest.Id) <= number(t, g.Oldest.Id) || g.WireBytesTotal == 0 || g.PackRawBytesTotal == 0 {
		t.Errorf("the target says %v", g)
	}
	r := prometheus.NewPedanticRegistry()
	if err := r.Register(Metrics(Identity{Site: "west"}, w.s, w.tg)); err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil || len(families) < 10 {
		t.Errorf("%d metrics, %v", len(families), err)
	}
	expires := fmt.Sprintf(`holdfast_certificate_expiry_timestamp_seconds{certificate="own",site="east"} %v`, float64(w.tg.cfg.Credentials.Certificate.Leaf.NotAfter.Unix()))
	body := holdMetrics(t, Handlers(Identity{Site: "east", ID: "vra-1", Version: "v", Commit: "c"}, w.s, w.tg).Metrics,
		`holdfast_errors_total{kind="session"} 0`, `holdfast_dirty_bytes{group="shop"} 0`, expires, `holdfast_build_info{commit="c",site="east",version="v",vra="vra-1"} 1`,
		`holdfast_capture_filters{group="shop",state="connected"} 1`, `holdfast_group_bad_checkpoints{group="shop"} 0`)
	checkMetrics(t, body, "failover_state", "group_hold_seconds", "group_shared_cuts_total", "group_shared_intervals_total", "group_shared_intervals_listed_total", "journal_limit_bytes", "shaping_cap_bytes_per_second", "spill_limit_bytes", "stores", "stores_spare", "stores_thin_files", "wire_refused_total")
	const syncs = "holdfast_journal_sync_seconds_count "
	if !strings.Contains(body, syncs) || strings.Contains(body, syncs+"0\n") {
		t.Errorf("no syncs of the journal in %s", body)
	}
}

// testRetention changes how a group is kept, and back.
func testRetention(t *testing.T, ctx context.Context, s, tg api.Handlers, code func(api.Code, error)) {
	get := func() *holdfastv1.Retention {
		t.Helper()
		res, err := tg.Groups.GetRetention(ctx, &holdfastv1.GroupsServiceGetRetentionRequest{})
		if err != nil || len(res.Retention) != 1 {
			t.Fatal(res, err)
		}
		return res.Retention[0]
	}
	if r := get(); r.Own || r.Policy.History.AsDuration() != 24*time.Hour || r.Policy.Thin != "none" || r.LogBytes == 0 || r.Oldest == "" || r.Level != "plenty" {
		t.Errorf("as configured: %v", r)
	}
	thin, limit, tooSmall, warn := "all for 1h, minute for 24h", int64(200<<30), int64(1<<20), int32(101)
	res, err := tg.Groups.SetRetention(ctx, &holdfastv1.GroupsServiceSetRetentionRequest{Group: "shop", History: api.Span(7 * 24 * time.Hour), Limit: &limit, Thin: &thin})
	if err != nil || !res.Retention.Own || res.Retention.Policy.History.AsDuration() != 7*24*time.Hour || res.Retention.Policy.Thin != "all for 1h, minute for 1d" {
		t.Errorf("%v, %v", res, err)
	}
	res, err = tg.Groups.SetRetention(ctx, &holdfastv1.GroupsServiceSetRetentionRequest{Minimum: api.Span(time.Hour)})
	if err != nil || res.Retention.Policy.Limit != limit || res.Retention.Policy.Minimum.AsDuration() != time.Hour {
		t.Errorf("what is not given changed: %v, %v", res, err)
	}
	bad := "all for ever"
	for _, r := range []*holdfastv1.GroupsServiceSetRetentionRequest{
		{}, {History: api.Span(time.Minute)}, {Limit: &tooSmall}, {WarnPercent: &warn}, {Thin: &bad}, {Minimum: api.Span(8 * 24 * time.Hour)},
	} {
		_, err = tg.Groups.SetRetention(ctx, r)
		code(api.InvalidArgument, err)
	}
	_, err = tg.Groups.SetRetention(ctx, &holdfastv1.GroupsServiceSetRetentionRequest{Group: "none", Defaults: true})
	code(api.NotFound, err)
	_, err = s.Groups.GetRetention(ctx, &holdfastv1.GroupsServiceGetRetentionRequest{})
	code(api.Precondition, err)
	if r := get(); !r.Own || r.Policy.Limit != limit {
		t.Errorf("after refusals: %v", r)
	}
	if _, err = tg.Groups.SetRetention(ctx, &holdfastv1.GroupsServiceSetRetentionRequest{Defaults: true}); err != nil || get().Own {
		t.Errorf("back to what is configured: %v, %v", get(), err)
	}
}

// testConfiguredRetention: what the configuration says anew holds for a group without a policy of its own.
func testConfiguredRetention(t *testing.T, w *world, tg api.Handlers) {
	for _, history := range []time.Duration{2 * time.Hour, 24 * time.Hour} {
		if err := w.tg.ConfigureRetention(retain.Policy{History: history, WarnPercent: 50}); err != nil {
			t.Error(err)
		}
		res, err := tg.Groups.GetRetention(t.Context(), &holdfastv1.GroupsServiceGetRetentionRequest{})
		if err != nil || res.Retention[0].Own || res.Retention[0].Policy.History.AsDuration() != history {
			t.Errorf("configured %v: %v, %v", history, res, err)
		}
	}
}

// checkShapingAPI asks what shaping there is, changes it and goes back.
func checkShapingAPI(t *testing.T, source, target api.Handlers, code func(api.Code, error)) {
	t.Helper()
	ctx := t.Context()
	_, err := target.Shaping.Get(ctx, &holdfastv1.ShapingServiceGetRequest{})
	code(api.Precondition, err)
	set := func(r *holdfastv1.ShapingServiceSetRequest) (*holdfastv1.Shaping, error) {
		res, err := source.Shaping.Set(ctx, r)
		return res.GetShaping(), err
	}
	bits, little := int64(50e6), int64(1)
	_, err = set(&holdfastv1.ShapingServiceSetRequest{})
	code(api.InvalidArgument, err)
	_, err = set(&holdfastv1.ShapingServiceSetRequest{Cap: &little})
	code(api.InvalidArgument, err)
	_, err = set(&holdfastv1.ShapingServiceSetRequest{Windows: &holdfastv1.ShapingWindows{Windows: []string{"never"}}})
	code(api.InvalidArgument, err)
	_, err = set(&holdfastv1.ShapingServiceSetRequest{Priorities: []*holdfastv1.GroupPriority{{Group: "nobody", Priority: "high"}}})
	code(api.NotFound, err)
	s, err := set(&holdfastv1.ShapingServiceSetRequest{
		Cap: &bits, Windows: &holdfastv1.ShapingWindows{Windows: []string{"daily 00:00-12:00 80Mbps", "daily 12:00-24:00 80Mbps"}},
		Priorities: []*holdfastv1.GroupPriority{{Group: "shop", Priority: "low"}},
	})
	if err != nil || !s.Own || s.Policy.Cap != bits || s.CapNow != 80e6 || s.Window == "" || len(s.Groups) != 1 || s.Groups[0].Priority != "low" {
		t.Errorf("set: %v, %v", s, err)
	}
	st, err := source.Status.Get(ctx, &holdfastv1.StatusServiceGetRequest{})
	if err != nil || st.Groups[0].Priority != "low" {
		t.Errorf("status: %v, %v", st, err)
	}
	rec := httptest.NewRecorder()
	source.Metrics.ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{"holdfast_shaping_cap_bytes_per_second 1e+07", "holdfast_shaping_wire_bytes_total ", `holdfast_group_held_by_cap_seconds_total{group="shop"}`} {
		if !strings.Contains(rec.Body.String(), want) {
			t.Errorf("no %s among the metrics", want)
		}
	}
	s, err = set(&holdfastv1.ShapingServiceSetRequest{Defaults: true})
	if err != nil || s.Own || s.CapNow != 0 || s.Groups[0].Priority != "medium" {
		t.Errorf("back to the configuration: %v, %v", s, err)
	}
}

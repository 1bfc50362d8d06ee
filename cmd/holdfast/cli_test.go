package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/bench/scenario"
	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "write the golden files anew")

// site is a VRA that answers from what the test put in it.
type site struct {
	mu          sync.Mutex // guards what a test changes while it is asked
	groups      []*holdfastv1.Group
	checkpoints []*holdfastv1.Checkpoint
	view        *holdfastv1.View
	opened      *holdfastv1.ViewsServiceOpenRequest
	created     *holdfastv1.CheckpointsServiceCreateRequest
	listed      *holdfastv1.CheckpointsServiceListRequest
	closed      []string
	retention   *holdfastv1.GroupsServiceSetRetentionRequest
	shaped      *holdfastv1.ShapingServiceSetRequest
	members     *holdfastv1.GroupMembers
	removals    []string // what was asked of them
	tested      *holdfastv1.LinksServiceTestRequest
	failover    *holdfastv1.Failover
	adoptions   []string // paths of the disks
	resumed     *holdfastv1.GroupsServiceResumeRequest
	hang        bool // Create never answers
	asked       func()
}

func (s *site) Get(context.Context, *holdfastv1.StatusServiceGetRequest) (*holdfastv1.StatusServiceGetResponse, error) {
	return &holdfastv1.StatusServiceGetResponse{Groups: s.groups}, nil
}

// checkpointsOf and viewsOf are the site's other services: List has two meanings.
type checkpointsOf struct{ *site }

func (s checkpointsOf) List(_ context.Context, r *holdfastv1.CheckpointsServiceListRequest) (*holdfastv1.CheckpointsServiceListResponse, error) {
	s.mu.Lock()
	s.listed = r
	all := slices.Clone(s.checkpoints)
	s.mu.Unlock()
	if r.NewestFirst {
		slices.Reverse(all)
	}
	all = slices.DeleteFunc(all, func(c *holdfastv1.Checkpoint) bool {
		return r.Tag != "" && c.Tag != r.Tag || r.Tagged && c.Tag == "" || r.Pinned && !c.Pinned || r.State != "" && c.State != r.State
	})
	at := slices.IndexFunc(all, func(c *holdfastv1.Checkpoint) bool { return c.Id == r.PageToken }) + 1
	res := &holdfastv1.CheckpointsServiceListResponse{}
	if at < len(all) { // pages of one
		res.Checkpoints = all[at : at+1]
	}
	if at+1 < len(all) {
		res.NextPageToken = all[at].Id
	}
	return res, nil
}

// one is the checkpoint with the id.
func (s checkpointsOf) one(id string) (*holdfastv1.Checkpoint, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id == api.Latest && len(s.checkpoints) > 0 {
		return s.checkpoints[len(s.checkpoints)-1], nil
	}
	for _, c := range s.checkpoints {
		if c.Id == id {
			return &holdfastv1.Checkpoint{Id: c.Id, Time: c.Time, Tag: c.Tag, State: c.State, Reason: c.Reason, Pinned: c.Pinned, Label: c.Label}, nil
		}
	}
	return nil, api.Errorf(api.NotFound, "see checkpoint list", "no checkpoint %s", id)
}

func (s checkpointsOf) Get(_ context.Context, r *holdfastv1.CheckpointsServiceGetRequest) (*holdfastv1.CheckpointsServiceGetResponse, error) {
	c, err := s.one(r.Id)
	return &holdfastv1.CheckpointsServiceGetResponse{Checkpoint: c}, err
}

func (s checkpointsOf) Tag(_ context.Context, r *holdfastv1.CheckpointsServiceTagRequest) (*holdfastv1.CheckpointsServiceTagResponse, error) {
	c, err := s.one(r.Id)
	if err == nil {
		c.Tag = r.Tag
	}
	return &holdfastv1.CheckpointsServiceTagResponse{Checkpoint: c}, err
}

func (s checkpointsOf) Pin(_ context.Context, r *holdfastv1.CheckpointsServicePinRequest) (*holdfastv1.CheckpointsServicePinResponse, error) {
	c, err := s.one(r.Id)
	if err == nil {
		c.Pinned, c.Label = true, r.Label
	}
	return &holdfastv1.CheckpointsServicePinResponse{Checkpoint: c}, err
}

func (s checkpointsOf) Unpin(_ context.Context, r *holdfastv1.CheckpointsServiceUnpinRequest) (*holdfastv1.CheckpointsServiceUnpinResponse, error) {
	c, err := s.one(r.Id)
	return &holdfastv1.CheckpointsServiceUnpinResponse{Checkpoint: c}, err
}

func (s checkpointsOf) Create(ctx context.Context, r *holdfastv1.CheckpointsServiceCreateRequest) (*holdfastv1.CheckpointsServiceCreateResponse, error) {
	s.mu.Lock()
	s.created = r
	asked, hang := s.asked, s.hang
	s.mu.Unlock()
	if asked != nil {
		asked()
	}
	if hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if r.Freeze {
		return &holdfastv1.CheckpointsServiceCreateResponse{FreezeFailed: "the before-command: exit status 3", Checkpoint: &holdfastv1.Checkpoint{Id: "9", Tag: r.Tag, State: api.CheckpointGood, Consistency: api.ConsistencyFailed}}, nil
	}
	return &holdfastv1.CheckpointsServiceCreateResponse{Checkpoint: &holdfastv1.Checkpoint{Id: "9", Time: api.Timestamp(moment), Tag: r.Tag, State: api.CheckpointGood}}, nil
}

func (s checkpointsOf) LeadCut(context.Context, *holdfastv1.CheckpointsServiceLeadCutRequest) (*holdfastv1.CheckpointsServiceLeadCutResponse, error) {
	return nil, api.Errorf(api.Precondition, "", "one source")
}

type viewsOf struct{ *site }

func (s viewsOf) Open(_ context.Context, r *holdfastv1.ViewsServiceOpenRequest) (*holdfastv1.ViewsServiceOpenResponse, error) {
	s.opened = r
	if r.Checkpoint == "77" {
		return nil, api.Errorf(api.NotFound, "see holdfast checkpoint list", "checkpoint 77: no such checkpoint")
	}
	if r.Name != "" {
		s.view.Name = r.Name
	}
	return &holdfastv1.ViewsServiceOpenResponse{View: s.view}, nil
}

func (s viewsOf) List(context.Context, *holdfastv1.ViewsServiceListRequest) (*holdfastv1.ViewsServiceListResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	res := &holdfastv1.ViewsServiceListResponse{}
	if s.view != nil {
		res.Views = append(res.Views, s.view)
	}
	return res, nil
}

func (s viewsOf) Close(_ context.Context, r *holdfastv1.ViewsServiceCloseRequest) (*holdfastv1.ViewsServiceCloseResponse, error) {
	s.closed = append(s.closed, r.Id)
	return &holdfastv1.ViewsServiceCloseResponse{}, nil
}

type linksOf struct{ *site }

func (s linksOf) Test(_ context.Context, r *holdfastv1.LinksServiceTestRequest, tell func(*holdfastv1.LinksServiceTestResponse) error) error {
	s.tested = r
	if r.Group == "older" {
		return api.Errorf(api.Unimplemented, "update the target", "the target does not support link tests")
	}
	tell(&holdfastv1.LinksServiceTestResponse{Stage: "to the target", Bytes: 1 << 20, Took: api.Span(time.Second)})
	mtu, segments, again, size, reached := int32(1400), uint64(7000), uint64(70), uint32(1348), false
	way := &holdfastv1.LinkWay{Bytes: 10 << 20, Took: api.Span(5 * time.Second), PayloadBitsPerSecond: 16_800_000, InterfaceBitsPerSecond: 17_600_000,
		Segments: &segments, Retransmitted: &again, SegmentBytes: &size}
	trip := &holdfastv1.LinkSpread{Count: 20, Min: api.Span(11e6), Median: api.Span(12e6), Max: api.Span(34_500_000)}
	return tell(&holdfastv1.LinksServiceTestResponse{Report: &holdfastv1.LinkReport{
		Target: "recovery/vra/t1", Control: "t1:4007", Data: "t1:4008", Protocol: 4, RoundTrip: trip, Up: way, PathMtu: &mtu, MtuBlackHole: true,
		ClockAhead: api.Span(-2 * time.Second), ClockWithin: api.Span(5_500_000), Cap: r.Cap, CapReached: &reached, ReplicatedBytes: 3 << 20,
		Findings: []*holdfastv1.LinkFinding{{Level: api.FindingOK, Text: "A round trip takes 12.0 ms."}, {Level: api.FindingWarning, Text: "Packets vanish.\x1b"}},
	}})
}

// recoveryOf tells of the site's failover, and does nothing about it.
type recoveryOf struct {
	api.RecoveryHandler
	*site
}

func (s recoveryOf) Get(context.Context, *holdfastv1.RecoveryServiceGetRequest) (*holdfastv1.RecoveryServiceGetResponse, error) {
	return &holdfastv1.RecoveryServiceGetResponse{Failover: s.failover}, nil
}

// serve answers for s until the test ends and returns the socket.
func (s *site) serve(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		h := api.Handlers{Status: s, Checkpoints: checkpointsOf{s}, Views: viewsOf{s}, Groups: retentionOf{s}, Links: linksOf{s}, Shaping: shapingOf{s}}
		if s.failover != nil {
			h.Recovery = recoveryOf{site: s}
		}
		done <- api.Serve(ctx, l, h, []int{os.Getuid()}, slog.New(slog.DiscardHandler))
	}()
	t.Cleanup(func() { stop(); <-done })
	return path
}

// contextFile writes a context; a nil site does not answer.
func contextFile(t *testing.T, source, target *site) string {
	t.Helper()
	c := &config.Context{Group: "lab"}
	for _, v := range []struct {
		role, name string
		site       *site
	}{{api.RoleSource, "production", source}, {api.RoleTarget, "recovery", target}} {
		socket := filepath.Join(t.TempDir(), "none")
		if v.site != nil {
			socket = v.site.serve(t)
		}
		c.VRAs = append(c.VRAs, config.ContextVRA{Site: v.name, Role: v.role, Socket: socket})
	}
	text, err := config.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "context.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

var moment = time.Date(2026, 1, 2, 3, 4, 5, 67e6, time.FixedZone("", 3600))

// twoSites are a source and a target that agree.
func twoSites() (source, target *site) {
	lag, eta, behind, count := 0.12345, 1.5, int64(65536), int64(2)
	source = &site{groups: []*holdfastv1.Group{{
		Name: "lab", Id: "1", Role: api.RoleSource, State: api.StateBehind, Reason: "the link is slower than the change rate", Since: api.Timestamp(moment),
		LagSeconds: &lag, BytesBehind: &behind, EtaSeconds: &eta, Codec: "raw", Connections: 1,
	}}}
	later := moment.AddDate(100, 0, 0) // has no age
	checkpoints := []*holdfastv1.Checkpoint{
		{Id: "1", Time: api.Timestamp(later), State: api.CheckpointGood, Consistency: api.ConsistencyFailed},
		{Id: "2", Time: api.Timestamp(later.Add(5 * time.Second)), Tag: "before <upgrade>", State: api.CheckpointVerifying, Consistency: api.ConsistencyApplication},
	}
	target = &site{
		groups: []*holdfastv1.Group{{
			Name: "lab", Id: "1", Role: api.RoleTarget, State: api.StateProtected, Since: api.Timestamp(moment),
			Checkpoints: &count, Oldest: checkpoints[0], Newest: checkpoints[1],
			Volumes: []*holdfastv1.Volume{{Name: "data", Id: 1, Bytes: 1 << 20}, {Name: "log", Id: 2, Bytes: 1 << 20}, {Name: "vol1", Id: 3, Bytes: 1 << 20}},
		}},
		checkpoints: checkpoints,
		view: &holdfastv1.View{Id: "v1", Group: "lab", Checkpoint: "2", Name: "trial", State: "full", Reason: "3 writes failed",
			ScratchBytes: 20 << 20, ScratchLimit: 20 << 20, Clients: 1, Volumes: []*holdfastv1.ViewVolume{
				{Name: "vol1", Bytes: 1 << 20, Nbd: "nbd+unix:///vol1?socket=/run/v1.sock"},
			}},
	}
	return source, target
}

// holdfast runs one command line.
func holdfast(t *testing.T, context string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	env := func(name string) string {
		if name == contextVariable {
			return context
		}
		return ""
	}
	code = run(t.Context(), args, &out, &errs, env)
	return code, out.String(), errs.String()
}

// TestGolden holds every result, as a table and as JSON, to testdata.
func TestGolden(t *testing.T) {
	f := func(name, context string, args ...string) {
		t.Helper()
		for _, format := range []string{"json", "table"} {
			code, out, errs := holdfast(t, context, append(args, "-o", format)...)
			if code != 0 || errs != "" {
				t.Errorf("%q -o %s: exit %d, %s", args, format, code, errs)
			}
			golden := filepath.Join("testdata", name+"."+format)
			if *update {
				if err := os.WriteFile(golden, []byte(out), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want, err := os.ReadFile(golden); err != nil || out != string(want) {
				t.Errorf("%q -o %s:\n%s\nwant (%v)\n%s", args, format, out, err, want)
			}
		}
	}
	source, target := twoSites()
	both := contextFile(t, source, target)
	f("status", both, "status")
	f("checkpoint-list", both, "checkpoint", "list", "--utc")
	f("checkpoint-show", both, "checkpoint", "show", "before <upgrade>", "--utc")
	f("checkpoint-tag", both, "checkpoint", "tag", "1", "mine", "--utc")
	f("checkpoint-untag", both, "checkpoint", "tag", "2", "--remove", "--utc")
	f("checkpoint-pin", both, "checkpoint", "pin", "1", "--label", "audit", "--utc")
	f("checkpoint-unpin", both, "checkpoint", "unpin", "latest", "--utc")
	f("checkpoint-create", both, "checkpoint", "create", "--tag", "mine")
	f("shaping-show", both, "shaping", "show")
	f("shaping-set", both, "shaping", "set", "--cap", "5Mbit")
	f("retention-show", both, "group", "retention", "show")
	f("retention-set", both, "group", "retention", "set", "lab", "--history", "24h")
	f("group-pause", both, "group", "pause", "lab")
	f("group-resume", both, "vpg", "resume", "lab")
	f("group-sync", both, "group", "sync", "lab", "--volume", "data")
	f("group-adopt", both, "group", "adopt", "lab", "--reason", "the host was installed anew")
	f("volume-list", both, "group", "volume", "list", "lab")
	f("volume-add", both, "group", "volume", "add", "lab", "new", "--id", "3", "--pool-socket", "/run/pool3", "--wait")
	f("volume-remove", both, "group", "volume", "remove", "lab", "new")
	f("group-remove", both, "group", "remove", "lab", "--keep-replica", "--checkpoint", "1", "--yes")
	f("view-open", both, "view", "open", "--checkpoint", "latest")
	f("view-list", both, "view", "list")
	f("view-show", both, "view", "show", "v1")
	f("view-close", both, "view", "close", "v1")
	if source.created.GetTag() != "mine" || target.opened.GetCheckpoint() != api.Latest || target.opened.GetIdempotencyKey() == "" || len(target.closed) != 2 {
		t.Errorf("asked for %v, %v, %v", source.created, target.opened, target.closed)
	}

	// What is not known is null, and an absent list is empty.
	f("status-unknown", contextFile(t, &site{groups: []*holdfastv1.Group{{Name: "lab", Id: "1", State: api.StateInitialSync}}}, &site{}), "status")
	f("nothing-status", contextFile(t, &site{}, &site{}), "status")
	f("nothing-checkpoints", contextFile(t, &site{}, &site{}), "checkpoint", "list")
	f("nothing-views", contextFile(t, &site{}, &site{}), "view", "list")
	f("view-unread", contextFile(t, &site{}, &site{view: &holdfastv1.View{Id: "v3", Group: "lab", ReadOnly: true, Live: true, State: "broken", Reason: "its file does not read"}}), "view", "list")
}

// TestLinkTest: figures and words go to stdout, progress to stderr, and what the
// arguments ask for to the source.
func TestLinkTest(t *testing.T) {
	source, target := twoSites()
	both := contextFile(t, source, target)
	for _, format := range []string{"json", "table"} {
		code, out, errs := holdfast(t, both, "link", "test", "--cap", "20Mbps", "--duration", "2s", "--amount", "8MiB", "-o", format)
		if code != 0 || (errs == "") != (format == "json") {
			t.Errorf("exit %d, %q", code, errs)
		}
		golden := filepath.Join("testdata", "link-test."+format)
		if *update {
			if err := os.WriteFile(golden, []byte(out), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want, err := os.ReadFile(golden); err != nil || out != string(want) {
			t.Errorf("-o %s:\n%s\nwant (%v)\n%s", format, out, err, want)
		}
	}
	if r := source.tested; r.GetCap() != 20e6 || r.GetBytes() != 8<<20 || r.GetDuration().AsDuration() != 2*time.Second {
		t.Errorf("asked for %v", r)
	}
	if code, _, errs := holdfast(t, both, "link", "test", "--group", "older"); code != exitFailed || !strings.Contains(errs, "does not support link tests; update the target") {
		t.Errorf("exit %d, %q", code, errs)
	}
	for _, args := range [][]string{{"--duration", "2m"}, {"--amount", "1KiB"}, {"--amount", "x"}, {"--cap", "fast"}, {"--cap", "20"}, {"x"}} {
		if code, _, errs := holdfast(t, both, append([]string{"link", "test"}, args...)...); code != exitUsage {
			t.Errorf("%q: exit %d, %q", args, code, errs)
		}
	}
}

// TestViewByNumber: v1 is closed and shown as 1 too.
func TestViewByNumber(t *testing.T) {
	_, target := twoSites()
	both := contextFile(t, nil, target)
	if code, out, errs := holdfast(t, both, "view", "show", "1"); code != 0 || !strings.Contains(out, "v1") {
		t.Errorf("show: exit %d, %s, %s", code, out, errs)
	}
	if code, out, errs := holdfast(t, both, "view", "close", "1", "-o", "json"); code != 0 || !strings.Contains(out, `"id": "v1"`) || !slices.Equal(target.closed, []string{"v1"}) {
		t.Errorf("close: exit %d, %s, %s: closed %q", code, out, errs, target.closed)
	}
}

// TestStatusIsNeverBetterThanTheTruth: without the source nothing is protected, and no lag is known.
func TestStatusIsNeverBetterThanTheTruth(t *testing.T) {
	source, target := twoSites()
	_, out, _ := holdfast(t, contextFile(t, nil, target), "status", "-o", "json")
	for _, want := range []string{`"state": "disconnected"`, `"lag_seconds": null`, `"since": null`, `"checkpoints": 2`, "the source vra does not answer"} {
		if !strings.Contains(out, want) {
			t.Errorf("without the source: no %s in\n%s", want, out)
		}
	}
	_, out, _ = holdfast(t, contextFile(t, source, nil), "status", "-o", "json")
	for _, want := range []string{`"state": "behind"`, `"checkpoints": null`, `"newest": null`, "the target vra does not answer"} {
		if !strings.Contains(out, want) {
			t.Errorf("without the target: no %s in\n%s", want, out)
		}
	}
	code, out, errs := holdfast(t, contextFile(t, nil, nil), "status", "-o", "json")
	if code != exitFailed || out != "" || !strings.Contains(errs, "see holdfast lab status") {
		t.Errorf("without both: exit %d, %q, %q", code, out, errs)
	}
}

func TestWorseOfTwoSitesIsTold(t *testing.T) {
	group := func(state, reason string) []*holdfastv1.Group {
		return []*holdfastv1.Group{{Id: "1", Name: "lab", State: state, Reason: reason}}
	}
	silent := errors.New("connection refused")
	f := func(source, target []*holdfastv1.Group, targetErr error, state, reason string) {
		t.Helper()
		got := mergeGroups(source, target, nil, targetErr)
		if len(got) != 1 || got[0].State != state || deref(got[0].Reason) != reason {
			t.Errorf("%+v, want %s: %s", got, state, reason)
		}
	}
	f(group(api.StateProtected, ""), group(api.StateProtected, ""), nil, api.StateProtected, "")
	f(group(api.StateProtected, ""), nil, silent, api.StateDisconnected, "the target vra does not answer: connection refused")
	f(group(api.StateResync, "lost"), nil, silent, api.StateResync, "lost; the target vra does not answer: connection refused")
	f(group(api.StateProtected, ""), group(api.StateError, "segment 2 is damaged"), nil, api.StateError, "segment 2 is damaged")
	f(group(api.StateBehind, "slow"), group(api.StateError, "no space"), nil, api.StateError, "slow; no space")
	f(group(api.StateStandby, "fenced"), group(api.StateRecovering, "a live failover"), nil, api.StateRecovering, "a live failover")
	f(group(api.StateProtected, ""), group(api.StateRecovering, "a live failover"), nil, api.StateRecovering, "a live failover")
	got := mergeGroups(nil, group(api.StateRecovering, "a live failover"), silent, nil)
	if len(got) != 1 || got[0].State != api.StateRecovering || deref(got[0].Reason) != "a live failover; the source vra does not answer: connection refused" {
		t.Errorf("without a source: %+v", got)
	}
}

func TestExitStatus(t *testing.T) {
	source, target := twoSites()
	both, none := contextFile(t, source, target), filepath.Join(t.TempDir(), "none.yaml")
	f := func(want int, context, message string, args ...string) {
		t.Helper()
		code, out, errs := holdfast(t, context, args...)
		if code != want || !strings.Contains(errs, message) || (code != 0 && out != "") {
			t.Errorf("%q: exit %d, %q, %q; want %d with %q", args, code, out, errs, want, message)
		}
	}
	f(0, "", "", "--version")
	f(0, "", "", "version")
	f(0, "", "", "--help")
	f(0, "", "", "lab", "up", "--help")
	f(0, "", "", "completion", "bash")
	f(0, "", "", "help", "lab", "up")
	f(0, "", "")
	f(exitUsage, "", "say what to do: bash, fish, powershell, zsh", "completion")
	f(exitUsage, "", "unknown command \"tcsh\" for holdfast completion", "completion", "tcsh")
	f(exitUsage, "", "unexpected argument", "completion", "bash", "more")
	f(exitUsage, "", "unknown command \"nonsense\"", "help", "nonsense")
	f(exitUsage, "", "unknown command \"upp\" for holdfast lab: did you mean up?", "help", "lab", "upp")
	f(exitUsage, "", "did you mean status?", "stauts")
	f(exitUsage, both, "--context is empty", "status", "--context", "")
	f(exitUsage, both, "want only characters that can be seen", "checkpoint", "create", "--tag", "a\x1b[2J")
	f(exitUsage, both, "no space at its ends", "checkpoint", "create", "--tag", " a")
	f(exitUsage, both, "\"latest\": it names the newest", "checkpoint", "create", "--tag", "latest")
	f(0, both, "Warning: tag 2026 reads as the id", "checkpoint", "tag", "1", "2026")
	f(exitUsage, both, "takes writes, or takes none", "view", "open", "--checkpoint", "latest", "--writable", "--read-only")
	f(exitUsage, both, "no space at its ends", "view", "open", "--checkpoint", "a ")
	f(exitUsage, both, "want an id or a tag", "view", "open", "--checkpoint", "-1")
	f(exitUsage, both, "is no id", "view", "open", "--checkpoint", "0")
	f(exitUsage, both, "is no id", "export", "--out", "x", "--checkpoint", "99999999999999999999")
	f(exitUsage, "", "--volumes: want a whole number, as in 2, not \"two\"", "lab", "up", "--dir", "x", "--volumes", "two")
	f(exitUsage, both, "--wait: duration \"5\": want a number with a unit", "checkpoint", "create", "--tag", "x", "--wait", "5")
	f(exitUsage, "", "--time: duration \"5\": want a number with a unit", "demo", "--time", "5")
	f(exitUsage, "", "rate \"-5Mbit\": want a number with kbit, Mbit or Gbit", "lab", "link", "-5Mbit")
	f(exitUsage, "", "unknown shorthand flag", "lab", "link", "-x")

	f(exitUsage, "", "unknown command", "nothing")
	f(exitUsage, "", "unknown command", "lab", "nothing")
	f(exitUsage, "", "say what to do", "lab")
	f(exitUsage, "", "unknown flag", "status", "--nothing")
	f(exitUsage, both, "unexpected argument", "status", "x")
	f(exitUsage, both, "want table or json", "status", "-o", "xml")
	f(exitUsage, "", "HOLDFAST_CONTEXT", "status")
	f(exitUsage, both, "--tag is missing", "checkpoint", "create")
	f(exitUsage, both, "which checkpoint is missing", "checkpoint", "pin")
	f(exitUsage, both, "unexpected argument \"b\"", "checkpoint", "show", "a", "b")
	f(exitUsage, both, "the tag is missing", "checkpoint", "tag", "1")
	f(exitUsage, both, "--remove takes the tag away", "checkpoint", "tag", "1", "x", "--remove")
	f(exitUsage, both, "--label \"x \": want no space at its ends", "checkpoint", "pin", "1", "--label", "x ")
	f(exitUsage, both, "--limit -1", "checkpoint", "list", "--limit", "-1")
	f(exitUsage, both, "--after \"x\" is no id", "checkpoint", "list", "--after", "x")
	f(exitUsage, both, "want good, verifying or bad", "checkpoint", "list", "--state", "fine")
	f(exitUsage, both, "--from \"yesterday\": want a time", "checkpoint", "list", "--from", "yesterday")
	f(exitUsage, both, "is not before --to", "checkpoint", "list", "--from", "1h", "--to", "2h")
	f(exitFailed, both, "no checkpoint 77; see checkpoint list", "checkpoint", "pin", "77")
	f(exitUsage, both, "at most 256", "checkpoint", "create", "--tag", strings.Repeat("x", 257))
	f(exitUsage, both, "not UTF-8", "checkpoint", "create", "--tag", "\xff")
	f(exitUsage, both, "--wait", "checkpoint", "create", "--tag", "x", "--wait", "0s")
	f(exitUsage, both, "--checkpoint is missing", "view", "open")
	f(exitUsage, both, "want one view id", "view", "close")
	f(exitUsage, both, "want one view id", "view", "show")
	f(exitUsage, both, "units are B, KiB, MiB, GiB and TiB", "view", "open", "--checkpoint", "latest", "--limit", "lots")
	f(exitUsage, both, "--limit 1 B: want at least 1 MiB", "view", "open", "--checkpoint", "latest", "--limit", "1")
	f(exitUsage, both, "--limit 0 B: want at least 1 MiB", "view", "open", "--checkpoint", "latest", "--limit", "0")
	f(exitUsage, both, "a limit of 100 MiB is too small: want at least 1 GiB, or none", "group", "retention", "set", "lab", "--limit", "100MiB")
	f(exitUsage, both, "units are B, KiB, MiB, GiB and TiB", "group", "retention", "set", "lab", "--limit", "100MB")
	f(exitUsage, both, "--history 10m: want 1h to 30d", "group", "retention", "set", "lab", "--history", "10m")
	f(exitUsage, both, "--history 31d: want 1h to 30d", "group", "retention", "set", "lab", "--history", "31d")
	f(exitUsage, both, "--minimum 2h: want at most the history, 1h", "group", "retention", "set", "lab", "--history", "1h", "--minimum", "2h")
	f(exitUsage, both, "want one group, have 0 arguments", "group", "pause")
	f(exitUsage, both, "want a group and a volume, have 1 arguments", "group", "volume", "remove", "lab")
	f(exitUsage, both, "--id is missing or 0", "group", "volume", "add", "lab", "new", "--pool-socket", "/run/pool3")
	f(exitUsage, both, "--pool-socket \"pool3\": want the absolute path", "group", "volume", "add", "lab", "new", "--id", "3", "--pool-socket", "pool3")
	f(exitUsage, both, "volume ", "group", "volume", "add", "lab", "a/b", "--id", "3", "--pool-socket", "/run/pool3")
	f(exitFailed, both, "none: no such volume", "group", "volume", "remove", "lab", "none")
	f(exitUsage, both, "--warn 0: want 1 to 100", "group", "retention", "set", "lab", "--warn", "0")
	f(exitUsage, both, "--warn 101: want 1 to 100", "group", "retention", "set", "lab", "--warn", "101")
	f(exitFailed, both, "the folder cannot be made", "export", "--checkpoint", "latest", "--out", filepath.Join(none, "a", "b"))
	f(exitFailed, both, "make "+filepath.Join(none, "a")+" first", "export", "--checkpoint", "latest", "--out", filepath.Join(none, "a", "b"))
	f(exitUsage, both, "takes no writes", "view", "open", "--checkpoint", "latest", "--writable=false", "--limit", "1GiB")
	f(exitUsage, both, "at most 63 bytes", "view", "open", "--checkpoint", "latest", "--name", strings.Repeat("n", 64))
	f(exitFailed, both, "no view \"v9\"; see holdfast view list", "view", "show", "v9")
	f(exitUsage, both, "want one view id", "view", "close", "a", "b")
	f(exitUsage, both, "--out is missing", "export", "--checkpoint", "1")
	f(exitUsage, both, "--checkpoint is missing", "export", "--out", "x")
	f(exitUsage, "", "--dir is missing", "lab", "up")
	f(exitUsage, "", "--size", "lab", "up", "--dir", "x", "--size", "1000")
	f(exitUsage, "", "--size", "lab", "up", "--dir", "x", "--size", "0")
	f(exitUsage, "", "--size", "lab", "up", "--dir", "x", "--size", "much")
	f(exitUsage, "", "--link", "lab", "up", "--dir", "x", "--link", "50")
	f(exitUsage, "", "--link", "lab", "up", "--dir", "x", "--link", "1kbit")
	f(exitUsage, "", "--interval", "lab", "up", "--dir", "x", "--interval", "5")
	f(exitUsage, "", "--interval", "lab", "up", "--dir", "x", "--interval", "-5s")
	f(exitUsage, "", "--interval", "lab", "up", "--dir", "x", "--interval", "0s")
	f(exitUsage, "", "--interval", "lab", "up", "--dir", "x", "--interval", "2h")
	f(exitUsage, "", "--volumes", "lab", "up", "--dir", "x", "--volumes", "0")
	f(exitUsage, "", "--volumes", "lab", "up", "--dir", "x", "--volumes", "1000")
	f(exitUsage, "", "rename it", "lab", "up", "--dir", "x", "--image", "UPPER.raw")
	f(exitUsage, "", "or down, or up", "lab", "link", "sideways")
	f(exitUsage, "", "is less than 8kbit", "lab", "link", "1kbit")
	f(exitUsage, both, "no lab: give --dir", "lab", "status")
	f(exitUsage, "", "--time", "demo", "--time", "0s")
	f(exitUsage, "", "--dir is missing", "man")

	f(exitFailed, none, "HOLDFAST_CONTEXT names "+none+", and there is no such file: if it was that of a lab, the lab is gone: start one with", "status")
	f(exitFailed, "", "--context names "+none, "status", "--context", none)
	f(exitFailed, "", "a file is in the way", "man", "--dir", both)
	f(exitFailed, "", both+" is a file", "demo", "--dir", both)
	f(exitFailed, both, "no checkpoint carries the tag \"none\"", "view", "open", "--checkpoint", "none")
	f(exitFailed, both, "checkpoint 77: no such checkpoint; see holdfast checkpoint list", "view", "open", "--checkpoint", "77")
	f(exitFailed, contextFile(t, nil, nil), "the target vra does not answer", "checkpoint", "list")
	f(exitFailed, "", "is no lab", "lab", "down", "--dir", t.TempDir())
	source.hang = true
	f(exitFailed, both, "was not listed within 20ms", "checkpoint", "create", "--tag", "x", "--wait", "20ms")
}

// TestWaitTellsWhy: a checkpoint that cannot be listed says so while it waits, and after.
func TestWaitTellsWhy(t *testing.T) {
	source, target := twoSites()
	source.hang = true
	source.groups[0].State, source.groups[0].Reason = api.StateDisconnected, "the link is down"
	_, _, errs := holdfast(t, contextFile(t, source, target), "checkpoint", "create", "--tag", "x", "--wait", "20ms")
	if strings.Count(errs, "disconnected (the link is down)") != 2 || !strings.Contains(errs, "waiting at most 20ms") {
		t.Errorf("%s", errs)
	}
}

// TestCheckpointByTag opens by a tag that one checkpoint carries, and by no other.
func TestCheckpointByTag(t *testing.T) {
	source, target := twoSites()
	both := contextFile(t, source, target)
	f := func(at, want, message string) {
		t.Helper()
		target.opened = nil
		_, _, errs := holdfast(t, both, "view", "open", "--checkpoint", at)
		if got := target.opened.GetCheckpoint(); got != want || !strings.Contains(errs, message) {
			t.Errorf("%s: opened %q, want %q; %s", at, got, want, errs)
		}
	}
	f("before <upgrade>", "2", "")
	f("1", "1", "")
	target.checkpoints = append(target.checkpoints, &holdfastv1.Checkpoint{Id: "3", Tag: "before <upgrade>"}, &holdfastv1.Checkpoint{Id: "4", Tag: "1"}, &holdfastv1.Checkpoint{Id: "5", Tag: "2026"})
	f("before <upgrade>", "", "name one by its id: 2, 3")
	f("1", "1", "")
	f("2026", "5", "")
}

// TestNothingRawInTables: what others put into a tag cannot steer a terminal.
func TestNothingRawInTables(t *testing.T) {
	source, target := twoSites()
	target.checkpoints[0].Tag = "\x1b[31mred\ttab \u202e \u00fc"
	_, out, _ := holdfast(t, contextFile(t, source, target), "checkpoint", "list")
	if !strings.Contains(out, `\x1b[31mred\ttab \u202e ü`) || strings.Contains(out, "\x1b") {
		t.Errorf("%q", out)
	}
}

// TestHealthyStatusFits 100 columns.
func TestHealthyStatusFits(t *testing.T) {
	source, target := twoSites()
	source.groups[0].State, source.groups[0].Reason = api.StateProtected, ""
	count, behind := int64(12345), int64(999<<20+1)
	target.groups[0].Checkpoints, source.groups[0].BytesBehind = &count, &behind
	_, out, _ := holdfast(t, contextFile(t, source, target), "status")
	for _, line := range strings.Split(out, "\n") {
		if len(line) > 100 {
			t.Errorf("%d columns: %s", len(line), line)
		}
	}
}

// TestCompletion asks as a shell does.
func TestCompletion(t *testing.T) {
	source, target := twoSites()
	both := contextFile(t, source, target)
	f := func(context, want string, args ...string) {
		t.Helper()
		_, out, _ := holdfast(t, context, append([]string{cobra.ShellCompNoDescRequestCmd}, args...)...)
		if at := strings.Index(out, ":"); at < 0 || strings.Join(strings.Fields(out[:at]), " ") != want {
			t.Errorf("%q: %q, want %q", args, out, want)
		}
	}
	f("", "up down none 50Mbit", "lab", "link", "")
	f("", "", "lab", "link", "up", "")
	f("", "table json", "status", "-o", "")
	f("", "table json", "status", "--output", "")
	f("", "", "status", "")
	f(both, "v1", "view", "close", "")
	f(both, "latest 2 1", "view", "open", "--checkpoint", "")
	f(both, "latest 2 1", "export", "--checkpoint", "")
	f(contextFile(t, nil, nil), "latest", "export", "--checkpoint", "")
	f("", "", "view", "close", "")
}

// TestStatusTellsOfDeaths of a lab's daemons, beside the table.
func TestStatusTellsOfDeaths(t *testing.T) {
	var errs bytes.Buffer
	a := &app{stderr: &errs}
	died := scenario.ProcessStatus{Name: "vra-source", Restarts: 2, LastDeath: &moment, LastExit: "exit status 2: panic: BUG: x", Log: "/lab/logs/vra-source.log"}
	back, wanted := died, died
	back.PID, wanted.SiteDown = 1, true
	lab := func(p scenario.ProcessStatus) *scenario.Status {
		return &scenario.Status{Processes: []scenario.ProcessStatus{{Name: "vra-target"}, p}}
	}
	a.tellDeaths(lab(back), moment.Add(deathIsNews)) // it is back, and has been for a while
	a.tellDeaths(lab(wanted), moment.Add(deathIsNews))
	a.tellDeaths(lab(back), moment.Add(deathIsNews-1))
	a.tellDeaths(lab(died), moment.Add(time.Hour))
	if want := strings.Repeat("vra-source died 2 times, last at 2026-01-02T02:04:05Z: exit status 2: panic: BUG: x; its log: /lab/logs/vra-source.log\n", 2); errs.String() != want {
		t.Errorf("%q, want %q", errs.String(), want)
	}
	a.tellDeaths(nil, moment)
}

func TestInterruptedIs130(t *testing.T) {
	source, target := twoSites()
	source.hang = true
	path := contextFile(t, source, target)
	ctx, cancel := context.WithCancel(t.Context())
	var out, errs bytes.Buffer
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"--context", path, "checkpoint", "create", "--tag", "x"}, &out, &errs, func(string) string { return "" })
	}()
	cancel()
	if got := <-code; got != exitInterrupted || out.Len() != 0 {
		t.Errorf("exit %d, %q, %q", got, out.String(), errs.String())
	}
}

func TestManPages(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man1")
	if code, _, errs := holdfast(t, "", "man", "--dir", dir); code != 0 {
		t.Fatal(errs)
	}
	for _, name := range []string{"holdfast", "holdfast-lab-up", "holdfast-view-open", "holdfast-completion-bash", "holdfast-export"} {
		page, err := os.ReadFile(filepath.Join(dir, name+".1"))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{`"1" "" "Holdfast devel" "Holdfast Manual"` + "\n", ".SH NAME\n", ".SH SYNOPSIS\n"} {
			if !bytes.Contains(page, []byte(want)) {
				t.Errorf("%s has no %q", name, want)
			}
		}
		for _, line := range strings.Split(string(page), "\n") {
			if strings.HasPrefix(line, "'") {
				t.Errorf("%s: %q would be read as a command", name, line)
			}
			if strings.HasPrefix(line, "  holdfast") {
				t.Errorf("%s: %q is indented by itself", name, line)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "holdfast-lab-supervise.1")); err == nil {
		t.Error("a hidden command has a page")
	}
}

func TestMeter(t *testing.T) {
	var b bytes.Buffer
	now := time.Unix(1000, 0)
	m := &meter{w: &b, now: func() time.Time { return now }}
	for range 31 {
		m.show("copying", now.Sub(time.Unix(1000, 0)).Milliseconds()*1024, 6000*1024)
		now = now.Add(100 * time.Millisecond)
	}
	m.show("copying", 6000*1024, 6000*1024)
	m.show("starting", 0, 0)
	m.done()
	want := `copying:   0% of 5.9 MiB
copying:  17% of 5.9 MiB, 1000 KiB/s, 6 s left
copying:  33% of 5.9 MiB, 1000 KiB/s, 5 s left
copying:  50% of 5.9 MiB, 1000 KiB/s, 4 s left
copying: 100% of 5.9 MiB, 1.9 MiB/s
starting
`
	if b.String() != want {
		t.Errorf("%s\nwant\n%s", b.String(), want)
	}
	b.Reset()
	m = &meter{w: &b, terminal: true, columns: func() int { return 6 }, now: m.now}
	m.show("starting", 0, 0)
	m.done()
	m.done()
	if got := b.String(); got != "\r\x1b[Kstart\n" {
		t.Errorf("%q", got)
	}
}

func (*site) About(context.Context, *holdfastv1.StatusServiceAboutRequest) (*holdfastv1.StatusServiceAboutResponse, error) {
	return &holdfastv1.StatusServiceAboutResponse{ApiMajor: api.Major, ApiMinor: api.Minor}, nil
}

package failover

import (
	"cmp"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm"
	"github.com/holdfast-dr/holdfast/control/recovery"
)

// reversing is both sites' part in a reversal: each is under way when it is asked for the first time.
type reversing struct {
	adopts, hands, looks int
	nbd, pool, run       string
}

func (s failoverOf) Adopt(_ context.Context, r *holdfastv1.RecoveryServiceAdoptRequest) (*holdfastv1.RecoveryServiceAdoptResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Id != "00000000000000aa" || len(r.Disks) != 1 || r.Disks[0].Path != "/images/data.raw" {
		return nil, api.Errorf(api.InvalidArgument, "", "%v", r)
	}
	s.reversing.adopts++
	return &holdfastv1.RecoveryServiceAdoptResponse{Adopted: s.reversing.adopts > 2, ReadBytes: uint64(s.reversing.adopts) << 20, Bytes: 3 << 20}, nil
}

func (s failoverOf) HandOver(_ context.Context, r *holdfastv1.RecoveryServiceHandOverRequest) (*holdfastv1.RecoveryServiceHandOverResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reversing.adopts <= 2 {
		return nil, api.Errorf(api.Internal, "", "nobody has adopted the old disks")
	}
	if s.reversing.hands++; s.reversing.hands == 1 {
		return nil, api.Errorf(api.Unavailable, "ask again", "it settles")
	}
	return &holdfastv1.RecoveryServiceHandOverResponse{Source: s.reversing.hands > 2, Nbd: s.reversing.nbd, Pool: s.reversing.pool, RunDir: s.reversing.run,
		Disks: []*holdfastv1.Disk{{Volume: "data", Id: 1, Bytes: 3 << 20, Path: "/store/data.raw"}}}, nil
}

type statusOf struct {
	api.StatusHandler
	s *site
}

func (o statusOf) About(context.Context, *holdfastv1.StatusServiceAboutRequest) (*holdfastv1.StatusServiceAboutResponse, error) {
	return &holdfastv1.StatusServiceAboutResponse{ApiMajor: api.Major, ApiMinor: api.Minor}, nil
}

func (o statusOf) Get(_ context.Context, r *holdfastv1.StatusServiceGetRequest) (*holdfastv1.StatusServiceGetResponse, error) {
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	g := &holdfastv1.Group{Name: cmp.Or(r.Group, "g"), Role: api.RoleSource, State: api.StateResync, Sync: &holdfastv1.Sync{DoneBytes: 1 << 20, TotalBytes: 3 << 20, BytesPerSecond: 1 << 20}}
	if o.s.reversing.looks++; o.s.reversing.looks > 1 {
		g.State, g.PackRawBytesTotal = api.StateProtected, 12345
	}
	if used := o.s.used; len(used) > 0 {
		g.Volumes = []*holdfastv1.Volume{{Name: "data", Connections: &used[0]}, {Name: "another's", Connections: new(int32(1))}}
		o.s.used = used[min(1, len(used)-1):]
	}
	return &holdfastv1.StatusServiceGetResponse{Groups: []*holdfastv1.Group{g}}, nil
}

// TestReversal interrupts a reversal when each step begins, and when it has ended: it halts, and another runner carries it
// on to its end. The filter that runs is not started twice.
func TestReversal(t *testing.T) {
	for at := range 2*4 + 2 {
		testReversal(t, at, false)
	}
}

// TestReversalFromPlainDisks does the same where machines are on plain disks: they end up at the filter's socket, and have not stopped. The filter is told
// that they write past it before one moves, and that none does once all have.
func TestReversalFromPlainDisks(t *testing.T) {
	for at := range 2*6 + 2 {
		testReversal(t, at, true)
	}
}

func testReversal(t *testing.T, at int, onDisks bool) {
	t.Helper()
	s, h, of := onViews(t, inMemory(t))
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	s.reversing.nbd, s.reversing.pool, s.reversing.run = filepath.Join(dir, "nbd"), filepath.Join(dir, "pool"), dir
	client := s.dial(t)
	var told []string
	seen := 0
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	past := toldFilter("")
	r := &Runner{Filter: func(string, string) (kvm.Filter, error) { return &past, nil }, Target: client, Source: client, Hypervisor: h.open, Who: "me", Now: time.Now, FilterBinary: filepath.Join(dir, "no-filter"),
		Progress: func(text string) { told = append(told, text) },
		Tell: func(recovery.Step, bool, string, error) {
			if seen++; seen == at+1 {
				stop()
			}
		}}
	p := &recovery.Plan{Key: "k", Kind: recovery.Reverse, Group: "g", Checkpoint: "7", Reversal: &recovery.Reversal{ID: "00000000000000aa", Stream: "00000000000000bb", Lineage: "00000000000000cc",
		Control: "127.0.0.1:1", Data: "127.0.0.1:2", Interval: time.Second, Filter: filepath.Join(dir, "filter.yaml"), Disks: []recovery.ReverseDisk{{Volume: "data", ID: 1, Bytes: 3 << 20, Path: "/images/data.raw"}}}}
	if onDisks {
		folder := filepath.Join(dir, "jobs")
		live := begin(t, folder, testPlan(recovery.Live))
		of.ID = live.Plan.ID
		if err := live.Close(); err != nil {
			t.Fatal(err)
		}
		p.Machines, p.Onto = of.Machines, &recovery.Onto{Failover: of.Key, Job: of.ID}
		p.Reversal.OnDisks = true
		for _, m := range h.machines {
			m.def.Disks = []hypervisor.Disk{{Volume: "data", File: "/store/data.raw", Bytes: 3 << 20}}
		}
		h.fail = func(what, name string) error {
			if what == "set-disk" && past != "detached" {
				t.Errorf("%s moves while the filter is %q", name, past)
			}
			return nil
		}
	}
	j, err := Create(filepath.Join(dir, "jobs"), p, recovery.Entry{Time: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Run(ctx, j); err != nil {
		t.Fatal(err)
	}
	without := 0 // halts for want of a filter
	var report *recovery.Report
	for {
		if report, err = r.Report(j); err != nil {
			t.Fatal(err)
		}
		if !j.State.Halted {
			break
		}
		failure := j.Failure(report).Error()
		switch {
		case without == 0 && strings.Contains(failure, "no-filter"):
			without++
			f, err := config.LoadFilter(p.Reversal.Filter)
			if err != nil || f.Volumes[0].Path != "/store/data.raw" || f.Volumes[0].NBD != s.reversing.nbd || f.Group.ID.String() != p.Reversal.ID {
				t.Errorf("the filter's file: %+v, %v", f, err)
			}
			l, err := net.Listen("unix", s.reversing.nbd) // somebody has started one
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
		case ctx.Err() == nil || !strings.Contains(failure, "failover resume"):
			t.Fatalf("interrupted at %d it says %s", at, failure)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		if j, err = Open(filepath.Join(dir, "jobs"), p.ID); err != nil {
			t.Fatal(err)
		}
		on := ctx
		if ctx.Err() != nil {
			on = t.Context()
		}
		if err := errors.Join(r.Say(j, recovery.Resume, ""), r.Run(on, j)); err != nil {
			t.Fatal(err)
		}
	}
	if without != 1 || ctx.Err() == nil {
		t.Errorf("at %d it halted %d times for want of a filter, and was interrupted: %v", at, without, ctx.Err())
	}
	if j.State.Phase != recovery.Over || j.State.Verdict != recovery.Passed || j.Failure(report) != nil || report.Reason != nil || report.Checkpoint != "5" {
		t.Errorf("interrupted at %d it ends %+v: %+v", at, j.State, report)
	}
	if onDisks != (past == "attached") {
		t.Errorf("interrupted at %d the filter is %q", at, past)
	}
	for name, m := range h.machines {
		want := hypervisor.Disk{Volume: "data", NBD: "nbd+unix:///data?socket=" + s.reversing.nbd, Bytes: 3 << 20}
		if onDisks && (m.def.Disks[0] != want || m.state != hypervisor.Running) {
			t.Errorf("%s is %s on %+v", name, m.state, m.def.Disks)
		}
	}
	if text := report.Text(); !strings.Contains(text, "12345 bytes of the disks were sent") {
		t.Errorf("the report says\n%s", text)
	}
	if len(told) == 0 || !strings.Contains(strings.Join(told, "\n"), "MiB") {
		t.Errorf("told: %q", told)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// toldFilter is what a filter was told last.
type toldFilter string

func (f *toldFilter) Detach(context.Context) error         { *f = "detached"; return nil }
func (f *toldFilter) Attach(context.Context) error         { *f = "attached"; return nil }
func (f *toldFilter) Join(context.Context, kvm.Join) error { return errors.New("nobody mirrors") }
func (f *toldFilter) Serves(context.Context) error         { return nil }

func TestPace(t *testing.T) {
	var p pace
	begin := time.Now()
	if got := p.far(begin, 1<<20, 11<<20); got != "1 of 11 MiB" {
		t.Error(got)
	}
	if got := p.far(begin.Add(2*time.Second), 5<<20, 11<<20); got != "5 of 11 MiB, 2 MiB/s, 3s left" {
		t.Error(got)
	}
}

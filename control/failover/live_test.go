package failover

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/recovery"
)

// failoverOf is the site's failover service, as a target keeps it: durable, one at a time.
type failoverOf struct{ *site }

// at answers for a failover of that id: busy at first, for whoever does not try again.
func (s failoverOf) at(id string) error {
	if s.calls++; s.calls == 1 {
		return api.Errorf(api.Unavailable, "try again", "busy")
	}
	if s.failover == nil || s.failover.Id != id {
		return api.Errorf(api.Precondition, "", "no such failover")
	}
	return nil
}

func (s failoverOf) Begin(_ context.Context, r *holdfastv1.RecoveryServiceBeginRequest) (*holdfastv1.RecoveryServiceBeginResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failover == nil {
		v := &holdfastv1.View{Id: "v9", Group: r.Group, Name: "failover", Checkpoint: r.Checkpoint, State: "good", Live: true,
			Volumes: []*holdfastv1.ViewVolume{{Name: "data", Bytes: 1 << 20, Nbd: "nbd+unix:///data?socket=/run/v"}}}
		s.failover = &holdfastv1.Failover{Id: r.Id, Group: r.Group, Checkpoint: r.Checkpoint, State: api.FailoverRecovering, Epoch: 2, Note: r.Note, Timer: r.Timer, Then: r.Then, View: v}
		s.views = append(s.views, v)
		s.begun++
	}
	if err := s.at(r.Id); err != nil {
		return nil, err
	}
	return &holdfastv1.RecoveryServiceBeginResponse{Failover: s.failover}, nil
}

func (s failoverOf) Get(context.Context, *holdfastv1.RecoveryServiceGetRequest) (*holdfastv1.RecoveryServiceGetResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failover == nil {
		return &holdfastv1.RecoveryServiceGetResponse{Failover: &holdfastv1.Failover{State: api.FailoverNone}}, nil
	}
	return &holdfastv1.RecoveryServiceGetResponse{Failover: s.failover}, nil
}

func (s failoverOf) Commit(_ context.Context, r *holdfastv1.RecoveryServiceCommitRequest) (*holdfastv1.RecoveryServiceCommitResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.at(r.Id); err != nil {
		return nil, err
	}
	if s.failover.State == api.FailoverRolledBack {
		return nil, api.Errorf(api.Precondition, "", "it was rolled back")
	}
	s.failover.State = api.FailoverCommitted
	return &holdfastv1.RecoveryServiceCommitResponse{Failover: s.failover}, nil
}

func (s failoverOf) Rollback(_ context.Context, r *holdfastv1.RecoveryServiceRollbackRequest) (*holdfastv1.RecoveryServiceRollbackResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.behind != nil {
		s.failover, s.behind = s.behind, nil
	}
	if err := s.at(r.Id); err != nil {
		return nil, err
	}
	if s.failover.State == api.FailoverCommitted {
		return nil, api.Errorf(api.Precondition, "", "it was committed")
	}
	s.rollBack()
	return &holdfastv1.RecoveryServiceRollbackResponse{Failover: s.failover}, nil
}

func (s failoverOf) rollBack() {
	s.failover.State, s.failover.View = api.FailoverRolledBack, nil
	s.views = slices.DeleteFunc(s.views, func(v *holdfastv1.View) bool { return v.Id == "v9" })
}

// sourceOf is the source of a move, which makes its last cut, and that of a reversal, which lists one by then.
type sourceOf struct{ api.CheckpointsHandler }

func (s sourceOf) List(context.Context, *holdfastv1.CheckpointsServiceListRequest) (*holdfastv1.CheckpointsServiceListResponse, error) {
	return &holdfastv1.CheckpointsServiceListResponse{Checkpoints: []*holdfastv1.Checkpoint{{Id: "5"}}}, nil
}

func (s sourceOf) Create(_ context.Context, r *holdfastv1.CheckpointsServiceCreateRequest) (*holdfastv1.CheckpointsServiceCreateResponse, error) {
	return &holdfastv1.CheckpointsServiceCreateResponse{Checkpoint: &holdfastv1.Checkpoint{Id: "77", Tag: r.Tag}}, nil
}

// TestLiveKilledAtEachStep kills whoever carries a live failover out, at each moment of it and of its end: it is
// committed with its machines running and the source fenced, or taken back with nothing left and the
// source let go on. It begins at the target at most once.
func TestLiveKilledAtEachStep(t *testing.T) {
	t.Parallel()
	for _, word := range []recovery.Event{recovery.Final, recovery.Undo} {
		for _, early := range []bool{false, true} { // it is said to a job that was killed before its machines ran
			for n := 1; ; n++ {
				s, h := &site{}, newHost(t)
				r := newRunner(t, s, h)
				folder := inMemory(t)
				p := testPlan(recovery.Live)
				p.Override, p.Machines[0].Delay = "the site burnt", 0
				j := begin(t, folder, p)
				if !dies(t, r, j, n) {
					j.Close()
					break
				}
				carry := func(e recovery.Event) (refused bool) {
					t.Helper()
					j = reopen(t, folder)
					if err := r.Say(j, e, ""); err != nil {
						j.Close()
						return true
					}
					for again := n%5 + 1; dies(t, r, j, again); again += 6 {
						j = reopen(t, folder)
					}
					j.Close()
					return false
				}
				if !early || carry(word) {
					carry(recovery.Resume)
					wantState(t, j, s, h, recovery.Running, recovery.NoVerdict)
					if s.failover.GetState() != api.FailoverRecovering || s.failover.GetNote() != "the site burnt" {
						t.Errorf("killed at %d: machines run, and the target says %v", n, s.failover)
					}
					carry(word)
				}
				committed := j.State.Verdict == recovery.Committed
				want := api.FailoverCommitted
				if !committed {
					want = api.FailoverRolledBack
				}
				if s.failover == nil && !committed {
					want = ""
				}
				machines, views := 0, 0
				if committed {
					machines, views = 2, 1
				}
				if j.State.Phase != recovery.Over || committed != (word == recovery.Final) || s.failover.GetState() != want || len(h.machines) != machines || len(s.views) != views || s.begun > 1 {
					t.Errorf("killed at %d, %s (early %v): %+v; the target says %v, %d times begun; %d machines, %d views", n, word, early, j.State, s.failover, s.begun, len(h.machines), len(s.views))
				}
			}
		}
	}
}

// TestTimer: what the target did by itself when nobody said a word, the job does after it.
func TestTimer(t *testing.T) {
	t.Parallel()
	f := func(target string, verdict recovery.Verdict, machines int) {
		t.Helper()
		s, h := &site{}, newHost(t)
		r := newRunner(t, s, h)
		p := testPlan(recovery.Live)
		p.Override = "the site burnt"
		j := begin(t, inMemory(t), p)
		defer j.Close()
		if err := r.Run(t.Context(), j); err != nil {
			t.Fatal(err)
		}
		if ended, err := r.Settle(t.Context(), j); err != nil || ended {
			t.Fatalf("ended before its time: %v, %v", ended, err)
		}
		s.mu.Lock()
		if s.failover.State = target; target == api.FailoverRolledBack {
			failoverOf{s}.rollBack()
			s.failover.Reason = "its timer took disks away"
		}
		s.mu.Unlock()
		if ended, err := r.Settle(t.Context(), j); err != nil || !ended {
			t.Fatalf("%s, and the job is not told: %v", target, err)
		}
		if err := r.Run(t.Context(), j); err != nil {
			t.Fatal(err)
		}
		if j.State.Phase != recovery.Over || j.State.Verdict != verdict || len(h.machines) != machines {
			t.Errorf("%s: %+v with %d machines", target, j.State, len(h.machines))
		}
		report, err := r.Report(j)
		if err != nil || verdict == recovery.RolledBack && (report.Note == nil || *report.Note != s.failover.Reason) {
			t.Errorf("the report does not say what the timer did: %+v, %v", report, err)
		}
	}
	f(api.FailoverCommitted, recovery.Committed, 2)
	f(api.FailoverSettled, recovery.Committed, 2)
	f(api.FailoverPassing, recovery.Committed, 2)
	f(api.FailoverOnDisks, recovery.Committed, 2)
	f(api.FailoverRolledBack, recovery.RolledBack, 0)
}

// TestTakeBackBehindBegin: what the target is still beginning is taken back too, though it does not tell of it yet; what
// is another's is not.
func TestTakeBackBehindBegin(t *testing.T) {
	t.Parallel()
	for _, known := range []bool{false, true} { // another's
		for _, behind := range []bool{false, true} {
			s := &site{}
			if known {
				s.failover = &holdfastv1.Failover{Id: "another", State: api.FailoverRolledBack}
			}
			p := testPlan(recovery.Live)
			if behind {
				s.behind = &holdfastv1.Failover{Id: p.Key, State: api.FailoverRecovering}
			}
			j := begin(t, inMemory(t), p)
			c := carrier{Runner: newRunner(t, s, newHost(t)), job: j}
			got, err := c.takeBack(t.Context())
			if want := map[bool]string{false: "it had not begun", true: "the source may go on"}[behind]; err != nil || got.text != want {
				t.Errorf("another is known: %v, one is being begun: %v: %q, %v", known, behind, got.text, err)
			}
			if behind && (s.failover.GetId() != p.Key || s.failover.GetState() != api.FailoverRolledBack) {
				t.Errorf("the target goes on with %v", s.failover)
			}
			j.Close()
		}
	}
}

// TestCommitTooLate: a commit that the timer forestalled halts, and can be rolled back.
func TestCommitTooLate(t *testing.T) {
	t.Parallel()
	s, h := &site{}, newHost(t)
	r := newRunner(t, s, h)
	p := testPlan(recovery.Live)
	p.Override = "the site burnt"
	j := begin(t, inMemory(t), p)
	defer j.Close()
	if err := r.Run(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	failoverOf{s}.rollBack()
	s.mu.Unlock()
	if err := errors.Join(r.Say(j, recovery.Final, ""), r.Run(t.Context(), j)); err != nil || !j.State.Halted {
		t.Fatalf("%+v, %v", j.State, err)
	}
	if err := errors.Join(r.Say(j, recovery.Undo, ""), r.Run(t.Context(), j)); err != nil {
		t.Fatal(err)
	}
	wantState(t, j, s, h, recovery.Over, recovery.RolledBack)
}

// TestSourceNotReached: a source that cannot be stopped ends a failover before anything was begun.
func TestSourceNotReached(t *testing.T) {
	t.Parallel()
	f := func(qmp string, how hypervisor.How, phase recovery.Phase, begun int) {
		t.Helper()
		s, h := &site{}, newHost(t)
		r := newRunner(t, s, h)
		p := testPlan(recovery.Live)
		p.SourceHow = how
		for i := range p.Machines {
			p.Machines[i].Source = recovery.Source{QMP: qmp, Time: p.Machines[i].WaitTime}
		}
		j := begin(t, inMemory(t), p)
		defer j.Close()
		if err := r.Run(t.Context(), j); err != nil {
			t.Fatal(err)
		}
		if j.State.Phase != phase || s.begun != begun {
			t.Errorf("%s: %+v, begun %d times", qmp, j.State, s.begun)
		}
		if report, err := r.Report(j); begun == 0 && (err != nil || !strings.Contains(deref(report.Reason), "--override-reason")) {
			t.Errorf("%s: %v, %v", qmp, deref(report.Reason), err)
		}
	}
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	gone := filepath.Join(dir, "gone")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: gone, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	f(filepath.Join(dir, "never"), hypervisor.Gracefully, recovery.Over, 0)
	f(gone, hypervisor.ByForce, recovery.Over, 0) // its QEMU died, or whoever forwards the socket

	// Whoever forwards the socket ends in the middle; the guest runs on, or has said that it is off.
	forwarded := func(how hypervisor.How, last string, phase recovery.Phase, begun int) {
		t.Helper()
		path := filepath.Join(dir, strings.Map(letters, last)+string(how))
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for c, err := l.Accept(); err == nil; c, err = l.Accept() {
				fmt.Fprintln(c, `{"QMP": {"version": {"qemu": {"major": 7, "minor": 2}}}}`)
				id := 0
				for s := bufio.NewScanner(c); s.Scan() && !strings.Contains(s.Text(), last); {
					id++
					fmt.Fprintf(c, `{"return": {"status": "running"}, "id": %d}`+"\n", id)
					if strings.Contains(s.Text(), "quit") {
						break
					}
				}
				c.Close()
			}
		}()
		f(path, how, phase, begun)
		l.Close()
		<-done
	}
	forwarded(hypervisor.ByForce, "quit", recovery.Over, 0)
	forwarded(hypervisor.ByForce, "query-status", recovery.Running, 1)
	forwarded(hypervisor.Gracefully, "system_powerdown", recovery.Over, 0)
}

func letters(r rune) rune {
	if r >= 'a' && r <= 'z' {
		return r
	}
	return -1
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// TestMove: the last cut is what the machines are started at.
func TestMove(t *testing.T) {
	t.Parallel()
	s, h := &site{}, newHost(t)
	r := newRunner(t, s, h)
	p := testPlan(recovery.Move)
	p.Checkpoint = ""
	j := begin(t, inMemory(t), p)
	defer j.Close()
	if err := r.Run(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	if j.State.Verdict != recovery.Failed || s.begun != 0 {
		t.Errorf("without a source: %+v", j.State)
	}
	r.Source = r.Target
	j = begin(t, inMemory(t), p)
	defer j.Close()
	if err := r.Run(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	wantState(t, j, s, h, recovery.Running, recovery.NoVerdict)
	if report, err := r.Report(j); err != nil || report.Checkpoint != "77" || s.failover.GetCheckpoint() != "77" {
		t.Errorf("%+v, %v, %v", report, err, s.failover)
	}
	if text, err := os.ReadFile(filepath.Join(j.Dir, "before")); err != nil || string(text) != "before web of erp at 77\n" {
		t.Errorf("%q, %v", text, err)
	}
}

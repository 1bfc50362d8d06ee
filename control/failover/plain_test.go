package failover

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/recovery"
)

// MoveOn refuses once, as a target that is busy.
func (s failoverOf) MoveOn(_ context.Context, r *holdfastv1.RecoveryServiceMoveOnRequest) (*holdfastv1.RecoveryServiceMoveOnResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.at(r.Id); err != nil {
		return nil, err
	}
	if s.failover.State == api.FailoverReleased {
		return nil, api.Errorf(api.Precondition, "see how it stands", "the disks were given away")
	}
	s.failover.State = api.FailoverMoving
	return &holdfastv1.RecoveryServiceMoveOnResponse{Failover: s.failover}, nil
}

// LetGo refuses once, as a target does to which somebody is connected, and holds its caller to the order.
func (s failoverOf) LetGo(_ context.Context, r *holdfastv1.RecoveryServiceLetGoRequest) (*holdfastv1.RecoveryServiceLetGoResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.at(r.Id); err != nil {
		return nil, err
	}
	if s.calls++; s.calls == 1 {
		return nil, api.Errorf(api.Unavailable, "ask again", "somebody is connected")
	}
	s.failover.State, s.failover.View = api.FailoverOnDisks, nil
	return &holdfastv1.RecoveryServiceLetGoResponse{Failover: s.failover}, nil
}

// onViews is a committed failover, the job that brought it about, and the host on which its machines run.
func onViews(t *testing.T, folder string) (s *site, h *host, of *recovery.Plan) {
	t.Helper()
	s, h = &site{}, newHost(t)
	of = testPlan(recovery.Live)
	j := begin(t, folder, of)
	of.Key = j.Plan.Key
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	for _, m := range of.Machines {
		def := m.Machine
		def.Disks = []hypervisor.Disk{{Volume: "data", NBD: "nbd+unix:///data?socket=/run/v"}}
		h.machines[m.Name] = &testMachine{def: def, state: hypervisor.Running}
	}
	s.failover = &holdfastv1.Failover{Id: of.Key, Group: of.Group, State: api.FailoverPassing, OnDisksAlone: true, View: &holdfastv1.View{Id: "v1"},
		Disks: []*holdfastv1.Disk{{Volume: "data", Id: 1, Bytes: 1 << 20, Path: "/store/data.raw"}}}
	return s, h, of
}

func ontoPlan(of *recovery.Plan) *recovery.Plan {
	return &recovery.Plan{Key: "k", Kind: recovery.Plain, Group: of.Group, Checkpoint: "42", Machines: of.Machines, Onto: &recovery.Onto{Failover: of.Key, Job: of.ID}}
}

// TestOntoPlainDisks interrupts a move onto plain disks when each step begins, and when it has ended: it halts, and another runner carries it on.
// No machine is moved before the disks are what it sees, and the target lets go when all are.
// It is alone: a script that another test is just starting would have the lock of a job's file for a moment more.
func TestOntoPlainDisks(t *testing.T) {
	for at := range 2 * 4 {
		folder := inMemory(t)
		s, h, of := onViews(t, folder)
		s.failover.State, s.failover.OnDisksAlone = api.FailoverSettled, false
		r := newRunner(t, s, h)
		now := time.Now()
		r.Now = func() time.Time { now = now.Add(tellEvery); return now } // each look is told of
		var told []string
		r.Progress = func(text string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			told = append(told, text)
			s.failover.OnDisksAlone = s.failover.State == api.FailoverPassing // a while after it passes, with nothing in scratch
			s.failover.State = api.FailoverPassing
		}
		h.fail = func(what, name string) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			if what == "set-disk" && !s.failover.OnDisksAlone {
				return errors.New("moved too early")
			}
			return nil
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		seen := 0
		r.Tell = func(recovery.Step, bool, string, error) {
			if seen++; seen == at+1 {
				stop()
			}
		}
		j := begin(t, folder, ontoPlan(of))
		if err := r.Run(ctx, j); err != nil {
			t.Fatal(err)
		}
		if last := at == 7; j.State.Halted == last {
			t.Fatalf("interrupted at %d it is %+v", at, j.State)
		}
		if j.State.Halted {
			report, err := r.Report(j)
			if err != nil || j.Failure(report) == nil || !strings.Contains(j.Failure(report).Error(), "failover resume") {
				t.Errorf("interrupted at %d it says %v", at, j.Failure(report))
			}
			if err := r.Say(j, recovery.Undo, ""); err == nil {
				t.Error("it was taken back")
			}
		}
		id := j.Plan.ID
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		var err error
		if j, err = Open(folder, id); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(r.Say(j, recovery.Resume, ""), r.Run(t.Context(), j)); err != nil {
			t.Fatal(err)
		}
		report, err := r.Report(j)
		if err != nil || j.State.Phase != recovery.Over || j.State.Verdict != recovery.Passed || j.Failure(report) != nil || report.Reason != nil {
			t.Errorf("interrupted at %d it ends %+v: %+v, %v", at, j.State, report, err)
		}
		for name, m := range h.machines {
			if want := (hypervisor.Disk{Volume: "data", File: "/store/data.raw", Bytes: 1 << 20}); m.def.Disks[0] != want || m.state != hypervisor.Running {
				t.Errorf("%s is %s on %+v", name, m.state, m.def.Disks)
			}
		}
		if s.failover.State != api.FailoverOnDisks || len(told) == 0 || !strings.Contains(told[0], "KiB") {
			t.Errorf("the target is %s; told: %q", s.failover.State, told)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOntoPlainDisksHalts says what stands in the way.
func TestOntoPlainDisksHalts(t *testing.T) {
	f := func(want string, change func(*site, *host, *recovery.Plan)) {
		t.Helper()
		folder := inMemory(t)
		s, h, of := onViews(t, folder)
		p := ontoPlan(of)
		change(s, h, p)
		j := begin(t, folder, p)
		defer j.Close()
		r := newRunner(t, s, h)
		if err := r.Run(t.Context(), j); err != nil {
			t.Fatal(err)
		}
		report, err := r.Report(j)
		if err != nil || !j.State.Halted || !strings.Contains(fmt.Sprint(j.Failure(report)), want) {
			t.Errorf("it is %+v: %v; want %q", j.State, j.Failure(report), want)
		}
	}
	f("another one", func(_ *site, _ *host, p *recovery.Plan) { p.Onto.Failover = "b" })
	f("over several stores", func(s *site, _ *host, _ *recovery.Plan) {
		s.failover.State, s.failover.OnDisksAlone, s.failover.NeverPlain = api.FailoverSettled, false, "its disks are over several stores"
	})
	f("web is running", func(s *site, h *host, p *recovery.Plan) { // nothing was said to the target then
		p.Machines = p.Machines[1:]
		h.fail = func(what, name string) error {
			if what == "may-set-disk" {
				return errors.New("web is running")
			}
			return nil
		}
		t.Cleanup(func() {
			if s.failover.State != api.FailoverPassing {
				t.Errorf("the target says %s", s.failover.State)
			}
		})
	})
	f("not committed", func(s *site, _ *host, _ *recovery.Plan) { s.failover.State = api.FailoverRecovering })
	f("its replica is damaged", func(s *site, _ *host, _ *recovery.Plan) {
		s.failover.State, s.failover.OnDisksAlone, s.failover.Reason = api.FailoverSettled, false, "volume 1: its replica is damaged"
	})
	f("the view does not open", func(s *site, _ *host, _ *recovery.Plan) {
		s.failover.View, s.failover.Reason = nil, "the view does not open"
	})
	f("no volume data", func(s *site, _ *host, _ *recovery.Plan) { s.failover.Disks = nil })
	f("QEMU refuses", func(_ *site, h *host, _ *recovery.Plan) {
		h.fail = func(what, name string) error {
			if what == "set-disk" && name == "web" {
				return errors.New("QEMU refuses")
			}
			return nil
		}
	})
	for _, reason := range []string{"volume 1: its replica is damaged", ""} { // between settle and the first machine, as after a restart of the target
		folder := inMemory(t)
		s, h, of := onViews(t, folder)
		r := newRunner(t, s, h)
		r.Tell = func(step recovery.Step, ended bool, _ string, _ error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if ended && step.Do == recovery.Settle {
				s.failover.OnDisksAlone, s.failover.Reason = false, reason
			}
		}
		r.Progress = func(string) { // it is waited for
			s.mu.Lock()
			defer s.mu.Unlock()
			if h.machines["db"].def.Disks[0].File != "" {
				t.Error("a machine has moved by now")
			}
			s.failover.OnDisksAlone = true
		}
		j := begin(t, folder, ontoPlan(of))
		defer j.Close()
		if err := r.Run(t.Context(), j); err != nil {
			t.Fatal(err)
		}
		report, err := r.Report(j)
		if err != nil || j.State.Halted != (reason != "") || j.State.Halted && !strings.Contains(fmt.Sprint(j.Failure(report)), reason) {
			t.Errorf("it is %+v: %v; want %q", j.State, j.Failure(report), reason)
		}
		for name, m := range h.machines {
			if moved := m.def.Disks[0].File != ""; moved == j.State.Halted {
				t.Errorf("%s has moved: %v", name, moved)
			}
		}
	}
	folder := inMemory(t) // while another process has the machines' job
	s, h, of := onViews(t, folder)
	other, err := Open(folder, of.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	j := begin(t, folder, ontoPlan(of))
	defer j.Close()
	if err := newRunner(t, s, h).Run(t.Context(), j); !errors.Is(err, ErrBusy) {
		t.Errorf("beside another process: %v", err)
	}
}

// TestOntoSaysSoFirst: the target knows of it before a machine moves, so that nobody reverses the failover, from whatever folder; where the disks were
// handed over before that, no machine moves.
func TestOntoSaysSoFirst(t *testing.T) {
	for _, reversed := range []bool{false, true} {
		folder := inMemory(t)
		s, h, of := onViews(t, folder)
		r := newRunner(t, s, h)
		h.fail = func(what, name string) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			switch {
			case what == "may-set-disk" && reversed:
				s.failover.State = api.FailoverReleased // as a reversal that is just quicker leaves it
			case what == "set-disk" && s.failover.State != api.FailoverMoving:
				t.Errorf("%s moves while the target says %s", name, s.failover.State)
			}
			return nil
		}
		j := begin(t, folder, ontoPlan(of))
		defer j.Close()
		if err := r.Run(t.Context(), j); err != nil || j.State.Halted != reversed {
			t.Errorf("%v: %+v", err, j.State)
		}
	}
}

// TestMayMoveOnto says before there is a job what would stand in its way.
func TestMayMoveOnto(t *testing.T) {
	folder := inMemory(t)
	s, h, of := onViews(t, folder)
	r := newRunner(t, s, h)
	var refused error
	h.fail = func(what, name string) error {
		if what == "may-set-disk" && name == "web" {
			return refused
		}
		return nil
	}
	f := func(want string, change func()) {
		t.Helper()
		id := s.failover.Id
		change()
		if err := r.MayMoveOnto(t.Context(), folder, ontoPlan(of)); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v; want %q", err, want)
		}
		s.failover.Id, s.failover.State, s.failover.OnDisksAlone, s.failover.NeverPlain, s.failover.Reason = id, api.FailoverPassing, true, "", ""
	}
	f("", func() {})
	f("", func() { s.failover.State, s.failover.OnDisksAlone = api.FailoverSettled, false }) // it is waited for
	f("another one", func() { s.failover.Id = "b" })
	f("commit it first", func() { s.failover.State = api.FailoverRecovering })
	f("were handed over", func() { s.failover.State = api.FailoverReleased })
	f("begin another one", func() { s.failover.State = api.FailoverRolledBack })
	f("over several stores", func() { s.failover.NeverPlain = "its disks are over several stores" })
	f("its replica is damaged", func() { s.failover.Reason = "its replica is damaged" })
	refused = errors.New("machine web is running")
	f("web is running", func() {})
}

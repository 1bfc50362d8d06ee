package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/failover"
	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm"
	"github.com/holdfast-dr/holdfast/control/recovery"
	"github.com/holdfast-dr/holdfast/ioengine/wait"
)

// How often a schedule looks at the clock and at its file, and how soon a proof that could not begin is tried again.
const (
	scheduleEvery = 30 * time.Second
	proofAgain    = 5 * time.Minute
)

// scheduled proves checkpoints of one group again and again.
type scheduled struct {
	*app
	flags   jobFlags
	folder  string
	metrics string
	prove   func(*recovery.Plan) error
	zone    *time.Location
}

func (a *app) newScheduled(f *jobFlags, metrics string, prove func(*recovery.Plan) error) (*scheduled, error) {
	folder, c, err := a.recoveryFolder()
	if err != nil {
		return nil, err
	}
	s := &scheduled{app: a, flags: *f, folder: folder, metrics: metrics, prove: prove, zone: time.Local}
	s.flags.group, s.flags.machines = cmp.Or(f.group, c.Group), cmp.Or(f.machines, c.Machines)
	if s.flags.machines == "" {
		return nil, usagef("--machines is missing, and the context names none: see holdfast failover --help for such a file")
	}
	_, err = s.verify()
	return s, err
}

// verify reads what the file says, which may have changed.
func (s *scheduled) verify() (config.Verify, error) {
	file, err := config.LoadMachines(s.flags.machines)
	if err != nil {
		return config.Verify{}, err
	}
	if file.Verify.Every == 0 {
		return file.Verify, fmt.Errorf("%s has no schedule: add a line as verify: {every: 24h}", s.flags.machines)
	}
	return file.Verify, nil
}

// proofState is how a schedule stands; its JSON is kept for ever.
type proofState struct {
	Group   string           `json:"group"`
	Every   float64          `json:"every_seconds"`
	Last    *recovery.Report `json:"last"`   // that ended by itself
	Passed  *recovery.Report `json:"passed"` // the last that passed
	Due     string           `json:"due"`    // the next
	Overdue float64          `json:"overdue_seconds"`
	Missed  int              `json:"missed"` // that should have begun since the last one did

	due                   time.Time
	lastBegan, passedTime time.Time
	cancelled             time.Time          // when a user had one of the schedule taken back, who did not want another at once
	scheduled             []*recovery.Report // all of the schedule, oldest first
	left                  []string           // ids of those that nobody carries on
}

func schedule(v config.Verify) recovery.Schedule {
	return recovery.Schedule{Every: v.Every.D(), Clock: v.At.SinceMidnight()}
}

// state reads it from the jobs. What a user had proved counts as well.
func (s *scheduled) state(v config.Verify, now time.Time) (*proofState, error) {
	st := &proofState{Group: s.flags.group, Every: v.Every.D().Seconds()}
	ids, err := failover.IDs(s.folder)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		entries, busy, err := failover.Read(s.folder, id)
		if err != nil || len(entries) == 0 || entries[0].Plan == nil {
			continue // failover list tells of it
		}
		p := entries[0].Plan
		r, err := recovery.NewReport(entries, now)
		if err != nil || p.Kind != recovery.Proof || p.Group != s.flags.group {
			continue
		}
		if p.Scheduled {
			st.scheduled = append(st.scheduled, r)
			if !busy && r.State != string(recovery.Over) {
				st.left = append(st.left, id)
			}
		}
		if at, asked := recovery.TakenBack(entries); asked && p.Scheduled {
			st.cancelled = at
		}
		if r.State != string(recovery.Over) || *r.Verdict == recovery.Cancelled {
			continue
		}
		st.Last, st.lastBegan = r, entries[0].Time
		if *r.Verdict == recovery.Passed {
			st.Passed, st.passedTime = r, entries[0].Time
		}
	}
	after := st.lastBegan
	if st.cancelled.After(after) {
		after = st.cancelled
	}
	st.due = schedule(v).Due(after, now, s.zone)
	st.Due, st.Missed = st.due.UTC().Format(time.RFC3339), schedule(v).Missed(st.due, now)
	st.Overdue = max(0, now.Sub(st.due).Seconds())
	return st, nil
}

// show says how it stands.
func (s *scheduled) show() error {
	v, err := s.verify()
	if err != nil {
		return err
	}
	st, err := s.state(v, time.Now())
	if err != nil {
		return err
	}
	if err := s.keepMetrics(st); err != nil {
		return err
	}
	last, verdict, passed := "-", "-", "-"
	if st.Last != nil {
		last, verdict = st.Last.ID, string(*st.Last.Verdict)
	}
	if st.Passed != nil {
		passed = "checkpoint " + st.Passed.Checkpoint + ", " + config.Duration(time.Since(st.passedTime).Round(time.Second)).String() + " ago"
	}
	if err := s.print(st, "GROUP EVERY LAST VERDICT PROVED DUE MISSED", [][]string{{st.Group, v.Every.String(), last, verdict, passed, st.Due, strconv.Itoa(st.Missed)}}); err != nil {
		return err
	}
	switch {
	case st.Last != nil && *st.Last.Verdict != recovery.Passed:
		return fmt.Errorf("the last proof of group %s %s: %s", st.Group, *st.Last.Verdict, orHyphen(st.Last.Reason))
	case st.Missed > 0:
		return fmt.Errorf("%d proofs of group %s were missed: is holdfast verify --scheduled running?", st.Missed, st.Group)
	}
	return nil
}

// run proves until ctx ends. One process does so for a group and folder.
func (s *scheduled) run(ctx context.Context) error {
	if err := os.MkdirAll(s.folder, 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(s.folder, "verify-"+s.flags.group+".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := flock(lock); err != nil {
		return fmt.Errorf("another process proves group %s on a schedule, in %s", s.flags.group, s.folder)
	}
	var said string
	var notBefore time.Time // after one that could not begin
	for {
		v, err := s.verify()
		if err != nil {
			return err
		}
		now := time.Now()
		st, err := s.state(v, now)
		if err != nil {
			return err
		}
		if err := s.keepMetrics(st); err != nil {
			return err
		}
		line := fmt.Sprintf("group %s: the next proof is due at %s", st.Group, st.due.In(s.zone).Format(time.RFC3339))
		if st.cancelled.After(st.lastBegan) {
			line += ", as the last one was cancelled"
		}
		if line != said && st.due.After(now) {
			fmt.Fprintln(s.stderr, line)
			said = line
		}
		if !now.Before(st.due) && now.After(notBefore) {
			err := s.once(ctx, v, st)
			if ctx.Err() == nil {
				if err != nil {
					fmt.Fprintln(s.stderr, printable(fmt.Sprintf("group %s: %v", st.Group, err)))
					notBefore = now.Add(proofAgain)
				}
				continue
			}
		}
		if err := wait.For(ctx, s.rest(st, now, notBefore)); err != nil {
			return nil // asked to stop
		}
	}
}

// flock takes a file's lock, unless another process has it.
func flock(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) }

// rest is how long nothing is to be done: the clock may be set meanwhile, and the file changed.
func (s *scheduled) rest(st *proofState, now, notBefore time.Time) time.Duration {
	until := st.due
	if notBefore.After(until) {
		until = notBefore
	}
	return max(time.Second, min(scheduleEvery, until.Sub(now)))
}

// once takes back what an earlier process left, and proves the newest checkpoint. The error says that no proof began; one that
// failed, or was cancelled, is told, and stands in its report.
func (s *scheduled) once(ctx context.Context, v config.Verify, st *proofState) error {
	for _, id := range st.left {
		fmt.Fprintf(s.stderr, "Job %s was left by a process that was killed: it is taken back.\n", id)
		if err := s.takeBack(ctx, id); err != nil {
			return fmt.Errorf("job %s: %w", id, err)
		}
	}
	_, c, client, err := s.jobsAndTarget()
	if err != nil {
		return err
	}
	defer client.Close()
	f := s.flags
	if st.Missed > 0 {
		f.note = fmt.Sprintf("%d proofs were missed: the first was due at %s", st.Missed, st.Due)
		fmt.Fprintf(s.stderr, "group %s: %s\n", st.Group, f.note)
	}
	p, err := s.plan(ctx, client, c, &f, recovery.Proof)
	if err == nil {
		err = s.prove(p)
	}
	if err != nil {
		return err
	}
	r := s.runner(client)
	p.Scheduled = true // not checked beforehand: it stops nothing at the source, and what keeps machines from coming up is a proof that failed
	j, err := failover.Create(s.folder, p, recovery.Entry{Time: time.Now(), Who: p.Who})
	if err != nil {
		return err
	}
	defer j.Close()
	report, err := s.carry(ctx, r, j)
	switch {
	case report == nil || report.State != string(recovery.Over):
		return err
	case err != nil:
		fmt.Fprintln(s.stderr, printable(fmt.Sprintf("group %s: %v", st.Group, err)))
	default:
		fmt.Fprintf(s.stderr, "group %s: job %s proved checkpoint %s in %s.\n", st.Group, p.ID, report.Checkpoint, secondsOrHyphen(&report.Seconds))
	}
	return s.tidy(v)
}

// takeBack ends a job that nobody carries on.
func (s *scheduled) takeBack(ctx context.Context, id string) error {
	_, _, client, err := s.jobsAndTarget()
	if err != nil {
		return err
	}
	defer client.Close()
	j, err := failover.Open(s.folder, id)
	if err != nil {
		return err
	}
	defer j.Close()
	r := s.runner(client)
	word := recovery.Resume // of one that halted on its way back
	if j.State.Phase == recovery.Starting {
		word = recovery.Cancel
	}
	if err := r.Say(j, word, ""); err != nil {
		return err
	}
	if err := r.Run(ctx, j); err != nil {
		return err
	}
	if j.State.Phase != recovery.Over {
		return errors.New("it is not taken back: see holdfast failover report " + id)
	}
	return nil
}

// tidy removes the reports that nobody wants any more.
func (s *scheduled) tidy(v config.Verify) error {
	st, err := s.state(v, time.Now())
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range st.scheduled[:max(0, len(st.scheduled)-v.Keep)] {
		if r.State == string(recovery.Over) && (st.Passed == nil || r.ID != st.Passed.ID) {
			errs = append(errs, failover.Remove(s.folder, r.ID))
		}
	}
	return errors.Join(errs...)
}

// proofMetric is one of the metrics of a schedule.
type proofMetric struct {
	name, help string
	value      func(*proofState) (v float64, known bool)
}

func unix(t time.Time) (float64, bool) { return float64(t.UnixMilli()) / 1e3, !t.IsZero() }

var proofMetrics = []proofMetric{
	{"holdfast_proof_due_timestamp_seconds", "When the next proof of a group is due, in seconds since 1970.", func(s *proofState) (float64, bool) { return unix(s.due) }},
	{"holdfast_proof_every_seconds", "How often a group is to be proved.", func(s *proofState) (float64, bool) { return s.Every, true }},
	{"holdfast_proof_last_timestamp_seconds", "When the last proof of a group began, in seconds since 1970; absent when there was none.", func(s *proofState) (float64, bool) { return unix(s.lastBegan) }},
	{"holdfast_proof_missed", "Proofs of a group that should have begun since the last one did.", func(s *proofState) (float64, bool) { return float64(s.Missed), true }},
	{"holdfast_proof_passed", "1 when the last proof of a group passed, 0 when it failed; absent when there was none.", func(s *proofState) (float64, bool) {
		if s.Last == nil || *s.Last.Verdict != recovery.Passed {
			return 0, s.Last != nil
		}
		return 1, true
	}},
	{"holdfast_proof_passed_timestamp_seconds", "When the last proof of a group that passed began, in seconds since 1970; absent when there was none.", func(s *proofState) (float64, bool) { return unix(s.passedTime) }},
	{"holdfast_proof_seconds", "How long the last proof of a group took; absent when there was none.", func(s *proofState) (float64, bool) {
		if s.Last == nil {
			return 0, false
		}
		return s.Last.Seconds, true
	}},
}

// keepMetrics writes the metrics' file anew, in Prometheus' text format.
func (s *scheduled) keepMetrics(st *proofState) error {
	if s.metrics == "" {
		return nil
	}
	var b strings.Builder
	for _, m := range proofMetrics {
		if v, known := m.value(st); known {
			fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s gauge\n%s{group=%q} %s\n", m.name, m.help, m.name, m.name, st.Group, strconv.FormatFloat(v, 'f', -1, 64))
		}
	}
	if err := kvm.WriteFileFor(s.metrics, []byte(b.String()), 0o644); err != nil { // another user collects it
		return fmt.Errorf("--metrics: %w", err)
	}
	return nil
}

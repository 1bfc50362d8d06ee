package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/failover"
	"github.com/holdfast-dr/holdfast/control/recovery"
	"github.com/holdfast-dr/holdfast/control/sidecar/monitor"
)

// aSchedule is one of a context whose machines' file asks for a proof a day; its jobs are those that the test writes.
func aSchedule(t *testing.T) (s *scheduled, both string) {
	t.Helper()
	source, target := twoSites()
	both = contextFile(t, source, target)
	machines := filepath.Join(t.TempDir(), "machines.yaml")
	if err := os.WriteFile(machines, []byte("verify: {every: 24h, keep: 2}\n"+machinesText), 0o600); err != nil {
		t.Fatal(err)
	}
	a := &app{contextFile: both, env: func(string) string { return "" }, stderr: &strings.Builder{}, stdout: &strings.Builder{}, output: "table"}
	s, err := a.newScheduled(&jobFlags{machines: machines}, filepath.Join(t.TempDir(), "proofs.prom"), nil)
	if err != nil {
		t.Fatal(err)
	}
	s.zone = time.UTC
	return s, both
}

// scheduledJob makes a job that was carried out one of the schedule's.
func scheduledJob(t *testing.T, folder, id string) {
	t.Helper()
	name := filepath.Join(folder, id, "events")
	text, err := os.ReadFile(name)
	if err == nil {
		err = os.WriteFile(name, []byte(strings.Replace(string(text), `"group":"lab"`, `"group":"lab","scheduled":true`, 1)), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestScheduleState: what is due follows from the jobs alone, misses are counted, and the metrics say the same; what was taken
// back is no proof.
func TestScheduleState(t *testing.T) {
	s, _ := aSchedule(t)
	v, err := s.verify()
	if err != nil {
		t.Fatal(err)
	}
	f := func(after time.Duration, last, passed string, due time.Time, missed int, metrics ...string) {
		t.Helper()
		now := moment.Add(after)
		st, err := s.state(v, now)
		if err != nil {
			t.Fatal(err)
		}
		id := func(r *recovery.Report) string {
			if r == nil {
				return ""
			}
			return r.ID
		}
		if id(st.Last) != last || id(st.Passed) != passed || !st.due.Equal(due) || st.Missed != missed {
			t.Errorf("after %s: last %q, passed %q, due %s, missed %d; want %q, %q, %s, %d", after, id(st.Last), id(st.Passed), st.due, st.Missed, last, passed, due, missed)
		}
		if err := s.keepMetrics(st); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(s.metrics)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range metrics {
			if absent, no := strings.CutPrefix(want, "!"); no == strings.Contains(string(text), "\n"+absent) {
				t.Errorf("after %s, want %q:\n%s", after, want, text)
			}
		}
	}
	f(0, "", "", moment, 0, `!holdfast_proof_passed{`, `!holdfast_proof_last_timestamp_seconds{`, `holdfast_proof_every_seconds{group="lab"} 86400`)
	jobIn(t, s.folder, "r1", recovery.Proof, "2", "")
	f(time.Hour, "r1", "r1", moment.Add(24*time.Hour), 0, `holdfast_proof_passed{group="lab"} 1`, `holdfast_proof_missed{group="lab"} 0`)
	jobIn(t, s.folder, "r2", recovery.Proof, "2", recovery.Wait)
	jobIn(t, s.folder, "r3", recovery.Test, "2", "") // none of ours
	f(73*time.Hour, "r2", "r1", moment.Add(24*time.Hour), 2, `holdfast_proof_passed{group="lab"} 0`, `holdfast_proof_missed{group="lab"} 2`, "holdfast_proof_passed_timestamp_seconds{")

	// One that was cut short, and taken back, is made up for.
	j, err := failover.Open(s.folder, "r2")
	if err == nil {
		err = j.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	jobIn(t, s.folder, "r4", recovery.Proof, "2", "")
	begins(t, s.folder, "r4")
	st, err := s.state(v, moment)
	if err != nil || len(st.left) != 1 || st.left[0] != "r4" || st.Last.ID != "r2" {
		t.Errorf("%v: %+v", err, st)
	}
}

// TestScheduleTidies: so many reports stay, that of the last proof that passed always, and those of users.
func TestScheduleTidies(t *testing.T) {
	s, _ := aSchedule(t)
	v, err := s.verify()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"r1", "r2", "r3", "r4", "r5", "r6"} {
		fail := recovery.Verb("")
		if id > "r3" {
			fail = recovery.Wait
		}
		jobIn(t, s.folder, id, recovery.Proof, "2", fail)
		if id != "r2" {
			scheduledJob(t, s.folder, id)
		}
	}
	if err := s.tidy(v); err != nil {
		t.Fatal(err)
	}
	ids, err := failover.IDs(s.folder)
	if got := strings.Join(ids, " "); err != nil || got != "r2 r3 r5 r6" {
		t.Errorf("there are %s, %v", got, err)
	}
	left, err := os.ReadDir(s.folder)
	if err != nil || len(left) != 4 {
		t.Errorf("left are %v, %v", left, err)
	}
}

// TestScheduleShown: show says how things stand, and fails when the last proof did, or some were missed; a schedule is of one process.
func TestScheduleShown(t *testing.T) {
	s, both := aSchedule(t)
	file := s.flags.machines
	no := func(want int, message string, args ...string) {
		t.Helper()
		if code, out, errs := holdfast(t, both, args...); code != want || !strings.Contains(errs+out, message) {
			t.Errorf("%q: exit %d, %s%s; want %d with %q", args, code, out, errs, want, message)
		}
	}
	no(0, "MISSED", "verify", "--show", "--machines", file, "--metrics", s.metrics)
	if text, err := os.ReadFile(s.metrics); err != nil || !strings.Contains(string(text), "holdfast_proof_due_timestamp_seconds") {
		t.Errorf("%v: %s", err, text)
	}
	jobIn(t, s.folder, "r1", recovery.Proof, "2", "") // long ago
	no(exitFailed, "proofs of group lab were missed", "verify", "--show", "--machines", file)
	jobIn(t, s.folder, "r2", recovery.Proof, "2", recovery.Wait)
	no(exitFailed, "the last proof of group lab failed", "verify", "--show", "--machines", file)
	no(exitFailed, "no such file", "verify", "--show", "--machines", file, "--metrics", filepath.Join(t.TempDir(), "none", "m.prom"))
	no(exitUsage, "--checkpoint does not go with", "verify", "--scheduled", "--machines", file, "--checkpoint", "2")
	no(exitUsage, "--metrics goes with", "verify", "--machines", file, "--metrics", "m.prom")
	no(exitUsage, "it stays, or says", "verify", "--machines", file, "--scheduled", "--show")
	plain := filepath.Join(t.TempDir(), "machines.yaml")
	if err := os.WriteFile(plain, []byte(machinesText), 0o600); err != nil {
		t.Fatal(err)
	}
	no(exitFailed, "has no schedule", "verify", "--scheduled", "--machines", plain)

	lock, err := os.OpenFile(filepath.Join(s.folder, "verify-lab.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := flock(lock); err != nil {
		t.Fatal(err)
	}
	no(exitFailed, "another process proves group lab", "verify", "--scheduled", "--machines", file)
}

// TestScheduleCannotBegin: a proof that cannot begin is told, tried again later, and no job.
func TestScheduleCannotBegin(t *testing.T) {
	s, _ := aSchedule(t)
	s.prove = func(*recovery.Plan) error { return errors.New("nothing is waited for") }
	ctx, stop := context.WithCancel(t.Context())
	said := &cancels{stop: stop, at: "nothing is waited for"}
	s.stderr = said
	if err := s.run(ctx); err != nil {
		t.Error(err)
	}
	if n := strings.Count(said.String(), "nothing is waited for"); n != 1 {
		t.Errorf("told %d times:\n%s", n, said)
	}
	if ids, err := failover.IDs(s.folder); err != nil && !errors.Is(err, fs.ErrNotExist) || len(ids) > 0 {
		t.Errorf("jobs %v, %v", ids, err)
	}
	if st := (&proofState{due: moment}); s.rest(st, moment.Add(time.Hour), moment.Add(2*time.Hour)) != scheduleEvery || s.rest(st, moment.Add(-time.Minute/10), time.Time{}) != time.Minute/10 {
		t.Error("it rests too long, or too short")
	}
}

// TestScheduleFails: a proof whose machines cannot come up is one that failed, with a report, and not one that is missing.
func TestScheduleFails(t *testing.T) {
	s, both := aSchedule(t)
	text := "verify: {every: 24h, keep: 2}\nmachines:\n  - {name: web1, disks: [vol1], kernel: /nowhere/vmlinuz, wait: 'serial:login:'}\n"
	if err := os.WriteFile(s.flags.machines, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.prove = func(*recovery.Plan) error { return nil }
	ctx, stop := context.WithCancel(t.Context())
	said := &cancels{stop: stop, at: "group lab: "}
	s.stderr = said
	if err := s.run(ctx); err != nil {
		t.Error(err)
	}
	r, err := reportOf(s.folder, "r1")
	if err != nil || r.Verdict == nil || *r.Verdict != recovery.Failed || !strings.Contains(orHyphen(r.Reason), "start web1: ") {
		t.Errorf("%v: %+v\n%s", err, r, said)
	}
	if code, out, errs := holdfast(t, both, "verify", "--show", "--machines", s.flags.machines); code != exitFailed || !strings.Contains(errs, "the last proof of group lab failed") {
		t.Errorf("show: exit %d, %s%s", code, out, errs)
	}
}

// cancels ends a context once a text was written to it.
type cancels struct {
	strings.Builder
	stop func()
	at   string
}

func (c *cancels) Write(p []byte) (int, error) {
	n, err := c.Builder.Write(p)
	if strings.Contains(c.String(), c.at) {
		c.stop()
	}
	return n, err
}

// TestProofMetricsAreListed: the list names what the schedule writes, and says what each is.
func TestProofMetricsAreListed(t *testing.T) {
	var have []monitor.Metric
	for _, m := range proofMetrics {
		have = append(have, monitor.Metric{Name: m.name, Help: m.help, Type: "gauge", Labels: []string{"group"}})
	}
	if err := monitor.Hold("../../control/sidecar/monitor/METRICS.md", "holdfast verify", have, *update); err != nil {
		t.Error(err)
	}
	s, _ := aSchedule(t)
	st := &proofState{Group: "lab", Last: &recovery.Report{Verdict: new(recovery.Verdict)}, due: moment, lastBegan: moment, passedTime: moment}
	if err := s.keepMetrics(st); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(s.metrics)
	if found := regexp.MustCompile(`(?m)^# HELP (\S+) .*\n# TYPE (\S+) gauge\n(\S+)\{group="lab"\} [0-9.]+$`).FindAllString(string(text), -1); err != nil || len(found) != len(proofMetrics) {
		t.Errorf("%v: %d of %d read:\n%s", err, len(found), len(proofMetrics), text)
	}
	if p, err := json.Marshal(st); err != nil || !strings.Contains(string(p), `"missed":0`) {
		t.Errorf("%s, %v", p, err)
	}
}

// TestScheduleCancelled: what an earlier process left is taken back, what was missed is noted and made up for, and a proof that a user cancels does not
// begin again before the schedule's next time: that follows from the jobs, so that whoever looks at them says the same.
func TestScheduleCancelled(t *testing.T) {
	s, both := aSchedule(t)
	text := "verify: {every: 24h, keep: 2}\nmachines:\n  - {name: web1, disks: [vol1], delay: 1m}\n"
	if err := os.WriteFile(s.flags.machines, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	jobIn(t, s.folder, "r1", recovery.Proof, "2", "") // long ago
	jobIn(t, s.folder, "r2", recovery.Proof, "2", "")
	begins(t, s.folder, "r2")
	s.prove = func(*recovery.Plan) error { return nil }
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	said := &cancels{}
	asked := false
	said.stop = func() { // at each line
		var err error
		ids, _ := failover.IDs(s.folder)
		switch text := said.String(); {
		case len(ids) > 3 || strings.Contains(text, "group lab: the next"):
			stop()
		case !asked && strings.Contains(text, "delay web1"):
			asked, err = true, failover.Ask(s.folder, "r3", failover.Asking{})
		case !asked && strings.Contains(text, "group lab: job"), strings.Contains(text, "group lab: no"): // it could not begin
			stop()
		}
		if err != nil {
			t.Error(err)
		}
	}
	s.stderr = said
	before := time.Now()
	if err := s.run(ctx); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"Job r2 was left by a process that was killed: it is taken back.", " proofs were missed: the first was due at 2026-"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("want %q:\n%s", want, said)
		}
	}
	for id, want := range map[string]string{"r2": "", "r3": "proofs were missed: the first was due at"} {
		if r, err := reportOf(s.folder, id); err != nil || r.State != string(recovery.Over) || *r.Verdict != recovery.Cancelled || !strings.Contains(orHyphen(r.Note), want) {
			t.Errorf("%s: %v: %+v", id, err, r)
		}
	}
	// due is the next time of which somebody speaks.
	due := func(text string) {
		t.Helper()
		_, next, found := strings.Cut(text, "the next proof is due at ")
		next, _, cancelled := strings.Cut(next, ", as the last one was cancelled\n")
		at, err := time.Parse(time.RFC3339, next)
		if !found || !cancelled || err != nil || at.Before(before.Add(24*time.Hour).Truncate(time.Second)) || at.After(time.Now().Add(24*time.Hour)) {
			t.Errorf("%v:\n%s", err, text)
		}
	}
	due(said.String())

	again, stop := context.WithCancel(t.Context()) // another process
	defer stop()
	second := &cancels{at: "\n", stop: stop}
	s.stderr = second
	if err := s.run(again); err != nil {
		t.Error(err)
	}
	due(second.String())
	v, err := s.verify()
	if err != nil {
		t.Fatal(err)
	}
	st, err := s.state(v, time.Now())
	if err != nil || st.Missed != 0 || st.Overdue != 0 || st.Last == nil || st.Last.ID != "r1" {
		t.Errorf("%v: %+v", err, st)
	}
	if code, out, errs := holdfast(t, both, "verify", "--show", "--machines", s.flags.machines, "--metrics", s.metrics); code != 0 || !strings.Contains(out, st.Due) {
		t.Errorf("exit %d, %s%s; want %s", code, out, errs, st.Due)
	}
	metrics, err := os.ReadFile(s.metrics)
	if due, _ := unix(st.due); err != nil || !strings.Contains(string(metrics), fmt.Sprintf("\nholdfast_proof_due_timestamp_seconds{group=\"lab\"} %s\n", strconv.FormatFloat(due, 'f', -1, 64))) ||
		!strings.Contains(string(metrics), "\nholdfast_proof_missed{group=\"lab\"} 0\n") {
		t.Errorf("%v: due %s:\n%s", err, st.Due, metrics)
	}
	if info, err := os.Stat(s.metrics); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v: %v", err, info.Mode())
	}
	// One that begins later, of whomever, counts from then on.
	jobIn(t, s.folder, "r4", recovery.Proof, "2", "")
	if st, err := s.state(v, time.Now()); err != nil || st.due.Before(before) {
		t.Errorf("of long ago: %v, %+v", err, st)
	}
}

// begins leaves of a job of the schedule that was carried out only that it began, as if its process was killed.
func begins(t *testing.T, folder, id string) {
	t.Helper()
	name := filepath.Join(folder, id, "events")
	text, err := os.ReadFile(name)
	if err == nil {
		err = os.WriteFile(name, []byte(strings.Join(strings.SplitAfter(string(text), "\n")[:2], "")), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	scheduledJob(t, folder, id)
}

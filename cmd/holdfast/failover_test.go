package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/failover"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm"
	"github.com/holdfast-dr/holdfast/control/recovery"
)

// jobIn writes the file of a job that was carried out to its end, each step in a quarter of a second.
func jobIn(t *testing.T, folder, id string, kind recovery.Kind, checkpoint string, fail recovery.Verb) {
	t.Helper()
	m := recovery.Machine{Machine: hypervisor.Machine{Name: "web1"}, Wait: config.Wait{Kind: config.WaitSerial, What: "login:"}, WaitTime: time.Minute, Picture: true}
	p := &recovery.Plan{ID: id, Key: "k", Kind: kind, Group: "lab", Checkpoint: checkpoint, Who: "root@east", Machines: []recovery.Machine{m}}
	word := recovery.Halt
	if kind.Fences() {
		word = recovery.Undo // its timer
	}
	jobOf(t, folder, p, word, fail)
}

// jobOf does that with a plan whose machines, once they run, hear that word.
func jobOf(t *testing.T, folder string, p *recovery.Plan, word recovery.Event, fail recovery.Verb) {
	t.Helper()
	id, now := p.ID, moment
	var text strings.Builder
	write := func(e recovery.Entry) {
		e.Time, now = now, now.Add(250*time.Millisecond)
		line, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		text.Write(append(line, '\n'))
	}
	write(recovery.Entry{Plan: p})
	for s := recovery.Fresh(); s.Phase != recovery.Over; {
		step, ok := p.Next(s)
		e := recovery.Entry{Event: recovery.Did, Step: &step}
		if !ok {
			e = recovery.Entry{Event: word, Who: "root@east", Note: "billing <works>"}
		} else {
			write(recovery.Entry{Began: &step})
			if step.Do == fail {
				e.Event, e.Text = recovery.Failing, "no\x1b[2J"
			}
		}
		write(e)
		var err error
		if s, err = p.Step(s, e.Event); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(folder, id), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, id, "events"), []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

const machinesText = `machines:
  - name: web1
    disks: [data]
    networks: [{live: br0}]
    before: {command: [/bin/true, --all]}
    delay: 1s
    wait: "serial:login:"
  - {name: db1, disks: [log], boot: -1}
`

// TestFailoverWords: jobs are listed and told of as text and JSON, and a dry run says what would be.
func TestFailoverWords(t *testing.T) {
	source, target := twoSites()
	both := contextFile(t, source, target)
	folder := filepath.Join(filepath.Dir(both), "recovery")
	jobIn(t, folder, "r1", recovery.Test, "1", "")
	jobIn(t, folder, "r2", recovery.Proof, "2", "")
	jobIn(t, folder, "r10", recovery.Proof, "1", recovery.Wait)
	machines := filepath.Join(t.TempDir(), "machines.yaml")
	if err := os.WriteFile(machines, []byte(machinesText), 0o600); err != nil {
		t.Fatal(err)
	}
	f := func(name string, args ...string) {
		t.Helper()
		for _, format := range []string{"json", "table"} {
			code, out, errs := holdfast(t, both, append(args, "-o", format)...)
			if code != 0 || errs != "" {
				t.Errorf("%q: exit %d, %s", args, code, errs)
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
	f("failover-list", "failover", "list")
	f("failover-report", "failover", "report", "r10")
	f("failover-dry", "failover", "test", "--dry-run", "--machines", machines)
	if len(target.closed) > 0 || target.opened != nil {
		t.Errorf("a dry run opened %v", target.opened)
	}

	no := func(want int, message string, args ...string) {
		t.Helper()
		if code, _, errs := holdfast(t, both, args...); code != want || !strings.Contains(errs, message) {
			t.Errorf("%q: exit %d, %s; want %d with %q", args, code, errs, want, message)
		}
	}
	no(exitUsage, "--machines is missing", "failover", "test")
	no(exitUsage, "no machine \"x\"", "failover", "test", "--machines", machines, "--only", "x")
	no(exitUsage, "--failed goes with --stop", "failover", "test", "--failed")
	no(exitUsage, "must not be negative", "failover", "live", "--timer", "-5s")
	no(exitUsage, "--stop goes with --note and --failed alone", "failover", "test", "--stop", "r1", "--dry-run")
	no(exitUsage, "want serial:TEXT", "verify", "--wait", "login")
	no(exitUsage, "machine db1 is waited for", "verify", "--machines", machines)
	no(exitUsage, "want one job id", "failover", "report")
	no(exitFailed, "no job \"r3\"", "failover", "report", "r3")
	no(exitFailed, "no job \"../r1\"", "failover", "test", "--stop", "../r1")
	no(exitFailed, "no checkpoint carries the tag", "failover", "test", "--machines", machines, "--checkpoint", "never")
	if err := os.WriteFile(filepath.Join(folder, "r1", "events"), []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	no(exitFailed, "job r1: line 1", "failover", "list")
	if code, out, _ := holdfast(t, both, "failover", "test", "--stop", "r2", "-o", "json"); code != 0 || !strings.Contains(out, `"verdict": "passed"`) {
		t.Errorf("stopping what is over: exit %d, %s", code, out)
	}
	if _, err := os.Stat(filepath.Join(folder, "r2", "report.txt")); err != nil {
		t.Errorf("the report of a job whose command was killed before it wrote one: %v", err)
	}
}

// TestOverStays: a job that is over is not changed by whoever carries it on, and machines that were moved are not moved again.
func TestOverStays(t *testing.T) {
	source, target := twoSites()
	both := contextFile(t, source, target)
	folder := filepath.Join(filepath.Dir(both), "recovery")
	jobIn(t, folder, "r1", recovery.Test, "1", recovery.Start)
	before, err := os.ReadFile(filepath.Join(folder, "r1", "events"))
	if err != nil {
		t.Fatal(err)
	}
	if code, _, errs := holdfast(t, both, "failover", "resume", "r1"); code != exitFailed || !strings.Contains(errs, "Job r1 is over: nothing of it is left") || !strings.Contains(errs, "r1 failed, and was taken back: start web1") {
		t.Errorf("exit %d, %s", code, errs)
	}
	if after, err := os.ReadFile(filepath.Join(folder, "r1", "events")); err != nil || string(after) != string(before) {
		t.Errorf("%v: resume wrote\n%s", err, after[len(before):])
	}

	of := &recovery.Plan{ID: "r2", Key: "k2", Kind: recovery.Live, Group: "lab", Checkpoint: "1", Machines: []recovery.Machine{{Machine: hypervisor.Machine{Name: "web1"}}}}
	jobOf(t, folder, of, recovery.Final, "")
	p, err := onto(folder, "r2")
	if err != nil {
		t.Fatal(err)
	}
	p.ID = "r3"
	jobOf(t, folder, p, "", "")
	if code, out, errs := holdfast(t, both, "failover", "plain", "r2"); code != 0 || !strings.Contains(errs, "on plain disks already: job r3 moved them") || !strings.Contains(out, "r3") {
		t.Errorf("exit %d, %s%s", code, out, errs)
	}
	if ids, err := failover.IDs(folder); err != nil || len(ids) != 3 {
		t.Errorf("jobs %q, %v", ids, err)
	}

	// One that turned its source off says so as long as it is told of.
	of.ID, of.Machines[0].Source = "r4", recovery.Source{QMP: "/run/qmp", Time: time.Minute}
	jobOf(t, folder, of, recovery.Undo, "")
	if code, _, errs := holdfast(t, both, "failover", "rollback", "r4"); code != 0 || !strings.HasSuffix(errs, "Now the source's machines web1 are off: start them there, unless another failover of the group runs its machines (see holdfast failover list).\n") {
		t.Errorf("exit %d, %s", code, errs)
	}
	of.ID = "r5"
	jobOf(t, folder, of, recovery.Undo, recovery.Begin)
	if code, _, errs := holdfast(t, both, "failover", "resume", "r5"); code != exitFailed || !strings.HasSuffix(errs, "the source's machines web1 are off: start them there, unless another failover of the group runs its machines (see holdfast failover list)\n") {
		t.Errorf("exit %d, %s", code, errs)
	}
}

// TestCheckedBeforehand: what would keep machines from coming up is said before anything is done, by a dry run too.
func TestCheckedBeforehand(t *testing.T) {
	source, target := twoSites()
	target.failover = &holdfastv1.Failover{State: api.FailoverNone}
	both := contextFile(t, source, target)
	folder := filepath.Join(filepath.Dir(both), "recovery")
	machines := filepath.Join(t.TempDir(), "machines.yaml")
	const fine = "disks: [data], source: {qmp: /nowhere/qmp}"
	f := func(want, machine, command string, args ...string) {
		t.Helper()
		if err := os.WriteFile(machines, []byte("machines: [{name: web1, "+machine+"}]\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(strings.Fields(command), append(args, "--machines", machines)...)
		for _, args := range [][]string{args, append(args, "--dry-run")} {
			if code, _, errs := holdfast(t, both, args...); code != exitFailed || !strings.Contains(errs, want) {
				t.Errorf("%q of %s: exit %d, %s; want %q", args, machine, code, errs, want)
			}
		}
		if ids, err := failover.IDs(folder); err != nil || len(ids) > 0 || target.opened != nil {
			t.Fatalf("%q of %s: jobs %q began (%v), view %v", args, machine, ids, err, target.opened)
		}
	}
	const burnt = "--override-reason=burnt"
	f("group lab has no volume wev: name one", "disks: [wev]", "failover live", burnt)
	f("group lab has no checkpoint 99999999: take one", fine, "failover live", burnt, "--checkpoint", "99999999")
	f("kernel: stat /nowhere/vmlinuz", "disks: [data], kernel: /nowhere/vmlinuz", "failover live", burnt)
	f("initrd: /etc is no file", "disks: [data], kernel: /etc/passwd, initrd: /etc", "failover test")
	f("this host has no bridge br-nope", "disks: [data], networks: [{live: br-nope}]", "failover live", burnt)
	f("before: exec: \"/nope/prog\"", "disks: [data], before: {command: [/nope/prog]}", "failover live", burnt)
	f("after: exec: \"/nope/prog\"", "disks: [data], after: {command: [/nope/prog]}", "failover test")
	f("wait: exec: \"/nope/prog\"", "disks: [data]", "verify", "--wait", "script:/nope/prog")
	f("machine web1: whether the source's machine is off is not known: it cannot be reached", fine, "failover live")
	f("domain web1: libvirt", "disks: [data], source: {libvirt: 'qemu+unix:///system?socket=/nowhere/libvirt', domain: web1}", "failover live")
	f("whether the source's machine is off is not known", fine, "move")
	source.groups[0].State, source.groups[0].Reason = api.StateDisconnected, "the link is down"
	f("group lab is disconnected there (the link is down)", fine, "move")
	target.checkpoints[1].State, target.checkpoints[1].Reason = api.CheckpointBad, "its log is damaged"
	f("checkpoint 2 is bad (its log is damaged)", fine, "failover test", "--checkpoint", "2")
	for state, want := range map[string]string{api.FailoverRecovering: "commit it or roll it back", api.FailoverRollingBack: "still rolled back", api.FailoverOnDisks: "was committed (on-disks)"} {
		target.failover.State = state
		f(want, fine, "failover live", burnt)
	}
	source.groups[0].State, source.groups[0].EtaSeconds = api.StateResync, new(float64(601))
	f("would not come over within 10m", fine, "move")
	source.groups[0].EtaSeconds = new(float64(600))
	f("whether the source's machine is off is not known", fine, "move") // alone: it is an error that stays
	if code, _, errs := holdfast(t, both, "move", "--machines", machines); code != exitFailed || strings.Contains(errs, "would not come over") {
		t.Errorf("exit %d, %s", code, errs)
	}
	target.groups[0].Name = "other"
	f("there is no group lab", fine, "failover test")

	// A job of which nothing was begun is checked when it is carried on.
	jobIn(t, folder, "r1", recovery.Test, "99999999", "")
	events := filepath.Join(folder, "r1", "events")
	text, err := os.ReadFile(events)
	if err != nil {
		t.Fatal(err)
	}
	plan, _, _ := strings.Cut(string(text), "\n")
	if err := os.WriteFile(events, []byte(plan+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := holdfast(t, both, "failover", "resume", "r1"); code != exitFailed || !strings.Contains(errs, "has no checkpoint 99999999") {
		t.Errorf("resume: exit %d, %s", code, errs)
	}
	if after, err := os.ReadFile(events); err != nil || string(after) != plan+"\n" {
		t.Errorf("%v: resume wrote\n%s", err, after)
	}
}

// TestGoesOnWithout: a live failover whose after script, or wait, is missing begins, and says so; so does one of two groups of a name at a site, of
// which another is protected there, or has its machines on its disks.
func TestGoesOnWithout(t *testing.T) {
	source, target := twoSites()
	target.failover = &holdfastv1.Failover{State: api.FailoverNone}
	target.groups = append([]*holdfastv1.Group{{Name: "lab", Role: api.RoleSource}, {Name: "lab", Role: api.RoleTarget, State: api.FailoverOnDisks}}, target.groups...)
	both := contextFile(t, source, target)
	machines := filepath.Join(t.TempDir(), "machines.yaml")
	text := "machines: [{name: web1, disks: [data], after: {command: [/nope/prog]}, wait: 'script:/nope/wait'}]\n"
	if err := os.WriteFile(machines, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	live := []string{"failover", "live", "--override-reason=burnt", "--machines", machines}
	code, out, errs := holdfast(t, both, append(live, "--dry-run")...)
	if code != 0 || !strings.Contains(out, "begin") || !strings.Contains(errs, "Warning: machine web1: after: ") || !strings.Contains(errs, "Warning: machine web1: wait: ") {
		t.Errorf("exit %d, %s%s", code, out, errs)
	}
	if _, _, errs := holdfast(t, both, live...); !strings.Contains(errs, "Warning: machine web1: after: ") || !strings.Contains(errs, "Job r1: group lab at checkpoint 2.") {
		t.Errorf("it did not begin: %s", errs)
	}
}

// TestCommitIsNoCancel: a commit never ends a job in another way, nor says that all is well when it ended so.
func TestCommitIsNoCancel(t *testing.T) {
	source, target := twoSites()
	both := contextFile(t, source, target)
	folder := filepath.Join(filepath.Dir(both), "recovery")
	f := func(want int, message, word, id string) {
		t.Helper()
		if code, out, errs := holdfast(t, both, "failover", word, id); code != want || !strings.Contains(errs, message) {
			t.Errorf("%s %s: exit %d, %s%s; want %d with %q", word, id, code, out, errs, want, message)
		}
	}
	jobIn(t, folder, "r1", recovery.Live, "1", "")
	f(exitFailed, "job r1 is over: rolled-back", "commit", "r1")
	f(0, "", "rollback", "r1")
	jobIn(t, folder, "r2", recovery.Test, "1", "")
	f(exitFailed, "job r2 is a test, and nothing to commit: stop it with holdfast failover test --stop r2", "commit", "r2")
	f(exitFailed, "job r2 is a test, and nothing to roll back", "rollback", "r2")
	if code, _, errs := holdfast(t, both, "failover", "test", "--stop", "r1"); code != exitFailed || !strings.Contains(errs, "job r1 is no test, but a live failover") {
		t.Errorf("a live failover is stopped as a test: exit %d, %s", code, errs)
	}

	jobIn(t, folder, "r3", recovery.Live, "1", "")
	events := filepath.Join(folder, "r3", "events")
	text, err := os.ReadFile(events)
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	if err := os.WriteFile(events, []byte(first+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	j, err := failover.Open(folder, "r3") // as who brings its machines up
	if err != nil {
		t.Fatal(err)
	}
	f(exitFailed, "machines are still being brought up", "commit", "r3")
	if _, err := os.Stat(filepath.Join(folder, "r3", "cancel")); err == nil {
		t.Error("whoever brings its machines up was asked to end")
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	f(exitFailed, "wait until its machines run", "commit", "r3")
}

// TestStopLate: a word that comes after a test is over, and would be lost, is refused; said again it is not.
func TestStopLate(t *testing.T) {
	source, target := twoSites()
	both := contextFile(t, source, target)
	jobIn(t, filepath.Join(filepath.Dir(both), "recovery"), "r1", recovery.Test, "1", "")
	stop := func(want int, message string, more ...string) {
		t.Helper()
		args := append([]string{"failover", "test", "--stop", "r1"}, more...)
		if code, out, errs := holdfast(t, both, args...); code != want || !strings.Contains(errs, message) || want != 0 && out != "" {
			t.Errorf("%q: exit %d, %s%s; want %d with %q", args, code, out, errs, want, message)
		}
	}
	stop(0, "")
	stop(exitFailed, "job r1 was over already: passed, by root@east at 20", "--note", "B")
	stop(exitFailed, "your note was not kept", "--note", "B")
	stop(exitFailed, "job r1 is over: passed, by root@east", "--failed", "--note", "B")
}

// TestStopElsewhere: a test that hangs in another process ends by the word of whoever stops it, which stands in its report with its note; a file that does
// not read is a word too.
func TestStopElsewhere(t *testing.T) {
	f := func(verdict recovery.Verdict, word recovery.Event, note string, args ...string) {
		t.Helper()
		const id = "r1"
		source, target := twoSites()
		both := contextFile(t, source, target)
		folder := filepath.Join(filepath.Dir(both), "recovery")
		client, _, err := (&app{contextFile: both, env: func(string) string { return "" }}).dial(api.RoleTarget)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		p := &recovery.Plan{Key: "k", Kind: recovery.Test, Group: "lab", Checkpoint: "1", Who: "root@east", Machines: []recovery.Machine{
			{Machine: hypervisor.Machine{Name: "web1", MemoryBytes: 64 << 20, CPUs: 1, Disks: []hypervisor.Disk{{Volume: "vol1"}}}, Delay: time.Hour}}}
		j, err := failover.Create(folder, p, recovery.Entry{Time: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		hangs, done := make(chan struct{}), make(chan error, 1)
		r := &failover.Runner{Target: client, Hypervisor: kvm.Open, Who: "root@another", Now: time.Now, Tell: func(s recovery.Step, ended bool, _ string, _ error) {
			if s.Do == recovery.Delay && !ended {
				close(hangs)
			}
		}}
		go func() { done <- errors.Join(r.Run(t.Context(), j), j.Close()) }()
		select {
		case <-hangs:
		case err := <-done:
			t.Fatalf("it does not hang: %v, %+v", err, j.State)
		}
		if len(args) == 0 {
			err = os.WriteFile(filepath.Join(folder, id, "cancel"), []byte("nonsense"), 0o600)
		} else if code, out, errs := holdfast(t, both, append([]string{"failover", "test", "--stop", id}, args...)...); code != 0 || !strings.Contains(out, string(verdict)) {
			t.Errorf("%q: exit %d, %s%s", args, code, out, errs)
		}
		if err := errors.Join(err, <-done); err != nil {
			t.Fatal(err)
		}
		by := "root@another"
		if len(args) > 0 {
			by = who()
		}
		report, err := reportOf(folder, id)
		if err != nil || report.Verdict == nil || *report.Verdict != verdict || len(report.Words) != 1 || report.Words[0].Word != word || report.Words[0].Who != by || deref(report.Words[0].Note) != note {
			t.Errorf("%q: %v: %+v", args, err, report)
		}
	}
	f(recovery.Failed, recovery.Reject, "no login", "--failed", "--note", "no login")
	f(recovery.Cancelled, recovery.Cancel, "enough", "--note", "enough")
	f(recovery.Cancelled, recovery.Cancel, "")
}

// TestTimerTold: whoever resumes a job that its timer rolled back learns that the source's machines are off; a resume is not whose word ended it.
func TestTimerTold(t *testing.T) {
	source, target := twoSites()
	both := contextFile(t, source, target)
	folder := filepath.Join(filepath.Dir(both), "recovery")
	p := &recovery.Plan{ID: "r1", Key: "k", Kind: recovery.Live, Group: "lab", Checkpoint: "1", Machines: []recovery.Machine{
		{Machine: hypervisor.Machine{Name: "web1"}, Source: recovery.Source{QMP: "/run/qmp", Time: time.Minute}}}}
	jobOf(t, folder, p, recovery.Undo, "")
	const off = "Now the source's machines web1 are off: start them there, unless another failover"
	for _, command := range []string{"resume", "commit"} {
		if code, _, errs := holdfast(t, both, "failover", command, "r1"); (code == 0) != (command == "resume") || strings.Count(errs, off) != 1 {
			t.Errorf("%s: exit %d, %s", command, code, errs)
		}
	}
	r, err := reportOf(folder, "r1")
	if err != nil {
		t.Fatal(err)
	}
	r.Words = append(r.Words, recovery.ReportWord{Time: "later", Who: "root@late", Word: recovery.Resume})
	if text := endedAs(r); !strings.Contains(text, "by root@east") {
		t.Errorf("it ended %s", text)
	}
}

// TestProofs: only what came up marks its checkpoint.
func TestProofs(t *testing.T) {
	source, target := twoSites()
	both := contextFile(t, source, target)
	folder := filepath.Join(filepath.Dir(both), "recovery")
	jobIn(t, folder, "r1", recovery.Proof, "2", "")
	jobIn(t, folder, "r2", recovery.Proof, "1", recovery.Wait)
	jobIn(t, folder, "r3", recovery.Test, "1", "")
	_, out, _ := holdfast(t, both, "checkpoint", "list", "-o", "json")
	var all []checkpoint
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) != 2 {
		t.Fatalf("%v: %s", err, out)
	}
	for _, c := range all {
		if want := map[string]string{"2": "r1"}[c.ID]; deref(c.Proved) != want {
			t.Errorf("checkpoint %s is proved by %q, want %q", c.ID, deref(c.Proved), want)
		}
	}
}

// TestDryRunOfPlain says which machines move while they run.
func TestDryRunOfPlain(t *testing.T) {
	f := func(hypervisor config.Hypervisor, vhostUser bool, want string) {
		t.Helper()
		m := recovery.Machine{}
		m.Name, m.VhostUser = "web1", vhostUser
		p := &recovery.Plan{Kind: recovery.Plain, Machines: []recovery.Machine{m}, Hypervisor: hypervisor}
		if got := whatStep(p, recovery.Step{Do: recovery.Onward, Machine: "web1"}); !strings.Contains(got, want) {
			t.Errorf("%s, vhost-user %v: %q, want %q", hypervisor, vhostUser, got, want)
		}
	}
	f(config.Hypervisor{}, false, "without a stop")
	f(config.Hypervisor{}, true, "its device moves at the end, without a stop")
	f(config.Hypervisor{URI: "qemu:///system"}, false, "without a stop")
}

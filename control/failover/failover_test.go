package failover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/recovery"
)

// site is a target that has views, over a real socket. They outlive whoever opened them.
type site struct {
	mu     sync.Mutex
	views  []*holdfastv1.View
	opened int
	fail   error   // what it answers
	used   []int32 // connections of guests, look by look; the last for good

	failover     *holdfastv1.Failover
	begun, calls int                  // how often it began, and was asked about it
	behind       *holdfastv1.Failover // it is being begun still: whoever ends one waits for it

	reversing reversing
}

func (s *site) Open(_ context.Context, r *holdfastv1.ViewsServiceOpenRequest) (*holdfastv1.ViewsServiceOpenResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return nil, s.fail
	}
	s.opened++
	v := &holdfastv1.View{Id: fmt.Sprintf("v%d", s.opened), Group: r.Group, Name: r.Name, Checkpoint: r.Checkpoint, State: "good",
		Volumes: []*holdfastv1.ViewVolume{{Name: "data", Bytes: 1 << 20, Nbd: "nbd+unix:///data?socket=/run/v"}}}
	s.views = append(s.views, v)
	return &holdfastv1.ViewsServiceOpenResponse{View: v}, nil
}

func (s *site) List(context.Context, *holdfastv1.ViewsServiceListRequest) (*holdfastv1.ViewsServiceListResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &holdfastv1.ViewsServiceListResponse{Views: slices.Clone(s.views)}, s.fail
}

func (s *site) Close(_ context.Context, r *holdfastv1.ViewsServiceCloseRequest) (*holdfastv1.ViewsServiceCloseResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return nil, s.fail
	}
	s.views = slices.DeleteFunc(s.views, func(v *holdfastv1.View) bool { return v.Id == r.Id })
	return &holdfastv1.ViewsServiceCloseResponse{}, nil
}

func (s *site) dial(t *testing.T) *api.Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- api.Serve(ctx, l, api.Handlers{Views: s, Recovery: failoverOf{s}, Checkpoints: sourceOf{}, Status: statusOf{s: s}}, []int{os.Getuid()}, slog.New(slog.DiscardHandler))
	}()
	c := api.DialUnix(filepath.Join(dir, "s"))
	t.Cleanup(func() { c.Close(); stop(); <-done; os.RemoveAll(dir) })
	return c
}

// host has machines that outlive whoever started them, and holds its caller to the interface.
type host struct {
	t        *testing.T
	mu       sync.Mutex
	machines map[string]*testMachine
	fail     func(what, name string) error
}

type testMachine struct {
	def   hypervisor.Machine
	state hypervisor.State
	said  string
}

func newHost(t *testing.T) *host { return &host{t: t, machines: map[string]*testMachine{}} }

func (h *host) open(config.Hypervisor, string) (hypervisor.Hypervisor, error) { return h, nil }

func (h *host) at(what, name string) (*testMachine, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fail != nil {
		if err := h.fail(what, name); err != nil {
			return nil, err
		}
	}
	return h.machines[name], nil
}

func (h *host) Check(hypervisor.Machine) error { return nil }

func (h *host) Shares(context.Context) error { _, err := h.at("shares", ""); return err }

func (h *host) Define(_ context.Context, m hypervisor.Machine) error {
	have, err := h.at("define", m.Name)
	if err != nil {
		return err
	}
	for _, d := range m.Disks {
		if d.NBD == "" && d.VhostUser == "" {
			return errors.New("no disk")
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if have == nil || have.state == hypervisor.Off && !reflect.DeepEqual(have.def, m) {
		h.machines[m.Name] = &testMachine{def: m, state: hypervisor.Off, said: "BIOS\n"}
	}
	return nil
}

func (h *host) Start(_ context.Context, name string) error {
	m, err := h.at("start", name)
	if err != nil {
		return err
	}
	if m == nil {
		return hypervisor.ErrAbsent
	}
	m.state, m.said = hypervisor.Running, m.said+name+" login:\n"
	return nil
}

func (h *host) Stop(_ context.Context, name string, _ hypervisor.How) error {
	m, err := h.at("stop", name)
	if err == nil && m != nil {
		m.state = hypervisor.Off
	}
	return err
}

func (h *host) State(_ context.Context, name string) (hypervisor.State, error) {
	m, err := h.at("state", name)
	if err != nil || m == nil {
		return hypervisor.Absent, err
	}
	return m.state, nil
}

func (h *host) Screenshot(_ context.Context, name string) ([]byte, error) {
	_, err := h.at("picture", name)
	return []byte("picture of " + name), err
}

func (h *host) Serial(_ context.Context, name string, off int64) ([]byte, error) {
	m, err := h.at("serial", name)
	if err != nil || m == nil {
		return nil, errors.Join(err, hypervisor.ErrAbsent)
	}
	p := []byte(m.said)[min(int(off), len(m.said)):]
	return p[:min(len(p), 5)], nil // it comes in pieces
}

func (h *host) MaySetDisk(_ context.Context, name string) error {
	m, err := h.at("may-set-disk", name)
	if err == nil && m == nil {
		err = hypervisor.ErrAbsent
	}
	return err
}

func (h *host) SetDisk(_ context.Context, name string, d hypervisor.Disk) error {
	m, err := h.at("set-disk", name)
	if err != nil || m == nil {
		return errors.Join(err, hypervisor.ErrAbsent)
	}
	for i := range m.def.Disks {
		if m.def.Disks[i].Volume == d.Volume {
			m.def.Disks[i] = d
		}
	}
	return nil
}

func (h *host) Undefine(_ context.Context, name string) error {
	m, err := h.at("undefine", name)
	if err != nil {
		return err
	}
	if m != nil && m.state == hypervisor.Running {
		return errors.New("not off")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.machines, name)
	return nil
}

func testPlan(kind recovery.Kind) *recovery.Plan {
	m := func(name string, boot int) recovery.Machine {
		return recovery.Machine{Machine: hypervisor.Machine{Name: name, Disks: []hypervisor.Disk{{Volume: "data"}}}, Boot: boot,
			Wait: config.Wait{Kind: config.WaitSerial, What: name + " login:"}, WaitTime: time.Minute}
	}
	db, web := m("db", 1), m("web", 2)
	web.Before = recovery.Script{Command: []string{"/bin/sh", "-c", "echo before $HOLDFAST_MACHINE of $HOLDFAST_GROUP at $HOLDFAST_CHECKPOINT >> before"}, Time: time.Minute}
	web.Delay, web.Picture = time.Millisecond, true
	return &recovery.Plan{Key: api.NewKey(), Kind: kind, Group: "erp", Checkpoint: "42", Who: "root@east", Machines: []recovery.Machine{db, web}}
}

func newRunner(t *testing.T, s *site, h *host) *Runner {
	return &Runner{Target: s.dial(t), Hypervisor: h.open, Who: "root@east", Now: time.Now, Tell: func(recovery.Step, bool, string, error) {}}
}

func begin(t *testing.T, folder string, p *recovery.Plan) *Job {
	t.Helper()
	j, err := Create(folder, p, recovery.Entry{Time: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// wantState fails the test unless the job is as it is to be, and nothing is left behind unless it runs.
func wantState(t *testing.T, j *Job, s *site, h *host, phase recovery.Phase, v recovery.Verdict) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	views, machines := 0, 0
	if phase == recovery.Running {
		views, machines = 1, 2
	}
	running := 0
	for _, m := range h.machines {
		if m.state == hypervisor.Running {
			running++
		}
	}
	if j.State.Phase != phase || j.State.Verdict != v || len(s.views) != views || len(h.machines) != machines || running != machines {
		t.Errorf("job %s is %+v, with %d views and %d machines, %d running", j.Plan.ID, j.State, len(s.views), len(h.machines), running)
	}
}

// It is alone, as TestOntoPlainDisks is.
func TestRun(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "jobs")
	s, h := &site{}, newHost(t)
	r := newRunner(t, s, h)
	j := begin(t, folder, testPlan(recovery.Test))
	defer j.Close()
	if err := r.Run(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	wantState(t, j, s, h, recovery.Running, recovery.NoVerdict)
	if _, err := Open(folder, "r1"); !errors.Is(err, ErrBusy) {
		t.Errorf("opened by two: %v", err)
	}
	if _, busy, err := Read(folder, "r1"); err != nil || !busy {
		t.Errorf("read: %v, %v", busy, err)
	}
	if err := r.Say(j, recovery.Final, ""); err == nil || !strings.Contains(err.Error(), "it is running: stop it") {
		t.Errorf("a test was committed: %v", err)
	}
	if err := r.Say(j, recovery.Halt, "billing works"); err != nil {
		t.Fatal(err)
	}
	if err := r.Run(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	wantState(t, j, s, h, recovery.Over, recovery.Passed)
	for name, want := range map[string]string{"web.png": "picture of web", "web.serial": "BIOS\nweb login:\n", "before": "before web of erp at 42\n", "report.json": `"note": "billing works"`, "report.txt": "passed"} {
		if text, err := os.ReadFile(filepath.Join(j.Dir, name)); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: %v: %s", name, err, text)
		}
	}
	// Ids rise, and folders of others are no jobs.
	for _, name := range []string{"r01", "rx", "notes"} {
		if err := os.Mkdir(filepath.Join(folder, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	second := begin(t, folder, testPlan(recovery.Proof))
	defer second.Close()
	if err := r.Run(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	wantState(t, second, s, h, recovery.Over, recovery.Passed)
	if ids, err := IDs(folder); err != nil || !slices.Equal(ids, []string{"r1", "r2"}) {
		t.Errorf("jobs %q, %v", ids, err)
	}
	if err := Remove(folder, "r1"); !errors.Is(err, ErrBusy) {
		t.Errorf("a job that this process has was removed: %v", err)
	}
	if err := errors.Join(j.Close(), Remove(folder, "r1")); err != nil {
		t.Error(err)
	}
	if ids, err := IDs(folder); err != nil || !slices.Equal(ids, []string{"r2"}) {
		t.Errorf("r1 was removed, and there are %q, %v", ids, err)
	}
	third := begin(t, folder, testPlan(recovery.Test))
	if err := third.Close(); err != nil {
		t.Error(err)
	}
	if err := Remove(folder, third.Plan.ID); err == nil || !strings.Contains(err.Error(), "is not over") {
		t.Errorf("a job that is not over was removed: %v", err)
	}
	if _, err := Open(folder, "../r1"); err == nil {
		t.Error("a job of another folder")
	}
}

// inMemory is a folder where syncs cost nothing, where there is one.
func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "hf")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestLockEnds: a job that is let go is free at once, also where a child that is about to begin has its file yet.
func TestLockEnds(t *testing.T) {
	folder := inMemory(t)
	j := begin(t, folder, testPlan(recovery.Proof))
	child, err := syscall.Dup(int(j.events.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(child)
	if _, err := Open(folder, j.Plan.ID); err == nil {
		t.Error("a job was opened twice")
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if j, err = Open(folder, j.Plan.ID); err != nil {
		t.Fatal(err)
	}
	j.Close()
}

// reopen opens the job of a runner that was killed. A program that another test starts holds all locks of
// this process for as long as it takes to start.
func reopen(t *testing.T, folder string) *Job {
	t.Helper()
	for late := time.Now().Add(10 * time.Second); ; {
		j, err := Open(folder, "r1")
		if err == nil {
			return j
		}
		if !errors.Is(err, ErrBusy) || time.Now().After(late) {
			t.Fatal(err)
		}
	}
}

// killed is what ends a runner in the middle.
type killed struct{}

// dies runs a job until the runner is killed at the n-th moment: before a step is carried out, or after
// it was and before that is written down. Half a line stays behind.
func dies(t *testing.T, r *Runner, j *Job, n int) (died bool) {
	t.Helper()
	moment := 0
	mortal := *r
	mortal.Tell = func(recovery.Step, bool, string, error) {
		if moment++; moment == n {
			panic(killed{})
		}
	}
	defer func() {
		if v := recover(); v != nil {
			if _, ok := v.(killed); !ok {
				panic(v)
			}
			if _, err := j.events.WriteString(`{"time":"2026-`); err != nil {
				t.Error(err)
			}
			j.Close()
			died = true
		}
	}()
	if err := mortal.Run(context.Background(), j); err != nil {
		t.Fatal(err)
	}
	return false
}

// TestKilledAtEachStep kills whoever carries a job out at each moment of it, and again at the next when
// it is carried on: it ends as if nobody had been killed, or, stopped, with nothing left behind.
func TestKilledAtEachStep(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"resumed", "stopped"} {
		for n := 1; ; n++ {
			s, h := &site{}, newHost(t)
			r := newRunner(t, s, h)
			folder := inMemory(t)
			j := begin(t, folder, testPlan(recovery.Test))
			if !dies(t, r, j, n) {
				j.Close()
				if n < 20 {
					t.Fatalf("it was killed at %d moments only", n-1)
				}
				break
			}
			end := func(e recovery.Event) {
				t.Helper()
				if err := r.Say(j, e, ""); err != nil {
					t.Fatalf("killed at %d: %v", n, err)
				}
				for again := 1; ; again++ { // killed again and again, one moment later each time
					if !dies(t, r, j, again) {
						return
					}
					j = reopen(t, folder)
				}
			}
			j = reopen(t, folder)
			want := recovery.Cancelled
			if how == "resumed" {
				end(recovery.Resume)
				wantState(t, j, s, h, recovery.Running, recovery.NoVerdict)
				want = recovery.Passed
			}
			end(recovery.Halt)
			wantState(t, j, s, h, recovery.Over, want)
			if s.opened > 1 {
				t.Errorf("killed at %d: %d views were opened", n, s.opened)
			}
			j.Close()
		}
	}
}

// TestFailsAtEachStep: whatever fails on the way up, nothing is left behind; what fails on the way to the
// end halts the job, which ends once it is resumed.
func TestFailsAtEachStep(t *testing.T) {
	t.Parallel()
	no := errors.New("no")
	f := func(what string, phase recovery.Phase, verdict recovery.Verdict, halted bool) {
		t.Helper()
		s, h := &site{}, newHost(t)
		r := newRunner(t, s, h)
		h.fail = func(at, name string) error {
			if at == what && name == "web" {
				return no
			}
			return nil
		}
		if what == "open" {
			s.fail = api.Errorf(api.Exhausted, "make room", "the disk is full")
		}
		j := begin(t, inMemory(t), testPlan(recovery.Test))
		defer j.Close()
		if err := r.Run(t.Context(), j); err != nil {
			t.Fatal(err)
		}
		if j.State.Phase == recovery.Running && phase != recovery.Running {
			if err := r.Say(j, recovery.Halt, ""); err != nil {
				t.Fatal(err)
			}
			if err := r.Run(t.Context(), j); err != nil {
				t.Fatal(err)
			}
		}
		if j.State.Halted != halted {
			t.Fatalf("%s: %+v", what, j.State)
		}
		if report, err := r.Report(j); err != nil || verdict == recovery.Failed && (report.Reason == nil || j.Failure(report) == nil) {
			t.Errorf("%s: %+v, %v", what, report, err)
		} else if err := j.Failure(report); halted && (err == nil || !strings.Contains(err.Error(), "failover resume")) {
			t.Errorf("%s: %v", what, err)
		}
		if halted || what == "open" {
			h.fail, s.fail = nil, nil
			if err := errors.Join(r.Say(j, recovery.Resume, ""), r.Run(t.Context(), j)); err != nil && !strings.Contains(err.Error(), "over") {
				t.Fatal(err)
			}
		}
		wantState(t, j, s, h, phase, verdict)
	}
	f("define", recovery.Over, recovery.Failed, false)
	f("start", recovery.Over, recovery.Failed, false)
	f("picture", recovery.Running, recovery.NoVerdict, false)
	f("stop", recovery.Over, recovery.Passed, true)
	f("undefine", recovery.Over, recovery.Passed, true)
	f("open", recovery.Over, recovery.Failed, true) // closing it fails, too
}

// TestWaits: what a machine is waited for comes, or does not; or the machine goes off.
func TestWaits(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := t.TempDir()
	script := filepath.Join(dir, "up")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho $HOLDFAST_MACHINE is up\n[ -e $0.now ] || { touch $0.now; exit 1; }\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	f := func(wait, want string, off bool) {
		t.Helper()
		w, err := config.ParseWait(wait)
		if err != nil {
			t.Fatal(err)
		}
		s, h := &site{}, newHost(t)
		r := newRunner(t, s, h)
		p := testPlan(recovery.Proof)
		p.Machines = p.Machines[:1]
		p.Machines[0].Wait, p.Machines[0].WaitTime = w, 2*time.Second
		if off {
			h.fail = func(what, name string) error {
				if what == "serial" || what == "state" {
					h.machines[name].state = hypervisor.Off
				}
				return nil
			}
		}
		j := begin(t, inMemory(t), p)
		defer j.Close()
		if err := r.Run(t.Context(), j); err != nil {
			t.Fatal(err)
		}
		verdict := recovery.Passed
		report, err := r.Report(j)
		if err != nil {
			t.Fatal(err)
		}
		said := report.Text()
		if off || strings.Contains(want, "not") {
			verdict = recovery.Failed
		}
		if j.State.Verdict != verdict || !strings.Contains(said, want) {
			t.Errorf("%s: %+v, no %q in\n%s", wait, j.State, want, said)
		}
	}
	f("serial:db login", "done: db login:", false)
	f("serial:IOS\ndb lo", "done: BIOS", false)
	f("serial:never", "has not said it", false)
	f("serial:never", "the machine is off; it did not say", true)
	f("tcp:"+l.Addr().String(), "takes connections", false)
	f("script:"+script, "db is up", false)
	f("script:/nowhere/up", "it has not come", false)
	l.Close()
	f("tcp:"+l.Addr().String(), "the machine is off", true)
}

// TestScripts: their output and why they failed is kept; one that takes too long is killed, with what it started.
func TestScripts(t *testing.T) {
	t.Parallel()
	f := func(want string, limit time.Duration, argv ...string) {
		t.Helper()
		s, h := &site{}, newHost(t)
		r := newRunner(t, s, h)
		p := testPlan(recovery.Proof)
		p.Machines[1].Before = recovery.Script{Command: argv, Time: limit}
		j := begin(t, inMemory(t), p)
		defer j.Close()
		if err := r.Run(t.Context(), j); err != nil {
			t.Fatal(err)
		}
		report, err := r.Report(j)
		if err != nil || report.Reason == nil || !strings.Contains(*report.Reason, want) {
			t.Errorf("%q: %+v, %v, want %q", argv, report.Reason, err, want)
		}
		wantState(t, j, s, h, recovery.Over, recovery.Failed)
	}
	f("exit status 3\nsaid", time.Minute, "/bin/sh", "-c", "echo said; exit 3")
	f("no such file", time.Minute, "/nowhere/script")
	f("was killed\nsaid", 500*time.Millisecond, "/bin/sh", "-c", "echo said; sleep 60 & wait")
	f("\n"+strings.Repeat("y\n", 10), time.Minute, "/bin/sh", "-c", "yes | head -c 100000; exit 1")
}

// TestCancelled: Ctrl-C, and another process's word, take a job back while it is starting.
func TestCancelled(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"interrupted", "asked", "early"} {
		s, h := &site{}, newHost(t)
		r := newRunner(t, s, h)
		folder := inMemory(t)
		p := testPlan(recovery.Test)
		p.Machines[0].Wait.What = "never"
		j := begin(t, folder, p)
		defer j.Close()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if how == "early" {
			cancel()
		}
		r.Tell = func(s recovery.Step, ended bool, _ string, _ error) {
			if s.Do != recovery.Wait || ended {
				return
			}
			if how == "interrupted" {
				cancel()
			} else if err := Ask(folder, p.ID, Asking{}); err != nil {
				t.Error(err)
			}
		}
		if err := r.Run(ctx, j); err != nil {
			t.Fatal(err)
		}
		wantState(t, j, s, h, recovery.Over, recovery.Cancelled)
		if j.asked() {
			t.Error("it is asked to end still")
		}
		if report, err := r.Report(j); err != nil || j.Failure(report) == nil || len(report.Words) != 1 {
			t.Errorf("%s: %+v, %v", how, report, err)
		}
	}
}

// TestDamagedEvents: what does not read is told, and never acted on.
func TestDamagedEvents(t *testing.T) {
	t.Parallel()
	s, h := &site{}, newHost(t)
	r := newRunner(t, s, h)
	folder := inMemory(t)
	j := begin(t, folder, testPlan(recovery.Test))
	if err := errors.Join(r.Run(t.Context(), j), j.Close()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(j.Dir, eventsName)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f := func(text, want string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := Open(folder, "r1")
		if err == nil {
			j.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	lines := strings.SplitAfter(string(good), "\n")
	f(lines[0]+"nonsense\n"+lines[1], "line 2")
	f(strings.Join(lines[1:], ""), "no plan")
	f(lines[0]+lines[2]+lines[2], "not its turn")
	f("", "no job")
	if err := os.WriteFile(path, good, 0o400); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() != 0 {
		f(string(good), "permission")
	}
}

func TestMachines(t *testing.T) {
	file, err := config.LoadMachines("../config/testdata/machines-good.yaml")
	if err != nil {
		t.Fatal(err)
	}
	all, err := Machines(file, nil, recovery.Test)
	if err != nil || len(all) != 3 || all[0].Name != "db1" || all[0].MemoryBytes != 2<<30 || all[0].Disks[1].Volume != "db1-data" || all[0].Source.QMP != "/run/db1.qmp" {
		t.Errorf("%+v, %v", all, err)
	}
	if n := all[0].Networks[0]; n.Bridge != "" || len(n.Forward) != 1 || n.MAC == "" {
		t.Errorf("a test is not isolated: %+v", n)
	}
	live, err := Machines(file, []string{"web2", "db1"}, recovery.Live)
	if err != nil || len(live) != 2 || live[1].Name != "web2" {
		t.Errorf("%+v, %v", live, err)
	}
	if n := live[0].Networks[0]; n.Bridge != "br0" || len(n.Forward) != 0 {
		t.Errorf("a live failover has %+v", n)
	}
	if _, err := Machines(file, []string{"web9"}, recovery.Test); err == nil || !strings.Contains(err.Error(), "db1, web1, web2") {
		t.Error(err)
	}
}

// TestRevive: of the machines that a job has running those that are off are started, and of no other job. One that is neither is named.
func TestRevive(t *testing.T) {
	t.Parallel()
	s, h := &site{}, newHost(t)
	r := newRunner(t, s, h)
	j := begin(t, inMemory(t), testPlan(recovery.Test))
	defer j.Close()
	revive := func(want ...string) {
		t.Helper()
		if started, err := r.Revive(t.Context(), j); err != nil || !slices.Equal(started, want) {
			t.Errorf("started %q, %v, want %q", started, err, want)
		}
	}
	revive()
	if err := r.Run(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	revive()
	h.machines["web"].state = hypervisor.Off
	revive("web")
	wantState(t, j, s, h, recovery.Running, recovery.NoVerdict)
	h.machines["db"].state, h.fail = hypervisor.Off, func(what, _ string) error {
		if what == "start" {
			return errors.New("no")
		}
		return nil
	}
	if started, err := r.Revive(t.Context(), j); err == nil || len(started) != 1 {
		t.Errorf("started %q, %v", started, err)
	}
	h.fail = nil
	h.machines["db"].state, h.machines["web"].state = hypervisor.Paused, hypervisor.Off
	if started, err := r.Revive(t.Context(), j); err == nil || !strings.Contains(err.Error(), "machine db is paused") || !slices.Equal(started, []string{"web"}) {
		t.Errorf("started %q, %v", started, err)
	}
	if err := errors.Join(r.Say(j, recovery.Halt, ""), r.Run(t.Context(), j)); err != nil {
		t.Fatal(err)
	}
	revive()
}

// TestEndMachines: what cannot be ended keeps no other machine from it, and is told.
func TestEndMachines(t *testing.T) {
	folder := inMemory(t)
	h := newHost(t)
	for _, name := range []string{"db", "web", "log"} {
		j := begin(t, folder, testPlan(recovery.Test))
		if err := errors.Join(os.MkdirAll(filepath.Join(j.MachinesDir(), name), 0o700), j.Close()); err != nil {
			t.Fatal(err)
		}
		h.machines[name] = &testMachine{state: hypervisor.Running}
	}
	if err := os.WriteFile(filepath.Join(folder, "r1", eventsName), []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.fail = func(what, name string) error {
		if name == "web" {
			return errors.New("QEMU does not end")
		}
		return nil
	}
	for _, forget := range []bool{false, true} {
		err := EndMachines(t.Context(), folder, h.open, forget)
		if err == nil || !strings.Contains(err.Error(), "r1/machines/db: job r1: line 1") || !strings.Contains(err.Error(), "r2/machines/web: QEMU does not end") {
			t.Errorf("it says %v", err)
		}
		if m := h.machines["log"]; forget != (m == nil) || m != nil && m.state != hypervisor.Off {
			t.Errorf("the last one, to be forgotten: %v, is %+v", forget, m)
		}
	}
}

package scenario

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/config"
	"go.uber.org/goleak"
)

// upLab brings a lab of fakes up in dir; it is gone when the test ends.
func upLab(t *testing.T, o Options) *Lab {
	t.Helper()
	o.Binaries, o.Overcommit, o.Env = fakeBinaries(t), true, append(o.Env, quickRace...)
	lab, err := Up(t.Context(), o, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := os.Stat(lab.dir); err == nil {
			if _, err := lab.Down(context.Background(), true); err != nil {
				t.Error(err)
			}
		}
	})
	return lab
}

// quickRace lets programs built with the race detector end at once, not after a second.
var quickRace = []string{"GORACE=atexit_sleep_ms=0"}

// pidOf returns the process of a daemon, and whether it is there.
func pidOf(t *testing.T, lab *Lab, name string) (ProcessStatus, bool) {
	t.Helper()
	st, err := lab.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range st.Processes {
		if p.Name == name {
			return p, p.PID != 0
		}
	}
	t.Fatalf("no process %s in %+v", name, st)
	return ProcessStatus{}, false
}

func isAlive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func TestLifeOfALab(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) }) // after the labs are down
	above := t.TempDir()
	image := filepath.Join(above, "web.raw")
	content := append(bytes.Repeat([]byte("web"), 300_000), make([]byte, 124_512)...) // 1024512 bytes
	if err := os.WriteFile(image, content, 0o600); err != nil {
		t.Fatal(err)
	}
	var stages []string
	store := t.TempDir()
	o := Options{Dir: filepath.Join(above, "lab"), Volumes: 1, Size: 1 << 20, Images: []string{image}, Link: 50e6, TargetStore: store, Binaries: fakeBinaries(t), Overcommit: true, Env: quickRace}
	lab, err := Up(t.Context(), o, func(p Progress) { stages = append(stages, p.Stage) })
	if err != nil {
		t.Fatal(err)
	}
	if len(stages) == 0 || stages[0] != "copying web.raw" {
		t.Errorf("stages %q", stages)
	}
	v := lab.Volumes()
	if len(v) != 2 || v[0].Name != "web.raw" || v[0].Size != int64(len(content)) || v[1].Name != "vol1" || v[1].Size != 1<<20 {
		t.Errorf("volumes %+v", v)
	}
	if got, err := os.ReadFile(filepath.Join(lab.dir, v[0].Disk)); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the copy differs from the image: %v", err)
	}
	if c, err := config.LoadContext(lab.Context()); err != nil || c.Lab != lab.dir || len(c.Ports) != 10 {
		t.Errorf("context %+v, %v", c, err)
	}
	for _, file := range []string{fileSource, fileTarget} {
		if c, err := config.LoadVRA(filepath.Join(lab.dir, file)); err != nil || c.Target != nil && c.Target.Store != store {
			t.Errorf("%s: %+v, %v", file, c, err)
		}
	}

	st, err := lab.Status(t.Context())
	if err != nil || st.Supervisor == 0 || len(st.Processes) != 5 || st.Link.Rate != "50Mbit" || !st.Link.Up {
		t.Fatalf("status %+v, %v", st, err)
	}
	if st, err := lab.SetRate(t.Context(), 2.5e6); err != nil || st.Link.Rate != "2.5Mbit" {
		t.Errorf("link %+v, %v", st, err)
	}
	if st, err := lab.SetLinkUp(t.Context(), false); err != nil || st.Link.Up {
		t.Errorf("link %+v, %v", st, err)
	}
	if st, err := lab.SetLinkUp(t.Context(), true); err != nil || !st.Link.Up {
		t.Errorf("link %+v, %v", st, err)
	}
	if _, err := lab.SetRate(t.Context(), MinLink); err != nil {
		t.Errorf("the slowest rate that options take: %v", err)
	}

	// A second lab stands beside it; the same folder is refused.
	other := upLab(t, Options{Dir: filepath.Join(above, "other")})
	for name, port := range other.m.Ports {
		for mine := range lab.m.Ports {
			if lab.m.Ports[mine] == port {
				t.Errorf("both labs have port %d (%s, %s)", port, name, mine)
			}
		}
	}
	if _, err := Up(t.Context(), o, nil); err == nil || !strings.Contains(err.Error(), "in use by a running lab") {
		t.Errorf("the same folder again: %v", err)
	}

	// What users put there stays.
	mine := filepath.Join(lab.dir, "notes.txt")
	if err := os.WriteFile(mine, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := Open(lab.dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Down(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	for _, p := range append(st.Processes, ProcessStatus{PID: st.Supervisor}) {
		if p := (process{PID: p.PID}); isAlive(p.PID) && p.alive(bootID()) {
			t.Errorf("process %d runs after down", p.PID)
		}
	}
	if _, err := os.Stat(lab.m.RunDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the runtime folder stays: %v", err)
	}
	if _, err := Up(t.Context(), o, nil); err == nil || !strings.Contains(err.Error(), "a lab that has ended") {
		t.Errorf("the folder of an ended lab: %v", err)
	}
	stays, err := again.Down(t.Context(), true)
	if err != nil || len(stays) != 1 || stays[0] != lab.dir {
		t.Errorf("purge: %v stays, %v", stays, err)
	}
	left, err := os.ReadDir(lab.dir)
	if err != nil || len(left) != 1 || left[0].Name() != "notes.txt" {
		t.Errorf("purge left %v, %v", left, err)
	}
}

// TestStartedAgain is the same lab: its disks, link and names, and a failed start takes nothing of it.
func TestStartedAgain(t *testing.T) {
	first := upLab(t, Options{Dir: filepath.Join(t.TempDir(), "lab"), Link: 50e6})
	o := Options{Dir: first.dir, Binaries: first.m.Binaries, Env: quickRace}
	if _, err := Start(t.Context(), o, nil); err == nil || !strings.Contains(err.Error(), "runs already") {
		t.Errorf("a running lab: %v", err)
	}
	if _, err := first.SetRate(t.Context(), 2.5e6); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(first.dir, first.Volumes()[0].Disk)
	if err := os.WriteFile(disk, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	end := func() {
		t.Helper()
		lab, err := Open(first.dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := lab.Down(t.Context(), false); err != nil {
			t.Fatal(err)
		}
	}
	end()
	broken := o
	broken.Env, broken.errorWait = append([]string{fakeMode + "=broken"}, quickRace...), time.Second
	if _, err := Start(t.Context(), broken, nil); err == nil || !strings.Contains(err.Error(), "on fire") {
		t.Errorf("a start that must fail: %v", err)
	}
	if m, err := loadManifest(first.dir); err != nil || m.anyAlive() {
		t.Errorf("after a failed start: %+v, %v", m, err)
	}

	l, err := net.Listen("tcp", loopback(first.m.Ports[portTargetData])) // somebody took it meanwhile
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	lab, err := Start(t.Context(), o, nil)
	if err != nil {
		t.Fatal(err)
	}
	if lab.Context() != first.Context() || lab.Group() != first.Group() || !slices.Equal(lab.Volumes(), first.Volumes()) || lab.m.RunDir != first.m.RunDir {
		t.Errorf("another lab came up: %+v, was %+v", lab.m, first.m)
	}
	if text, err := os.ReadFile(disk); err != nil || string(text) != "mine" {
		t.Errorf("the disk holds %q, %v", text, err)
	}
	st, err := lab.Status(t.Context())
	if err != nil || st.Link.Rate != "2.5Mbit" || !st.Link.Up || st.Supervisor == 0 {
		t.Errorf("status %+v, %v", st, err)
	}
	target, err := config.LoadVRA(filepath.Join(lab.dir, fileTarget))
	if err != nil || st.Ports[portTargetData] == first.m.Ports[portTargetData] || target.Target.ListenData != loopback(st.Ports[portTargetData]) {
		t.Errorf("ports %v, %+v, %v", st.Ports, target, err)
	}
	end()
	if lab, err = Start(t.Context(), o, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := lab.Down(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), o, nil); err == nil {
		t.Error("a lab that is gone was started")
	}
}

// TestLastWords: why a process died, and not what stands last in its log.
func TestLastWords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f := func(before, text, want string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(before+text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := lastWords(path, int64(len(before)), "vra"); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	trace := "\ngoroutine 1 [running]:\nmain.main()\n\t/main.go:7 +0x1d\n"
	f("", "time=1 msg=runs\npanic: BUG: no such ticket"+trace, "panic: BUG: no such ticket")
	f("", "unexpected fault address 0x1\nfatal error: fault\n[signal SIGBUS]"+trace, "fatal error: fault")
	f("", "SIGABRT: abort\nPC=0x1 m=0"+trace, "SIGABRT: abort")
	f("", "time=1 msg=runs\nvra: listen: address already in use\nvra: and more\n", "vra: listen: address already in use")
	f("panic: of the process before\n", "time=1 msg=runs\n", "")
	f("", "", "")
	if got := lastWords(path, 100, "vra"); got != "" { // turned over
		t.Errorf("%q", got)
	}
	if got := whyDead(nil, "/bin/vra", path, 0); got != "it ended by itself" {
		t.Errorf("%q", got)
	}
}

// TestKilledDaemonIsBack also sees the others left alone. Within a second is promised of what
// the supervisor waits; how long a busy machine takes to start a process is not its doing.
func TestKilledDaemonIsBack(t *testing.T) {
	if maxWait >= time.Second {
		t.Errorf("the supervisor waits %v", maxWait)
	}
	lab := upLab(t, Options{Dir: filepath.Join(t.TempDir(), "lab")})
	filter, _ := pidOf(t, lab, daemonFilter)
	before, ok := pidOf(t, lab, daemonSource)
	if !ok {
		t.Fatal("no source")
	}
	if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, time.Minute, "the source is back", func() bool {
		now, ok := pidOf(t, lab, daemonSource)
		return ok && now.PID != before.PID && now.Restarts == 1 && isAlive(now.PID)
	})
	if now, _ := pidOf(t, lab, daemonSource); !strings.Contains(now.Deaths(), "died at 20") || !strings.HasSuffix(now.Deaths(), ": signal: killed; its log: "+lab.logPath(daemonSource)) {
		t.Errorf("it is said to have %q", now.Deaths())
	}
	if now, _ := pidOf(t, lab, daemonFilter); now.PID != filter.PID {
		t.Errorf("the filter was process %d and is %d", filter.PID, now.PID)
	}
}

// TestDownWithoutSupervisor: its daemons live on, and down finds them by number and start.
func TestDownWithoutSupervisor(t *testing.T) {
	lab := upLab(t, Options{Dir: filepath.Join(t.TempDir(), "lab")})
	st, err := lab.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(st.Supervisor, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	lab, err = Open(lab.dir) // as another command would
	if err != nil {
		t.Fatal(err)
	}
	until(t, time.Minute, "the supervisor is gone", func() bool { return !lab.m.Supervisor.alive(lab.m.Boot) })
	if now, err := lab.Status(t.Context()); err != nil || now.Supervisor != 0 || now.Processes[0].PID != st.Processes[0].PID || now.Link.Up {
		t.Errorf("status without supervisor: %+v, %v", now, err)
	}
	if _, err := lab.SetLinkUp(t.Context(), true); err == nil {
		t.Error("a link without supervisor")
	}
	if stays, err := lab.Down(t.Context(), true); err != nil || len(stays) != 0 {
		t.Fatalf("down: %v, %v", stays, err)
	}
	for _, p := range st.Processes {
		until(t, time.Minute, "process "+strconv.Itoa(p.PID)+" has ended", func() bool {
			_, state, err := procStat(p.PID)
			return err != nil || state == 'Z'
		})
	}
	if _, err := os.Stat(lab.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s stays: %v", lab.dir, err)
	}
}

// TestErrorThatPassesIsNoFailure: until the daemons have found each other there is one.
func TestErrorThatPassesIsNoFailure(t *testing.T) {
	upLab(t, Options{Dir: filepath.Join(t.TempDir(), "lab"), Env: []string{fakeMode + "=late"}})
}

// TestFailedUpLeavesNothing looks for processes, runtime folders and files.
func TestFailedUpLeavesNothing(t *testing.T) {
	f := func(mode string, interrupt bool, want string) {
		t.Helper()
		above := t.TempDir()
		dir := filepath.Join(above, "lab")
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		var run string
		var processes []process
		_, err := Up(ctx, Options{Dir: dir, Binaries: fakeBinaries(t), Overcommit: true, Env: append([]string{fakeMode + "=" + mode}, quickRace...), errorWait: time.Second}, func(p Progress) {
			if m, err := loadManifest(dir); err == nil {
				run, processes = m.RunDir, m.processes()
			}
			if interrupt && p.Stage == "initial sync" {
				cancel(errors.New("interrupt signal received"))
			}
		})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want one line with %q", mode, err, want)
		}
		if left, _ := os.ReadDir(above); len(left) != 0 {
			t.Errorf("%s: left %v", mode, left)
		}
		if run == "" {
			t.Errorf("%s: no runtime folder was seen", mode)
		} else if _, err := os.Stat(run); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %s stays", mode, run)
		}
		for _, p := range processes {
			if p.alive(bootID()) {
				t.Errorf("%s: process %d runs", mode, p.PID)
			}
		}
	}
	f("syncing", true, "interrupt")
	f("broken", false, "on fire: make room")
	f("port", false, "run the command again")
}

func TestUpRefusesBeforeItMakesAnything(t *testing.T) {
	above := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(above, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	full := write("full.raw", strings.Repeat("x", 512))
	if err := os.Mkdir(filepath.Join(above, "taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	write("taken/file", "")
	binaries := fakeBinaries(t)
	f := func(o Options, want string) {
		t.Helper()
		if o.Dir == "" {
			o.Dir = filepath.Join(above, "lab")
		}
		if o.Binaries == "" {
			o.Binaries = binaries
		}
		lab, err := Up(t.Context(), o, nil)
		if err == nil {
			_, err = lab.Down(t.Context(), true)
			t.Fatalf("it came up, want %q; %v", want, err)
		}
		if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v\nwant one line with %q", err, want)
		}
		if _, err := os.Stat(filepath.Join(above, "lab")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the folder was made: %v", err)
		}
	}
	f(Options{Images: []string{filepath.Join(above, "none.raw")}}, "does not exist: check the path")
	f(Options{Images: []string{write("odd.raw", "123")}}, "no multiple of 512: enlarge it with: truncate")
	f(Options{Images: []string{write("empty.raw", "")}}, "is empty")
	f(Options{Images: []string{write("a.qcow2", "QFI\xfb"+strings.Repeat("\x00", 508))}}, "qcow2 format and not a raw disk: convert it with: qemu-img convert")
	f(Options{Images: []string{write("a.vdi", strings.Repeat("\x00", 64)+"\x7f\x10\xda\xbe"+strings.Repeat("\x00", 444))}}, "VDI format")
	f(Options{Images: []string{filepath.Join(above, "taken")}}, "neither a file nor a block device")
	f(Options{Images: []string{write("Bad Name.raw", strings.Repeat("x", 512))}}, "rename it")
	f(Options{Images: []string{full, filepath.Join(above, "taken", "..", "full.raw")}}, "two volumes would be named full.raw")
	f(Options{Dir: filepath.Join(above, "taken")}, "is not empty")
	f(Options{Dir: full}, "is a file")
	f(Options{Dir: filepath.Join(above, "no", "lab")}, "the folder above it does not exist")
	f(Options{Dir: "/proc/lab"}, "nothing can be made in /proc")
	f(Options{Dir: filepath.Join(full, "lab")}, "is a file, and no folder")
	f(Options{TargetStore: filepath.Join(above, "taken")}, "target's store: "+filepath.Join(above, "taken")+" is not empty")
	f(Options{TargetStore: filepath.Join(above, "nowhere")}, "target's store: open "+filepath.Join(above, "nowhere")+": no such")
	f(Options{Size: 1 << 60}, "no space for the lab")
	f(Options{Size: 1 << 62}, "too large")
	f(Options{Binaries: above}, "make build")
}

func TestUsageIsTold(t *testing.T) {
	f := func(o Options, mistakes int, want string) {
		t.Helper()
		err := o.Validate()
		if mistakes == 0 {
			if err != nil {
				t.Errorf("%+v: %v", o, err)
			}
			return
		}
		if !errors.Is(err, ErrUsage) || strings.Count(err.Error(), "\n") != mistakes-1 || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %d mistakes with %q", o, err, mistakes, want)
		}
	}
	f(Options{Dir: "x"}, 0, "")
	f(Options{Dir: "x", Volumes: MaxVolumes, Size: 512, Interval: config.Duration(time.Minute), Link: MinLink}, 0, "")
	f(Options{}, 1, "--dir is missing")
	f(Options{Dir: "x", Volumes: -1}, 1, "--volumes -1")
	f(Options{Dir: "x", Volumes: MaxVolumes + 1}, 1, "--volumes 65")
	f(Options{Dir: "x", Volumes: MaxVolumes, Images: []string{"a"}}, 1, "images included")
	f(Options{Dir: "x", Size: 1000}, 1, "no multiple of 512")
	f(Options{Dir: "x", Interval: config.Duration(time.Hour)}, 1, "--interval")
	f(Options{Dir: "x", Link: 1}, 1, "--link")
	f(Options{Dir: "x", Link: MinLink, Direct: true}, 1, "direct")
	f(Options{Dir: "x", Images: []string{"a/vol1"}, Volumes: 1}, 1, "named vol1")
	f(Options{Size: 1000, Interval: 1, Link: 1, Images: []string{"a/-"}}, 5, "rename it")
}

func TestFreePorts(t *testing.T) {
	taken := map[string]bool{loopback(lowPort + 3): true}
	listen := func(_, address string) (net.Listener, error) {
		if taken[address] {
			return nil, syscall.EADDRINUSE
		}
		taken[address] = true
		return closer(func() error { delete(taken, address); return nil }), nil
	}
	picks := []int{3, 5, 5, 3, 9}
	pick := func(int) int {
		p := picks[0]
		if len(picks) > 1 {
			picks = picks[1:]
		}
		return p
	}
	ports, err := freePorts(2, listen, pick)
	if err != nil || len(ports) != 2 || ports[0] != lowPort+5 || ports[1] != lowPort+9 {
		t.Errorf("ports %v, %v", ports, err)
	}
	if len(taken) != 1 {
		t.Errorf("still held: %v", taken)
	}
	if _, err := freePorts(2, listen, pick); !errors.Is(err, syscall.EADDRINUSE) { // only 9 is ever picked
		t.Errorf("no port is left: %v", err)
	}
}

// closer is a listener that can only be closed.
type closer func() error

func (c closer) Close() error            { return c() }
func (closer) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (closer) Addr() net.Addr            { return nil }

// TestSiteDown: all daemons of a site are killed and stay away, the others go on, until it is up again.
func TestSiteDown(t *testing.T) {
	lab := upLab(t, Options{Dir: filepath.Join(t.TempDir(), "lab")})
	ctx := t.Context()
	pids := func(st *Status) (source, target []int) {
		for _, p := range st.Processes {
			if siteOf(p.Name) == TargetSite {
				target = append(target, p.PID)
			} else {
				source = append(source, p.PID)
			}
		}
		return source, target
	}
	before, err := lab.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	source, target := pids(before)
	for range 2 { // again changes nothing
		st, err := lab.SetSite(ctx, SourceSite, false)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range source {
			if is, err := identify(p); err == nil && is.alive(bootID()) { // who has ended may not be reaped yet
				t.Errorf("process %d runs while its site is down", p)
			}
		}
		down, other := pids(st)
		if !slices.Equal(other, target) || slices.Max(down) != 0 {
			t.Errorf("processes %v and %v, were %v and %v", down, other, source, target)
		}
	}
	if _, err := lab.SetSite(ctx, "elsewhere", false); err == nil || !strings.Contains(err.Error(), "no site") {
		t.Errorf("another site: %v", err)
	}
	if _, err := lab.SetSite(ctx, SourceSite, true); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for late := time.Now().Add(30 * time.Second); ; <-tick.C {
		st, err := lab.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if up, _ := pids(st); slices.Min(up) > 0 {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("the site is up, and its daemons are not: %+v", st.Processes)
		}
	}
}

// TestDirectLab: its source dials its target itself, and nobody changes a link that is not there.
func TestDirectLab(t *testing.T) {
	lab := upLab(t, Options{Dir: filepath.Join(t.TempDir(), "lab"), Direct: true})
	c, err := config.LoadVRA(filepath.Join(lab.dir, fileSource))
	if err != nil {
		t.Fatal(err)
	}
	if to := c.Source.Groups[0].Target; to.Data != loopback(lab.m.Ports[portTargetData]) || to.Control != loopback(lab.m.Ports[portTargetControl]) {
		t.Errorf("the source dials %+v", to)
	}
	if _, err := lab.SetRate(t.Context(), MinLink); err == nil || !strings.Contains(err.Error(), "no link") {
		t.Errorf("a rate for no link: %v", err)
	}
	if st, err := lab.Status(t.Context()); err != nil || st.Link.Rate != "direct" || !st.Link.Up {
		t.Errorf("status %+v, %v", st, err)
	}
}

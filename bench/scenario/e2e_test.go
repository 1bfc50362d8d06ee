//go:build e2e

package scenario_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/bench/drive"
	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/bench/scenario"
)

// lab is a lab whose every failure ends the test.
type lab struct {
	*drive.Lab
	t *testing.T
}

// builds are the commands, built once for all tests under each set of build tags.
var builds struct {
	sync.Mutex
	dirs map[string]string
}

// built is a folder with the commands.
func built(t *testing.T, tags string) string {
	t.Helper()
	builds.Lock()
	defer builds.Unlock()
	if dir, ok := builds.dirs[tags]; ok {
		return dir
	}
	dir, err := os.MkdirTemp("", "hf-built-")
	if err == nil {
		err = drive.Build(t.Context(), "../..", dir, tags)
	}
	if err != nil {
		os.RemoveAll(dir)
		t.Fatal(err)
	}
	if builds.dirs == nil {
		builds.dirs = map[string]string{}
		scenario.AfterTests = func() {
			for _, dir := range builds.dirs {
				os.RemoveAll(dir)
			}
		}
	}
	builds.dirs[tags] = dir
	return dir
}

// up starts a lab; it is taken down when the test ends, and its logs are shown if the test failed.
func up(t *testing.T, tags string, env []string, args ...string) *lab {
	t.Helper()
	bin := built(t, tags)
	dir := filepath.Join(t.TempDir(), "lab")
	l, err := drive.Up(t.Context(), bin, dir, env, args...)
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, dir)
		}
		if err := l.Down(); err != nil {
			t.Errorf("lab down: %v", err)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("lab down --purge left %v", left)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return &lab{l, t}
}

func showLogs(t *testing.T, dir string) {
	names, _ := filepath.Glob(filepath.Join(dir, "logs", "*"))
	for _, name := range names {
		src, _ := os.ReadFile(name)
		t.Logf("%s ends:\n%s", filepath.Base(name), src[max(0, len(src)-6<<10):])
	}
}

// await waits until something is so.
func await(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	tick, late := time.NewTicker(20*time.Millisecond), time.Now().Add(limit)
	defer tick.Stop()
	for ; !ok(); <-tick.C {
		if time.Now().After(late) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) link(to string) { l.t.Helper(); l.t.Log("link", to); l.must(l.Link(l.t.Context(), to)) }
func (l *lab) kill(who string) {
	l.t.Helper()
	l.t.Log("kill -9", who)
	l.must(l.Kill(l.t.Context(), who))
}
func (l *lab) protected() { l.t.Helper(); l.must(l.Protected(l.t.Context())) }

func (l *lab) checkpoint(tag string) drive.Checkpoint {
	l.t.Helper()
	c, err := l.Checkpoint(l.t.Context(), tag)
	l.must(err)
	return c
}

func (l *lab) open(id string) drive.View {
	l.t.Helper()
	v, err := l.Open(l.t.Context(), id)
	l.must(err)
	return v
}

func (l *lab) sent() int64 {
	l.t.Helper()
	m, err := l.Machinery(l.t.Context())
	l.must(err)
	return m.Link.Sent
}

// prefilled makes n raw images of the size whose content the history knows.
func prefilled(t *testing.T, n int, size int64, corpus []byte, h *load.History, bytes int64) (args []string) {
	t.Helper()
	dir := t.TempDir()
	s := &load.Stamper{Profile: load.ProfileWild, Workers: 2, Seed: 1, Corpus: corpus, History: h}
	for i := range n {
		name := filepath.Join(dir, fmt.Sprintf("disk%d.raw", i+1))
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(name, size); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--image", name)
		s.Volumes = append(s.Volumes, load.Volume{Size: size, Dial: func(context.Context) (load.Disk, error) {
			f, err := os.OpenFile(name, os.O_RDWR, 0)
			return &fileDisk{f}, err
		}})
	}
	runFor(t, s, func() bool { return s.Stats().Bytes >= bytes })
	return args
}

// fileDisk writes to a plain file.
type fileDisk struct{ *os.File }

func (f *fileDisk) Flush() error { return nil }
func (f *fileDisk) WriteZeroes(off, n int64, _ bool) error {
	_, err := f.WriteAt(make([]byte, n), off)
	return err
}
func (f *fileDisk) Trim(off, n int64) error { return f.WriteZeroes(off, n, true) }

// runFor runs the workload until enough says so.
func runFor(t *testing.T, s *load.Stamper, enough func() bool) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	go func() {
		for range tick.C {
			if enough() {
				stop()
				return
			}
		}
	}()
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
}

// after waits until the workload has written so many bytes more.
func after(t *testing.T, s *load.Stamper, bytes int64) {
	t.Helper()
	target := s.Stats().Bytes + bytes
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for s.Stats().Bytes < target {
		select {
		case <-deadline.C:
			t.Fatalf("the guest's writes have stopped: %+v", s.Stats())
		case <-tick.C:
		}
	}
}

// TestEndToEnd is the main job on real processes: two disks with content, a guest
// that writes in every size and shape, a link cut twice, each VRA killed once. Every
// checkpoint opened must be a prefix of the order the guest saw.
func TestEndToEnd(t *testing.T) {
	corpus, h := load.Corpus(load.DB, 3), &load.History{}
	images := prefilled(t, 2, 96<<20, corpus, h, 24<<20)
	l := up(t, "", nil, append(images, "--interval", "1s", "--link", "none")...)

	p := load.ProfileWild
	p.Max, p.BytesPerSecond = 1<<20, 6<<20
	s := l.Stamper(2, p, 4, corpus, h)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	away := hostStalls(t)
	defer away()
	go func() { done <- s.Run(ctx) }()

	step := int64(12 << 20)
	after(t, s, 2*step)
	l.link("down")
	after(t, s, step)
	l.link("up")
	l.protected()
	after(t, s, 2*step)
	l.kill("vra-source")
	after(t, s, step)
	l.protected()
	after(t, s, 2*step)
	l.link("down")
	after(t, s, step)
	l.link("up")
	l.protected()
	after(t, s, step)
	l.kill("vra-target")
	after(t, s, step)
	l.protected()
	after(t, s, 2*step)
	stop()
	if err := <-done; err != nil {
		t.Fatalf("the guest saw an error: %v", err)
	}
	stats := s.Stats()
	t.Logf("guest: %d operations, %d MiB, longest %v; this machine was away for %v", stats.Ops, stats.Bytes>>20, stats.Slowest, away())
	// An operation waits for processor and disk several times.
	if stats.Redials != 0 || stats.Slowest > 2*time.Second+4*away() {
		t.Errorf("the guest was disturbed: %d connections lost, longest operation %v, and this machine was away for %v at most", stats.Redials, stats.Slowest, away())
	}

	last := l.checkpoint("end")
	all, err := l.Checkpoints(t.Context())
	l.must(err)
	if len(all) < 8 || all[len(all)-1].ID != last.ID {
		t.Fatalf("%d checkpoints, the newest %+v; the one just made is %+v", len(all), all[max(0, len(all)-1)], last)
	}
	t.Logf("%d checkpoints from %s to %s", len(all), all[0].Time, last.Time)
	seen := 0
	for i := range 10 {
		c := all[i*(len(all)-1)/9]
		v, err := l.Compare(t.Context(), c.ID, 2, h, corpus, c.ID == last.ID)
		if err != nil {
			t.Errorf("checkpoint %s (%s): %v", c.ID, c.Time, err)
		}
		t.Logf("checkpoint %s: %d of %d operations", c.ID, v.Included, v.Answered)
		if i > 0 && v.Included < seen {
			t.Errorf("checkpoint %s holds %d operations, an older one %d", c.ID, v.Included, seen)
		}
		seen = v.Included
	}
	l.tools(last.ID)
}

// tools lets programs of others read and write what we export.
func (l *lab) tools(id string) {
	t, v, dir := l.t, l.open(id), l.t.TempDir()
	command := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir // fio leaves a file where it runs
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
	}
	for i, volume := range v.Volumes {
		command("qemu-img", "compare", "-f", "raw", "-F", "raw", l.Volumes[i].NBD, volume.NBD)
	}
	copied := filepath.Join(t.TempDir(), "copied.raw")
	command("nbdcopy", v.Volumes[0].NBD, copied)
	command("qemu-img", "compare", "-f", "raw", "-F", "raw", copied, v.Volumes[0].NBD)

	out := filepath.Join(t.TempDir(), "export")
	l.must(l.JSON(t.Context(), nil, "export", "--checkpoint", id, "--out", out))
	for _, volume := range v.Volumes {
		command("qemu-img", "compare", "-f", "raw", "-F", "raw", filepath.Join(out, volume.Name), volume.NBD)
	}
	// A view is writable into scratch, and the checkpoint below it stays as it was.
	fio := func(uri string) {
		command("fio", "--name=verify", "--ioengine=nbd", "--uri="+uri, "--rw=randwrite", "--bsrange=512-64k", "--blockalign=512",
			"--size=16M", "--iodepth=8", "--verify=crc32c", "--verify_fatal=1", "--output=/dev/null")
	}
	fio(v.Volumes[1].NBD)
	command("qemu-img", "compare", "-f", "raw", "-F", "raw", filepath.Join(out, v.Volumes[1].Name), l.Volumes[1].NBD)
	l.must(l.Close(t.Context(), v))
	// And a protected disk takes fio's writes; what the next checkpoint holds is what fio left.
	fio(l.Volumes[1].NBD)
	c := l.checkpoint("fio")
	v = l.open(c.ID)
	command("qemu-img", "compare", "-f", "raw", "-F", "raw", l.Volumes[1].NBD, v.Volumes[1].NBD)
	l.must(l.Close(t.Context(), v))
}

// verified has the target read back all that it keeps.
func (l *lab) verified() {
	l.t.Helper()
	var v struct {
		Running  bool     `json:"running"`
		Total    int64    `json:"total_bytes"`
		Left     int64    `json:"left_bytes"`
		Damaged  int64    `json:"damaged_places"`
		Bad      int64    `json:"bad_checkpoints"`
		LastFull *float64 `json:"last_full_seconds"`
	}
	l.must(l.JSON(l.t.Context(), &v, "group", "verify", l.Group))
	if v.Total == 0 && v.LastFull == nil {
		l.t.Errorf("verify began nothing: %+v", v)
	}
	l.t.Logf("%d of %d MiB are left to be read back", v.Left>>20, v.Total>>20)
	l.must(l.JSON(l.t.Context(), &v, "group", "verify", l.Group, "--wait"))
	if v.Running || v.Damaged != 0 || v.Bad != 0 || v.LastFull == nil {
		l.t.Errorf("verify says %+v", v)
	}
}

// TestEndToEndResendsOnlyWhatChanged kills the source VRA while a tenth of the disk
// changes: no full resync may follow.
func TestEndToEndResendsOnlyWhatChanged(t *testing.T) {
	const size = 256 << 20
	corpus, h := load.Corpus(load.Random, 3), &load.History{}
	l := up(t, "", nil, append(prefilled(t, 1, size, corpus, h, size/2), "--interval", "1s", "--link", "none")...)
	before := l.sent()
	if before < size/8 {
		t.Errorf("the initial sync of %d MiB of content took %d bytes of the link: is it counted?", size>>21, before)
	}
	p := load.ProfileRandom
	// Marks are forgotten a second or two after the target has what they mark: at this
	// rate those of the initial sync are, by the time of the kill.
	p.Span, p.BytesPerSecond = 0.08, 2<<20
	s := l.Stamper(1, p, 4, corpus, h)
	runFor(t, s, func() bool { return s.Stats().Bytes >= 8<<20 })
	l.kill("vra-source")
	runFor(t, s, func() bool { return s.Stats().Bytes >= 16<<20 })
	l.protected()
	last := l.checkpoint("end")
	if sent := l.sent() - before; sent > size/4 {
		t.Errorf("%d MiB of %d were sent after a tenth had changed", sent>>20, size>>20)
	} else {
		t.Logf("%d MiB of %d were sent", sent>>20, size>>20)
	}
	if _, err := l.Compare(t.Context(), last.ID, 1, h, corpus, true); err != nil {
		t.Error(err)
	}
	l.verified()
}

// TestEndToEndSeesAMissingSplit is the negative control: the same comparison over a
// filter that writes the disk and splits nothing must fail.
func TestEndToEndSeesAMissingSplit(t *testing.T) {
	corpus, h := load.Corpus(load.DB, 3), &load.History{}
	l := up(t, "planted", []string{"HOLDFAST_PLANTED=capture/no-split"}, "--volumes", "2", "--size", "32MiB", "--interval", "1s")
	s := l.Stamper(2, load.ProfileWild, 4, corpus, h)
	runFor(t, s, func() bool { return s.Stats().Bytes >= 16<<20 })
	last := l.checkpoint("end")
	if _, err := l.Compare(t.Context(), last.ID, 2, h, corpus, true); err == nil {
		t.Error("no write was split, and the checkpoint passes for whole")
	} else {
		t.Logf("seen: %v", err)
	}
}

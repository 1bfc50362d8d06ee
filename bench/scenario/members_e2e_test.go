//go:build e2e

package scenario_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/bench/drive"
	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/control/config"
)

// lateFilter runs a second vra-filter in the lab's group, with one new volume of that size.
func (l *lab) lateFilter(size int64) (v drive.Volume, pool string, start func()) {
	l.t.Helper()
	first, err := config.LoadFilter(filepath.Join(l.Dir, "etc", "vra-filter.yaml"))
	l.must(err)
	dir := filepath.Dir(first.PoolSocket)
	disk := filepath.Join(l.t.TempDir(), "late.raw")
	l.must(os.WriteFile(disk, nil, 0o600))
	l.must(os.Truncate(disk, size))
	second := *first
	second.PoolSocket = filepath.Join(dir, "late-pool.sock")
	second.Volumes = []config.FilterVolume{{Name: "late", ID: 77, Path: disk, NBD: filepath.Join(dir, "late.sock")}}
	text, err := config.Marshal(&second)
	l.must(err)
	file := filepath.Join(l.t.TempDir(), "late.yaml")
	l.must(os.WriteFile(file, text, 0o600))
	pid, err := l.PID(l.t.Context(), "vra-filter")
	l.must(err)
	binary, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	l.must(err)
	v = drive.Volume{Name: "late", Size: size, NBD: "nbd+unix:///late?socket=" + second.Volumes[0].NBD}
	return v, second.PoolSocket, func() {
		cmd := exec.Command(binary, "--config", file)
		var said bytes.Buffer
		cmd.Stderr = &said
		l.must(cmd.Start())
		l.t.Cleanup(func() { // before the lab's
			l.must(cmd.Process.Signal(syscall.SIGTERM))
			if err := cmd.Wait(); err != nil || l.t.Failed() {
				l.t.Errorf("the late filter: %v\n%s", err, said.String())
			}
		})
	}
}

// phase awaits that the volume has come to the phase; empty: that the group has it no more.
func (l *lab) phase(volume, want string) {
	l.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-tick.C {
		var m struct {
			Volumes []struct{ Name, Phase string }
		}
		err := l.JSON(l.t.Context(), &m, "group", "volume", "list", l.Group)
		have := ""
		for _, v := range m.Volumes {
			if v.Name == volume {
				have = v.Phase
			}
		}
		if err == nil && have == want {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("volume %s is %q, not %q: %v", volume, have, want, err)
		}
	}
}

// TestGroupChangesWhileItRuns adds a volume to a running group, pauses and resumes it, has it
// sent again and removes the volume, with a daemon killed after each step.
func TestGroupChangesWhileItRuns(t *testing.T) {
	const size = 64 << 20
	corpus, h := load.Corpus(load.DB, 3), &load.History{}
	l := up(t, "", nil, append(prefilled(t, 1, size, corpus, h, size/4), "--interval", "1s", "--link", "none")...)
	late, pool, start := l.lateFilter(size)
	l.protected()

	l.must(l.JSON(t.Context(), nil, "group", "volume", "add", l.Group, late.Name, "--id", "77", "--pool-socket", pool))
	l.kill("vra-source")
	l.phase("late", "adding")
	l.protected()
	l.checkpoint("without it")
	start()
	l.Volumes = append(l.Volumes, late)
	s := l.Stamper(2, load.ProfileWild, 4, corpus, h)
	runFor(t, s, func() bool { return s.Stats().Bytes >= 8<<20 })
	l.kill("vra-source")
	l.kill("vra-target")
	runFor(t, s, func() bool { return s.Stats().Bytes >= 16<<20 })
	l.phase("late", "member")
	l.kill("vra-source")
	runFor(t, s, func() bool { return s.Stats().Bytes >= 24<<20 })
	l.protected()
	both := l.checkpoint("both")
	compare := func(c drive.Checkpoint, whole bool) {
		t.Helper()
		if _, err := l.Compare(t.Context(), c.ID, 2, h, corpus, whole); err != nil {
			t.Errorf("checkpoint %s: %v", *c.Tag, err)
		}
	}
	compare(both, true)

	l.must(l.JSON(t.Context(), nil, "group", "pause", l.Group))
	l.kill("vra-source")
	runFor(t, s, func() bool { return s.Stats().Bytes >= 28<<20 })
	l.must(l.Await(t.Context(), time.Minute, "paused", func(st drive.Status) bool { return st.State == "paused" }))
	if _, err := l.Checkpoint(t.Context(), "never"); err == nil {
		t.Error("a paused group made a checkpoint")
	}
	l.must(l.JSON(t.Context(), nil, "group", "resume", l.Group))
	l.kill("vra-source")
	l.protected()
	compare(l.checkpoint("resumed"), true)

	l.must(l.JSON(t.Context(), nil, "group", "sync", l.Group))
	l.kill("vra-source")
	l.protected()
	compare(l.checkpoint("sent again"), true)

	l.must(l.JSON(t.Context(), nil, "group", "volume", "remove", l.Group, "late"))
	l.kill("vra-source")
	l.phase("late", "")
	l.protected()
	v := l.open(l.checkpoint("one").ID)
	if len(v.Volumes) != 1 || v.Volumes[0].Name == "late" {
		t.Errorf("after it was removed a checkpoint holds %+v", v.Volumes)
	}
	l.must(l.Close(t.Context(), v))
	compare(both, false)

	removed := func(args ...string) (r struct{ Disks []struct{ Name, Path string } }, err error) {
		return r, l.JSON(t.Context(), &r, append([]string{"group", "remove", l.Group}, args...)...)
	}
	v = l.open(both.ID)
	if _, err := removed("--yes"); err == nil {
		t.Error("a group was removed under a view")
	}
	l.must(l.Close(t.Context(), v))
	// The guest writes on through all of it, and what is kept is what it had written before.
	runFor(t, s, func() bool { return s.Stats().Bytes >= 32<<20 })
	l.protected()
	out := filepath.Join(t.TempDir(), "export")
	l.must(l.JSON(t.Context(), nil, "export", "--checkpoint", l.checkpoint("last").ID, "--out", out))
	want, err := os.ReadFile(filepath.Join(out, l.Volumes[0].Name))
	l.must(err)
	r, err := removed("--keep-replica", "--checkpoint", "last", "--yes")
	l.must(err)
	if kept, err := os.ReadFile(r.Disks[0].Path); err != nil || len(r.Disks) != 1 || !bytes.Equal(kept, want) {
		t.Errorf("what is kept, %+v, is not the checkpoint: %v", r, err)
	}
	runFor(t, s, func() bool { return s.Stats().Bytes >= 36<<20 })
	l.kill("vra-source")
	l.kill("vra-target")
	l.must(l.Await(t.Context(), time.Minute, "removed", func(st drive.Status) bool { return st.State == "removed" }))
	if again, err := removed("--yes"); err != nil || len(again.Disks) != 1 {
		t.Errorf("asked again it says %+v: %v", again, err)
	}
}

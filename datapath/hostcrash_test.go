package datapath

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// pretendBoot has all that is opened from now on be of another boot, in which the run directory is empty.
func (w *world) pretendBoot(name string) {
	w.t.Helper()
	if err := os.WriteFile(os.Getenv("HOLDFAST_BOOT_ID_FILE"), []byte(strings.Repeat(name, 32)), 0o600); err != nil {
		w.t.Fatal(err)
	}
	names, _ := filepath.Glob(filepath.Join(w.dir, "run", "*"))
	for _, n := range names {
		if err := os.Remove(n); err != nil {
			w.t.Fatal(err)
		}
	}
}

// TestHostRestarts: what its activity log tells is compared, the rest of a volume is not. One that was unlogged is
// compared whole.
func TestHostRestarts(t *testing.T) {
	t.Setenv("HOLDFAST_BOOT_ID_FILE", filepath.Join(t.TempDir(), "boot"))
	const region = 16 << 20
	size := uint64(8 * region)
	if testing.Short() {
		size = 6 * region
	}
	w := newWorld(t, func(w *world) { w.size, w.window, w.activity = int64(size), 64<<20, ".activity" })
	w.pretendBoot("1")
	w.start()
	log := filepath.Join(w.dir, "vol1.img.activity")
	restart := func(boot string, between func()) (compared uint64) {
		t.Helper()
		w.awaitState(api.StateProtected)
		w.checkpoint("before boot " + boot)
		w.awaitKept(`"logged":[1]`)
		w.killSource()
		w.filter.end(t)
		w.pretendBoot(boot)
		between()
		w.startFilter()
		w.startSource()
		w.awaitState(api.StateProtected)
		w.verify("in boot " + boot)
		w.awaitKept(`"boot":"` + boot)
		return w.s.flows[0].count.compared.Load()
	}
	if n := restart("2", func() {}); n != 0 {
		t.Errorf("%d bytes were compared after a clean close", n)
	}
	// A crash finds the log as it was while a guest wrote.
	write := func(d front.Device, off int64) {
		t.Helper()
		p, err := d.BeginWrite(off, 4096)
		if err == nil {
			fill(rand.New(rand.NewPCG(uint64(off), 1)), p.Buffers()[0])
			err = p.Commit(false)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write(w.f.Device("vol1"), 5*region)
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if n := restart("3", func() { rewrite(t, log, text) }); n == 0 || n > 4*region {
		t.Errorf("%d bytes were compared after a crash, want those of a row of regions", n)
	}
	if n := restart("4", func() {
		text, err := os.ReadFile(w.s.flows[0].keptName)
		if err != nil {
			t.Fatal(err)
		}
		rewrite(t, w.s.flows[0].keptName, bytes.Replace(text, []byte("[1]"), []byte("[]"), 1))
	}); n < size/2 {
		t.Errorf("%d bytes were compared of a volume that was unlogged", n)
	}
}

// TestUnlogged: a log that cannot be written is said, no volume is kept as logged, and all goes on.
func TestUnlogged(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.activity = "-folder/that/is/not" })
	w.start()
	w.awaitState(api.StateProtected)
	w.await("status to say it", func() bool { return strings.Contains(w.status().Reason, "unlogged: the activity log of vol1") })
	w.awaitKept(`"logged":[]`)
	if names, none := func() ([]string, int) {
		f := w.s.flows[0]
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.unloggedLocked()
	}(); len(names) != 1 || none != 0 {
		t.Errorf("unlogged are %v and %d", names, none)
	}
	w.verify("unlogged")
}

func rewrite(t *testing.T, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// awaitKept waits until what is kept for a restart of the host says so.
func (w *world) awaitKept(what string) {
	w.t.Helper()
	w.await("what is kept to say "+what, func() bool {
		text, _ := os.ReadFile(w.s.flows[0].keptName)
		return bytes.Contains(text, []byte(what))
	})
}

func TestKept(t *testing.T) {
	told := capture.LogState{Kept: true, Told: true}
	f := func(what string, k kept, log capture.LogState, want bool) {
		t.Helper()
		if got := k.told(3, log); got != want {
			t.Errorf("%s: %v", what, got)
		}
	}
	f("logged", kept{Logged: []record.VolumeID{1, 3}, news: true}, told, true)
	f("of this boot", kept{Logged: []record.VolumeID{1, 3}}, told, false)
	f("unlogged", kept{Logged: []record.VolumeID{1}, news: true}, told, false)
	f("nothing was told", kept{Logged: []record.VolumeID{3}, news: true}, capture.LogState{Kept: true}, false)
	f("an older filter", kept{Logged: []record.VolumeID{3}, news: true}, capture.LogState{}, false)
	less := func(what string, k, last kept, want bool) {
		t.Helper()
		if got := k.less(last); got != want {
			t.Errorf("%s: %v", what, got)
		}
	}
	less("one more", kept{Logged: []record.VolumeID{1, 3}}, kept{Logged: []record.VolumeID{3}}, false)
	less("one less", kept{Logged: []record.VolumeID{3}}, kept{Logged: []record.VolumeID{1, 3}}, true)
	less("acknowledged", kept{Acked: 5}, kept{Acked: 3}, false)
	less("another boot", kept{Boot: "a"}, kept{Boot: "b"}, true)
}

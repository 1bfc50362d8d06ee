package datapath

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/wire/record"
)

func TestDrawnIncarnations(t *testing.T) {
	i := openIncarnations(t.TempDir(), 7)
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(i.name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("holdfast incarnation 41\n") // of an older release
	d, err := i.get()
	if err != nil || d.last != 41 || !d.own(41) || !d.own(3) || d.own(42) {
		t.Fatalf("%+v, %v", d, err)
	}
	for n := record.Incarnation(50); n < 50+2*maxDrawn; n += 2 {
		d = d.with(n)
		if err := i.put(d); err != nil {
			t.Fatal(err)
		}
		again, err := i.get()
		if err != nil || !reflect.DeepEqual(again, d) {
			t.Fatalf("kept %+v, read %+v, %v", d, again, err)
		}
		if !again.own(n) || !again.own(41) || again.own(n-1) || again.own(n+1) {
			t.Fatalf("after %d: %+v", n, again)
		}
	}
	d = d.with(1000)
	if len(d.ours) != maxDrawn || d.floor != 50 || !d.own(49) || d.own(999) {
		t.Errorf("of many: %+v", d)
	}
	for _, text := range []string{"nonsense", "holdfast incarnation 5\nnonsense", "holdfast incarnation 5\ndrawn 1", "holdfast incarnation 5\ndrawn 1 4",
		"holdfast incarnation 5\ndrawn 1 5 4\n", "holdfast incarnation 5\ndrawn 5 5\n", "holdfast incarnation 5\ndrawn 1 x\n"} {
		if write(text); true {
			if d, err := i.get(); err == nil {
				t.Errorf("%q reads as %+v", text, d)
			}
		}
	}
}

// A VRA that was restored from an older state, or is a clone, finds that another has sent its group:
// it says so and sends nothing, and the other one goes on as if nothing had been.
func TestRestoredVRAIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.size = 1 << 20 })
	w.start()
	w.awaitState(api.StateProtected)
	w.killSource()
	data, old, now := filepath.Join(w.dir, "data"), filepath.Join(w.dir, "old"), filepath.Join(w.dir, "now")
	if err := os.CopyFS(old, os.DirFS(data)); err != nil {
		t.Fatal(err)
	}
	w.startSource()
	w.awaitState(api.StateProtected)
	w.put("vol1", 0, 128<<10)
	w.checkpoint("of the other")
	w.killSource()
	swap := func(out, in string) {
		t.Helper()
		if err := os.Rename(data, out); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(in, data); err != nil {
			t.Fatal(err)
		}
	}
	swap(now, old)
	g := w.tg.group("")
	durable := g.Durable(testStream)
	w.startSource()
	w.awaitState(api.StateError)
	if s := w.status(); !strings.Contains(s.Reason, "clone, or was restored") {
		t.Errorf("it says %q", s.Reason)
	}
	w.put("vol1", 256<<10, 128<<10)
	w.killSource()
	if n := g.Durable(testStream); n != durable {
		t.Errorf("it sent up to %d, from %d on", n, durable)
	}
	swap(old, now)
	w.startSource()
	w.awaitState(api.StateProtected)
	w.verify("after")
}

package datapath

import (
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
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
	before := d
	if d = before.adopting(51); !d.own(51) || d.last != before.last || before.own(51) {
		t.Errorf("adopted: %+v", d)
	}
	if err := i.put(d); err != nil {
		t.Fatal(err)
	}
	if again, err := i.get(); err != nil || !reflect.DeepEqual(again, d) {
		t.Errorf("kept %+v, read %+v, %v", d, again, err)
	}
	if d = d.adopting(999999); !d.own(999999) || d.last != 999999 || len(d.ours) > maxDrawn {
		t.Errorf("adopted a later one: %+v", d)
	}
	if same := d.adopting(51); !reflect.DeepEqual(same, d) {
		t.Errorf("adopted again: %+v, before %+v", same, d)
	}
	d = before.with(1000)
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
	if s := w.status(); !strings.Contains(s.Reason, "clone, was restored") {
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

	n := g.State().Count // the marks of what was synchronised go within seconds
	w.await("a few checkpoints", func() bool { return g.State().Count >= n+5 })
	// The restored one is adopted, and killed before anything of that is done: all is compared, though the
	// marks know of nothing, and what nobody has seen being written is sent. Then the other one is the stranger.
	w.killSource()
	swap(now, old)
	w.startSource()
	w.awaitStranger()
	image, err := os.OpenFile(filepath.Join(w.dir, "vol1.img"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := image.WriteAt([]byte("as it was before"), 512<<10); err != nil {
		t.Fatal(err)
	}
	if err := image.Close(); err != nil {
		t.Fatal(err)
	}
	w.link.Down()
	if err := w.adopt(); err != nil {
		t.Fatal(err)
	}
	w.killSource()
	w.link.Up()
	w.startSource()
	w.awaitState(api.StateProtected)
	w.verify("adopted")
	w.killSource()
	swap(old, now)
	w.startSource()
	w.awaitStranger()
}

// awaitStranger waits until the source finds that another one has sent its group.
func (w *world) awaitStranger() {
	w.t.Helper()
	w.await("a refusal", func() bool {
		s := w.status()
		return s.State == api.StateError && strings.Contains(s.Reason, "group adopt")
	})
}

func (w *world) adopt() error {
	_, err := w.groups().Adopt(w.t.Context(), &holdfastv1.GroupsServiceAdoptRequest{Reason: "the other one is gone"})
	return err
}

// A source that has lost its data directory over a restart of its host is refused, until an operator
// adopts the group: then only what differs is sent, and older checkpoints stay.
func TestAdoptedGroupGoesOn(t *testing.T) {
	t.Setenv("HOLDFAST_BOOT_ID_FILE", filepath.Join(t.TempDir(), "boot"))
	const size = 32 << 20
	w := newWorld(t, func(w *world) { w.size, w.window = size, 64<<20 })
	w.pretendBoot("1")
	w.start()
	w.awaitState(api.StateProtected)
	if err := w.adopt(); api.AsFailure(err) == nil || api.AsFailure(err).Code != api.Precondition {
		t.Errorf("adopted though there is nothing to adopt: %v", err)
	}
	before := w.checkpoint("before")
	lose := func(boot string) {
		t.Helper()
		w.killSource()
		w.filter.end(t)
		w.pretendBoot(boot)
		if err := os.RemoveAll(filepath.Join(w.dir, "data")); err != nil {
			t.Fatal(err)
		}
		w.startFilter()
		w.startSource()
		w.awaitStranger()
	}
	lose("2")
	durable := w.tg.group("").Durable(testStream)
	w.put("vol1", 0, 128<<10) // what nobody has told the target of
	for _, r := range []*holdfastv1.GroupsServiceAdoptRequest{{}, {Reason: strings.Repeat("x", maxAdoptReason+1)}} {
		if _, err := w.groups().Adopt(t.Context(), r); api.AsFailure(err) == nil || api.AsFailure(err).Code != api.InvalidArgument {
			t.Errorf("adopted for %q: %v", r.Reason, err)
		}
	}
	if n := w.tg.group("").Durable(testStream); n != durable {
		t.Fatalf("it sent up to %d, from %d on, before it was adopted", n, durable)
	}
	if err := w.adopt(); err != nil {
		t.Fatal(err)
	}
	w.awaitState(api.StateProtected)
	w.verify("adopted")
	f := w.s.flows[0]
	if n := f.count.compared.Load(); n < size/2 {
		t.Errorf("%d bytes were compared, of %d", n, size)
	}
	if n := f.count.differ.Load(); n > 1<<20 {
		t.Errorf("%d bytes differed, where 128 KiB were written", n)
	}
	if _, err := w.tg.group("").Checkpoint(mustNumber(t, before)); err != nil {
		t.Errorf("the checkpoint of before: %v", err)
	}
	w.killSource() // and it stays its own
	w.startSource()
	w.awaitState(api.StateProtected)

	// A crash between the marks and the rest finds all marked, or is refused again.
	lose("3")
	w.put("vol1", 1<<20, 64<<10)
	f = w.s.flows[0]
	name := f.incarnations.name
	f.incarnations.name = filepath.Join(w.dir, "no", "folder") // it cannot be kept
	if err := w.adopt(); api.AsFailure(err) == nil || api.AsFailure(err).Code != api.Unavailable {
		t.Errorf("adopted though that cannot be kept: %v", err)
	}
	f.incarnations.name = name
	w.killSource()
	w.startSource()
	w.awaitStranger()
	if err := w.adopt(); err != nil {
		t.Fatal(err)
	}
	w.killSource() // before anything was sent, most likely
	w.startSource()
	w.awaitState(api.StateProtected)
	w.verify("adopted and killed")
}

func mustNumber(t *testing.T, id string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(id, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Where a higher incarnation was let in and sent nothing, as a clone's that was stopped, the source
// draws above it and goes on, whether it was started anew or had its session cut.
func TestOutdrawnSourceGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.size = 1 << 20 })
	w.start()
	w.awaitState(api.StateProtected)
	g := w.tg.group("")
	stranger := func() {
		t.Helper()
		if _, err := g.Admit(testStream, 1, w.s.flows[0].mu.drawn.last+drawMost-1); err != nil {
			t.Fatal(err)
		}
	}
	w.killSource()
	stranger()
	w.startSource()
	w.awaitState(api.StateProtected)
	w.put("vol1", 0, 128<<10)
	w.verify("started anew")
	w.link.Down()
	w.awaitState(api.StateDisconnected)
	stranger()
	w.put("vol1", 256<<10, 128<<10)
	w.link.Up()
	w.awaitState(api.StateProtected)
	w.verify("reconnected")
}

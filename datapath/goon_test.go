package datapath

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/group"
	"github.com/holdfast-dr/holdfast/datapath/roster"
	"github.com/holdfast-dr/holdfast/datapath/spill"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// inMemory has the run directory stand in memory, where windows are kept over the end of their process.
func (w *world) inMemory() {
	w.t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "hf")
	if err != nil {
		w.t.Skip("no memory-backed folder: ", err)
	}
	w.t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Symlink(dir, filepath.Join(w.dir, "run")); err != nil {
		w.t.Fatal(err)
	}
}

// keepingWorld is one in memory whose group is protected, and the incarnation that it is in.
func keepingWorld(t *testing.T, window, pool int64) (*world, record.Incarnation) {
	t.Helper()
	w := newWorld(t, func(w *world) { w.window, w.pool = window, pool })
	w.inMemory()
	w.start()
	w.awaitState(api.StateProtected)
	return w, w.s.flows[0].mu.inc
}

// windowFile is that of the source's only group.
func (w *world) windowFile() string {
	return filepath.Join(w.dir, "run", keptPrefix+record.StreamID(testStream).String())
}

// A source that ends with much in its window, and one that follows it several times: nothing is read again, the
// incarnation stays, checkpoints go on, and the replica is what the disk is.
func TestWindowIsGoneOnWith(t *testing.T) {
	t.Parallel()
	w, inc := keepingWorld(t, 8<<20, 8<<20)
	for round := range 3 {
		w.link.Down()
		g := w.writeGently(w.size, time.Millisecond)
		w.await("a full window", func() bool { return w.s.flows[0].window.Stats().Bytes > w.window/4 })
		g.end()
		held := w.s.flows[0].window.Stats()
		w.killSource()
		w.put("vol1", 1<<20, 64<<10) // while there is none
		if round == 1 {              // and one that never gets to run
			w.startSource()
			w.killSource()
		}
		w.startSource()
		f := w.s.flows[0]
		if s := f.window.Stats(); s.Records < held.Records || s.Raw < held.Raw || s.Bytes < held.Bytes {
			t.Errorf("it goes on with %+v of %+v", s, held)
		}
		w.put("vol1", 2<<20, 64<<10)
		w.link.Up()
		w.awaitState(api.StateProtected)
		w.verify("after")
		if f.mu.inc != inc || f.count.syncRead.Load() != 0 || f.count.raw.Load() > 4<<20 {
			t.Errorf("incarnation %d of %d; %d bytes were read again, %d sealed", f.mu.inc, inc, f.count.syncRead.Load(), f.count.raw.Load())
		}
	}
	if w.said.has("state=resync") {
		t.Error("a resync was opened")
	}
}

// A source lets go of the group's tap last: who has waited for that finds the window free, and goes on with it.
func TestWindowOverlaps(t *testing.T) {
	t.Parallel()
	w, inc := keepingWorld(t, 64<<20, 16<<20)
	w.link.Down()
	for round := range 3 {
		for i := range int64(8) { // memory that takes its time to be unmapped
			w.put("vol1", i<<19, 512<<10)
		}
		w.await("records", func() bool { return w.s.flows[0].window.Stats().Raw >= int64(round+1)*4<<20 })
		tap, err := os.Open(filepath.Join(w.dir, "run", "tap-"+record.GroupID(testGroup).String()+".lock"))
		if err != nil {
			t.Fatal(err)
		}
		free := make(chan error)
		go func() {
			err := unix.Flock(int(tap.Fd()), unix.LOCK_EX)
			if window, openErr := os.Open(w.windowFile()); errors.Join(err, openErr) != nil {
				err = errors.Join(err, openErr)
			} else {
				err = unix.Flock(int(window.Fd()), unix.LOCK_EX|unix.LOCK_NB)
				window.Close()
			}
			tap.Close()
			free <- err
		}()
		w.killSource()
		if err := <-free; err != nil {
			t.Fatalf("round %d: the tap is free, and the window: %v", round, err)
		}
		w.startSource()
		if f := w.s.flows[0]; f.mu.inc != inc {
			t.Fatalf("round %d: incarnation %d of %d", round, f.mu.inc, inc)
		}
	}
	w.link.Up()
	w.awaitState(api.StateProtected)
	w.verify("after")
}

// A window that lacks something, or is of a stream that cannot be gone on with, is not: a higher incarnation begins,
// what is marked is read again, and the log says why. A file of a group that is not here any more is removed, one of another VRA stays.
func TestWindowIsNotGoneOnWith(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.window, w.pool = 8<<20, 4<<20 })
	w.inMemory()
	w.mkdir("data")
	left, another := record.StreamID(0x77).String(), record.StreamID(0x78).String()
	rewrite(t, filepath.Join(w.dir, "run", keptPrefix+left), []byte("left"))
	rewrite(t, filepath.Join(w.dir, "run", keptPrefix+another), []byte("of another VRA, which is being upgraded"))
	rewrite(t, incarnationsName(filepath.Join(w.dir, "data"), left), []byte("holdfast incarnation 7\n"))
	w.start()
	if _, err := os.Stat(filepath.Join(w.dir, "run", keptPrefix+left)); !os.IsNotExist(err) {
		t.Errorf("what a group left that is not here is there still: %v", err)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "run", keptPrefix+another)); err != nil {
		t.Errorf("what another VRA left: %v", err)
	}
	w.awaitState(api.StateProtected)
	for _, c := range []struct {
		why  string
		ends func(f *flow) // while it runs; nil: nothing is done to it
		hurt func(f *flow) // when it has ended
	}{
		{"stood elsewhere", nil, func(*flow) { // the first slab of each size
			file, err := os.OpenFile(w.windowFile(), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			st, err := file.Stat()
			if err != nil {
				t.Fatal(err)
			}
			const from, sizes = 8 << 20, 12
			for size := range int64(sizes) {
				if _, err := file.WriteAt(make([]byte, 4), from+size*((st.Size()-from)/sizes)); err != nil {
					t.Fatal(err)
				}
			}
		}},
		{"another incarnation was drawn since", nil, func(f *flow) {
			if err := f.incarnations.put(f.mu.drawn.with(f.mu.drawn.last + 9)); err != nil {
				t.Fatal(err)
			}
		}},
		{"its incarnation had ended", func(f *flow) { f.fail(errors.New("a test has it stop")) }, func(*flow) {}},
	} {
		f := w.s.flows[0]
		w.link.Down()
		g := w.writeGently(w.size/4, time.Millisecond)
		w.await("records", func() bool { return f.window.Stats().Records > 8 })
		g.end()
		inc := f.mu.inc
		if c.ends != nil {
			c.ends(f)
		}
		w.killSource()
		c.hurt(f)
		w.startSource()
		w.link.Up()
		w.awaitState(api.StateProtected)
		if !w.said.has(c.why) {
			t.Errorf("it does not say %q", c.why)
		}
		if f = w.s.flows[0]; f.mu.inc <= inc || f.count.syncRead.Load() == 0 {
			t.Errorf("%s: incarnation %d after %d, %d bytes were read again", c.why, f.mu.inc, inc, f.count.syncRead.Load())
		}
		w.verify(c.why)
	}
}

// What a window begins behind was acknowledged, whatever the ledger says: a process may end between the two.
func TestAckedIsWhatTheWindowBeginsBehind(t *testing.T) {
	t.Parallel()
	w, inc := keepingWorld(t, 16<<20, 4<<20)
	w.verify("before")
	w.link.Down()
	f := w.s.flows[0]
	w.await("no session", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.mu.session == nil })
	w.put("vol1", 1<<20, 64<<10)
	w.await("a record", func() bool { return f.window.Stats().Records > 0 })
	w.killSource()
	acked := f.mu.ledger.Acked
	if acked < 2 {
		t.Fatalf("%d was acknowledged", acked)
	}
	before := f.mu.ledger
	before.Acked = acked / 2
	rewrite(t, filepath.Join(w.dir, "run", "ledger-"+record.StreamID(testStream).String()), before.encode())
	w.startSource()
	f = w.s.flows[0]
	f.mu.Lock()
	got := f.mu.ledger.Acked
	f.mu.Unlock()
	if got < acked {
		t.Errorf("%d counts as acknowledged, and the window begins behind %d", got, acked)
	}
	w.link.Up()
	w.awaitState(api.StateProtected)
	w.verify("after")
	if f.mu.inc != inc {
		t.Errorf("incarnation %d after %d", f.mu.inc, inc)
	}
}

// A window whose filters are away cannot be sent. It stands there until they are back, or another group needs the memory: then its
// group goes on by its marks.
func TestWindowGivesWay(t *testing.T) {
	t.Parallel()
	const total = 16 << 20
	w := newWorld(t, func(w *world) {
		w.window, w.pool, w.memory, w.asked = total, 8<<20, total, "shop"
		w.others = []GroupConfig{{Name: "till", ID: testGroup + 1, Stream: testStream + 1, Lineage: 8, Interval: w.interval, Window: total, Filters: []string{"/nobody/is/there"}}}
	})
	w.inMemory()
	w.start()
	w.awaitState(api.StateProtected)
	w.link.Down()
	for off := int64(0); w.s.flows[0].window.Stats().Bytes < total*7/16; off = (off + 512<<10) % w.size {
		w.put("vol1", off, 512<<10)
		w.await("a place for more", func() bool { return w.s.flows[0].tap.Stats().Free > 4<<20/capture.SlotBytes })
	}
	inc := w.s.flows[0].mu.inc
	w.killSource()
	w.filter.end(t)
	w.startSource()
	f, book := w.s.flows[0], w.s.share.book
	till := share{w.s.share, 1}
	till.Holds(total - f.window.Stats().Bytes)
	w.s.share.mu.Lock()
	held := book.Held(0)
	w.s.share.mu.Unlock()
	if held < total*7/16 {
		t.Fatalf("it goes on with %d bytes", held)
	}
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	if err := till.Await(ctx); err != nil {
		t.Fatalf("who needs the memory has none: %v", err)
	}
	till.Holds(0)
	w.await("its window to be empty", func() bool { return f.window.Stats().Records == 0 })
	if n := f.count.gaveWay.Load(); n != 1 || !w.said.has("is given up") {
		t.Errorf("it gave way %d times, or does not say so", n)
	}
	w.startFilter()
	w.link.Up()
	w.awaitState(api.StateProtected)
	w.verify("after")
	if f.mu.inc <= inc {
		t.Errorf("incarnation %d after %d", f.mu.inc, inc)
	}
}

// Where the file cannot be used the group is protected all the same, and says what a restart will cost.
func TestWindowHasNoFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.mkdir("run")
	if err := os.Mkdir(w.windowFile(), 0o700); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.awaitState(api.StateProtected)
	if !w.said.has("the window ends with this process") {
		t.Error("it does not say that the window ends with the process")
	}
	inc := w.s.flows[0].mu.inc
	w.killSource()
	w.startSource()
	w.awaitState(api.StateProtected)
	w.verify("after")
	if f := w.s.flows[0]; f.mu.inc <= inc {
		t.Errorf("incarnation %d after %d", f.mu.inc, inc)
	}
}

// TestGoesOnFrom has a row for each way in which the last record may end.
func TestGoesOnFrom(t *testing.T) {
	for _, row := range []struct{ through, last, from, order record.Ticket }{
		{10, 10, 11, 11}, // behind a write that is whole, or a mark
		{9, 10, 10, 10},  // in the middle of one: it is given again, whole
		{7, 10, 8, 10},   // as well, and what lies between was never to be sent
		{10, 0, 11, 11},  // nothing but marks
		{0, 0, 1, 1},
	} {
		if from, order := goesOnFrom(spill.At{Through: row.through, Last: row.last}); from != row.from || order != row.order {
			t.Errorf("behind %d, and %d at last, it goes on from %d in the order from %d; want %d, %d", row.through, row.last, from, order, row.from, row.order)
		}
	}
}

// TestWhyNothingIsGoneOnWith has a row for each thing that must not be, and for what may be.
func TestWhyNothingIsGoneOnWith(t *testing.T) {
	dir := t.TempDir()
	tap, err := capture.OpenTap(capture.TapConfig{RunDir: dir, Group: testGroup, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	pages, err := filepath.Glob(filepath.Join(dir, "order-*.page"))
	if err != nil || len(pages) != 1 {
		t.Fatal(pages, err)
	}
	passed := func(n byte) {
		page, err := os.OpenFile(pages[0], os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer page.Close()
		if _, err := page.WriteAt([]byte{n}, 232); err != nil {
			t.Fatal(err)
		}
	}
	names := openIncarnations(dir, testStream)
	inc := tap.RaiseIncarnation(8)
	draw := func(last record.Incarnation) {
		if err := names.put(drawn{}.with(last)); err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct {
		why    string // empty: it is gone on with
		change func(f *flow, c *spill.Carried)
	}{
		{"", func(*flow, *spill.Carried) {}},
		{"", func(f *flow, _ *spill.Carried) { f.mu.roster.Volumes[0].Phase = roster.Gone }},
		{"a resync was under way", func(_ *flow, c *spill.Carried) { c.Since = 0 }},
		{"the host restarted", func(f *flow, _ *spill.Carried) { f.marksNew = true }},
		{"another incarnation was drawn since", func(_ *flow, c *spill.Carried) { c.Incarnation-- }},
		{"another epoch was granted since", func(f *flow, _ *spill.Carried) { f.mu.epoch++ }},
		{"several VRAs take", func(f *flow, _ *spill.Carried) { f.cfg.Members = make([]Member, 2) }},
		{"the group rests", func(f *flow, _ *spill.Carried) { f.mu.roster.Paused = true }},
		{"volume vol1 was being added", func(f *flow, _ *spill.Carried) { f.mu.roster.Volumes[0].Phase = roster.Joining }},
		{"a filter could not be reached", func(*flow, *spill.Carried) { passed(1) }},
		{"another incarnation was drawn since", func(*flow, *spill.Carried) { draw(inc + 1) }},             // and the page does not say so
		{"another incarnation was drawn since", func(*flow, *spill.Carried) { tap.RaiseIncarnation(inc) }}, // and was not kept yet
	} {
		passed(0)
		draw(inc)
		f := &flow{tap: tap, incarnations: names}
		f.mu.epoch = 3
		f.mu.roster.Volumes = []roster.Volume{{Name: "vol1", Phase: roster.Member}}
		c := &spill.Carried{Standing: spill.Standing{Incarnation: inc, Epoch: 3, At: spill.At{Since: 5}}}
		row.change(f, c)
		if why := f.cannotGoOn(c); (why == "") != (row.why == "") || !strings.Contains(why, row.why) {
			t.Errorf("it says %q, want %q", why, row.why)
		}
	}
}

// A mark that was decided is taken though the life has ended since; one that was not ends what feed adds.
func TestMarksAtTheEnd(t *testing.T) {
	ended, end := context.WithCancel(context.Background())
	end()
	for range 64 { // a select of two that are ready takes either
		f := &flow{ctx: ended}
		decided := &mark{ticket: 4, decided: make(chan struct{}), place: &group.Place{Kind: group.Cut}}
		close(decided.decided)
		f.mu.marks = map[record.Ticket]*mark{4: decided, 5: {ticket: 5, decided: make(chan struct{}), open: true}}
		if m := f.takeMark(ended, 4); m != decided {
			t.Fatalf("at one that is decided stands %+v", m)
		}
		d := &feed{flow: f, life: life{ctx: ended}, whole: 3}
		f.intake.Store(&intake{})
		d.add([]capture.Write{{Kind: capture.Mark, Ticket: 5}, {Kind: capture.Mark, Ticket: 6}})
		if d.whole != 3 {
			t.Fatalf("behind one that is not decided all up to %d is whole", d.whole)
		}
		f.ctx = context.Background() // another life comes: what was taken must be freed
		if d.add([]capture.Write{{Kind: capture.Mark, Ticket: 5}, {Kind: capture.Mark, Ticket: 6}}); d.whole != 6 {
			t.Fatalf("where only the life has ended all up to %d is whole", d.whole)
		}
	}
}

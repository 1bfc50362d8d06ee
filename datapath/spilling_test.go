package datapath

import (
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/datapath/spill"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// spillWorld is a world with little memory and a disk beside it, whose link goes down once it is protected.
func spillWorld(t *testing.T) (*world, *faultdisk.Disk) {
	disk := faultdisk.New(512)
	w := newWorld(t, func(w *world) {
		w.size, w.window, w.pool = 16<<20, 2<<20, 2<<20
		w.spill = SpillConfig{FS: disk, Dir: "/spill", Budget: 256 << 20}
	})
	w.start()
	w.awaitState(api.StateProtected)
	w.link.Down()
	w.awaitState(api.StateDisconnected)
	return w, disk
}

// noise writes what does not compress, until done, no faster than what is captured finds slots.
func (w *world) noise(done func() bool) {
	w.t.Helper()
	const piece = 64 << 10
	rng := rand.NewChaCha8([32]byte{})
	f := w.s.flows[0]
	for off := int64(0); !done(); off = (off + piece) % w.size {
		w.await("free slots", func() bool { s := f.tap.Stats(); return done() || s.Free > s.Slots/2 })
		wr, err := w.f.Device("vol1").BeginWrite(off, piece)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, p := range wr.Buffers() {
			rng.Read(p)
		}
		if err := wr.Commit(false); err != nil {
			w.t.Fatal(err)
		}
	}
}

// TestSpill keeps the link down until several times the memory waits on disk, and brings it back: all comes in its
// order, the checkpoints of that time too, and nothing is read from the guest's disk again.
func TestSpill(t *testing.T) {
	t.Parallel()
	w, disk := spillWorld(t)
	f := w.s.flows[0]
	inc, lost, synced, listed := f.mu.inc, f.tap.Lost(), f.count.syncRead.Load(), w.tg.group("").State().Count
	w.noise(func() bool { return f.window.Stats().OnDisk > 12<<20 })
	w.awaitState(api.StateSpilling)
	s := w.status()
	if s.SpillBytes < 12<<20 || s.SpillLimit != 256<<20 || s.WindowBytes > w.window+batchRaw || !strings.Contains(s.Reason, "are kept on disk") || s.LagSeconds != nil && *s.LagSeconds <= 0 {
		t.Errorf("%v", s)
	}
	holdMetrics(t, Handlers(Identity{}, w.s, nil).Metrics, `holdfast_group_state{group="shop",role="source",state="spilling"} 1`, `holdfast_spill_limit_bytes{group="shop"} 2.68435456e+08`)
	during, image := make(chan string), w.image("vol1")
	go func() { during <- w.checkpoint("during") }()
	w.await("a cut that waits", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, a := range f.mu.asks {
			if a.cut.Checkpoint != 0 {
				return true
			}
		}
		return false
	})
	w.noise(func() bool { return f.window.Stats().OnDisk > 24<<20 })
	w.link.Up()
	w.compare(<-during, map[string][]byte{"vol1": image})
	w.awaitState(api.StateProtected)
	w.verify("after")
	if f.mu.inc != inc || f.tap.Lost() != lost || f.count.syncRead.Load() != synced {
		t.Errorf("incarnation %d of %d, %d writes lost, %d bytes were read again", f.mu.inc, inc, f.tap.Lost()-lost, f.count.syncRead.Load()-synced)
	}
	if n := w.tg.group("").State().Count; n < listed+2 {
		t.Errorf("%d checkpoints are listed, %d were before", n, listed)
	}
	w.await("the files to go", func() bool { return f.window.SpillStats().Disk == 0 })
	if names, err := disk.List("/spill"); err != nil || len(names) != 1 {
		t.Errorf("%v stay: %v", names, err)
	}
}

// TestSpillIsDamaged: what rots on the spill disk is never sent; it is said, and the blocks that changed are read again.
func TestSpillIsDamaged(t *testing.T) {
	t.Parallel()
	w, disk := spillWorld(t)
	f := w.s.flows[0]
	inc := f.mu.inc
	w.noise(func() bool { return f.window.Stats().OnDisk > 8<<20 })
	for _, name := range spillNames(t, disk) {
		if err := disk.Rot(name, 2<<20, 1); err != nil {
			t.Fatal(err)
		}
	}
	w.link.Up()
	w.await("the loss", func() bool { return strings.Contains(w.status().Reason, "could not be read back") })
	w.awaitState(api.StateProtected)
	w.verify("after")
	if f.mu.inc == inc || f.count.syncRead.Load() == 0 || f.window.SpillStats().Failures == 0 {
		t.Errorf("incarnation %d after %d, %d bytes were read again", f.mu.inc, inc, f.count.syncRead.Load())
	}
}

func spillNames(t *testing.T, disk *faultdisk.Disk) (names []string) {
	t.Helper()
	all, err := disk.List("/spill")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		if strings.HasSuffix(name, ".spill") {
			names = append(names, "/spill/"+name)
		}
	}
	return names
}

// TestSpillFailsDownwards: a disk that is full, fails or hangs is the next step of the ladder: writes are only marked, no guest
// waits, what was on disk is sent when the link is back, and all is whole afterwards.
func TestSpillFailsDownwards(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]func(*faultdisk.Disk) (heal func()){
		"is full": func(d *faultdisk.Disk) func() { d.SetFree(spill.LeftFree); return func() {} },
		"input/output error": func(d *faultdisk.Disk) func() {
			d.Inject(faultdisk.Fault{Ops: faultdisk.OpWrite, At: 10, Ever: true, Err: syscall.EIO})
			return func() {}
		},
		"does not answer": func(d *faultdisk.Disk) func() {
			stall := make(chan struct{})
			d.Inject(faultdisk.Fault{Ops: faultdisk.OpWrite, At: 10, Ever: true, Stall: stall})
			return func() { close(stall) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, disk := spillWorld(t)
			heal := f(disk)
			g := w.write(w.size, 3_000_000)
			w.awaitState(api.StateMarksOnly)
			w.await("the reason", func() bool { return strings.Contains(w.status().Reason, name) })
			marked := g.count()
			w.await("writes that are only marked", func() bool { return g.count() > marked+200 })
			w.link.Up()
			w.await("another state", func() bool { return w.status().State != api.StateMarksOnly })
			heal()
			w.awaitState(api.StateProtected, api.StateBehind)
			g.endPrompt()
			w.awaitState(api.StateProtected)
			w.verify("after")
		})
	}
}

// TestKilledWhileSpilling: what a killed source had on disk is not taken up by the next one, which reads again what is marked.
func TestKilledWhileSpilling(t *testing.T) {
	t.Parallel()
	w, disk := spillWorld(t)
	w.noise(func() bool { return w.s.flows[0].window.Stats().OnDisk > 8<<20 })
	left := disk.Kill()
	if len(spillNames(t, left)) == 0 {
		t.Fatal("nothing is left behind")
	}
	w.killSource()
	w.spill.FS = left
	w.link.Up()
	w.startSource()
	w.awaitState(api.StateProtected)
	w.verify("after")
	if names := spillNames(t, left); len(names) > 0 || w.s.flows[0].count.syncRead.Load() == 0 {
		t.Errorf("%v are left, %d bytes were read again", names, w.s.flows[0].count.syncRead.Load())
	}
}

// TestSpillTakesItsPart: what several groups take of the disk stays within the budget, each has its floor, and what is given back is there again.
func TestSpillTakesItsPart(t *testing.T) {
	const groups, budget = 3, 4 * 3 * spill.SegmentBytes
	s := &Source{cfg: SourceConfig{Spill: SpillConfig{FS: faultdisk.New(512), Dir: "/spill", Budget: budget}}}
	for range groups {
		f := &flow{window: spill.New(1<<20, 1)}
		s.flows = append(s.flows, f)
	}
	s.openSpill()
	parts := make([]allot, groups)
	for i := range parts {
		parts[i] = allot{s.spill.share, i}
	}
	taken := int64(0)
	for parts[0].Take(spill.SegmentBytes) {
		if taken += spill.SegmentBytes; taken > budget {
			t.Fatalf("one group takes %d bytes of %d", taken, int64(budget))
		}
	}
	for i := 1; i < groups; i++ {
		for range 2 { // its floor
			if !parts[i].Take(spill.SegmentBytes) {
				t.Errorf("group %d does not get its part", i)
			}
			taken += spill.SegmentBytes
		}
		if parts[i].Take(spill.SegmentBytes) {
			t.Errorf("group %d takes more than there is", i)
		}
	}
	if taken != budget || s.spillLimit(s.flows[0]) != budget-4*spill.SegmentBytes {
		t.Errorf("%d bytes of %d are taken; the first may take %d", taken, int64(budget), s.spillLimit(s.flows[0]))
	}
	parts[0].Give(spill.SegmentBytes)
	if !parts[2].Take(spill.SegmentBytes) {
		t.Error("what was given back is not there")
	}
}

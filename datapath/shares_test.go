package datapath

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath/budget"
	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/internal/testtrust"
	"github.com/holdfast-dr/holdfast/datapath/spill"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
	"github.com/holdfast-dr/holdfast/wire/shape"
)

// TestLowestGivesWay keeps the link down while two groups write, and memory is short: the
// low one is marked only and says why, the high one keeps what it holds, and afterwards
// both are whole.
func TestLowestGivesWay(t *testing.T) {
	t.Parallel()
	lowestGivesWay(t, SpillConfig{})
}

// TestLowestGoesToDisk: where there is a disk the low one puts there what is above its floor, and loses nothing.
func TestLowestGoesToDisk(t *testing.T) {
	t.Parallel()
	lowestGivesWay(t, SpillConfig{FS: faultdisk.New(512), Dir: "/spill", Budget: 256 << 20})
}

func lowestGivesWay(t *testing.T, disk SpillConfig) {
	const total, piece = 8 << 20, 256 << 10
	w := newWorld(t, func(w *world) { w.size, w.window, w.pool, w.asked = 1<<20, 64<<20, 2<<20, "shop" })
	w.startFilter()
	w.startTarget()

	// A second guest, with a filter and a group of its own.
	image := filepath.Join(w.dir, "till.img")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, w.size)); err != nil {
		t.Fatal(err)
	}
	till, err := capture.OpenFilter(capture.FilterConfig{
		RunDir: w.dir + "/run", Group: testGroup + 1, PoolBytes: w.pool, PoolSocket: w.dir + "/pool2", FS: ioengine.OS(), Log: w.log.With("part", "till"),
		Volumes: []capture.FilterVolume{{ID: 1, Name: "till", Path: image}},
	})
	if err != nil {
		t.Fatal(err)
	}
	second := run(func(ctx context.Context) error { return errors.Join(till.Run(ctx), till.Close()) })
	defer func() { w.source.end(t); w.source = nil; second.end(t) }()

	credentials, _ := testtrust.Sites()
	g := GroupConfig{Name: "shop", ID: testGroup, Stream: testStream, Lineage: 7, Interval: w.interval, Window: w.window, Control: w.control, Data: w.data,
		Filters: []string{w.dir + "/pool"}, Volumes: []VolumeName{{ID: volumeID(0), Name: w.volumes[0]}}}
	h := g
	h.Name, h.ID, h.Stream, h.Filters, h.Volumes = "till", testGroup+1, testStream+1, []string{w.dir + "/pool2"}, []VolumeName{{ID: 1, Name: "till"}}
	w.mkdir("data")
	w.s, err = OpenSource(SourceConfig{RunDir: w.dir + "/run", DataDir: w.dir + "/data", Credentials: credentials, Groups: []GroupConfig{g, h},
		WindowBudget: total, Spill: disk, Log: w.log.With("part", "source"),
		Shaping: shape.Policy{Priorities: map[string]shape.Priority{"shop": shape.Low, "till": shape.High}}})
	if err != nil {
		t.Fatal(err)
	}
	w.source = run(func(ctx context.Context) error { return errors.Join(w.s.Run(ctx), w.s.Close()) })
	status := func(i int) *holdfastv1.Group {
		res, err := Handlers(Identity{}, w.s, nil).Status.Get(context.Background(), &holdfastv1.StatusServiceGetRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return res.Groups[i]
	}
	low, high := w.s.flows[0], w.s.flows[1]
	await := func(i int, state string) {
		t.Helper()
		w.await(state, func() bool { return status(i).State == state })
	}
	await(0, api.StateProtected)
	await(1, api.StateProtected)
	w.link.Down()
	await(0, api.StateDisconnected)
	await(1, api.StateDisconnected)

	// write writes a piece of noise, which is not compressed, whenever there is room for it, until done.
	rng := rand.NewChaCha8([32]byte{})
	write := func(f *flow, filter *capture.Filter, volume string, done func() bool) {
		t.Helper()
		for off := int64(0); !done(); off = (off + piece) % w.size {
			w.await("free slots", func() bool { s := f.tap.Stats(); return done() || s.Free > s.Slots/2 })
			wr, err := filter.Device(volume).BeginWrite(off, piece)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range wr.Buffers() {
				rng.Read(p)
			}
			if err := wr.Commit(false); err != nil {
				t.Fatal(err)
			}
		}
	}
	inc, lowInc, lost := high.mu.inc, low.mu.inc, high.tap.Lost()
	if disk.Budget > 0 {
		write(low, w.f, w.volumes[0], func() bool { return low.window.Stats().Bytes > total*5/16 })
		write(high, till, "till", func() bool {
			l, h := low.window.Stats(), high.window.Stats()
			return l.OnDisk > 0 && l.Bytes <= w.s.share.book.Floor() && h.Bytes > w.s.share.book.Floor()
		})
		await(0, api.StateSpilling)
		w.link.Up()
		await(0, api.StateProtected)
		await(1, api.StateProtected)
		if high.mu.inc != inc || low.mu.inc != lowInc || low.count.gaveWay.Load() > 0 || high.tap.Lost() != lost {
			t.Errorf("the high group has incarnation %d of %d, the low %d of %d and gave way %d times", high.mu.inc, inc, low.mu.inc, lowInc, low.count.gaveWay.Load())
		}
		w.verify("after")
		return
	}
	write(low, w.f, w.volumes[0], func() bool { return low.window.Stats().Bytes > total/2 })
	write(high, till, "till", func() bool { return low.count.gaveWay.Load() > 0 })
	s := status(0)
	if s.State != api.StateMarksOnly || !strings.Contains(s.Reason, "higher priority") || s.WindowBytes != 0 || s.WindowLimit > total/4 {
		t.Errorf("the low group is %s: %s, its window %d of %d", s.State, s.Reason, s.WindowBytes, s.WindowLimit)
	}
	write(high, till, "till", func() bool { return high.window.Stats().Bytes > total*5/8 })
	if s := status(1); s.State != api.StateDisconnected && high.tap.Lost() == lost {
		t.Errorf("the high group is %s: %s", s.State, s.Reason)
	}
	w.put(w.volumes[0], 0, piece) // it still writes, and waits for nobody

	w.link.Up()
	await(0, api.StateProtected)
	await(1, api.StateProtected)
	if high.mu.inc != inc || high.count.gaveWay.Load() > 0 || low.count.gaveWay.Load() != 1 {
		t.Errorf("the high group has incarnation %d of %d and gave way %d times; the low %d times",
			high.mu.inc, inc, high.count.gaveWay.Load(), low.count.gaveWay.Load())
	}
	w.verify("shop after")
	shop, volumes := w.f, w.volumes
	w.f, w.volumes, w.asked = till, []string{"till"}, "till"
	w.verify("till after")
	w.f, w.volumes = shop, volumes
}

// held is a record's memory.
type held int64

func (h held) Bytes() []byte { return nil }
func (h held) Held() int64   { return int64(h) }
func (h held) Release()      {}

// Who waits for the memory is let in when another frees some, when its turn for a rest is
// over, and is let go when its life ends.
func TestSharesWakeWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mib = 1 << 20
		s := &shares{book: budget.New(40*mib, mib, []int64{100 * mib, 100 * mib}), changed: make(chan struct{})}
		a, b := spill.New(100*mib, 1), spill.New(100*mib, 1)
		a.Join(share{s, 0})
		b.Join(share{s, 1})
		put := func(w *spill.Window, n int) {
			for range n {
				w.Put(&spill.Record{Seq: w.Next(), Buffer: held(mib)})
			}
		}
		put(a, 30)
		put(b, 10)
		if got := a.Limit(); got != 30*mib {
			t.Errorf("a's limit is %d", got)
		}
		let := make(chan error, 1)
		go func() { let <- a.Room(context.Background()) }()
		synctest.Wait()
		select {
		case err := <-let:
			t.Fatalf("let in: %v", err)
		default:
		}
		if _, err := b.Ack(record.Seq(5)); err != nil { // of its floor: that is no room for others
			t.Fatal(err)
		}
		synctest.Wait()
		if len(let) > 0 {
			t.Error("let in on another's floor")
		}
		if _, err := a.Ack(record.Seq(1)); err != nil {
			t.Fatal(err)
		}
		if err := <-let; err != nil {
			t.Error(err)
		}
		put(a, 1)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := a.Room(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("let in: %v", err)
		}
		go func() { let <- a.Room(context.Background()) }()
		synctest.Wait()
		a.Reset(1)
		if err := <-let; err != nil {
			t.Error(err)
		}
	})
}

package datapath

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/gate"
	"github.com/holdfast-dr/holdfast/datapath/internal/testtrust"
	"github.com/holdfast-dr/holdfast/datapath/spill"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/faultlink"
	"github.com/holdfast-dr/holdfast/wire/record"
	"github.com/holdfast-dr/holdfast/wire/shape"
)

// gateWorld is a gate, a session over a network in memory, and groups with a backlog.
// It lives in a bubble of synctest: its seconds are exact.
type gateWorld struct {
	t       *testing.T
	gate    *gate.Gate
	net     faultlink.Net
	session chan *wire.Session
	got     sync.Map // bytes of records that came, by stream
	stops   []func()
	low     *gate.Turn // of the group of that name

	mu   sync.Mutex
	link float64   // bytes a second that the link takes; 0: all
	out  []written // by the source
}

type written struct {
	at    time.Time
	bytes int64
}

func newGateWorld(t *testing.T, p shape.Policy) *gateWorld {
	w := &gateWorld{t: t, session: make(chan *wire.Session, 10)}
	w.gate = w.newGate(p)
	source, target := testtrust.Sites()
	server, err := wire.Listen(wire.ServerConfig{ListenControl: "control", ListenData: "data", Listen: w.net.Listen, Credentials: target})
	if err != nil {
		t.Fatal(err)
	}
	w.start(func(ctx context.Context) error { return server.Serve(ctx, (*gateTarget)(w)) })
	w.start(func(ctx context.Context) error {
		return wire.Connect(ctx, wire.ClientConfig{Control: "control", Data: "data", Dial: w.dial, Credentials: source}, (*gateSource)(w))
	})
	w.start(func(ctx context.Context) error { w.gate.Run(ctx); return nil })
	return w
}

func (w *gateWorld) newGate(p shape.Policy) *gate.Gate {
	g, err := gate.Open(newShapingFile(filepath.Join(w.t.TempDir(), "shaping"), p), LoadZone, slog.New(slog.DiscardHandler))
	if err != nil {
		w.t.Fatal(err)
	}
	return g
}

func (w *gateWorld) start(run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	w.stops = append(w.stops, func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
}

func (w *gateWorld) stop() {
	for i := len(w.stops) - 1; i >= 0; i-- {
		w.stops[i]()
	}
	w.stops = nil
}

func (w *gateWorld) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := w.net.Dial(ctx, network, address)
	return &counted{c, w}, err
}

// counted notes what is written as the interface would count it.
type counted struct {
	net.Conn
	w *gateWorld
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.w.mu.Lock()
	link := c.w.link
	c.w.mu.Unlock()
	if link > 0 {
		time.Sleep(time.Duration(float64(n) / link * float64(time.Second)))
	}
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.w.out = append(c.w.out, written{time.Now(), shape.Usual.Wire(int64(n))})
	return n, err
}

// seconds tells the fullest second of what was written since the last call, and the mean.
func (w *gateWorld) seconds(d time.Duration) (most, mean float64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	sum, all, j := int64(0), int64(0), 0
	for _, from := range w.out {
		for ; j < len(w.out) && w.out[j].at.Before(from.at.Add(time.Second)); j++ {
			sum += w.out[j].bytes
		}
		most = max(most, float64(sum))
		sum -= from.bytes
		all += from.bytes
	}
	w.out = nil
	return most, float64(all) / d.Seconds()
}

// backlog is a group with records of about size that never end, as flow sends them.
func (w *gateWorld) backlog(name string, s *wire.Session, size int) (f *flow, stop func() error) {
	f = &flow{gate: w.gate, turn: w.gate.Turn(name), window: spill.New(1<<40, 1), log: slog.New(slog.DiscardHandler)}
	if f.cfg.Name = name; name == "low" {
		w.low = f.turn
	}
	rec := sameBytes(gateRecord(name, size))
	for seq := range record.Seq(400) {
		f.window.Put(&spill.Record{Seq: seq + 1, Buffer: rec})
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.carry(sendOrder{ctx: ctx, session: s, from: 1}) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	w.stops = append(w.stops, func() { stop() })
	return f, stop
}

// gateRecord is a record of a group; the seq in it is never looked at.
func gateRecord(name string, size int) []byte {
	stream := record.StreamID(0)
	for _, c := range name {
		stream = stream*31 + record.StreamID(c)
	}
	b := record.NewBatch(record.Limits{})
	noise := make([]byte, size)
	for i, x := 0, uint32(1); i < size; i++ {
		x = x*1664525 + 1013904223
		noise[i] = byte(x >> 24)
	}
	b.Add(record.Piece{Volume: 1, Len: int64(size / 512 * 512), Ticket: 1, Data: noise[:size/512*512]})
	return b.Seal(nil, record.Identity{Stream: stream, Epoch: 1, Incarnation: 1, Seq: 1}, 1, record.NewCompressor())
}

func (w *gateWorld) of(name string) int64 {
	h, err := record.ParseHeader(gateRecord(name, 512))
	if err != nil {
		w.t.Fatal(err)
	}
	if n, ok := w.got.Load(h.Stream); ok {
		return n.(*atomic.Int64).Load()
	}
	return 0
}

type sameBytes []byte

func (b sameBytes) Bytes() []byte { return b }
func (b sameBytes) Held() int64   { return int64(len(b)) }
func (b sameBytes) Release()      {}

type gateTarget gateWorld

func (w *gateTarget) Opened(*wire.Session) error                { return nil }
func (w *gateTarget) Message(*wire.Session, wire.Message) error { return nil }
func (w *gateTarget) Lost(*wire.Session, uint32)                {}
func (w *gateTarget) Closed(*wire.Session, error)               {}
func (w *gateTarget) Record(_ *wire.Session, r *wire.Received) error {
	n, _ := w.got.LoadOrStore(r.Header().Stream, new(atomic.Int64))
	n.(*atomic.Int64).Add(int64(r.Header().Size))
	r.Release()
	return nil
}

type gateSource gateWorld

func (w *gateSource) Opened(s *wire.Session) error {
	w.gate.Enter(s)
	w.session <- s
	return nil
}
func (w *gateSource) Message(*wire.Session, wire.Message) error { return nil }
func (w *gateSource) Lost(*wire.Session, uint32)                {}
func (w *gateSource) Closed(s *wire.Session, _ error)           { w.gate.Leave(s) }
func (w *gateSource) Record(_ *wire.Session, r *wire.Received) error {
	r.Release()
	return errors.New("a record at the source")
}

func TestGateKeepsTheCap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newGateWorld(t, shape.Policy{Cap: 5e6, Priorities: map[string]shape.Priority{"high": shape.High, "low": shape.Low}})
		defer w.stop()
		s := <-w.session
		for _, name := range []string{"low", "medium", "high"} {
			w.backlog(name, s, 60<<10)
		}
		check := func(r shape.Rate, d time.Duration) {
			t.Helper()
			time.Sleep(100 * time.Millisecond)
			w.seconds(d)
			time.Sleep(d)
			most, mean := w.seconds(d)
			if most > 1.03*r.BytesPerSecond() || mean < 0.97*r.BytesPerSecond() {
				t.Errorf("at %s a second holds %.1f %%, all %.1f %%", r, 100*most/r.BytesPerSecond(), 100*mean/r.BytesPerSecond())
			}
		}
		check(5e6, 10*time.Second)
		high, medium, low := float64(w.of("high")), float64(w.of("medium")), float64(w.of("low"))
		if sum := high + medium + low; high/sum < 0.6 || low/sum < 0.05*0.8 { // low has few records in so short a time
			t.Errorf("high %.0f, medium %.0f, low %.0f", high, medium, low)
		}
		if _, held := w.gate.HeldByCap(w.low); !held {
			t.Error("the cap is not what holds the group")
		}
		p := w.gate.Policy()
		for _, r := range []shape.Rate{20e6, 5e6} {
			p.Cap = r
			if err := w.gate.Set(p, true); err != nil {
				t.Fatal(err)
			}
			check(r, 3*time.Second)
		}
	})
}

// A link that is slower than any cap is shared by priority too.
func TestSlowLinkIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newGateWorld(t, shape.Policy{Priorities: map[string]shape.Priority{"high": shape.High, "low": shape.Low}})
		defer w.stop()
		s := <-w.session
		w.mu.Lock()
		w.link = 1e6
		w.mu.Unlock()
		for _, name := range []string{"low", "medium", "high"} {
			w.backlog(name, s, 60<<10)
		}
		time.Sleep(10 * time.Second)
		high, medium, low := float64(w.of("high")), float64(w.of("medium")), float64(w.of("low"))
		if sum := high + medium + low; high/sum < 0.6 || low/sum < 0.05 {
			t.Errorf("high %.0f, medium %.0f, low %.0f", high, medium, low)
		}
		if _, held := w.gate.HeldByCap(w.low); held {
			t.Error("a cap that is not holds a group")
		}
	})
}

// Messages are not held up, and records leave room for them.
func TestMessagesAreChargedToRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const r = shape.Rate(5e6)
		w := newGateWorld(t, shape.Policy{Cap: r})
		defer w.stop()
		s := <-w.session
		w.backlog("a", s, 60<<10)
		m := &wire.OpenStream{Group: 1, GroupName: "shop", Lineage: 5, Stream: 7, Epoch: 1, Incarnation: 1}
		for i := range 100 {
			m.Volumes = append(m.Volumes, wire.Volume{ID: record.VolumeID(i + 1), Name: "a-volume-with-a-long-name", Bytes: 1 << 30})
		}
		w.seconds(1)
		for range 100 {
			time.Sleep(50 * time.Millisecond)
			if err := s.Send(m); err != nil {
				t.Fatal(err)
			}
		}
		most, mean := w.seconds(5 * time.Second)
		if most > 1.03*r.BytesPerSecond() || mean < 0.97*r.BytesPerSecond() {
			t.Errorf("a second holds %.1f %%, all %.1f %%", 100*most/r.BytesPerSecond(), 100*mean/r.BytesPerSecond())
		}
	})
}

func TestGateLetsGoWhenASessionEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newGateWorld(t, shape.Policy{Cap: 5e6})
		defer w.stop()
		s := <-w.session
		_, stopA := w.backlog("a", s, 60<<10)
		_, stopB := w.backlog("b", s, 60<<10)
		time.Sleep(time.Second)
		s.Close()
		if a, b := stopA(), stopB(); a == nil || b == nil {
			t.Errorf("senders end with %v and %v", a, b)
		}
		s = <-w.session
		before := w.of("c")
		_, stop := w.backlog("c", s, 60<<10)
		time.Sleep(time.Second)
		if n := w.of("c") - before; n < 400<<10 {
			t.Errorf("%d bytes in the second after", n)
		}
		// Told to stop while it waits for its turn, it leaves the turn to others.
		_, stopD := w.backlog("d", s, 60<<10)
		stop()
		before = w.of("d")
		time.Sleep(time.Second)
		if n := w.of("d") - before; n < 400<<10 {
			t.Errorf("%d bytes in the second after", n)
		}
		stopD()
	})
}

func TestWithoutACapTheGateHoldsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newGateWorld(t, shape.Policy{})
		defer w.stop()
		s := <-w.session
		began := time.Now()
		f, _ := w.backlog("a", s, 60<<10)
		synctest.Wait()
		if n := f.window.Stats().Unsent; n > 0 || time.Since(began) > 0 {
			t.Errorf("%d records are left after %s", n, time.Since(began))
		}
	})
}

func TestShapingIsKept(t *testing.T) {
	dir := t.TempDir()
	configured := shape.Policy{Cap: 50e6}
	open := func() *gate.Gate {
		g, err := gate.Open(newShapingFile(filepath.Join(dir, "shaping"), configured), LoadZone, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	is := func(g *gate.Gate, want shape.Rate) {
		t.Helper()
		if got := g.Policy().Cap; got != want {
			t.Errorf("the cap is %s, want %s", got, want)
		}
	}
	g := open()
	is(g, 50e6)
	if err := g.Set(shape.Policy{Cap: 5e6}, true); err != nil {
		t.Fatal(err)
	}
	is(g, 5e6)
	is(open(), 5e6)
	if err := g.Set(shape.Policy{Zone: "No/Where"}, true); !errors.Is(err, shape.ErrPolicy) {
		t.Errorf("a zone that is not: %v", err)
	}
	if err := g.Set(shape.Policy{Cap: 1}, true); !errors.Is(err, shape.ErrPolicy) {
		t.Errorf("a cap that is none: %v", err)
	}
	is(open(), 5e6)
	if err := g.Change(true, true, nil); err != nil {
		t.Fatal(err)
	}
	is(g, 50e6)
	is(open(), 50e6)
	if err := writeDurably(filepath.Join(dir, "shaping"), []byte("holdfast shaping 1\ncap none\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := gate.Open(newShapingFile(filepath.Join(dir, "shaping"), configured), LoadZone, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a damaged file was taken")
	}
}

// A record takes the link about 0.1 s at most, whatever the cap.
func TestBatchesFollowTheCap(t *testing.T) {
	f := &flow{window: spill.New(1<<20, 1)}
	for r, want := range map[shape.Rate]int{0: batchRaw, 1e6: batchRawMin, 5e6: batchRawMin, 20e6: 250_000, 100e6: batchRaw} {
		g, err := gate.Open(newShapingFile(filepath.Join(t.TempDir(), "shaping"), shape.Policy{Cap: r}), LoadZone, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		f.gate = g
		if got := f.batchLimit(0); got != want {
			t.Errorf("at %s a batch holds %d bytes, want %d", r, got, want)
		}
	}
}

// TestConfigurationOfShapingChanges: what the configuration says holds at once, unless a user has set something; then when he takes that back.
func TestConfigurationOfShapingChanges(t *testing.T) {
	g, err := gate.Open(newShapingFile(filepath.Join(t.TempDir(), "shaping"), shape.Policy{Cap: 50e6}), LoadZone, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	is := func(err error, want shape.Rate) {
		t.Helper()
		if got := g.Policy().Cap; got != want || err != nil {
			t.Errorf("the cap is %s, want %s: %v", got, want, err)
		}
	}
	is(g.Configure(shape.Policy{Cap: 40e6}), 40e6)
	is(g.Set(shape.Policy{Cap: 5e6}, true), 5e6)
	is(g.Configure(shape.Policy{Cap: 30e6}), 5e6)
	for _, p := range []shape.Policy{{Cap: 1}, {Cap: 20e6, Zone: "No/Where"}} {
		if err := g.Configure(p); !errors.Is(err, shape.ErrPolicy) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	is(g.Change(true, true, nil), 30e6)
}

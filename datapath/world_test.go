package datapath

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
	"github.com/holdfast-dr/holdfast/datapath/internal/testtrust"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/wire/faultlink"
)

// world is two sites in one process: a filter with its disks, a source, a link and a
// target, each of which can be stopped and started by itself.
type world struct {
	interval time.Duration // between cuts
	parity   Parity        // of the target; zero: one folder
	// connections of data to the target, 0 as many as pay, and what happens to those through the link.
	connections int
	script      func(route, number int) faultlink.Faults
	t           *testing.T
	dir         string
	volumes     []string
	freeze      Freeze
	activity    string  // disks have activity logs, with this behind their names
	qemus       []*qemu // of the guests, where the volumes are mirror targets
	asked       string  // the group that is asked about, where there are several
	size        int64
	paused      bool // the group is, until it is resumed
	window      int64
	pool        int64
	memory      int64         // of all windows together; 0: their sum
	others      []GroupConfig // of the source, beside the world's own; they have its target
	fs          ioengine.FS   // the target's
	spill       SpillConfig   // of the source
	store       string        // there
	// catalogue opens the journal's; nil is Badger.
	catalogue func() (index.Map, error)
	log       *slog.Logger
	said      *toTest // where it goes

	filter, source, target, relay *part
	f                             *capture.Filter
	s                             *Source
	tg                            *Target
	link                          *faultlink.Relay
	control, data                 string // where the relay listens
}

// part is something that runs.
type part struct {
	stop func()
	done chan struct{}
	err  error
}

func run(f func(context.Context) error) *part {
	ctx, stop := context.WithCancel(context.Background())
	p := &part{stop: stop, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = f(ctx)
	}()
	return p
}

func (p *part) end(t *testing.T) {
	t.Helper()
	if p == nil {
		return
	}
	p.stop()
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		panic("a part does not end")
	}
	if p.err != nil {
		t.Error(p.err)
	}
}

const (
	testGroup  = 0x11
	testStream = 0x22
)

// newWorld makes disks of content and starts nothing.
func newWorld(t *testing.T, change func(*world)) *world {
	w := &world{t: t, interval: time.Second, volumes: []string{"vol1"}, size: 8 << 20, window: 16 << 20, pool: 4 << 20, fs: ioengine.OS()}
	w.said = &toTest{t: t}
	w.log = slog.New(slog.NewTextHandler(w.said, &slog.HandlerOptions{Level: slog.LevelInfo}))
	if change != nil {
		change(w)
	}
	dir, err := os.MkdirTemp("", "hf") // sockets have short names
	if err != nil {
		t.Fatal(err)
	}
	w.dir = dir
	if w.store == "" {
		w.store = dir + "/store"
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	rng := rand.New(rand.NewPCG(1, 2))
	for _, v := range w.volumes {
		p := make([]byte, w.size)
		for off := int64(0); off < w.size; off += 64 << 10 {
			if rng.IntN(3) > 0 { // the rest stays a hole
				fill(rng, p[off:off+64<<10])
			}
		}
		f, err := os.Create(filepath.Join(dir, v+".img"))
		if err != nil {
			t.Fatal(err)
		}
		for off := int64(0); off < w.size; off += 64 << 10 {
			if p := p[off : off+64<<10]; !bytes.Equal(p, make([]byte, len(p))) {
				if _, err := f.WriteAt(p, off); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := errors.Join(f.Truncate(w.size), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	w.relay = &part{stop: func() {}, done: make(chan struct{})}
	close(w.relay.done)
	t.Cleanup(func() {
		w.source.end(t)
		w.target.end(t)
		w.relay.end(t)
		w.filter.end(t)
		// What is cleaned up is remembered until the last of all parallel tests is over: the memory of their worlds with it.
		*w = world{}
	})
	return w
}

// toTest writes a log to the test's, until that has ended, and keeps it.
type toTest struct {
	t  *testing.T
	mu struct {
		sync.Mutex
		text []byte
	}
}

func (l *toTest) Write(p []byte) (int, error) {
	l.t.Log(string(bytes.TrimRight(p, "\n")))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.text = append(l.mu.text, p...)
	return len(p), nil
}

// has says whether text was ever logged.
func (l *toTest) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Contains(l.mu.text, []byte(text))
}

// fill makes data that compresses about by half, at the price of a copy: the guests are not
// what is tested.
func fill(rng *rand.Rand, p []byte) {
	all := content()
	for at := rng.IntN(len(all)/64) * 64; len(p) > 0; at = 0 {
		n := copy(p, all[at:])
		for i := 0; i+8 <= n; i += 512 {
			binary.LittleEndian.PutUint64(p[i:], rng.Uint64()) // no block is twice the same
		}
		p = p[n:]
	}
}

var content = sync.OnceValue(func() []byte {
	rng, p := rand.New(rand.NewPCG(3, 3)), make([]byte, 4<<20)
	for i := 0; i < len(p); i += 8 {
		v := rng.Uint64()
		if i/64%2 == 0 {
			v &= 0xff
		}
		binary.LittleEndian.PutUint64(p[i:], v)
	}
	return p
})

func (w *world) startFilter() {
	w.t.Helper()
	cfg := capture.FilterConfig{
		RunDir: w.dir + "/run", Group: testGroup, PoolBytes: w.pool, PoolSocket: w.dir + "/pool", FS: ioengine.OS(), Log: w.log.With("part", "filter"),
	}
	w.mkdir("run")
	for i, v := range w.volumes {
		fv := capture.FilterVolume{ID: volumeID(i), Name: v, Path: filepath.Join(w.dir, v+".img")}
		if w.activity != "" {
			fv.Log = fv.Path + w.activity
		}
		if len(w.qemus) > 0 {
			fv.Mirror, cfg.Dial = w.size, dialQEMUs(w.qemus...)
		}
		cfg.Volumes = append(cfg.Volumes, fv)
	}
	f, err := capture.OpenFilter(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.f = f
	w.filter = run(func(ctx context.Context) error { return errors.Join(f.Run(ctx), f.Close()) })
}

func (w *world) mkdir(name string) {
	if err := os.MkdirAll(filepath.Join(w.dir, name), 0o700); err != nil {
		w.t.Fatal(err)
	}
}

// startTarget starts a target, and a new link to its ports. The link's own ports stay.
func (w *world) startTarget() {
	w.t.Helper()
	_, credentials := testtrust.Sites()
	w.mkdir("tdata")
	tg, err := OpenTarget(TargetConfig{
		FS: w.fs, Store: w.store, RunDir: w.dir + "/trun", DataDir: w.dir + "/tdata", ListenControl: "127.0.0.1:0", ListenData: "127.0.0.1:0",
		Credentials: credentials, SegmentBytes: 4 << 20, OpenCatalogue: w.catalogue, Log: w.log.With("part", "target"), Parity: w.parity,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.tg = tg
	w.target = run(func(ctx context.Context) error { return errors.Join(tg.Run(ctx), tg.Close()) })
	w.relay.end(w.t)
	control, data := tg.Addrs()
	listenControl, listenData := "127.0.0.1:0", "127.0.0.1:0"
	if w.control != "" {
		listenControl, listenData = w.control, w.data
	}
	link, err := faultlink.OpenRelay(faultlink.RelayConfig{Script: w.script, Routes: []faultlink.Route{{Listen: listenControl, Target: control}, {Listen: listenData, Target: data}}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.link = link
	w.control, w.data = link.Addrs()[0].String(), link.Addrs()[1].String()
	w.relay = run(link.Serve)
}

func (w *world) stopTarget() {
	w.t.Helper()
	w.target.end(w.t)
	w.target = nil
}

func (w *world) startSource() {
	w.t.Helper()
	credentials, _ := testtrust.Sites()
	g := GroupConfig{
		Name: "shop", ID: testGroup, Stream: testStream, Lineage: 7, Interval: w.interval, Window: w.window,
		Control: w.control, Data: w.data, Filters: []string{w.dir + "/pool"}, Freeze: w.freeze, Paused: w.paused,
	}
	for i, v := range w.volumes {
		g.Volumes = append(g.Volumes, VolumeName{ID: volumeID(i), Name: v})
	}
	groups := []GroupConfig{g}
	for _, g := range w.others {
		g.Control, g.Data = w.control, w.data
		groups = append(groups, g)
	}
	w.mkdir("data")
	s, err := OpenSource(SourceConfig{
		RunDir: w.dir + "/run", DataDir: w.dir + "/data", Credentials: credentials, Groups: groups, Connections: w.connections, Log: w.log.With("part", "source"),
		Spill: w.spill, WindowBudget: w.memory,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.s = s
	w.source = run(func(ctx context.Context) error { return errors.Join(s.Run(ctx), s.Close()) })
}

// killSource ends the source's process. Nothing of its memory is kept, but for worlds that are inMemory.
func (w *world) killSource() {
	w.t.Helper()
	w.source.end(w.t)
	w.source = nil
}

func (w *world) start() {
	w.t.Helper()
	w.startFilter()
	w.startTarget()
	w.startSource()
}

// status is the group as the source tells it.
func (w *world) status() *holdfastv1.Group {
	w.t.Helper()
	res, err := Handlers(Identity{}, w.s, nil).Status.Get(context.Background(), &holdfastv1.StatusServiceGetRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	return res.Groups[0]
}

// await polls until ok, and fails after a minute.
func (w *world) await(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			w.t.Fatalf("waited in vain for %s: %v", what, w.status())
		}
	}
}

// awaitSaid waits until a group was in the state, for the reason, in which it need not be any more: a state that
// passes may be gone before who polls looks again.
func (w *world) awaitSaid(state, reason string) {
	w.t.Helper()
	w.await(state+": "+reason, func() bool { return w.said.has(fmt.Sprintf("state=%s reason=%q", state, reason)) })
}

func (w *world) awaitState(states ...string) {
	w.t.Helper()
	w.await(fmt.Sprint(states), func() bool {
		s := w.status().State
		for _, want := range states {
			if s == want {
				return true
			}
		}
		return false
	})
}

// checkpoint makes one, named tag, and returns its number.
func (w *world) checkpoint(tag string) string {
	w.t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	res, err := Handlers(Identity{}, w.s, nil).Checkpoints.Create(ctx, &holdfastv1.CheckpointsServiceCreateRequest{Group: w.asked, Tag: tag})
	if err != nil {
		w.t.Fatal(err)
	}
	if res.Checkpoint.Tag != tag || res.Checkpoint.State != api.CheckpointVerifying {
		w.t.Fatalf("made %v", res.Checkpoint)
	}
	return res.Checkpoint.Id
}

// image is a volume as it is now.
func (w *world) image(volume string) []byte {
	w.t.Helper()
	d := w.f.Device(volume)
	p := make([]byte, d.Size())
	read := d.ReadAt
	if len(w.qemus) > 0 { // the guest's own disk has it
		read = func(p []byte, off int64) error {
			_, err := w.qemus[slices.Index(w.volumes, volume)].disk.ReadAt(p, off)
			return err
		}
	}
	if err := read(p, 0); err != nil {
		w.t.Fatal(err)
	}
	return p
}

// compare opens a view of a checkpoint over NBD and holds every byte against want.
func (w *world) compare(checkpoint string, want map[string][]byte) {
	w.t.Helper()
	views := Handlers(Identity{}, nil, w.tg).Views
	res, err := views.Open(context.Background(), &holdfastv1.ViewsServiceOpenRequest{Group: w.asked, Checkpoint: checkpoint})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, v := range res.View.Volumes {
		c, err := nbd.Dial(context.Background(), v.Nbd)
		if err != nil {
			w.t.Fatal(err)
		}
		got := make([]byte, c.Size())
		for off := 0; off < len(got) && err == nil; off += 1 << 20 {
			_, err = c.ReadAt(got[off:min(len(got), off+1<<20)], int64(off))
		}
		if err != nil {
			w.t.Fatal(err)
		}
		c.Close()
		if i := firstDiff(got, want[v.Name]); i >= 0 {
			w.t.Fatalf("checkpoint %s: volume %s differs at %d of %d", checkpoint, v.Name, i, len(got))
		}
	}
	if len(res.View.Volumes) != len(want) {
		w.t.Fatalf("the view has %d volumes", len(res.View.Volumes))
	}
	if _, err := views.Close(context.Background(), &holdfastv1.ViewsServiceCloseRequest{Id: res.View.Id}); err != nil {
		w.t.Fatal(err)
	}
}

func firstDiff(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// verify makes a checkpoint while nobody writes and compares it with the disks.
func (w *world) verify(tag string) {
	w.t.Helper()
	want := map[string][]byte{}
	for _, v := range w.volumes {
		want[v] = w.image(v)
	}
	w.compare(w.checkpoint(tag), want)
}

// guest writes at random until it is stopped: data of all sizes, zeros, discards and flushes.
type guest struct {
	t    *testing.T
	stop chan struct{}
	once sync.Once
	wg   sync.WaitGroup
	mu   sync.Mutex
	slow time.Duration // the longest write
	n    int
	// machine is the longest that a plain file beside the disks took meanwhile.
	machine time.Duration
	room    func() bool // nil: it writes whether there is or not
}

// write starts a guest on each volume, within the first part of it, in bytes; pause is
// waited after each write, and longer under the race detector.
func (w *world) write(part int64, pause time.Duration) *guest { return w.writeWhile(nil, part, pause) }

// writeGently is write by guests that stop while window or pool are half full: nothing is
// dropped, however long the link is down and however slow the machine is. The source must
// not be restarted meanwhile.
func (w *world) writeGently(part int64, pause time.Duration) *guest {
	var half atomic.Int64
	half.Store(w.window / 2)
	return w.writeWithin(&half, part, pause)
}

// writeWithin is writeGently by guests that stop while the window holds most bytes, which
// may change meanwhile. What is in the pool, half of it at most, may still come to them.
func (w *world) writeWithin(most *atomic.Int64, part int64, pause time.Duration) *guest {
	f := w.s.flows[0]
	return w.writeWhile(func() bool {
		s := f.tap.Stats()
		return f.window.Stats().Bytes < most.Load() && s.Free > s.Slots/2
	}, part, pause)
}

func (w *world) writeWhile(room func() bool, part int64, pause time.Duration) *guest {
	g := &guest{t: w.t, stop: make(chan struct{}), room: room}
	w.t.Cleanup(func() { g.end() }) // before the filter's
	for i, v := range w.volumes {
		d := w.f.Device(v)
		g.wg.Go(func() { g.run(d, rand.New(rand.NewPCG(uint64(i), 5)), part, slower*pause) })
	}
	g.wg.Go(func() { g.measure(filepath.Join(w.dir, "yardstick")) })
	return g
}

// measure writes a plain file and syncs it, again and again: what it waits is the machine's doing.
func (g *guest) measure(name string) {
	f, err := os.Create(name)
	if err != nil {
		g.t.Error(err)
		return
	}
	defer f.Close()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for last := time.Now(); ; {
		select {
		case <-g.stop:
			return
		case <-tick.C:
		}
		if _, err := f.WriteAt(make([]byte, 4096), 0); errors.Join(err, f.Sync()) != nil {
			g.t.Errorf("a plain file: %v", err)
			return
		}
		now := time.Now()
		g.machine, last = max(g.machine, now.Sub(last)), now
	}
}

func (g *guest) run(d front.Device, rng *rand.Rand, part int64, pause time.Duration) {
	tick := time.NewTimer(0)
	for {
		select {
		case <-g.stop:
			return
		case <-tick.C:
		}
		tick.Reset(pause)
		if g.room != nil && !g.room() {
			continue
		}
		began := time.Now()
		if err := g.one(d, rng, part); err != nil {
			g.t.Error(err)
			return
		}
		took := time.Since(began)
		g.mu.Lock()
		g.slow = max(g.slow, took)
		g.n++
		g.mu.Unlock()
	}
}

func (g *guest) one(d front.Device, rng *rand.Rand, part int64) error {
	n := int64(512 << rng.IntN(9))
	off := rng.Int64N((part-n)/512+1) * 512
	switch rng.IntN(20) {
	case 0:
		return d.Flush()
	case 1:
		return d.Zero(off, n, rng.IntN(2) == 0, false)
	case 2:
		return d.Trim(off, n, false)
	}
	wr, err := d.BeginWrite(off, int(n))
	if err != nil {
		return err
	}
	for _, p := range wr.Buffers() {
		fill(rng, p)
	}
	return wr.Commit(rng.IntN(10) == 0)
}

func (g *guest) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.n
}

// end stops the guest and returns its slowest write.
func (g *guest) end() (writes int, slowest time.Duration) {
	g.once.Do(func() { close(g.stop) })
	g.wg.Wait()
	g.room = nil // it holds a world
	return g.n, g.slow
}

// endPrompt is end for a guest that nothing of ours may have made wait (P1): it waited no
// longer than 2 s and what the machine itself makes a writer wait.
func (g *guest) endPrompt() {
	g.t.Helper()
	if _, slowest := g.end(); slowest > 2*time.Second+2*g.machine {
		g.t.Errorf("a write took %s, and one of a plain file %s", slowest, g.machine)
	}
}

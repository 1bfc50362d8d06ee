package datapath

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/gate"
	"github.com/holdfast-dr/holdfast/datapath/group"
	"github.com/holdfast-dr/holdfast/datapath/pack"
	"github.com/holdfast-dr/holdfast/datapath/spill"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/record"
	"github.com/holdfast-dr/holdfast/wire/shape"
	"github.com/holdfast-dr/holdfast/wire/tape"
)

// SourceConfig says which groups a source carries.
type SourceConfig struct {
	RunDir      string // memory-backed, shared with the filters; it is made when absent
	DataDir     string // what must survive a reboot; OpenDataDir has locked it
	Credentials wire.Credentials
	Groups      []GroupConfig
	Shaping     shape.Policy // unless another was set since
	Compression pack.Compression
	// WindowBudget is what the windows of all groups hold together, in bytes; 0 is their sum.
	WindowBudget int64
	// Spill is where windows go on when memory is full.
	Spill SpillConfig
	// ObserveAck is told at each acknowledgement how long ago the oldest guest write in it was captured; nil is nobody.
	ObserveAck  func(time.Duration)
	Connections int // data connections to each target, 1 to 8; 0 is as many as pay
	Log         *slog.Logger
	Tape        *tape.Tape // for debugging; nil is none

	// What groups with several source VRAs need: where the others tell of cuts, host:port, and
	// credentials whose pins are of the VRAs' own site.
	ListenCuts      string
	SiteCredentials wire.Credentials
	// Dial replaces the network's; nil is net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// SpillConfig is a folder of a disk for what the windows of all groups have no memory for.
type SpillConfig struct {
	FS     ioengine.FS
	Dir    string // it is made when absent; what is above it must be there
	Budget int64  // bytes that files in it may take together; 0: there is none
}

// GroupConfig is a group at its source.
type GroupConfig struct {
	Name          string
	ID            record.GroupID
	Stream        record.StreamID
	Lineage       uint64
	Interval      time.Duration // between checkpoints
	Window        int64         // bytes of sealed records not acknowledged
	Control, Data string        // what to dial to reach the target, host:port; the same where one port takes both
	Filters       []string      // pool sockets
	Volumes       []VolumeName
	Freeze        Freeze // around checkpoints that ask for it
	Paused        bool   // until it is resumed, where nothing was asked of it yet
	// Members are all source VRAs of the group, this one among them, in the order in which all
	// have them: the first leads. None: this is the only one.
	Members []Member
}

// VolumeName names a volume that a filter serves.
type VolumeName struct {
	ID   record.VolumeID
	Name string
}

// Source carries the writes of groups to their targets. Open, then Run, then Close.
type Source struct {
	cfg   SourceConfig
	flows []*flow
	peers []*peer
	gate  *gate.Gate
	share *shares
	spill *spillDisk // nil for none
	cuts  *cutLinks  // nil where no group has several source VRAs
	began time.Time
}

// peer is a target: the groups that go there share one session.
type peer struct {
	control, data string
	flows         []*flow
	gate          *gate.Gate
	counters      wire.Counters
	lost          atomic.Uint64 // sessions that ended, or could not be had
	testing       atomic.Bool   // a link test is under way

	mu struct {
		sync.Mutex
		session *wire.Session
	}
}

// OpenSource opens the taps of all groups. Nothing moves before Run.
func OpenSource(cfg SourceConfig) (s *Source, err error) {
	s = &Source{cfg: cfg, began: time.Now()}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("source: %w", err), s.Close())
		}
	}()
	if err := os.MkdirAll(cfg.RunDir, 0o700); err != nil {
		return s, err
	}
	if s.gate, err = gate.Open(newShapingFile(filepath.Join(cfg.DataDir, "shaping"), cfg.Shaping), LoadZone, cfg.Log); err != nil {
		return s, fmt.Errorf("shaping: %w", err)
	}
	for _, g := range cfg.Groups {
		f, err := s.openFlow(g)
		if err != nil {
			return s, fmt.Errorf("group %s: %w", g.Name, err)
		}
		s.flows = append(s.flows, f)
		s.peerOf(g).flows = append(s.peerOf(g).flows, f)
	}
	if s.cuts, err = openCutLinks(s); err != nil {
		return s, err
	}
	if err := s.removeWindows(); err != nil {
		return s, err
	}
	s.shareOut()
	s.openSpill()
	return s, nil
}

func (s *Source) peerOf(g GroupConfig) *peer {
	for _, p := range s.peers {
		if p.control == g.Control && p.data == g.Data {
			return p
		}
	}
	p := &peer{control: g.Control, data: g.Data, gate: s.gate}
	s.peers = append(s.peers, p)
	return p
}

// openFlow opens a group and draws its incarnation: what an earlier process held in
// memory is gone.
func (s *Source) openFlow(g GroupConfig) (*flow, error) {
	f := &flow{cfg: g, began: time.Now(), log: s.cfg.Log.With("group", g.Name), window: spill.New(g.Window, 1)}
	f.gate, f.turn = s.gate, s.gate.Turn(g.Name)
	f.compression, f.observeAck = s.cfg.Compression, s.cfg.ObserveAck
	if f.observeAck == nil {
		f.observeAck = func(time.Duration) {}
	}
	var err error
	if err := f.openRoster(s.cfg.DataDir); err != nil {
		return nil, err
	}
	if f.mu.roster.Removed != 0 {
		f.log.Warn("the group was removed, and nothing of it is captured: take it out of the configuration")
	}
	f.tap, err = capture.OpenTap(capture.TapConfig{RunDir: s.cfg.RunDir, Group: g.ID, Filters: f.mu.roster.Sockets(g.Filters), Log: f.log})
	if err != nil {
		return nil, err
	}
	f.followLocked()
	f.incarnations, f.epochs = openIncarnations(s.cfg.DataDir, g.Stream), openEpochs(s.cfg.DataDir, g.Stream)
	if f.mu.epoch, err = f.epochs.get(); err != nil {
		return nil, errors.Join(err, f.tap.Close())
	}
	if f.ledger, f.mu.ledger, err = openLedger(s.cfg.RunDir, g.Stream); err == nil {
		err = f.openKept(s.cfg.DataDir)
	}
	if err == nil {
		if f.openWindow(s.cfg.RunDir); f.kept == nil {
			f.mu.inc, err = f.raise(0)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.slabs.Close(), f.tap.Close())
	}
	f.mu.machine = group.New(g.Interval, f.mu.inc, time.Now())
	if f.mu.roster.Rests() {
		f.mu.machine.Step(time.Now(), group.Pause{})
	}
	f.mu.marks = make(map[record.Ticket]*mark)
	f.mu.asks = make(map[uint64]*wish)
	f.freezer = newFreezer(s.cfg.DataDir, g)
	if len(g.Members) > 1 {
		f.mu.machine.Share()
		f.cuts = newCutter(f, g.Members)
	}
	f.mu.ctx, f.mu.end = context.WithCancel(context.Background())
	f.mu.end()
	n := pack.InFlight() + jobs
	f.free, f.sealing, f.sealed = make(chan *pack.Job, n), make(chan *pack.Job), make(chan *pack.Job)
	for range n {
		b := record.NewBatch(record.Limits{Raw: batchRaw, Extents: batchExtents})
		f.free <- &pack.Job{Batch: b, Done: &load{}}
	}
	f.keep = make(chan struct{}, 1)
	f.changed, f.lostCame, f.acked = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
	f.lives, f.orders, f.work = make(chan life, 1), make(chan sendOrder, 1), make(chan task, 1)
	return f, nil
}

// Run replicates until ctx ends. Then all goroutines have ended; what was not
// acknowledged is still marked.
func (s *Source) Run(ctx context.Context) error {
	run, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var wg sync.WaitGroup
	for _, f := range s.flows {
		f.begins(run)
	}
	for _, f := range s.flows {
		wg.Go(func() { f.run(run) })
	}
	if s.cuts != nil {
		wg.Go(func() {
			if err := s.cuts.run(run); err != nil {
				fail(err)
			}
		})
	}
	wg.Go(func() { s.gate.Run(run) })
	wg.Go(func() { s.watchShares(run) })
	if s.spill != nil {
		wg.Go(func() { s.spill.open(run, s.cfg.Log) })
	}
	for _, p := range s.peers {
		wg.Go(func() {
			if err := p.run(run, s.cfg); err != nil {
				fail(err)
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(run)
}

// Close gives the groups up.
func (s *Source) Close() error {
	var err error
	if s.cuts != nil && s.cuts.server != nil {
		_ = s.cuts.server.Close() // Run may have closed it
	}
	for _, f := range s.flows {
		f.window.Leave() // where it never ran
		// The tap comes last: who waits for it opens the others next.
		err = errors.Join(err, f.slabs.Close(), f.ledger.f.Close(), f.tap.Close())
	}
	if s.spill != nil {
		err = errors.Join(err, s.spill.disk.Close())
	}
	return err
}

// run carries the group until ctx ends.
func (f *flow) run(ctx context.Context) {
	defer f.leave() // lives are below ctx, so theirs have ended too
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { (&feed{flow: f, effort: pack.Effort{Mode: f.compression, Workers: pack.Workers()}}).run(ctx) }) // closes sealing
	wg.Go(func() { pack.Run(context.WithoutCancel(ctx), f.sealing, f.sealed) })                                    // ends when sealing is drained; closes sealed
	wg.Go(f.stow)                                                                                                  // ends when sealed is drained
	wg.Go(func() { f.send(ctx) })
	wg.Go(func() { f.window.Run(ctx) })
	wg.Go(func() { f.resync(ctx) })
	wg.Go(func() { f.watch(ctx) })
	wg.Go(func() { f.tend(ctx) })
	wg.Go(func() { f.askWhatLacks(ctx) })
	wg.Go(func() { f.markLost(ctx) })
	wg.Go(func() { f.keeper(ctx) })
	wg.Go(func() { f.trim(ctx) })
	if f.cuts != nil {
		wg.Go(func() { f.cuts.run(ctx) })
	}
}

// run keeps a session with the target.
func (p *peer) run(ctx context.Context, cfg SourceConfig) error {
	c := p.client(cfg)
	c.Counters, c.Failed = &p.counters, p.failed
	return wire.Connect(ctx, c, p)
}

// client is how the target is reached.
func (p *peer) client(cfg SourceConfig) wire.ClientConfig {
	return wire.ClientConfig{Control: p.control, Data: p.data, Credentials: cfg.Credentials, Log: cfg.Log, Dial: cfg.Dial, Tape: cfg.Tape, Connections: cfg.Connections}
}

// failed is told why there is no session, and in how long another is tried for.
func (p *peer) failed(err error, next time.Duration) {
	p.lost.Add(1)
	p.down(err, next)
}

func (p *peer) down(err error, next time.Duration) {
	for _, f := range p.flows {
		f.sessionDown(err, next)
	}
}

// Opened implements wire.Handler.
func (p *peer) Opened(s *wire.Session) error {
	p.mu.Lock()
	p.mu.session = s
	p.mu.Unlock()
	p.gate.Enter(s)
	for _, f := range p.flows {
		f.sessionUp(s)
	}
	return nil
}

// Message implements wire.Handler.
func (p *peer) Message(_ *wire.Session, m wire.Message) error {
	for _, f := range p.flows {
		if f.concerns(m) {
			return f.message(m)
		}
	}
	return nil
}

func (f *flow) concerns(m wire.Message) bool {
	switch m := m.(type) {
	case *wire.Stand:
		return m.Stream == f.cfg.Stream
	case *wire.Refused:
		return m.Stream == f.cfg.Stream
	case *wire.Fenced:
		return m.Stream == f.cfg.Stream
	case *wire.Durable:
		return m.Stream == f.cfg.Stream
	case *wire.Sums:
		return m.Stream == f.cfg.Stream
	case *wire.Listed:
		return m.Group == f.cfg.ID
	case *wire.Lacking:
		return m.Group == f.cfg.ID
	}
	return false
}

// Record implements wire.Handler; the wire lets no record come this way.
func (p *peer) Record(_ *wire.Session, r *wire.Received) error {
	r.Release()
	return wire.ErrDirection
}

// Lost implements wire.Handler.
func (p *peer) Lost(_ *wire.Session, line uint32) {
	for _, f := range p.flows {
		f.lineLost(line)
	}
}

// Closed implements wire.Handler.
func (p *peer) Closed(s *wire.Session, err error) {
	p.gate.Leave(s)
	p.mu.Lock()
	p.mu.session = nil
	p.mu.Unlock()
	p.down(err, 0) // Connect says it again, with the time of the next attempt
}

// flow finds a group by name; the empty name is the only one.
func (s *Source) flow(name string) *flow {
	if name == "" && len(s.flows) == 1 {
		return s.flows[0]
	}
	if i := slices.IndexFunc(s.flows, func(f *flow) bool { return f.cfg.Name == name }); i >= 0 {
		return s.flows[i]
	}
	return nil
}

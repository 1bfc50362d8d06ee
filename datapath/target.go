package datapath

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-dr/holdfast/datapath/deliver"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/retain"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/tape"
)

// TargetConfig says where a target listens and what it stores where.
type TargetConfig struct {
	FS            ioengine.FS
	Store         string // the folder of journal and replicas
	RunDir        string // memory-backed; sockets of views stand below it
	DataDir       string // what must survive a reboot; OpenDataDir has locked it
	ListenControl string // host:port
	ListenData    string // empty: the control port takes both
	Credentials   wire.Credentials
	SegmentBytes  int64         // of the journal; 0 is its default
	CacheBytes    int64         // of the journal: of indexes and of what views read; 0 is its default
	IndexMemory   int64         // of the journal: of indexes not written yet; 0 is its default
	Retention     retain.Policy // of groups that have none of their own; the zero one is retain.Default
	Parity        Parity
	Log           *slog.Logger
	Tape          *tape.Tape // for debugging; nil is none
	// ObserveSync is told how long each sync of the store took; nil is nobody.
	ObserveSync func(time.Duration)
	// OpenCatalogue opens the journal's catalogue; nil is Badger, in the store's folder.
	OpenCatalogue func() (index.Map, error)
}

// Target takes the records of groups and shows views of them. Open, then Run, then Close.
type Target struct {
	cfg     TargetConfig
	store   *journal.Store
	deliver *deliver.Target
	server  *wire.Server
	views   *views
	began   time.Time
	syncs   prometheus.Histogram // of the store's commit rounds

	protection *protection // of the stores' disks
	turns      *turns

	mu struct {
		sync.Mutex
		states map[string]stateSince
	}
}

// stateSince is a state as it was last looked at.
type stateSince struct {
	state string
	since time.Time
}

// OpenTarget opens the journal, which recovers it, and both ports.
func OpenTarget(cfg TargetConfig) (t *Target, err error) {
	t = &Target{cfg: cfg, began: time.Now(), syncs: newSyncs(), turns: newTurns()}
	t.mu.states = make(map[string]stateSince)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("target: %w", err), t.Close())
		}
	}()
	if err := os.MkdirAll(cfg.RunDir, 0o700); err != nil {
		return t, err
	}
	if t.protection, err = openProtection(&cfg); err != nil {
		return t, err
	}
	t.cfg = cfg
	if t.store, err = journal.Open(journal.Config{
		Protector: t.protection.protector(cfg.FS), FS: cfg.FS, Dir: cfg.Store, SegmentBytes: cfg.SegmentBytes, Log: cfg.Log, OpenCatalogue: cfg.OpenCatalogue, CacheBytes: cfg.CacheBytes, IndexMemory: cfg.IndexMemory, Boot: thisBoot(),
		ObserveSync: func(took time.Duration) {
			t.syncs.Observe(took.Seconds())
			if cfg.ObserveSync != nil {
				cfg.ObserveSync(took)
			}
		},
		Retention: cfg.Retention, Clock: bootClock(),
	}); err != nil {
		return t, err
	}
	if t.views, err = newViews(cfg.RunDir, cfg.FS, t.store, cfg.Log); err != nil {
		return t, err
	}
	t.deliver = deliver.New(t.store, cfg.Log)
	t.server, err = wire.Listen(wire.ServerConfig{
		ListenControl: cfg.ListenControl, ListenData: cfg.ListenData, Credentials: cfg.Credentials, Log: cfg.Log, Tape: cfg.Tape,
	})
	return t, err
}

// Run takes records until ctx ends; then all sessions have ended and no view is served.
func (t *Target) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	wg.Go(func() { t.views.run(ctx) })
	wg.Go(func() { t.passFailovers(ctx) })
	wg.Go(func() { t.protection.run(ctx, t.cfg.Log) })
	return t.server.Serve(ctx, t.deliver)
}

// Addrs are the addresses of the control and the data port.
func (t *Target) Addrs() (control, data string) {
	return t.server.ControlAddr().String(), t.server.DataAddr().String()
}

// Close makes what is queued durable and gives the store up.
func (t *Target) Close() error {
	if t.server != nil {
		t.server.Close()
	}
	if t.views != nil {
		t.views.stop()
	}
	t.turns.stop()
	t.protection.stop()
	var err error
	if t.store != nil {
		err = t.store.Close()
	}
	return errors.Join(err, t.protection.close())
}

// groups are those that the target takes and shows: not one whose disks were given away, until the store is opened anew.
func (t *Target) groups() []*journal.Group {
	return slices.DeleteFunc(t.store.Groups(), (*journal.Group).Released)
}

// group finds a group by name; the empty name is the only one. One whose machines have moved onto its disks stands back behind
// a new one of its name.
func (t *Target) group(name string) (found *journal.Group) {
	gs := t.groups()
	if name == "" && len(gs) == 1 {
		return gs[0]
	}
	for _, g := range gs {
		if g.Info().Name != name {
			continue
		}
		if found = g; g.Failover().State != failover.OnDisks {
			return g
		}
	}
	return found
}

package datapath

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/wait"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/journal/stripe"
)

// Parity says how a target's store survives its disks.
type Parity struct {
	Local  bool     // parity beside the segments of the one folder
	K, M   int      // a set over Stores; M 0: none
	Stores []string // its folders
	// DataDir is where the set's witness and the catalogue stand, outside of all stores.
	DataDir string
	// AcceptStale is an operator's word: see stripe.Options.
	AcceptStale bool
}

// parityRate bounds what parity reads and writes beside live traffic, in bytes a second.
const parityRate = 128 << 20

// scrubRate bounds what a scrub reads, and scrubEvery is between two of them; the first
// comes after scrubFirst.
const (
	scrubRate  = 32 << 20
	scrubEvery = 7 * 24 * time.Hour
	scrubFirst = 10 * time.Minute
)

// protection is what a target does for its store's disks; set is nil for one folder.
type protection struct {
	set    *stripe.Set
	local  bool
	text   string // none, local, or k+m
	pace   stripe.Pace
	scrub  stripe.Pace
	ctx    context.Context
	cancel context.CancelFunc
}

// openProtection opens the stores, where the configuration names several, and changes cfg so
// that the journal is opened on them.
func openProtection(cfg *TargetConfig) (*protection, error) {
	p := &protection{local: cfg.Parity.Local, text: "none"}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.pace, p.scrub = paced(p.ctx, parityRate), paced(p.ctx, scrubRate)
	if p.local {
		p.text = "local"
	}
	if cfg.Parity.M == 0 {
		return p, nil
	}
	g := stripe.Geometry{K: cfg.Parity.K, M: cfg.Parity.M}
	p.text = g.String()
	base := cfg.FS
	var err error
	p.set, err = stripe.OpenSet(stripe.Options{
		Stores: cfg.Parity.Stores, Geometry: g, Witness: filepath.Join(cfg.Parity.DataDir, "stores.witness"), AcceptStale: cfg.Parity.AcceptStale,
		FS: func(string) ioengine.FS { return base }, Log: cfg.Log,
	})
	if err != nil {
		return p, err
	}
	cfg.FS, cfg.Store = p.set, stripe.JournalRoot
	if cfg.OpenCatalogue == nil { // it opens files itself, and is made anew when it is lost
		cfg.OpenCatalogue = func() (index.Map, error) {
			return index.OpenBadger(index.BadgerConfig{FS: base, Dir: filepath.Join(cfg.Parity.DataDir, "catalogue"), Boot: bootID(), Log: cfg.Log}), nil
		}
	}
	return p, nil
}

// bootID is another text at each boot; empty: it is not known.
func bootID() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// paced lets so many bytes a second through, of all who share it, until ctx ends.
func paced(ctx context.Context, rate int64) stripe.Pace {
	var mu sync.Mutex
	var free time.Time // when the next bytes may go
	return func(n int) error {
		mu.Lock()
		now := time.Now()
		if free.Before(now) {
			free = now
		}
		rest := free.Sub(now)
		free = free.Add(time.Duration(int64(n) * int64(time.Second) / rate))
		mu.Unlock()
		if rest < 10*time.Millisecond {
			return ctx.Err()
		}
		return wait.For(ctx, rest)
	}
}

// protector is what the journal calls; nil: nothing protects its segments.
func (p *protection) protector(fsys ioengine.FS) journal.Protector {
	switch {
	case p.set != nil:
		return setProtector{p}
	case p.local:
		return localProtector{stripe.Local{FS: fsys, Pace: p.pace}}
	}
	return nil
}

// run keeps the stores mended and scrubbed until ctx ends.
func (p *protection) run(ctx context.Context, log *slog.Logger) {
	if p.set == nil {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { p.set.Run(ctx, p.pace) })
	t := time.NewTimer(scrubFirst)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := p.set.Scrub(ctx, p.scrub); err != nil && ctx.Err() == nil {
			log.Error("stores are not scrubbed", "err", err)
		}
		t.Reset(scrubEvery)
	}
}

// trouble says how the stores are not well, for a status; empty: they are.
func (p *protection) trouble() string {
	if p == nil || p.set == nil {
		return ""
	}
	if err := p.set.State().Err; err != nil {
		return "stores: " + err.Error()
	}
	return ""
}

// stop ends what is under way; the journal may then be closed.
func (p *protection) stop() {
	if p != nil {
		p.cancel()
	}
}

func (p *protection) close() error {
	if p == nil || p.set == nil {
		return nil
	}
	return p.set.Close()
}

// setProtector has sealed segments striped over the stores.
type setProtector struct{ *protection }

func (p setProtector) Protects(f segment.FileInfo) (bool, error) { return p.set.Protects(f.Name) }

func (p setProtector) Sealed(f segment.FileInfo) error {
	err := p.set.Seal(f.Name, p.pace)
	if errors.Is(err, stripe.ErrBusy) {
		return nil // it is sealed when its reader is done
	}
	return err
}

// Verify has nothing to do: the set reads all its shards back.
func (p setProtector) Verify(segment.FileInfo, func(int) error) (bool, error) { return false, nil }

func (p setProtector) Repair(f segment.FileInfo, bad []journal.Extent, w io.Writer) error {
	parts := make([]stripe.Part, len(bad))
	for i, b := range bad {
		parts[i] = stripe.Part(b)
	}
	return p.set.Repair(f.Name, parts, w)
}

func (p setProtector) Dropped(segment.FileInfo) {}

// localProtector keeps parity beside each sealed segment.
type localProtector struct{ stripe.Local }

func identity(f segment.FileInfo) stripe.Identity {
	return stripe.Identity{Group: uint64(f.Group), Number: f.Number, Life: f.Life}
}

func (p localProtector) Protects(f segment.FileInfo) (bool, error) {
	return p.Local.Protects(f.Name, identity(f))
}

func (p localProtector) Sealed(f segment.FileInfo) error { return p.Seal(f.Name, identity(f)) }

func (p localProtector) Verify(f segment.FileInfo, pace func(int) error) (bool, error) {
	return p.Local.Verify(f.Name, identity(f), pace)
}

func (p localProtector) Repair(f segment.FileInfo, _ []journal.Extent, w io.Writer) error {
	return p.Local.Repair(f.Name, identity(f), w)
}

func (p localProtector) Dropped(f segment.FileInfo) {
	p.Local.Dropped(f.Name) // what stays is overwritten when a segment has the number again
}

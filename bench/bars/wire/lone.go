package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath"
	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/ioengine"
)

// loneArgs say where the disk and the store are made, and how many writes there are.
type loneArgs struct {
	Certs, Dir, RunDir string
	Writes             int
}

// lonely is what lone writes took, in seconds.
type lonely struct{ Ack, Sync float64 }

// lone measures single writes of 4 KiB on an idle line.
func (b *bench) lone() error {
	for range b.pairs {
		dir, err := b.fresh("lone")
		if err != nil {
			return err
		}
		r, _, foreign, err := alone[lonely](b, "lone", loneArgs{b.memory, dir, filepath.Join(b.memory, "run"), 2000 / b.pairs})
		if err != nil {
			return err
		}
		b.sample(bars.Sample{Row: "lone-write", Value: 1e3 * (r.Ack - r.Sync), Ours: 1e3 * r.Ack, Peer: 1e3 * r.Sync, OursUnit: "ms", Foreign: foreign, Note: "ours: capture to acknowledgement; peer: the sync"})
	}
	return nil
}

// times gathers durations.
type times struct {
	mu  sync.Mutex
	all []time.Duration
}

func (t *times) add(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all = append(t.all, d)
}

func (t *times) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all = nil
}

// middle is their median, in seconds.
func (t *times) middle() float64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.all) == 0 {
		return 0
	}
	slices.Sort(t.all)
	return t.all[len(t.all)/2].Seconds()
}

// lonePart is a filter, a source and a target in one process: it writes to the filter's device,
// as its front would, and waits each time until the write was acknowledged.
func lonePart(ctx context.Context, a loneArgs) (r lonely, err error) {
	const size, block = 64 << 20, 4096
	disk := filepath.Join(a.Dir, "disk")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		return r, err
	}
	if err := os.Truncate(disk, size); err != nil {
		return r, err
	}
	for _, dir := range []string{a.RunDir, filepath.Join(a.Dir, "source"), filepath.Join(a.Dir, "store")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return r, err
		}
	}
	defer os.RemoveAll(a.RunDir)
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	var acks, syncs times
	acked := make(chan struct{}, 1024)

	targetCreds, err := credentials(a.Certs, "target", "source")
	if err != nil {
		return r, err
	}
	sourceCreds, err := credentials(a.Certs, "source", "target")
	if err != nil {
		return r, err
	}
	target, err := datapath.OpenTarget(datapath.TargetConfig{
		FS: ioengine.OS(), Store: filepath.Join(a.Dir, "store"), RunDir: filepath.Join(a.RunDir, "views"),
		ListenControl: "127.0.0.1:0", ListenData: "127.0.0.1:0", Credentials: targetCreds, Log: log, ObserveSync: syncs.add,
	})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	filter, err := capture.OpenFilter(capture.FilterConfig{
		RunDir: a.RunDir, Group: groupID, PoolBytes: 16 << 20, PoolSocket: filepath.Join(a.RunDir, "pool"), FS: ioengine.OS(), Log: log,
		Volumes: []capture.FilterVolume{{ID: volumeID, Name: "disk", Path: disk}},
	})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, filter.Close()) }()
	control, data := target.Addrs()
	source, err := datapath.OpenSource(datapath.SourceConfig{
		RunDir: a.RunDir, DataDir: filepath.Join(a.Dir, "source"), Credentials: sourceCreds, Log: log,
		Groups: []datapath.GroupConfig{{
			Name: "bars", ID: groupID, Stream: streamID, Lineage: 1, Interval: time.Minute, Window: 64 << 20, Control: control, Data: data,
			Filters: []string{filepath.Join(a.RunDir, "pool")}, Volumes: []datapath.VolumeName{{ID: volumeID, Name: "disk"}},
		}},
		ObserveAck: func(d time.Duration) { acks.add(d); acked <- struct{}{} },
	})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	ctx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { filter.Run(ctx) })
	wg.Go(func() { target.Run(ctx) })
	wg.Go(func() { source.Run(ctx) })
	if err := protected(ctx, source); err != nil {
		return r, err
	}
	d, rng, page := filter.Device("disk"), rand.New(rand.NewPCG(1, 1)), noise(block, 1)
	for i := range a.Writes + loneWarm {
		if i == loneWarm {
			acks.reset()
			syncs.reset()
		}
		w, err := d.BeginWrite(rng.Int64N(size/block)*block, block)
		if err != nil {
			return r, err
		}
		for _, p := range w.Buffers() {
			copy(p, page)
		}
		if err := w.Commit(false); err != nil {
			return r, err
		}
		select {
		case <-acked:
		case <-time.After(10 * time.Second):
			return r, errors.New("a write is not acknowledged")
		}
		time.Sleep(2 * time.Millisecond) // the line is idle again
	}
	return lonely{acks.middle(), syncs.middle()}, nil
}

// loneWarm writes are not measured.
const loneWarm = 50

// protected waits until the first synchronisation is over.
func protected(ctx context.Context, s *datapath.Source) error {
	h := datapath.Handlers(datapath.Identity{}, s, nil)
	for range 600 {
		res, err := h.Status.Get(ctx, &holdfastv1.StatusServiceGetRequest{})
		if err != nil {
			return err
		}
		if len(res.Groups) == 1 && res.Groups[0].State == api.StateProtected {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("the group is not protected in 30 s")
}

package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/load"
)

// loneArgs say how many writes there are.
type loneArgs struct {
	siteArgs
	Writes int
}

// lonely is what lone writes took, in seconds.
type lonely struct{ Ack, Sync float64 }

// lone measures single writes of 4 KiB on an idle line.
func (b *bench) lone() error {
	for range b.Pairs {
		dir, err := b.Fresh("lone")
		if err != nil {
			return err
		}
		r, foreign, err := bars.Alone[lonely](b.Run, "lone", loneArgs{siteArgs{b.memory, dir, filepath.Join(b.memory, "run")}, 2000 / b.Pairs})
		if err != nil {
			return err
		}
		b.Sample(bars.Sample{Row: "lone-write", Value: 1e3 * (r.Ack - r.Sync), Ours: 1e3 * r.Ack, Peer: 1e3 * r.Sync, OursUnit: "ms", Foreign: foreign, Note: "ours: capture to acknowledgement; peer: the sync"})
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
	var acks, syncs times
	acked := make(chan struct{}, 1024)
	target, err := openTarget(a.siteArgs, "127.0.0.1:0", "127.0.0.1:0", syncs.add)
	if err != nil {
		return r, err
	}
	ctx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer func() {
		stop()
		running.Wait()
		err = errors.Join(err, target.Close())
	}()
	running.Go(func() { target.Run(ctx) })
	control, data := target.Addrs()
	g, err := openGuest(ctx, a.siteArgs, guestArgs{
		Disk: size, Pool: 16 << 20, Window: 64 << 20, Interval: time.Minute, Control: control, Data: data,
		Acked: func(d time.Duration) { acks.add(d); acked <- struct{}{} },
	})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	rng, page := rand.New(rand.NewPCG(1, 1)), load.Noise(block, 1)
	for i := range a.Writes + loneWarm {
		if i == loneWarm {
			acks.reset()
			syncs.reset()
		}
		if err := g.write(rng.Int64N(size/block)*block, page); err != nil {
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

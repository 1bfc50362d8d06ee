package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath"
	"github.com/holdfast-dr/holdfast/wire/shape"
)

// lagArgs say what the guest does.
type lagArgs struct {
	siteArgs
	Rate   float64       // of the guest's writes, bytes a second
	Link   float64       // bits a second
	Length time.Duration // measured
}

// lagged is what a source tells.
type lagged struct {
	P99, Middle, Most float64 // of the lag, read every 20 ms, in seconds
	Use               float64 // of the link, as its interface counts, a part of 1
	Writes            int
}

const (
	lagDisk  = 256 << 20 // bytes
	lagBlock = 8 << 10   // bytes of a write
	lagLoad  = 0.8       // of the link
	// lagPayload is what of a byte on the link is a guest's: TLS, headers of packets, tables
	// of records, and the acknowledgements and heartbeats beside them take the rest.
	lagPayload = 0.945
	lagEvery   = 20 * time.Millisecond
)

// lag measures how old the oldest write is that the target has not acknowledged, while a
// guest loads a link to four fifths: writes of 8 KiB of noise, at random moments.
func (b *bench) lag(mbit int) error {
	for i := range b.times {
		var r lagged
		foreign, err := b.Pair(i, func() (foreign float64, err error) {
			dir, err := b.Fresh("lag")
			if err != nil {
				return 0, err
			}
			rate := shape.Rate(mbit) * 1e6
			a := lagArgs{siteArgs{b.memory, dir, filepath.Join(b.memory, "lag")}, lagLoad * lagPayload * rate.BytesPerSecond(), float64(rate), b.length}
			r, foreign, err = linked[lagged](b, rate, "lag-target", "lag-source", a, b.length+2*time.Minute)
			return foreign, err
		})
		if err != nil {
			return err
		}
		b.Sample(bars.Sample{Row: fmt.Sprintf("lag-%d", mbit), Value: r.P99, Ours: r.P99, OursUnit: "s", Foreign: foreign,
			Note: fmt.Sprintf("median %.3f s, most %.3f s; the link %.1f %% in use, %d writes in %s", r.Middle, r.Most, 100*r.Use, r.Writes, b.length)})
	}
	return nil
}

// lagTargetPart is a whole target until its input ends.
func lagTargetPart(ctx context.Context, a lagArgs) (done bool, err error) {
	target, err := openTarget(a.siteArgs, ":"+controlPort, ":"+dataPort, nil)
	if err != nil {
		return false, err
	}
	control, _ := target.Addrs()
	fmt.Println(control)
	ctx, stop := untilInputEnds(ctx)
	defer stop()
	return true, errors.Join(target.Run(ctx), target.Close())
}

// lagSourcePart is a guest that loads the link.
func lagSourcePart(ctx context.Context, a lagArgs) (r lagged, err error) {
	g, err := openGuest(ctx, a.siteArgs, guestArgs{
		Disk: lagDisk, Pool: 64 << 20, Window: 256 << 20, Interval: 5 * time.Second,
		Control: net.JoinHostPort(targetAddress, controlPort), Data: net.JoinHostPort(targetAddress, dataPort),
	})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	loading, end := context.WithCancel(ctx)
	var wrote int
	var failed error
	var load sync.WaitGroup
	load.Go(func() { wrote, failed = g.loadLink(loading, a.Rate) })
	r, err = readLag(ctx, g.source, a)
	end()
	load.Wait()
	r.Writes = wrote
	return r, errors.Join(err, failed)
}

// loadLink writes blocks of noise at random places and moments, so many bytes a second.
func (g *guest) loadLink(ctx context.Context, rate float64) (writes int, err error) {
	rng, data := rand.New(rand.NewPCG(5, 5)), load.Noise(32<<20, 2)
	for due := time.Now(); ; writes++ {
		due = due.Add(time.Duration(rng.ExpFloat64() * lagBlock / rate * float64(time.Second)))
		if wait := time.Until(due); wait > 0 {
			t := time.NewTimer(wait)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				return writes, nil
			}
		}
		if err := g.write(rng.Int64N(lagDisk/lagBlock)*lagBlock, data[rng.IntN(len(data)-lagBlock):][:lagBlock]); err != nil {
			return writes, err
		}
	}
}

// readLag looks at the group's status for as long as is asked, after a warm-up.
func readLag(ctx context.Context, s *datapath.Source, a lagArgs) (r lagged, err error) {
	time.Sleep(warmUp)
	h := datapath.Handlers(datapath.Identity{}, s, nil)
	before, err := transmitted()
	if err != nil {
		return r, err
	}
	began := time.Now()
	var all []float64
	for time.Since(began) < a.Length {
		res, err := h.Status.Get(ctx, &holdfastv1.StatusServiceGetRequest{})
		if err != nil {
			return r, err
		}
		g := res.Groups[0]
		if g.LagSeconds == nil {
			return r, fmt.Errorf("the lag is not known: the group is %s: %s", g.State, g.Reason)
		}
		all = append(all, *g.LagSeconds)
		time.Sleep(lagEvery)
	}
	took := time.Since(began)
	after, err := transmitted()
	if err != nil {
		return r, err
	}
	slices.Sort(all)
	r.P99, r.Middle, r.Most = all[len(all)*99/100], all[len(all)/2], all[len(all)-1]
	r.Use = 8 * float64(after-before) / took.Seconds() / a.Link
	return r, nil
}

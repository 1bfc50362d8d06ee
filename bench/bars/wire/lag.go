package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath"
	"github.com/holdfast-dr/holdfast/wire/shape"
)

// lagArgs say what the guest does.
type lagArgs struct {
	siteArgs
	Rate   float64       // of the guest's writes, bytes a second
	Length time.Duration // measured
}

// lagged is what a source tells.
type lagged struct {
	P99, Middle, Most float64 // of the lag, in seconds
	Stored, Sent      float64 // records made, and bytes as the interface counts, a second
	Guest             float64 // bytes of the guest's writes a second
	Writes            int
}

const (
	lagDisk   = 256 << 20 // bytes
	lagLoad   = 0.8       // of the link: what the records have that the guest's writes become
	lagLength = 5 * time.Minute
	lagEvery  = 50 * time.Millisecond
)

// lag measures how old the oldest write is that the target has not acknowledged, while a guest
// writes db at a constant rate: so much that its records take four fifths of the link.
// What goes on the wire beside them (TLS, headers of packets, heartbeats) comes on top.
func (b *bench) lag(mbit int) error {
	rate := shape.Rate(mbit) * 1e6
	ratio := packs(lagDisk)
	length, note := b.lasts(lagLength)
	for i := range b.times {
		var r lagged
		foreign, err := b.Pair(i, func() (foreign float64, err error) {
			dir, err := b.Fresh("lag")
			if err != nil {
				return 0, err
			}
			a := lagArgs{siteArgs{b.memory, dir, filepath.Join(b.memory, "lag")}, lagLoad * rate.BytesPerSecond() / ratio, length}
			r, foreign, err = linked[lagged](b, rate, "lag-target", "lag-source", a, length+2*time.Minute)
			return foreign, err
		})
		if err != nil {
			return err
		}
		part := func(bytes float64) float64 { return 100 * bytes / rate.BytesPerSecond() }
		b.Sample(bars.Sample{Row: fmt.Sprintf("lag-%d", mbit), Value: r.P99, Ours: r.P99, OursUnit: "s", Foreign: foreign,
			Note: fmt.Sprintf("%s; median %.3f s, most %.3f s; %d writes of db, %.1f MB/s; records %.1f %% of the link, all on it %.1f %%",
				note, r.Middle, r.Most, r.Writes, r.Guest/1e6, part(r.Stored), part(r.Sent))})
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
	var writing sync.WaitGroup
	writing.Go(func() { wrote, failed = g.loadLink(loading, a.Rate) })
	r, err = readLag(ctx, g.source, a)
	end()
	writing.Wait()
	r.Writes = wrote
	return r, errors.Join(err, failed)
}

// loadLink writes at a constant rate, so many bytes a second.
func (g *guest) loadLink(ctx context.Context, rate float64) (writes int, err error) {
	w := newWorkload(lagDisk)
	for due := time.Now(); ; writes++ {
		off, data := w.next()
		if wait := time.Until(due); wait > 0 {
			t := time.NewTimer(wait)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
			}
		}
		if ctx.Err() != nil {
			return writes, nil
		}
		if err := g.write(off, data); err != nil {
			return writes, err
		}
		due = due.Add(time.Duration(float64(len(data)) / rate * float64(time.Second)))
	}
}

// readLag looks at the group's status for as long as is asked, after a warm-up.
func readLag(ctx context.Context, s *datapath.Source, a lagArgs) (r lagged, err error) {
	time.Sleep(warmUp)
	h := datapath.Handlers(datapath.Identity{}, s, nil)
	var sent [2]int64 // at the beginning and at the end
	if sent[0], err = transmitted(); err != nil {
		return r, err
	}
	began := time.Now()
	var first, last *holdfastv1.Group
	var all []float64
	for time.Since(began) < a.Length {
		res, err := h.Status.Get(ctx, &holdfastv1.StatusServiceGetRequest{})
		if err != nil {
			return r, err
		}
		last = res.Groups[0]
		if first == nil {
			first = last
		}
		if last.LagSeconds == nil {
			return r, fmt.Errorf("the lag is not known: the group is %s: %s", last.State, last.Reason)
		}
		all = append(all, *last.LagSeconds)
		time.Sleep(lagEvery)
	}
	took := time.Since(began).Seconds()
	if sent[1], err = transmitted(); err != nil {
		return r, err
	}
	slices.Sort(all)
	r.P99, r.Middle, r.Most = all[len(all)*99/100], all[len(all)/2], all[len(all)-1]
	r.Sent = float64(sent[1]-sent[0]) / took
	r.Stored = float64(last.PackStoredBytesTotal-first.PackStoredBytesTotal) / took
	r.Guest = float64(last.GuestBytesTotal-first.GuestBytesTotal) / took
	return r, nil
}

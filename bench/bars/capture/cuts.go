package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/drive"
	"github.com/holdfast-dr/holdfast/bench/several"
	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
)

// What the hosts of the rows about cuts have, and do.
const (
	cutHosts    = 3
	cutVolumes  = 4 // of each host
	cutBytes    = 64 << 20
	cutInterval = time.Second
)

// cuts has three hosts that share a group take checkpoints, idle and then under load, as often as there are pairs.
func (b *bench) cuts() (err error) {
	bin, err := b.Fresh("cuts-bin")
	if err != nil {
		return err
	}
	if err := drive.Build(b.Context, ".", bin, ""); err != nil {
		return err
	}
	dir, err := b.Fresh("cuts")
	if err != nil {
		return err
	}
	run, err := os.MkdirTemp("/dev/shm", "hfc-")
	if err != nil {
		return err
	}
	g, err := several.Up(several.Config{Binaries: bin, Dir: dir, RunDir: run, Hosts: cutHosts, Volumes: cutVolumes, Bytes: cutBytes, Interval: cutInterval, VhostUser: true})
	defer func() { err = errors.Join(err, g.Down(), os.RemoveAll(run), os.RemoveAll(dir)) }()
	if err != nil {
		return err
	}
	if err := g.AwaitState(b.Context, api.StateProtected); err != nil {
		return err
	}
	for range b.Pairs {
		idle, err := b.cutsDuring(g, nil)
		if err != nil {
			return err
		}
		busy, err := b.cutsDuring(g, func() (float64, error) { return b.busyHosts(g) })
		if err != nil {
			return err
		}
		b.Sample(bars.Sample{Row: "cuts-listed", Value: busy.part(), Ours: busy.part(), Peer: idle.part(), OursUnit: "%", Note: busy.note})
		b.Sample(bars.Sample{Row: "cuts-hold", Value: busy.p99, Ours: busy.p99, Peer: idle.p99, OursUnit: "ms", Note: fmt.Sprintf("%d holds, idle %d", busy.holds, idle.holds)})
	}
	return nil
}

// cutCount is what came of a while.
type cutCount struct {
	intervals, listed float64
	holds             int
	p99               float64 // ms
	note              string
}

// part is how many of a hundred intervals have a checkpoint. The last one's may be on its way.
func (c cutCount) part() float64 { return min(100, 100*(c.listed+1)/max(c.intervals, 1)) }

// cutsDuring counts for as long as a measurement under a fault takes, while beside runs.
func (b *bench) cutsDuring(g *several.Group, beside func() (float64, error)) (c cutCount, err error) {
	before, err := g.Cuts()
	if err != nil {
		return c, err
	}
	ended := make(chan error, 1)
	iops := 0.0
	go func() {
		if beside == nil {
			t := time.NewTimer(b.faults)
			defer t.Stop()
			select {
			case <-t.C:
			case <-b.Context.Done():
			}
			ended <- b.Context.Err()
			return
		}
		var err error
		iops, err = beside()
		ended <- err
	}()
	if err := <-ended; err != nil {
		return c, err
	}
	after, err := g.Cuts()
	if err != nil {
		return c, err
	}
	c.intervals, c.listed = after.Intervals-before.Intervals, after.Listed-before.Listed
	c.p99, c.holds = after.HoldP99(before)
	states := map[string]bool{}
	for h := range cutHosts {
		res, err := g.Client(several.Source(h)).Status.Get(context.Background(), &holdfastv1.StatusServiceGetRequest{})
		if err != nil {
			return c, err
		}
		states[res.Groups[0].State] = true
	}
	var names []string
	for s := range states {
		names = append(names, s)
	}
	slices.Sort(names)
	c.note = fmt.Sprintf("%.0f of %.0f intervals of %s, %.0f cuts void, %.0f writes a second, then %s", c.listed, c.intervals, cutInterval, after.Void-before.Void, iops, strings.Join(names, " "))
	return c, nil
}

// busyHosts has a guest write to each volume of all hosts, 4 KiB at depth 32 and no faster than is asked for, and says how many writes a second came to be.
func (b *bench) busyHosts(g *several.Group) (iops float64, err error) {
	type one struct {
		m   guest.Measured
		err error
	}
	came := make(chan one, cutHosts*cutVolumes)
	for h := range cutHosts {
		for v := range cutVolumes {
			b.seed++
			l := guest.Load{Bytes: 4096, Depth: 32, Duration: b.faults, Write: true, Size: cutBytes, Data: b.data, Seed: b.seed, Rate: b.cutRate / (cutHosts * cutVolumes)}
			go func() {
				m, err := writeTo(g.Vhost(h, v), l)
				came <- one{m, err}
			}()
		}
	}
	for range cutHosts * cutVolumes {
		o := <-came
		err = errors.Join(err, o.err)
		iops += float64(o.m.Requests) / max(o.m.Took.Seconds(), 1e-9)
	}
	return iops, err
}

func writeTo(socket string, l guest.Load) (m guest.Measured, err error) {
	u, err := guest.New(guest.Options{Slots: l.Depth, SlotBytes: l.Bytes})
	if err != nil {
		return m, err
	}
	defer u.Close()
	if err := u.Connect(socket); err != nil {
		return m, fmt.Errorf("%s: %w", filepath.Base(socket), err)
	}
	return u.Run(l)
}

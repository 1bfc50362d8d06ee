package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath"
	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/wire/shape"
)

// lagArgs say where a side keeps its files, and what the guest does.
type lagArgs struct {
	Certs, Dir, RunDir string
	Rate               float64       // of the guest's writes, bytes a second
	Link               float64       // bits a second
	Length             time.Duration // measured
}

// lagged is what a source tells.
type lagged struct {
	P99, Middle, Most float64 // of the lag, read every 20 ms, in seconds
	Use               float64 // of the link, as its interface counts, a part of 1
	Writes            int
}

const (
	lagBlock = 8 << 10 // bytes of a write
	lagLoad  = 0.8     // of the link
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
		foreign, err := b.pair(i, func() (float64, error) {
			dir, err := b.fresh("lag")
			if err != nil {
				return 0, err
			}
			rate := shape.Rate(mbit) * 1e6
			a := lagArgs{b.memory, dir, filepath.Join(b.memory, "lag"), lagLoad * lagPayload * rate.BytesPerSecond(), float64(rate), b.length}
			began := look()
			var cpu float64
			r, cpu, err = b.lagOnce(a, rate)
			return began.foreign(cpu), err
		})
		if err != nil {
			return err
		}
		b.sample(bars.Sample{Row: fmt.Sprintf("lag-%d", mbit), Value: r.P99, Ours: r.P99, OursUnit: "s", Foreign: foreign,
			Note: fmt.Sprintf("median %.3f s, most %.3f s; the link %.1f %% in use, %d writes in %s", r.Middle, r.Most, 100*r.Use, r.Writes, b.length)})
	}
	return nil
}

func (b *bench) lagOnce(a lagArgs, rate shape.Rate) (r lagged, cpu float64, err error) {
	source, target, down, err := network(b.ctx, rate)
	if err != nil {
		return r, 0, err
	}
	defer down()
	inside := func(ns, part string) (*exec.Cmd, error) {
		c, err := b.child(part, a)
		if err != nil {
			return nil, err
		}
		in := exec.CommandContext(b.ctx, "ip", append([]string{"netns", "exec", ns}, c.Args...)...)
		in.Stderr = os.Stderr
		return in, nil
	}
	peer, err := inside(target, "lag-target")
	if err != nil {
		return r, 0, err
	}
	closed, err := peer.StdinPipe() // the target ends with it
	if err != nil {
		return r, 0, err
	}
	if err := peer.Start(); err != nil {
		return r, 0, err
	}
	own, err := inside(source, "lag-source")
	if err == nil {
		var out bytes.Buffer
		own.Stdout = &out
		if err = own.Run(); err == nil {
			err = json.Unmarshal(out.Bytes(), &r)
		}
	}
	closed.Close()
	err = errors.Join(err, peer.Wait())
	if err == nil {
		cpu = cpuOf(own) + cpuOf(peer)
	}
	return r, cpu, err
}

// lagTargetPart is a whole target until its input ends.
func lagTargetPart(ctx context.Context, a lagArgs) (done bool, err error) {
	c, err := credentials(a.Certs, "target", "source")
	if err != nil {
		return false, err
	}
	store := filepath.Join(a.Dir, "store")
	if err := os.MkdirAll(store, 0o700); err != nil {
		return false, err
	}
	target, err := datapath.OpenTarget(datapath.TargetConfig{
		FS: ioengine.OS(), Store: store, RunDir: filepath.Join(a.RunDir, "views"), ListenControl: ":" + controlPort, ListenData: ":" + dataPort,
		Credentials: c, Log: quiet(),
	})
	if err != nil {
		return false, err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() { io.Copy(io.Discard, os.Stdin); stop() }()
	return true, errors.Join(target.Run(ctx), target.Close())
}

func quiet() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
}

// lagSourcePart is a filter, a source, and a guest that loads the link.
func lagSourcePart(ctx context.Context, a lagArgs) (r lagged, err error) {
	const size = 256 << 20
	run, disk := filepath.Join(a.RunDir, "source"), filepath.Join(a.Dir, "disk")
	for _, dir := range []string{run, filepath.Join(a.Dir, "source")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return r, err
		}
	}
	defer os.RemoveAll(a.RunDir)
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, size)); err != nil {
		return r, err
	}
	c, err := credentials(a.Certs, "source", "target")
	if err != nil {
		return r, err
	}
	filter, err := capture.OpenFilter(capture.FilterConfig{
		RunDir: run, Group: groupID, PoolBytes: 64 << 20, PoolSocket: filepath.Join(run, "pool"), FS: ioengine.OS(), Log: quiet(),
		Volumes: []capture.FilterVolume{{ID: volumeID, Name: "disk", Path: disk}},
	})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, filter.Close()) }()
	source, err := datapath.OpenSource(datapath.SourceConfig{
		RunDir: run, DataDir: filepath.Join(a.Dir, "source"), Credentials: c, Log: quiet(),
		Groups: []datapath.GroupConfig{{
			Name: "bars", ID: groupID, Stream: streamID, Lineage: 1, Interval: 5 * time.Second, Window: 256 << 20,
			Control: net.JoinHostPort(targetAddress, controlPort), Data: net.JoinHostPort(targetAddress, dataPort),
			Filters: []string{filepath.Join(run, "pool")}, Volumes: []datapath.VolumeName{{ID: volumeID, Name: "disk"}},
		}},
	})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	ctx, stop := context.WithCancel(ctx)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer stop()
	parts.Go(func() { filter.Run(ctx) })
	parts.Go(func() { source.Run(ctx) })
	if err := protected(ctx, source); err != nil {
		return r, err
	}

	guest, end := context.WithCancel(ctx)
	var wrote int
	var failed error
	var g sync.WaitGroup
	g.Go(func() { wrote, failed = loadLink(guest, filter, size, a.Rate) })
	r, err = readLag(ctx, source, a)
	end()
	g.Wait()
	r.Writes = wrote
	return r, errors.Join(err, failed)
}

// loadLink writes blocks of noise at random places and moments, so many bytes a second.
func loadLink(ctx context.Context, f *capture.Filter, size int64, rate float64) (writes int, err error) {
	d, rng, data := f.Device("disk"), rand.New(rand.NewPCG(5, 5)), noise(32<<20, 2)
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
		w, err := d.BeginWrite(rng.Int64N(size/lagBlock)*lagBlock, lagBlock)
		if err != nil {
			return writes, err
		}
		from := data[rng.IntN(len(data)-lagBlock):]
		for _, p := range w.Buffers() {
			from = from[copy(p, from):]
		}
		if err := w.Commit(false); err != nil {
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

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath"
	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// What there is of each.
const (
	groupID  = record.GroupID(1)
	volumeID = record.VolumeID(1)
	streamID = record.StreamID(1)
)

// siteArgs say where the sites keep their files.
type siteArgs struct {
	Certs  string
	Dir    string // for the disk, the source's data and the target's store
	RunDir string // for sockets and shared memory; removed when the source is closed
}

func quiet() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
}

// openTarget opens a whole target. Synced, which may be nil, is told how long each sync of the store took.
func openTarget(a siteArgs, control, data string, synced func(time.Duration)) (*datapath.Target, error) {
	c, err := credentials(a.Certs, "target", "source")
	if err != nil {
		return nil, err
	}
	store := filepath.Join(a.Dir, "store")
	if err := os.MkdirAll(store, 0o700); err != nil {
		return nil, err
	}
	return datapath.OpenTarget(datapath.TargetConfig{
		FS: ioengine.OS(), Store: store, RunDir: filepath.Join(a.RunDir, "views"), ListenControl: control, ListenData: data,
		Credentials: c, Log: quiet(), ObserveSync: synced,
	})
}

// guestArgs describe a disk of a guest, and how it is replicated.
type guestArgs struct {
	Disk, Pool    int64 // bytes of the disk, and of the memory in which writes stand
	Window        int64
	Interval      time.Duration // between checkpoints
	Control, Data string        // of the target
	Acked         func(time.Duration)
}

// guest is a filter with a disk, and the source that replicates it. What a guest writes is
// written to the filter's device, as its front would.
type guest struct {
	device front.Device
	filter *capture.Filter
	source *datapath.Source
	remove string
	stop   func()
	parts  sync.WaitGroup
}

// openGuest makes the disk, opens both and runs them until the disk is in step. Close ends them.
func openGuest(ctx context.Context, a siteArgs, g guestArgs) (_ *guest, err error) {
	run, disk, data := filepath.Join(a.RunDir, "source"), filepath.Join(a.Dir, "disk"), filepath.Join(a.Dir, "source")
	if err := errors.Join(os.MkdirAll(run, 0o700), os.MkdirAll(data, 0o700), os.WriteFile(disk, nil, 0o600), os.Truncate(disk, g.Disk)); err != nil {
		return nil, err
	}
	c, err := credentials(a.Certs, "source", "target")
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	o := &guest{remove: a.RunDir, stop: stop}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.Close())
		}
	}()
	pool := filepath.Join(run, "pool")
	o.filter, err = capture.OpenFilter(capture.FilterConfig{
		RunDir: run, Group: groupID, PoolBytes: g.Pool, PoolSocket: pool, FS: ioengine.OS(), Log: quiet(),
		Volumes: []capture.FilterVolume{{ID: volumeID, Name: "disk", Path: disk}},
	})
	if err != nil {
		return nil, err
	}
	o.source, err = datapath.OpenSource(datapath.SourceConfig{
		RunDir: run, DataDir: data, Credentials: c, Log: quiet(), ObserveAck: g.Acked,
		Groups: []datapath.GroupConfig{{
			Name: "bars", ID: groupID, Stream: streamID, Lineage: 1, Interval: g.Interval, Window: g.Window, Control: g.Control, Data: g.Data,
			Filters: []string{pool}, Volumes: []datapath.VolumeName{{ID: volumeID, Name: "disk"}},
		}},
	})
	if err != nil {
		return nil, err
	}
	o.device = o.filter.Device("disk")
	o.parts.Go(func() { o.filter.Run(ctx) })
	o.parts.Go(func() { o.source.Run(ctx) })
	return o, protected(ctx, o.source)
}

// Close ends both and waits for them.
func (g *guest) Close() (err error) {
	g.stop()
	g.parts.Wait()
	if g.source != nil {
		err = g.source.Close()
	}
	if g.filter != nil {
		err = errors.Join(err, g.filter.Close())
	}
	return errors.Join(err, os.RemoveAll(g.remove))
}

// write is one write of the guest's.
func (g *guest) write(off int64, data []byte) error {
	w, err := g.device.BeginWrite(off, len(data))
	if err != nil {
		return err
	}
	for _, p := range w.Buffers() {
		data = data[copy(p, data):]
	}
	return w.Commit(false)
}

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

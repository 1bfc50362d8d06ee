// Package testvolume opens real volumes for the tests of those who serve them.
package testvolume

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine"
)

// Open makes a disk of size bytes, all zeros, and a filter that has it as its one volume, until
// the test ends. The device has lanes where fs is that of a system with io_uring.
func Open(t testing.TB, fs ioengine.FS, size int64) (dev front.Device, disk string) {
	t.Helper()
	return open(t, fs, size, false)
}

// OpenCached is Open of a volume that is written and read through the page cache.
func OpenCached(t testing.TB, fs ioengine.FS, size int64) (dev front.Device, disk string) {
	t.Helper()
	return open(t, fs, size, true)
}

func open(t testing.TB, fs ioengine.FS, size int64, cached bool) (dev front.Device, disk string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf") // short: it holds sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	disk = filepath.Join(dir, "disk")
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, size)); err != nil {
		t.Fatal(err)
	}
	f, err := capture.OpenFilter(capture.FilterConfig{
		RunDir: dir, Group: 1, PoolBytes: 8 << 20, PoolSocket: filepath.Join(dir, "pool"),
		FS: fs, Log: slog.New(slog.DiscardHandler),
		Volumes: []capture.FilterVolume{{ID: 1, Name: "v", Path: disk, Writeback: cached}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ran := make(chan error)
	go func() { ran <- f.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-ran, f.Close()); err != nil {
			t.Error(err)
		}
	})
	return f.Device("v"), disk
}

// Hear returns a device that is dev, which has lanes, and calls told after each Told of one of them.
func Hear(dev front.Device, told func()) front.Laned { return heard{dev.(front.Laned), told} }

type heard struct {
	front.Laned
	told func()
}

func (h heard) Lane(requests int) (front.Lane, error) {
	l, err := h.Laned.Lane(requests)
	if err != nil {
		return nil, err
	}
	return heardLane{l, h.told}, nil
}

type heardLane struct {
	front.Lane
	told func()
}

func (l heardLane) Told() {
	l.Lane.Told()
	l.told()
}

package capture

import (
	"context"
	"errors"
	"log/slog"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// FilterConfig says what a filter serves.
type FilterConfig struct {
	RunDir     string // memory-backed folder, shared with the VRA: order page and marks
	Group      record.GroupID
	PoolBytes  int64  // slots for all volumes together; at least 1 MiB
	PoolSocket string // unix socket on which the VRA maps the pool and asks
	Volumes    []FilterVolume
	FS         ioengine.FS // where the guest's disks are
	Log        *slog.Logger
}

// FilterVolume is a disk to serve.
type FilterVolume struct {
	ID   record.VolumeID
	Name string
	Path string // on FilterConfig.FS
}

// Filter splits the writes of its volumes.
type Filter struct{}

// OpenFilter opens the disks and the marks. It waits for a predecessor that still
// has writes in flight; after one that was killed, all live generations are moved to
// the dirty maps and lost is added to before it returns.
func OpenFilter(cfg FilterConfig) (*Filter, error) { return nil, errors.ErrUnsupported }

// Device returns the disk of the volume of that name, nil if there is none. It may be
// used until Close, whether or not Run runs.
func (f *Filter) Device(name string) front.Device { return nil }

// Run serves the pool socket and closes a generation each second, until ctx ends.
func (f *Filter) Run(ctx context.Context) error { return errors.ErrUnsupported }

// Close waits for writes in flight, gives the VRA a moment to take what is published,
// notes that the marks are whole and takes the filter out of the order page. Fronts
// must have stopped.
func (f *Filter) Close() error { return errors.ErrUnsupported }

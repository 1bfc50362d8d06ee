// Package view shows a group as it was at a checkpoint: readable, and writable into
// scratch.
//
// A read takes, for each byte, what the view's own writes put there, else the newest
// version that the checkpoint holds, else the replica. Every byte is verified on the
// way: a block of the log by the checksum over its record's identity, a block of the
// replica by the one over its place. What does not verify is an error, never bytes.
//
// A view changes nothing but its scratch, a sparse file for each volume, which ends
// with it: a view does not outlive its process. It costs 2 bits in memory for each
// 4 KiB of its volumes, and up to 4 MiB of blocks that were opened lately.
package view

import (
	"errors"
	"fmt"
	"path"
	"sync"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Errors that a device's user tells apart.
var (
	ErrNoSpace  = errors.New("scratch is full")
	ErrReadOnly = errors.New("view is read-only")
	ErrClosed   = errors.New("view is closed")
	ErrRange    = errors.New("outside the volume")
	// ErrFailed: a sync of scratch has failed, and it is not known what a crash would leave.
	ErrFailed = errors.New("scratch has failed")
)

// Options say what a view may do.
type Options struct {
	Scratch      bool  // take writes
	ScratchLimit int64 // bytes of all volumes together; 0: no limit
}

// Volume is one disk of a view.
type Volume struct {
	ID    record.VolumeID
	Name  string
	Bytes int64
}

// Config says what a view shows. All is borrowed until the view is closed.
type Config struct {
	Checkpoint uint64
	Options
	Disks    []Disk
	Log      Log
	Versions Versions
	At       index.Vector // the checkpoint's place
	// FS and Dir say where scratch files go.
	FS  ioengine.FS
	Dir string
	// Damaged is called with what did not verify, before the reader is told; nil: nobody is.
	Damaged func(Damage)
	// Closed is called once the view is closed; nil: nothing is.
	Closed func()
}

// Damage is a piece that a read could not have: a block of the log, whole, or a block
// of the replica (4 KiB of its volume, less at its end).
type Damage struct {
	Volume record.VolumeID
	Piece  index.Piece
	Err    error
}

// Disk is a volume and what lies beneath all its versions.
type Disk struct {
	Volume
	Replica Replica
}

// Log gives back the bytes of the log; segment.Log does.
type Log interface {
	ReadAt(p []byte, pos segment.Pos) error
}

// Versions tells where bytes are; index.Table does.
type Versions interface {
	Lookup(dst []index.Piece, vol record.VolumeID, off, n int64, at index.Vector) ([]index.Piece, error)
}

// Replica is the state before the log; replica.Volume is one.
type Replica interface {
	ReadAt(p []byte, off int64) error
	Extents(off, n int64, emit func(n int64, hole bool) bool) error
}

// View is a group at a checkpoint. It may be used by many goroutines.
type View struct {
	cfg     Config
	devices []*Device
	blocks  blockCache
	used    atomic.Int64 // bytes of scratch

	life   sync.RWMutex // held for reading by every call of a device
	closed bool
}

// viewNumbers tells the scratch files of one process's views apart.
var viewNumbers atomic.Uint64

// New opens a view.
func New(cfg Config) (*View, error) {
	v := &View{cfg: cfg}
	number := viewNumbers.Add(1)
	for _, disk := range cfg.Disks {
		d := &Device{view: v, disk: disk}
		v.devices = append(v.devices, d)
		if !cfg.Scratch {
			continue
		}
		name := path.Join(cfg.Dir, fmt.Sprintf("%d-%08x", number, uint32(disk.ID)))
		s, err := newScratch(cfg.FS, name, disk.Bytes)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("scratch: %w", err), v.discard())
		}
		d.scratch = s
	}
	return v, nil
}

// Checkpoint returns the number of the view's checkpoint.
func (v *View) Checkpoint() uint64 { return v.cfg.Checkpoint }

// Volumes returns the view's disks, ordered by id.
func (v *View) Volumes() []Volume {
	vs := make([]Volume, len(v.devices))
	for i, d := range v.devices {
		vs[i] = d.disk.Volume
	}
	return vs
}

// Device returns the disk of a volume.
func (v *View) Device(vol record.VolumeID) (*Device, bool) {
	for _, d := range v.devices {
		if d.disk.ID == vol {
			return d, true
		}
	}
	return nil, false
}

// ScratchBytes returns how much the view's writes take.
func (v *View) ScratchBytes() int64 { return v.used.Load() }

// Close ends the view and discards its scratch. It waits for calls on its devices;
// those that come later fail with ErrClosed.
func (v *View) Close() error {
	v.life.Lock()
	if v.closed {
		v.life.Unlock()
		return nil
	}
	v.closed = true
	err := v.discard()
	v.life.Unlock()
	if v.cfg.Closed != nil {
		v.cfg.Closed()
	}
	return err
}

func (v *View) discard() error {
	var err error
	for _, d := range v.devices {
		if d.scratch != nil {
			err = errors.Join(err, d.scratch.discard())
		}
	}
	return err
}

// reserve takes n bytes of the scratch limit.
func (v *View) reserve(n int64) error {
	if used := v.used.Add(n); v.cfg.ScratchLimit > 0 && used > v.cfg.ScratchLimit && !invariant.Planted("journal/view/limit") {
		v.used.Add(-n)
		return ErrNoSpace
	}
	return nil
}

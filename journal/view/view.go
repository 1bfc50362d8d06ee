// Package view shows a group as it was at a checkpoint: readable, and writable into
// scratch.
package view

import (
	"errors"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// Errors that a device's user tells apart.
var (
	ErrNoSpace  = errors.New("scratch is full")
	ErrReadOnly = errors.New("view is read-only")
	ErrClosed   = errors.New("view is closed")
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

// View is a group at a checkpoint. It may be used by many goroutines.
type View struct{}

// Checkpoint returns the number of the view's checkpoint.
func (v *View) Checkpoint() uint64 { return 0 }

// Volumes returns the view's disks, ordered by id.
func (v *View) Volumes() []Volume { return nil }

// Device returns the disk of a volume.
func (v *View) Device(vol record.VolumeID) (*Device, bool) { return nil, false }

// Close ends the view and discards its scratch. Calls on its devices that come later fail with ErrClosed.
func (v *View) Close() error { return nil }

// Device is one disk of a view. Offsets and lengths are in bytes, inside [0, Size()),
// of any alignment. Calls may run concurrently.
type Device struct{}

// Size returns the disk's size in bytes.
func (d *Device) Size() int64 { return 0 }

// ReadOnly says whether writes are refused.
func (d *Device) ReadOnly() bool { return true }

// ReadAt fills p with what the checkpoint, and the view's writes over it, hold at off. What does not verify is an error, never bytes.
func (d *Device) ReadAt(p []byte, off int64) error { return ErrClosed }

// WriteAt writes p into scratch.
func (d *Device) WriteAt(p []byte, off int64) error { return ErrReadOnly }

// Zero makes the range read as zeros.
func (d *Device) Zero(off, n int64) error { return ErrReadOnly }

// Flush makes what was written durable for as long as the view lives.
func (d *Device) Flush() error { return nil }

// Extents tells what stands in [off, off+n), in order and without gaps, until emit returns false.
func (d *Device) Extents(off, n int64, emit func(n int64, hole bool) bool) error { return ErrClosed }

// Package faultdisk is the disk of the tests: a file system in memory that can be
// crashed at any operation, keeps exactly what a real one promises to keep, and
// fails where it is told to.
package faultdisk

import (
	"math/rand/v2"

	"github.com/holdfast-dr/holdfast/ioengine"
)

// Disk is a file system in memory. New makes an empty one.
type Disk struct{ ioengine.FS }

// New returns an empty disk whose Direct files want align (1, 512 or 4096).
func New(align int) *Disk { return &Disk{} }

// Keep says what of the unsynced a crash leaves.
type Keep uint8

// What a crash may leave.
const (
	KeepNone Keep = iota // nothing that was not synced
	KeepSome             // any part, sector by sector and name by name
	KeepTorn             // all but the last operation, and a part of that one
)

// Crash returns the disk as a machine finds it after a loss of power now.
func (d *Disk) Crash(rng *rand.Rand, keep Keep) *Disk { return d }

// Kill returns the disk as the next process finds it when this one is killed now:
// nothing is lost, and what is unsynced still is.
func (d *Disk) Kill() *Disk { return d }

// Op is a set of operations.
type Op uint16

// The operations.
const (
	OpCreate Op = 1 << iota
	OpWrite
	OpSync
	OpAllocate
	OpZero
	OpTruncate
	OpRename
	OpRemove
	OpMkdir
	OpSyncDir
	OpRead
	OpOpen
	OpMutating = OpCreate | OpWrite | OpSync | OpAllocate | OpZero | OpTruncate | OpRename | OpRemove | OpMkdir | OpSyncDir
)

// Fault makes an operation fail.
type Fault struct {
	Ops   Op              // which operations count; 0: OpMutating
	Name  string          // only on files whose name ends so; "": all
	At    int             // the At-th of them from now on fails, counted from 1
	Ever  bool            // and so do all after it
	Err   error           // what it returns; with nil it succeeds
	Short bool            // a write that fails leaves its first half; a read returns it
	Lose  bool            // a write succeeds and leaves nothing
	Shift int64           // a write succeeds that many bytes away from its place
	Stall <-chan struct{} // it waits until this is closed
}

// Inject adds a fault.
func (d *Disk) Inject(f Fault) {}

// Ops returns how many mutating operations there were.
func (d *Disk) Ops() int { return 0 }

// OnOp has hook called at every mutating operation from now on: when its effect
// is there but not synced, and before a Sync or SyncDir has had any. The hook may call Crash and Kill.
func (d *Disk) OnOp(hook func(op Op, name string)) {}

// Rot flips one bit in each of n bytes of the file from off on, durably.
func (d *Disk) Rot(name string, off, n int64) error { return nil }

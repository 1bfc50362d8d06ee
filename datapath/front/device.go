// Package front holds what a block server needs to know of the disk behind it.
//
// A filter gives a server a device that splits every write; a target gives it a
// view of a group at a checkpoint. The servers (nbd, vhostuser) know neither.
package front

import "errors"

// Device is a disk that a server offers to a guest. All calls may run
// concurrently; offsets and lengths are in bytes, inside [0, Size()), and need no
// alignment. An error is the device's own; ErrNoSpace and ErrReadOnly are told to
// the guest as such, anything else as an I/O error.
type Device interface {
	Size() int64
	ReadOnly() bool
	// ReadAt fills p.
	ReadAt(p []byte, off int64) error
	// BeginWrite reserves room for n bytes (1 to MaxWrite) at off. The caller fills
	// the Write's buffers and then calls Commit or Abort, exactly once.
	BeginWrite(off int64, n int) (Write, error)
	// Zero makes the range read as zeros; mayUnmap lets it give space back.
	Zero(off, n int64, mayUnmap, fua bool) error
	// Trim is a discard: afterwards the range reads as zeros or as before.
	Trim(off, n int64, fua bool) error
	// Flush makes all that was answered before it durable.
	Flush() error
	// Extents tells what stands in [off, off+n), in order and without gaps, until
	// emit returns false. It may call everything data.
	Extents(off, n int64, emit func(n int64, hole bool) bool) error
}

// Watched is a Device that wants to know who uses it.
type Watched interface {
	Device
	// Connected is called with each connection that begins to use it. The connection calls left when it is over, once.
	// All that came by it has ended then.
	Connected(c Connection) (left func())
	// Refused is called where a write, a zeroing or a discard is refused without the Device having been asked, before that
	// is answered. One that may be asked for in another way (a fast zeroing) is none.
	Refused(why error)
}

// Used is a Device that counts the connections that use it, whatever carries them.
type Used interface {
	// Begins is called as one begins to use it, and over when it has ended, once.
	Begins() (over func())
}

// Connection is one that uses a Watched. Its methods may be called at any time, by anyone.
type Connection interface {
	// Gone says whether its other end has closed it, also when nobody has read that far, or it was dropped.
	Gone() bool
	// Process is the other end's, on this host; 0: that cannot be told.
	Process() int
	// Left says, once it is over, whether its other end has ended it.
	Left() bool
	// Drop closes it at once, whatever is under way: that is not answered.
	Drop()
}

// Write is one guest write being taken in. The buffers are the device's (slots that
// the split shares with the VRA), so that the payload is copied only once. Its payload
// may be long in coming, or never come: between BeginWrite and Commit a Write must not
// make any other wait, so overlaps are settled in Commit.
type Write interface {
	// Buffers returns the places to fill, in order; together they are n bytes.
	Buffers() [][]byte
	// Commit carries the write out and returns when the guest may be answered; with
	// fua it is durable then. It ends the Write.
	Commit(fua bool) error
	// Abort ends the Write without effect.
	Abort()
}

// MaxWrite is the longest write a device takes, in bytes.
const MaxWrite = 32 << 20

// Errors that a guest is told apart.
var (
	ErrNoSpace  = errors.New("no space left")
	ErrReadOnly = errors.New("read-only")
)

// Package ioengine gives the journal and the filter disks and files as they need
// them: aligned, direct where the file system can, every call able to fail in a test.
package ioengine

import "io"

// FS is a file system as the journal needs it. OS is the real one; faultdisk is
// the crashable one of the tests. Names are slash-separated paths.
//
// Nothing is durable before a Sync: a file's bytes and size need File.Sync, its
// name (after Open with Create, Rename, Remove, Mkdir) needs SyncDir of its folder.
type FS interface {
	// Open opens the file, by the flags. With Create it is made when absent.
	Open(name string, flags Flags) (File, error)
	// Rename replaces newName atomically.
	Rename(oldName, newName string) error
	Remove(name string) error
	// Mkdir makes one folder; it is no error if it is there.
	Mkdir(name string) error
	// List returns the names in a folder, sorted.
	List(dir string) ([]string, error)
	SyncDir(dir string) error
	// SyncFiles is Sync of all the files at once, for about the price of one. It
	// returns nil when all of them are durable. After an error none of them is to be
	// trusted: the Sync of each of them fails from then on. It takes files that this FS
	// opened; the same file twice is synced once.
	SyncFiles(files []File) error
	// Free returns how many bytes may still be written to the file system that holds dir.
	Free(dir string) (bytes int64, err error)
	// Lock takes the lock file for this process alone, until the closer is closed.
	Lock(name string) (io.Closer, error)
}

// Holder is a File that can be had alone.
type Holder interface {
	// Hold takes the file for this opening of it: until Close, and until every write that was
	// begun through it has ended, also those of a process that was killed. ErrLocked: another has it.
	Hold() error
}

// Cached is a File of which the page cache may hold what the disk does not.
type Cached interface {
	// DropCache has what the cache holds of the file read from the disk again, but for what was written and not synced.
	DropCache() error
}

// Flags say how a file is opened; without ReadOnly it is for reading and writing.
type Flags uint8

// The flags of Open.
const (
	ReadOnly  Flags = 1 << iota
	Create          // make it when absent
	Exclusive       // with Create: fail when it is there
	Direct          // past the page cache where the file system can; see File.Align
)

// MaxParts is how many parts a WriteStart or WriteParts takes: what any kernel does.
const MaxParts = 256

// Bytes is how many bytes parts hold.
func Bytes(parts [][]byte) (n int) {
	for _, p := range parts {
		n += len(p)
	}
	return n
}

// File is an open file. Calls may run concurrently; an error carries the file's name.
type File interface {
	io.ReaderAt // io.EOF at the end of the file, with the bytes before it
	io.WriterAt // all of p, or an error
	// WriteStart begins to write the parts, one behind the other from off on, and returns.
	// Align holds for each part; there are at most MaxParts. It borrows parts and what they
	// hold until it calls done, once, on another goroutine and perhaps before it returns:
	// with nil when all is written, which makes nothing durable, else with the error of
	// WriteAt. Writes that were started are in no order. A Sync covers those alone whose
	// done was called before it; Close waits for all. done must not block.
	WriteStart(parts [][]byte, off int64, done func(error))
	// WriteParts writes the parts, one behind the other from off on, as one write: all of
	// them, or an error. Align holds for each part; there are at most MaxParts. Who waits for
	// the end anyway has it cheaper so than from WriteStart.
	WriteParts(parts [][]byte, off int64) error
	// Align is what offsets, lengths and buffer addresses must be multiples of: 1,
	// or more for a Direct file. The caller keeps to it.
	Align() int
	// Sync makes bytes and size durable. A failed Sync is final: the caller must
	// never trust or sync that file again.
	Sync() error
	// Allocate makes [off, off+n) backed by space, growing the file if need be.
	Allocate(off, n int64) error
	// Zero makes [off, off+n) read as zeros within the size, giving space back where it can.
	Zero(off, n int64) error
	// NextData returns the first extent of data at or after off; n is 0 when only
	// holes follow. A file system that cannot tell calls everything data.
	NextData(off int64) (at, n int64, err error)
	Truncate(size int64) error
	Size() (int64, error)
	// WillRead says that [off, off+n) is read soon: of a file that is read through the page
	// cache it may begin to come, and who says so of several places waits for them at
	// once. It waits for none; what does not read is told to who reads it.
	WillRead(off, n int64)
	// WriteBack begins to write what of [off, off+n) is in the page cache only, so that a
	// Sync later has less to do at once. It makes nothing durable; what fails is told by Sync.
	WriteBack(off, n int64)
	Close() error
}

package ioengine

import (
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ErrLocked says that another process, or another part of this one, holds a lock file.
var ErrLocked = errors.New("in use by another process")

// OS returns the file system of this machine. Files are made with mode 0600 and
// folders with 0700. Errors are *fs.PathError: errors.Is finds fs.ErrNotExist,
// fs.ErrExist, syscall.ENOSPC and the like.
//
// Started writes, SyncFiles, and short reads that wait for the disk while others are under way go
// through io_uring where the system has it, else through threads; HOLDFAST_IO=threads
// chooses those everywhere. Engine tells.
func OS() FS {
	if os.Getenv("HOLDFAST_IO") == "threads" {
		return Threads()
	}
	return &osFS{readers: engine{polled: true}}
}

// Threads is OS without io_uring, as on a system that has none.
func Threads() FS {
	s := &osFS{}
	s.engine.portable, s.readers.portable = errForced, errForced
	return s
}

type osFS struct {
	engine  engine
	readers engine       // of reads
	reading atomic.Int64 // short reads that are under way
}

// Open opens the file. A Direct one is opened past the page cache where statx says
// that the file system can and what it wants aligned; elsewhere it is opened
// through the page cache, and Align is 1.
func (s *osFS) Open(name string, flags Flags) (File, error) {
	mode := unix.O_CLOEXEC
	if flags&ReadOnly != 0 {
		mode |= unix.O_RDONLY
	} else {
		mode |= unix.O_RDWR
	}
	if flags&Create != 0 {
		mode |= unix.O_CREAT
		if flags&Exclusive != 0 {
			mode |= unix.O_EXCL
		}
	}
	fd, err := retryOpen(name, mode)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	f := &osFile{fs: s, name: name, fd: fd, align: 1}
	if flags&Direct != 0 {
		f.goDirect()
	}
	return f, nil
}

func retryOpen(name string, mode int) (int, error) {
	for {
		fd, err := unix.Open(name, mode, 0o600)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func (*osFS) Rename(oldName, newName string) error { return os.Rename(oldName, newName) }
func (*osFS) Remove(name string) error             { return os.Remove(name) }

func (*osFS) Mkdir(name string) error {
	err := os.Mkdir(name, 0o700)
	if errors.Is(err, fs.ErrExist) {
		if st, serr := os.Stat(name); serr == nil && st.IsDir() {
			return nil
		}
	}
	return err
}

func (*osFS) List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (*osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close() // opened for reading: its close cannot lose anything
	return d.Sync()
}

// Free is what an ordinary user may write: without what is kept for root.
func (*osFS) Free(dir string) (int64, error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, pathError("statfs", dir, err)
		}
		return freeBytes(st.Bavail, int64(st.Bsize)), nil
	}
}

// freeBytes is blocks of so many bytes, as far as an int64 goes.
func freeBytes(blocks uint64, blockBytes int64) int64 {
	if blockBytes <= 0 {
		return 0
	}
	return int64(min(blocks, uint64(math.MaxInt64/blockBytes))) * blockBytes
}

// Lock takes an flock on the file, which it makes when absent and never removes.
func (*osFS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(int(f.Fd())); err != nil {
		return nil, errors.Join(pathError("lock", name, err), f.Close())
	}
	return f, nil
}

func flock(fd int) error {
	for {
		switch err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err {
		case unix.EINTR:
		case unix.EWOULDBLOCK:
			return ErrLocked
		default:
			return err
		}
	}
}

// Hold is a Holder's: the lock belongs to the open file, which writes under way keep open.
func (f *osFile) Hold() error { return f.use("lock", flock) }

func pathError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

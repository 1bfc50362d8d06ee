package ioengine

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

// SyncFiles is an fdatasync of each file, all of them in the system at once: the
// file system puts their metadata into one journal commit, and the block layer makes
// one flush of the flushes that wait for each other. It is not one syncfs. That waits
// for everybody else's dirty pages too, does not say which file lost some, and on XFS
// flushes nothing when no metadata changed, as with direct writes into space that
// was written before.
func (s *osFS) SyncFiles(files []File) error {
	switch len(files) {
	case 0:
		return nil
	case 1:
		return files[0].Sync()
	}
	seen := make(map[File]struct{}, len(files))
	errs := make([]error, len(files))
	var ops []*ringOp
	var wg sync.WaitGroup
	r := s.engine.acquire()
	if r != nil {
		defer s.engine.release()
	}
	for i, f := range files {
		if _, twice := seen[f]; twice {
			continue
		}
		seen[f] = struct{}{}
		wg.Add(1)
		if f, ours := f.(*osFile); ours && r != nil {
			ops = append(ops, f.syncOp(func(err error) {
				errs[i] = err
				wg.Done()
			}))
			continue
		}
		s.engine.workers.run(func() {
			defer wg.Done()
			errs[i] = f.Sync()
		})
	}
	if r != nil {
		r.start(ops...)
	}
	wg.Wait()
	err := errors.Join(errs...)
	if err == nil {
		return nil
	}
	for f := range seen {
		if f, ours := f.(*osFile); ours {
			f.distrust(err)
		}
	}
	return err
}

// syncOp is Sync as an operation of the ring, which calls done with what Sync returns.
func (f *osFile) syncOp(done func(error)) *ringOp {
	f.open.RLock() // until it has ended
	op := &ringOp{code: opFsync, fd: f.fd}
	if f.open.closed {
		op.fd = -1 // EBADF, and no file's
	}
	op.done = func(_ *ringOp, res int32) {
		f.open.RUnlock()
		switch err := unix.Errno(-res); {
		case res == 0:
			done(f.trusted())
		case err == unix.EAGAIN, err == unix.EINTR, err == unix.ECANCELED: // it was not begun
			f.fs.engine.workers.run(func() { done(f.Sync()) })
		default:
			failed := pathError("sync", f.name, err)
			f.distrust(failed)
			done(failed)
		}
	}
	return op
}

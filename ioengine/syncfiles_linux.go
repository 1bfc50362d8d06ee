package ioengine

import (
	"errors"
	"sync"
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
	var wg sync.WaitGroup
	for i, f := range files {
		if _, twice := seen[f]; twice {
			continue
		}
		seen[f] = struct{}{}
		wg.Add(1)
		s.workers.run(func() {
			defer wg.Done()
			errs[i] = f.Sync()
		})
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

package view

import (
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"math"
	"math/bits"
	"path"
	"sync"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// scratch is what was written to one disk of a view: a sparse data file in which each
// block stands at its own place, and a map that says which blocks count. The files are
// made at the first write. FORMAT.md says what a crash leaves of them.
//
// A block's data is written before the map says so, so a reader needs no lock; writers
// of one block exclude each other.
type scratch struct {
	fs     ioengine.FS
	name   string // of the files, without what tells them apart
	header mapHeader
	blocks blocks
	files  atomic.Pointer[scratchFiles] // nil: nothing was written yet
	locks  [64]sync.Mutex               // of the blocks with number % 64

	rewrite int64 // length in bytes below which the map is not rewritten

	making sync.Mutex // of files

	// Of flushes. wrote counts the changes that were answered, or may be.
	wrote    atomic.Uint64
	flushing struct {
		sync.Mutex
		flushed uint64 // changes that are durable
	}
	mapping sync.Mutex // of the map, with the bits it tells of; after flushing

	failed atomic.Pointer[error] // of a sync: final
}

type scratchFiles struct {
	data ioengine.File
	log  *mapLog
	// rewriteAt is the length from which the map is looked at for what it could do without:
	// twice what was left of it the last time.
	rewriteAt int64
}

const (
	dataSuffix = ".data"
	mapSuffix  = ".map"
)

// scratchName returns the beginning of the names of a view's files of one volume.
func scratchName(dir string, h mapHeader) string {
	return path.Join(dir, fmt.Sprintf("%d-%08x", h.view, uint32(h.volume)))
}

// newScratch is scratch nothing was written to.
func newScratch(fs ioengine.FS, dir string, h mapHeader) *scratch {
	return &scratch{fs: fs, name: scratchName(dir, h), header: h, blocks: newBlocks(h.size), rewrite: rewriteBytes}
}

// openScratch finds what an earlier process wrote.
func openScratch(fs ioengine.FS, dir string, h mapHeader) (*scratch, error) {
	s := newScratch(fs, dir, h)
	log, err := openMap(fs, s.name+mapSuffix, h, &s.blocks)
	if errors.Is(err, iofs.ErrNotExist) {
		return s, nil // nothing was answered yet
	}
	if err != nil {
		return nil, err
	}
	data, err := fs.Open(s.name+dataSuffix, 0)
	if err != nil {
		return nil, errors.Join(err, log.file.Close())
	}
	s.files.Store(&scratchFiles{data: data, log: log, rewriteAt: s.rewrite})
	s.wrote.Store(1) // what is there may not be durable
	if size, err := data.Size(); err != nil || size < h.size {
		if err == nil {
			err = fmt.Errorf("%s has %d bytes of %d: %w", path.Base(s.name)+dataSuffix, size, h.size, ErrCorrupt)
		}
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// make returns the files, making them.
func (s *scratch) make() (*scratchFiles, error) {
	if err := s.failure(); err != nil {
		return nil, err
	}
	if f := s.files.Load(); f != nil {
		return f, nil
	}
	s.making.Lock()
	defer s.making.Unlock()
	if f := s.files.Load(); f != nil {
		return f, nil
	}
	data, err := s.fs.Open(s.name+dataSuffix, ioengine.Create)
	if err != nil {
		return nil, fmt.Errorf("scratch: %w", err)
	}
	f := &scratchFiles{data: data, rewriteAt: s.rewrite}
	if err = data.Truncate(s.header.size); err == nil {
		err = data.Sync()
	}
	if err == nil {
		err = s.fs.SyncDir(path.Dir(s.name)) // a map is never without its data
	}
	if err == nil {
		f.log, err = createMap(s.fs, s.name+mapSuffix, s.header, nil)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("scratch: %w", err), data.Close())
	}
	s.files.Store(f)
	return f, nil
}

// failure says why nothing written to scratch can be trusted any more.
func (s *scratch) failure() error {
	if err := s.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// fail makes an error final.
func (s *scratch) fail(err error) error {
	err = fmt.Errorf("scratch: %w: %w", ErrFailed, err)
	s.failed.CompareAndSwap(nil, &err)
	return s.failure()
}

// lock takes the blocks first to last and returns what unlock gives back.
func (s *scratch) lock(first, last int64) (mask uint64) {
	mask = ^uint64(0)
	if last-first < 63 {
		mask = bits.RotateLeft64(1<<(last-first+1)-1, int(first%64))
	}
	for m := mask; m != 0; m &= m - 1 {
		s.locks[bits.TrailingZeros64(m)].Lock()
	}
	return mask
}

func (s *scratch) unlock(mask uint64) {
	for m := mask; m != 0; m &= m - 1 {
		s.locks[bits.TrailingZeros64(m)].Unlock()
	}
}

// enter makes the map say where the blocks first to last, which are locked, are found:
// from then on they are the view's own.
func (s *scratch) enter(f *scratchFiles, first, last int64, w place) error {
	s.mapping.Lock()
	defer s.mapping.Unlock()
	for at := first; at <= last; {
		n := min(last-at+1, math.MaxUint32)
		if err := f.log.append(kindOf(w), at, uint32(n)); err != nil {
			return fmt.Errorf("scratch: %w", err)
		}
		s.blocks.set(at, at+n-1, w)
		at += n
	}
	return nil
}

// flush makes durable what was written before it was called. A failure is final: the
// system may have thrown away what it could not write.
func (s *scratch) flush() error {
	want := s.wrote.Load()
	s.flushing.Lock()
	defer s.flushing.Unlock()
	if err := s.failure(); err != nil {
		return err
	}
	f := s.files.Load()
	if s.flushing.flushed >= want || f == nil {
		return nil // another's flush began after these writes
	}
	upTo := s.wrote.Load()
	if err := s.syncFiles(f); err != nil {
		return err
	}
	s.flushing.flushed = upTo
	if f.log.end > f.rewriteAt {
		return s.shorten(f)
	}
	return nil
}

// syncFiles syncs the data and then lets the map vouch for it. Only a failed sync is final.
func (s *scratch) syncFiles(f *scratchFiles) error {
	s.mapping.Lock()
	last, vouched := f.log.last, f.log.vouched()
	s.mapping.Unlock()
	if !invariant.Planted("journal/view/no-data-sync") {
		if err := f.data.Sync(); err != nil {
			return s.fail(err)
		}
	}
	if vouched || invariant.Planted("journal/view/no-mark") {
		return nil // the map has not changed
	}
	s.mapping.Lock()
	number, err := f.log.mark(last)
	s.mapping.Unlock()
	if err != nil {
		return fmt.Errorf("scratch: %w", err)
	}
	if err := f.log.file.Sync(); err != nil {
		return s.fail(err)
	}
	s.mapping.Lock()
	defer s.mapping.Unlock()
	f.log.marked, f.log.upTo = number, last
	return nil
}

// shorten rewrites the map when much of it is about blocks that it told of again.
func (s *scratch) shorten(f *scratchFiles) error {
	s.mapping.Lock()
	defer s.mapping.Unlock()
	var runs int64
	s.blocks.each(func(int64, int64, place) bool { runs++; return true })
	if !f.log.long(runs) {
		f.rewriteAt = max(2*f.log.end, s.rewrite)
		return nil
	}
	if err := f.data.Sync(); err != nil { // of what was entered since the flush
		return s.fail(err)
	}
	err := f.log.rewrite(s.header.boot, &s.blocks)
	if errors.Is(err, ErrFailed) {
		return s.fail(err)
	}
	f.rewriteAt = max(2*f.log.end, s.rewrite) // also after an error: it is tried again when it is worth more
	return nil
}

// put brings p into the data file.
func (s *scratch) put(f *scratchFiles, p []byte, off int64) error {
	if _, err := f.data.WriteAt(p, off); err != nil {
		return fmt.Errorf("scratch: %w", err)
	}
	return nil
}

func (s *scratch) readAt(p []byte, off int64) error {
	if err := s.failure(); err != nil {
		return err
	}
	n, err := s.files.Load().data.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF {
		err = fmt.Errorf("ends at %d: %w", off+int64(n), ErrCorrupt)
	}
	return fmt.Errorf("scratch: %w", err)
}

// bytes is what the blocks in the file count for.
func (s *scratch) bytes() (n int64) {
	s.blocks.each(func(_, count int64, w place) bool {
		if w == inFile {
			n += count * blockBytes
		}
		return true
	})
	return n
}

// close lets go of the files and leaves them there.
func (s *scratch) close() error {
	f := s.files.Swap(nil)
	if f == nil {
		return nil
	}
	return errors.Join(f.data.Close(), f.log.file.Close())
}

// discard removes the files. The map goes first: without one nothing counts.
func (s *scratch) discard() error {
	err := s.close()
	for _, name := range []string{s.name + mapSuffix, s.name + mapSuffix + mapNewSuffix, s.name + dataSuffix} {
		if e := s.fs.Remove(name); e != nil && !errors.Is(e, iofs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

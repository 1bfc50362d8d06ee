package view

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	iofs "io/fs"
	"math"
	"math/bits"
	"path"
	"sync"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// scratch is what was written to one disk of a view: a data file of slots, each with
// a block, and a map that says in which slot a block stands and what its checksum is. The
// files are made at the first write. FORMAT.md says what a crash leaves of them.
//
// A block that changes goes to a free slot, and the map is told then, so a reader needs
// no lock; writers of one block exclude each other.
type scratch struct {
	fs     ioengine.FS
	name   string // of the files, without what tells them apart
	header mapHeader
	seed   uint32 // of the checksums: whose they are
	blocks blocks
	slots  slots
	files  atomic.Pointer[scratchFiles] // nil: nothing was written yet
	locks  [64]sync.Mutex               // of the blocks with number % 64

	rewrite int64 // length in bytes below which the map is not rewritten
	force   int64 // and beyond which it is, also without a flush

	making sync.Mutex // of files

	// Of flushes. wrote counts the changes that were answered, or may be.
	wrote    atomic.Uint64
	flushing struct {
		sync.Mutex
		flushed uint64 // changes that are durable
	}
	mapping sync.Mutex // of the map, with the words it tells of; after flushing
	// settling are the blocks that are being settled and were not written since; under mapping.
	settling map[int64]struct{}

	failed atomic.Pointer[error] // of a sync: final
}

type scratchFiles struct {
	data ioengine.File
	head head
	log  *mapLog
	// rewriteAt is the length from which the map is looked at for what it could do without:
	// twice what was left of it the last time.
	rewriteAt int64
}

const (
	dataSuffix = ".data"
	mapSuffix  = ".map"
	// forceBytes is about a million writes.
	forceBytes = 32 << 20
)

// scratchName returns the beginning of the names of a view's files of one volume.
func scratchName(dir string, h mapHeader) string {
	return path.Join(dir, fmt.Sprintf("%d-%08x", h.view, uint32(h.volume)))
}

// newScratch is scratch nothing was written to.
func newScratch(fs ioengine.FS, dir string, h mapHeader) *scratch {
	var own [20]byte
	binary.LittleEndian.PutUint64(own[:], uint64(h.group))
	binary.LittleEndian.PutUint64(own[8:], h.view)
	binary.LittleEndian.PutUint32(own[16:], uint32(h.volume))
	return &scratch{fs: fs, name: scratchName(dir, h), header: h, seed: crc32.Checksum(own[:], castagnoli), blocks: newBlocks(h.size),
		rewrite: rewriteBytes, force: forceBytes}
}

// openScratch finds what an earlier process wrote.
func openScratch(fs ioengine.FS, dir string, h mapHeader) (*scratch, error) {
	s := newScratch(fs, dir, h)
	log, r, err := openMap(fs, s.name+mapSuffix, h, &s.blocks)
	if errors.Is(err, iofs.ErrNotExist) {
		return s, s.neverMapped()
	}
	if err != nil {
		return nil, err
	}
	data, err := fs.Open(s.name+dataSuffix, 0)
	if errors.Is(err, iofs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", err, ErrCorrupt)
	}
	if err != nil {
		return nil, errors.Join(err, log.file.Close())
	}
	f := &scratchFiles{data: data, head: head{file: data}, log: log, rewriteAt: s.rewrite}
	s.files.Store(f)
	s.wrote.Store(1) // what is there may not be durable
	if err := s.reopen(f, r); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path.Base(s.name), err), s.close())
	}
	return s, nil
}

// reopen holds the two files against each other, and finds which slots are free.
func (s *scratch) reopen(f *scratchFiles, r replayed) error {
	if err := f.head.agrees(f.log.header, r); err != nil {
		return err
	}
	s.blocks.each(func(_, _ int64, w word) bool {
		if w != zerosWord {
			s.slots.hold(w.slot())
		}
		return true
	})
	if f.log.header.boot == s.header.boot && s.header.boot != [16]byte{} {
		// Which mark is durable is not known: what any of them may tell of stays.
		s.slots.holdBelow(r.high)
		return nil
	}
	// What a mark did not vouch for is forgotten for good, before anything is written:
	// entries that come to stand behind it must not bring it back.
	if err := f.log.rewrite(s.header.boot, &s.blocks); err != nil {
		return err
	}
	f.head.note(f.log.header, f.log.marked)
	return nil
}

// neverMapped is nil if nothing says that there was a map.
func (s *scratch) neverMapped() error {
	data, err := s.fs.Open(s.name+dataSuffix, ioengine.ReadOnly)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer data.Close()
	h, _, err := (&head{file: data}).read()
	if errors.Is(err, ErrCorrupt) || err == nil && (h.life == 0 || invariant.Planted("journal/view/map-gone")) {
		return nil // it was being made: nothing was answered
	}
	if err == nil {
		err = fmt.Errorf("%s is gone, and what was written to the view with it: %w", path.Base(s.name)+mapSuffix, ErrCorrupt)
	}
	return err
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
	f := &scratchFiles{data: data, head: head{file: data}, rewriteAt: s.rewrite}
	if err = data.Truncate(0); err == nil {
		err = f.head.create(s.header)
	}
	if err == nil {
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
	f.head.note(f.log.header, f.log.marked) // durable with the first flush
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

// enter makes the map say what the entries do, whose blocks are locked: from then on
// they are the view's own. False: it cannot be said whether the map does after a crash.
func (s *scratch) enter(f *scratchFiles, entries []mapEntry) error {
	s.mapping.Lock()
	defer s.mapping.Unlock()
	for i := range entries {
		f.log.add(&entries[i])
	}
	if err := f.log.write(); err != nil {
		return fmt.Errorf("scratch: %w", err)
	}
	for i := range entries {
		e := &entries[i]
		for k, sum := range e.sums {
			w := s.blocks.set(int64(e.first)+int64(k), fileWord(e.slot+uint32(k), sum))
			if w.place() == inFile {
				s.slots.retire(w.slot(), false)
			}
			delete(s.settling, int64(e.first)+int64(k))
		}
	}
	return nil
}

// zero makes the map say that the blocks first to last, which are locked, are zeros.
func (s *scratch) zero(f *scratchFiles, first, last int64) error {
	s.mapping.Lock()
	defer s.mapping.Unlock()
	for at := first; at <= last; {
		n := min(last-at+1, math.MaxUint32)
		f.log.add(&mapEntry{kind: entryZeros, first: uint64(at), count: uint32(n)})
		at += n
	}
	if err := f.log.write(); err != nil {
		return fmt.Errorf("scratch: %w", err)
	}
	var free []uint32
	s.blocks.clear(first, last, func(w word) {
		if s.slots.retire(w.slot(), true) {
			free = append(free, w.slot())
		}
	})
	s.punch(f, free)
	return nil
}

// punch gives the space of slots back, and then the slots.
func (s *scratch) punch(f *scratchFiles, free []uint32) {
	runsOf(free, func(slot uint32, n int) {
		_ = f.data.Zero(slotAt(slot), int64(n)*blockBytes) // nothing tells of them: only space is not given back
		s.slots.giveBack(slot, n)
	})
}

// free frees what no map tells of any more.
func (s *scratch) free(f *scratchFiles, old []retired) {
	var punch []uint32
	for _, r := range old {
		if r.punch {
			punch = append(punch, r.slot)
		} else {
			s.slots.giveBack(r.slot, 1)
		}
	}
	s.punch(f, punch)
}

// bytes is what the blocks in the file count for.
func (s *scratch) bytes() (n int64) {
	s.blocks.each(func(_, _ int64, w word) bool {
		if w != zerosWord {
			n += blockBytes
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

// discard removes the files of a view that nothing tells of any more.
func (s *scratch) discard() error {
	err := s.close()
	for _, name := range []string{s.name + mapSuffix, s.name + mapSuffix + mapNewSuffix, s.name + dataSuffix} {
		if e := s.fs.Remove(name); e != nil && !errors.Is(e, iofs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

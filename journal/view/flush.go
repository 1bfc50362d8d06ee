package view

import (
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

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
	return s.shorten(f)
}

// syncFiles syncs the data and then lets the map vouch for it. Only a failed sync is final.
func (s *scratch) syncFiles(f *scratchFiles) error {
	s.mapping.Lock()
	last, vouched := f.log.entered, f.log.vouched()
	var old []retired
	if !vouched {
		old = s.slots.cut()
	}
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
		s.slots.uncut(old)
		return fmt.Errorf("scratch: %w", err)
	}
	if err := f.log.file.Sync(); err != nil {
		return s.fail(err)
	}
	s.mapping.Lock()
	f.log.marked, f.log.upTo = number, last
	s.mapping.Unlock()
	f.head.note(f.log.header, number) // durable with the next flush
	s.free(f, old)
	return nil
}

// shorten rewrites the map when much of it is about blocks that it told of again.
func (s *scratch) shorten(f *scratchFiles) error {
	s.mapping.Lock()
	defer s.mapping.Unlock()
	if f.log.end <= f.rewriteAt {
		return nil
	}
	var image uint64
	eachEntry(&s.blocks, func(e *mapEntry) bool { image += e.cells(); return true })
	if !f.log.long(image) {
		f.rewriteAt = max(2*f.log.end, s.rewrite)
		return nil
	}
	if err := s.rewriteMap(f); errors.Is(err, ErrFailed) {
		return err
	}
	return nil
}

// rewriteMap puts a map in the place of the file that tells the same, durably. It is as it was after an error, but ErrFailed. s.flushing
// and s.mapping are held.
func (s *scratch) rewriteMap(f *scratchFiles) error {
	old := s.slots.cut()
	if err := f.data.Sync(); err != nil { // of what was entered since the flush
		return s.fail(err)
	}
	err := f.log.rewrite(s.header.boot, &s.blocks)
	f.rewriteAt = max(2*f.log.end, s.rewrite) // also after an error: it is tried again when it is worth more
	switch {
	case errors.Is(err, ErrFailed):
		return s.fail(err)
	case err != nil:
		s.slots.uncut(old)
		return fmt.Errorf("scratch: %w", err)
	}
	f.head.note(f.log.header, f.log.marked)
	s.free(f, old)
	return nil
}

// tooLong says whether the map is to be shortened before more is written.
func (s *scratch) tooLong(f *scratchFiles) bool {
	s.mapping.Lock()
	defer s.mapping.Unlock()
	return f.log.end > max(s.force, f.rewriteAt)
}

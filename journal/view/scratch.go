package view

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// blockBytes is what scratch holds whole or not at all.
const blockBytes = 4096

// scratch is what was written to one disk of a view: a sparse file, and for each block
// whether it counts. A bit is set after the block's bytes are there, so a reader needs
// no lock; writers of one block exclude each other.
type scratch struct {
	fs      ioengine.FS
	name    string
	file    ioengine.File
	size    int64
	present []atomic.Uint64 // the block is the view's own
	backed  []atomic.Uint64 // and takes space in the file; else it is zeros
	locks   [64]sync.Mutex  // of the blocks with number % 64
}

// place says where a place of the disk is found.
type place uint8

const (
	inBase  place = iota // not written by the view
	inFile               // in the scratch file
	inZeros              // zeroed by the view
)

func newScratch(fs ioengine.FS, name string, size int64) (*scratch, error) {
	f, err := fs.Open(name, ioengine.Create)
	if err != nil {
		return nil, err
	}
	words := (size + blockBytes*64 - 1) / (blockBytes * 64)
	s := &scratch{fs: fs, name: name, file: f, size: size,
		present: make([]atomic.Uint64, words), backed: make([]atomic.Uint64, words)}
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(err, s.discard())
	}
	return s, nil
}

func (s *scratch) discard() error { return errors.Join(s.file.Close(), s.fs.Remove(s.name)) }

func bit(set []atomic.Uint64, block int64) bool {
	return set[block/64].Load()&(1<<(block%64)) != 0
}

func (s *scratch) has(block int64) bool {
	return bit(s.present, block) && !invariant.Planted("journal/view/forget-scratch")
}

func (s *scratch) where(block int64) place {
	switch {
	case !s.has(block):
		return inBase
	case bit(s.backed, block):
		return inFile
	}
	return inZeros
}

// run returns how many of the n bytes at off are found in one place, and where. A
// block that is being written may be told as it was before.
func (s *scratch) run(off, n int64) (int64, place) {
	block := off / blockBytes
	w := s.where(block)
	end := off + n
	for next := (block + 1) * blockBytes; next < end; next += blockBytes {
		if s.where(next/blockBytes) != w {
			return next - off, w
		}
	}
	return n, w
}

// lock takes the blocks first to last and returns what gives them back.
func (s *scratch) lock(first, last int64) (unlock func()) {
	mask := ^uint64(0)
	if last-first < 63 {
		mask = bits.RotateLeft64(1<<(last-first+1)-1, int(first%64))
	}
	for m := mask; m != 0; m &= m - 1 {
		s.locks[bits.TrailingZeros64(m)].Lock()
	}
	return func() {
		for m := mask; m != 0; m &= m - 1 {
			s.locks[bits.TrailingZeros64(m)].Unlock()
		}
	}
}

// unbacked counts the blocks that take no space yet.
func (s *scratch) unbacked(first, last int64) (n int64) {
	for b := first; b <= last; b++ {
		if !bit(s.backed, b) {
			n++
		}
	}
	return n
}

// set says that the blocks are the view's own, in the file.
func (s *scratch) set(first, last int64) {
	for b := first; b <= last; b++ {
		s.backed[b/64].Or(1 << (b % 64)) // first: a reader that sees only the other would see zeros
		s.present[b/64].Or(1 << (b % 64))
	}
}

// setZero says that the blocks are the view's own and zeros.
func (s *scratch) setZero(first, last int64) {
	for b := first; b <= last; b++ {
		s.present[b/64].Or(1 << (b % 64))
		s.backed[b/64].And(^uint64(1 << (b % 64)))
	}
}

func (s *scratch) writeAt(p []byte, off int64) error {
	if _, err := s.file.WriteAt(p, off); err != nil {
		return fmt.Errorf("scratch: %w", err)
	}
	return nil
}

func (s *scratch) readAt(p []byte, off int64) error {
	n, err := s.file.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("scratch: %w", err)
}

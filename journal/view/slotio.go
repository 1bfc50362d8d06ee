package view

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/holdfast-dr/holdfast/ioengine/crc32c"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Slots are written and read whole, with a checksum over what block of whose they hold.

// slotAt is where a slot stands in the data file.
func slotAt(slot uint32) int64 { return dataStart + int64(slot)*blockBytes }

// sumOf is the checksum of a whole block.
func (s *scratch) sumOf(p []byte, block int64) uint32 {
	var own [8]byte
	if !invariant.Planted("journal/view/any-place") {
		binary.LittleEndian.PutUint64(own[:], uint64(block))
	}
	return crc32c.Update(crc32.Update(s.seed, castagnoli, own[:]), p[:blockBytes])
}

// put brings whole blocks, from first on, into free slots, and appends the entries that say
// so to entries. After an error the caller gives all of those back.
func (s *scratch) put(f *scratchFiles, entries []mapEntry, p []byte, first int64) ([]mapEntry, error) {
	for len(p) > 0 {
		slot, n := s.slots.take(min(len(p)/blockBytes, maxRun))
		if n == 0 {
			return entries, fmt.Errorf("scratch: %w: all %d slots are in use", ErrNoSpace, maxSlots)
		}
		e := mapEntry{kind: entryBlock, first: uint64(first), count: uint32(n), slot: slot, sums: make([]uint32, n)}
		if n > 1 {
			e.kind = entryRun
		}
		for i := range e.sums {
			e.sums[i] = s.sumOf(p[i*blockBytes:], first+int64(i))
		}
		entries = append(entries, e)
		if _, err := f.data.WriteAt(p[:n*blockBytes], slotAt(slot)); err != nil {
			return entries, fmt.Errorf("scratch: %w", err)
		}
		p, first = p[n*blockBytes:], first+int64(n)
	}
	return entries, nil
}

// readMost is how many blocks are read at once.
const readMost = 256

// read fills a beginning of p, and returns how much. It is nothing when the block at off
// is not in the file any more. ErrCorrupt: it does not verify.
func (s *scratch) read(p []byte, off int64) (int, error) {
	if err := s.failure(); err != nil {
		return 0, err
	}
	block := off / blockBytes
	if off%blockBytes != 0 || len(p) < blockBytes {
		mem := wholes.Get().(*[blockBytes]byte)
		defer wholes.Put(mem)
		w := s.blocks.at(block)
		if w.place() != inFile {
			return 0, nil
		}
		ok, err := s.readOne(mem[:], block, w)
		if !ok || err != nil {
			return 0, err
		}
		return copy(p, mem[off%blockBytes:]), nil
	}
	var words [readMost]word
	n := 0
	for n < readMost && (n+1)*blockBytes <= len(p) {
		w := s.blocks.at(block + int64(n))
		if w.place() != inFile || n > 0 && w.slot() != words[0].slot()+uint32(n) {
			break
		}
		words[n] = w
		n++
	}
	if n == 0 {
		return 0, nil
	}
	got, err := s.files.Load().data.ReadAt(p[:n*blockBytes], slotAt(words[0].slot()))
	if got < n*blockBytes && err != io.EOF {
		return 0, fmt.Errorf("scratch: %w", err)
	}
	for i := range n {
		whole := p[i*blockBytes:][:blockBytes]
		if (i+1)*blockBytes <= got && s.verifies(whole, block+int64(i), words[i]) {
			continue
		}
		if ok, err := s.readOne(whole, block+int64(i), words[i]); !ok || err != nil {
			return i * blockBytes, err
		}
	}
	return n * blockBytes, nil
}

func (s *scratch) verifies(p []byte, block int64, w word) bool {
	return s.sumOf(p, block) == w.sum() || invariant.Planted("journal/view/unverified")
}

// readOne reads one block, which may be written meanwhile: what does not verify is read
// again while nobody does. False: it is not in the file any more.
func (s *scratch) readOne(p []byte, block int64, w word) (ok bool, err error) {
	if err := s.readLocked(p, block, w); err == nil {
		return true, nil
	}
	defer s.unlock(s.lock(block, block))
	if w = s.blocks.at(block); w.place() != inFile {
		return false, nil
	}
	return true, s.readLocked(p, block, w)
}

// readLocked reads a block that nobody changes.
func (s *scratch) readLocked(p []byte, block int64, w word) error {
	n, err := s.files.Load().data.ReadAt(p[:blockBytes], slotAt(w.slot()))
	switch {
	case n < blockBytes && err != io.EOF:
		return fmt.Errorf("scratch: %w", err)
	case n < blockBytes:
		return fmt.Errorf("scratch: block %d: its file ends before: %w", block, ErrCorrupt)
	case !s.verifies(p, block, w):
		return fmt.Errorf("scratch: block %d: checksum: %w", block, ErrCorrupt)
	}
	return nil
}

package view

import (
	"math/bits"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// blockBytes is what scratch holds whole or not at all.
const blockBytes = 4096

// place says where a place of the disk is found.
type place uint8

const (
	inBase  place = iota // not written by the view
	inFile               // in the data file
	inZeros              // zeroed by the view
)

// blocks tells the place of each block of a disk. Readers need no lock; of one block
// only one goroutine at a time may set. It costs 8 bytes for each 64 MiB of the disk,
// and 4 KiB for each of those that the view has written to.
type blocks struct{ pages []atomic.Pointer[blockPage] }

const pageBlocks = 16384

// blockPage is the state of 64 MiB, 2 bits a block.
type blockPage struct {
	present [pageBlocks / 64]atomic.Uint64 // the block is the view's own
	backed  [pageBlocks / 64]atomic.Uint64 // and is in the file; else it is zeros
}

func newBlocks(size int64) blocks {
	return blocks{make([]atomic.Pointer[blockPage], (size+blockBytes*pageBlocks-1)/(blockBytes*pageBlocks))}
}

func (m *blocks) where(block int64) place {
	p := m.pages[block/pageBlocks].Load()
	if p == nil || invariant.Planted("journal/view/forget-scratch") {
		return inBase
	}
	word, mask := block%pageBlocks/64, uint64(1)<<(block%64)
	switch {
	case p.present[word].Load()&mask == 0:
		return inBase
	case p.backed[word].Load()&mask != 0:
		return inFile
	}
	return inZeros
}

// run returns how many of the n bytes at off are found in one place, and where. A
// block that is being written may be told as it was before.
func (m *blocks) run(off, n int64) (int64, place) {
	block := off / blockBytes
	w := m.where(block)
	end := off + n
	for next := (block + 1) * blockBytes; next < end; next += blockBytes {
		b := next / blockBytes
		if w == inBase && b%pageBlocks == 0 && m.pages[b/pageBlocks].Load() == nil {
			next += (pageBlocks - 1) * blockBytes // none of the page is the view's
			continue
		}
		if m.where(b) != w {
			return next - off, w
		}
	}
	return n, w
}

// page returns the page of a block, making it.
func (m *blocks) page(block int64) *blockPage {
	at := &m.pages[block/pageBlocks]
	if at.Load() == nil {
		at.CompareAndSwap(nil, new(blockPage))
	}
	return at.Load()
}

// words calls f for each word of bits that the blocks first to last touch.
func (m *blocks) words(first, last int64, f func(page int64, word int, mask uint64)) {
	for b := first; b <= last; {
		next := min((b/64+1)*64, last+1)
		f(b/pageBlocks, int(b%pageBlocks/64), (^uint64(0)>>(64-(next-b)))<<(b%64))
		b = next
	}
}

// set says where the blocks first to last are found: in the file, or zeros.
func (m *blocks) set(first, last int64, w place) {
	m.words(first, last, func(page int64, word int, mask uint64) {
		p := m.page(page * pageBlocks)
		if w == inFile {
			p.backed[word].Or(mask) // first: a reader that sees only the other would see zeros
			p.present[word].Or(mask)
		} else {
			p.present[word].Or(mask)
			p.backed[word].And(^mask)
		}
	})
}

// inFile counts the blocks from first to last that are in the file.
func (m *blocks) inFile(first, last int64) (n int64) {
	m.words(first, last, func(page int64, word int, mask uint64) {
		if p := m.pages[page].Load(); p != nil {
			n += int64(bits.OnesCount64(p.backed[word].Load() & mask))
		}
	})
	return n
}

// each calls tell with every run of blocks that are the view's own, in order, until it
// returns false.
func (m *blocks) each(tell func(first, count int64, w place) bool) {
	var first, count int64
	was := inBase
	for i := range m.pages {
		p := m.pages[i].Load()
		if p == nil {
			continue
		}
		for b := int64(i) * pageBlocks; b < int64(i+1)*pageBlocks; {
			w, k := m.where(b), int64(1)
			if word := b % pageBlocks / 64; b%64 == 0 { // whole words at once
				present, backed := p.present[word].Load(), p.backed[word].Load()
				if (present == 0 || present == ^uint64(0)) && (backed == 0 || backed == ^uint64(0)) {
					k = 64
				}
			}
			if w == was && first+count == b {
				count += k
			} else {
				if was != inBase && !tell(first, count, was) {
					return
				}
				first, count, was = b, k, w
			}
			b += k
		}
	}
	if was != inBase {
		tell(first, count, was)
	}
}

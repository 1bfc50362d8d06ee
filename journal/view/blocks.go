package view

import (
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

// word says where one block is found and, in the file, what its checksum is.
type word uint64

const (
	baseWord  word = 0
	zerosWord word = (1<<32 - 1) << 32
	// maxSlots is how many slots a word can tell apart: 16 TiB of scratch.
	maxSlots = 1<<32 - 2
)

func fileWord(slot, sum uint32) word { return word(slot+1)<<32 | word(sum) }

func (w word) place() place {
	switch {
	case w == baseWord:
		return inBase
	case w == zerosWord:
		return inZeros
	}
	return inFile
}

// slot and sum are those of a block in the file.
func (w word) slot() uint32 { return uint32(w>>32) - 1 }
func (w word) sum() uint32  { return uint32(w) }

// blocks tells the place of each block of a disk. Readers need no lock; one goroutine at
// a time sets. It costs 8 bytes for each 64 MiB of the disk, 2 KiB for each of those that
// the view has written to, and in them 512 bytes for each 256 KiB that are not all zeros.
type blocks struct {
	parts []atomic.Pointer[blockPart]
	zeros *blockLeaf // of zeros alone, in many places
}

const (
	leafBlocks = 64
	partBlocks = 16384
)

type (
	blockPart [partBlocks / leafBlocks]atomic.Pointer[blockLeaf]
	blockLeaf [leafBlocks]atomic.Uint64
)

func newBlocks(size int64) blocks {
	m := blocks{make([]atomic.Pointer[blockPart], (size+blockBytes*partBlocks-1)/(blockBytes*partBlocks)), new(blockLeaf)}
	for i := range m.zeros {
		m.zeros[i].Store(uint64(zerosWord))
	}
	return m
}

func (m *blocks) leaf(block int64) *blockLeaf {
	p := m.parts[block/partBlocks].Load()
	if p == nil {
		return nil
	}
	return p[block%partBlocks/leafBlocks].Load()
}

func (m *blocks) at(block int64) word {
	l := m.leaf(block)
	if l == nil || invariant.Planted("journal/view/forget-scratch") {
		return baseWord
	}
	return word(l[block%leafBlocks].Load())
}

func (m *blocks) where(block int64) place { return m.at(block).place() }

// run returns how many of the n bytes at off are found in one place, and where. A
// block that is being written may be told as it was before.
func (m *blocks) run(off, n int64) (int64, place) {
	block := off / blockBytes
	w := m.where(block)
	end := off + n
	for next := (block + 1) * blockBytes; next < end; next += blockBytes {
		b := next / blockBytes
		if w == inBase && b%partBlocks == 0 && m.parts[b/partBlocks].Load() == nil {
			next += (partBlocks - 1) * blockBytes // none of the part is the view's
			continue
		}
		if m.where(b) != w {
			return next - off, w
		}
	}
	return n, w
}

// set says where a block is found, and returns where it was.
func (m *blocks) set(block int64, w word) word {
	at := &m.parts[block/partBlocks]
	p := at.Load()
	if p == nil {
		p = new(blockPart)
		at.Store(p)
	}
	l := p[block%partBlocks/leafBlocks].Load()
	if l == nil || l == m.zeros {
		fresh := new(blockLeaf)
		for i := range fresh {
			if l != nil {
				fresh[i].Store(uint64(zerosWord))
			}
		}
		l = fresh
		p[block%partBlocks/leafBlocks].Store(l)
	}
	return word(l[block%leafBlocks].Swap(uint64(w)))
}

// clear makes the blocks first to last zeros, and calls was with each that was in the file.
func (m *blocks) clear(first, last int64, was func(word)) {
	for b := first; b <= last; {
		l := m.leaf(b)
		switch {
		case l == m.zeros:
			b = (b/leafBlocks + 1) * leafBlocks
		case b%leafBlocks == 0 && b+leafBlocks-1 <= last:
			for i := range leafBlocks {
				if l == nil {
					break
				}
				if w := word(l[i].Load()); w.place() == inFile {
					was(w)
				}
			}
			m.set(b, zerosWord) // the part is there
			m.parts[b/partBlocks].Load()[b%partBlocks/leafBlocks].Store(m.zeros)
			b += leafBlocks
		default:
			if w := m.set(b, zerosWord); w.place() == inFile {
				was(w)
			}
			b++
		}
	}
}

// forget makes the blocks first to last the view's own no more.
func (m *blocks) forget(first, last int64) {
	for b := first; b <= last; {
		p := m.parts[b/partBlocks].Load()
		switch {
		case p == nil:
			b = (b/partBlocks + 1) * partBlocks
		case b%leafBlocks == 0 && b+leafBlocks-1 <= last:
			p[b%partBlocks/leafBlocks].Store(nil)
			b += leafBlocks
		case m.leaf(b) == nil:
			b = (b/leafBlocks + 1) * leafBlocks
		default:
			m.set(b, baseWord)
			b++
		}
	}
}

// inFile counts the blocks from first to last that are in the file.
func (m *blocks) inFile(first, last int64) (n int64) {
	for b := first; b <= last; b++ {
		switch l := m.leaf(b); {
		case l == nil || l == m.zeros:
			b = (b/leafBlocks+1)*leafBlocks - 1
		case word(l[b%leafBlocks].Load()).place() == inFile:
			n++
		}
	}
	return n
}

// each calls tell with every block that is the view's own, in order, until it returns
// false; of zeros with as many as follow each other.
func (m *blocks) each(tell func(first, count int64, w word) bool) { m.from(0, tell) }

// from is each of the blocks from one on.
func (m *blocks) from(begin int64, tell func(first, count int64, w word) bool) {
	var first, zeros int64
	flush := func() bool {
		n := zeros
		zeros = 0
		return n == 0 || tell(first, n, zerosWord)
	}
	for i := begin / partBlocks; i < int64(len(m.parts)); i++ {
		p := m.parts[i].Load()
		for k := max(0, begin-i*partBlocks) / leafBlocks; p != nil && k < int64(len(p)); k++ {
			l := p[k].Load()
			at := i*partBlocks + k*leafBlocks
			for b := max(begin, at); l != nil && b < at+leafBlocks; b++ {
				w := word(l[b-at].Load())
				if w == zerosWord {
					if zeros > 0 && first+zeros != b && !flush() {
						return
					}
					if zeros == 0 {
						first = b
					}
					zeros++
					continue
				}
				if w != baseWord && !(flush() && tell(b, 1, w)) {
					return
				}
			}
		}
	}
	flush()
}

package index

// Each page of a run has a filter over the 4 KiB blocks that its versions touch, so that a
// lookup reads only pages that have something for it: a Bloom filter of ten bits a block
// and seven probes, which lets one lookup in a hundred pass in vain. A version that
// touches more than two blocks, or lies above level 0, stands in it by its cell alone.
const (
	filterBits   = 10
	filterProbes = 7
	blockShift   = 12
	wholeCell    = 0xff
)

// filterKey names a block of a cell, or the cell, in a filter.
func filterKey(a area, cell uint64, block uint64) uint64 {
	h := uint64(a)*0x9e3779b97f4a7c15 ^ (cell<<8|block)*0xd6e8feb86659fd93
	h ^= h >> 32
	h *= 0xd6e8feb86659fd93
	h ^= h >> 29
	return h
}

// filterKeys are what the versions of a page stand under, each once.
type filterKeys struct {
	of   []uint64
	area area
	cell uint64
	have uint16 // which of the last cell are in: a bit for each block, and one for the cell
}

const cellBit = 8 // behind the blocks of a cell

func (k *filterKeys) reset() { *k = filterKeys{of: k.of[:0]} }

// add takes what the group's versions stand under. Groups come in order.
func (k *filterKeys) add(g *group) {
	if g.area != k.area || g.cell != k.cell {
		k.area, k.cell, k.have = g.area, g.cell, 0
	}
	if g.area.level() > 0 {
		k.put(cellBit, wholeCell)
		return
	}
	off, n := uint64(g.span>>32), uint64(uint32(g.span))
	first, last := off>>blockShift, (off+n-1)>>blockShift
	if last-first > 1 {
		k.put(cellBit, wholeCell)
		return
	}
	k.put(first, first)
	if last > first {
		k.put(last, last)
	}
}

func (k *filterKeys) put(bit, block uint64) {
	if k.have>>bit&1 == 0 {
		k.have |= 1 << bit
		k.of = append(k.of, filterKey(k.area, k.cell, block))
	}
}

// appendProbes appends what a lookup of [from, to) of the cell has to ask for.
func appendProbes(dst []uint64, a area, cell uint64, from, to int64) []uint64 {
	dst = append(dst, filterKey(a, cell, wholeCell))
	if a.level() > 0 {
		return dst
	}
	for b := from >> blockShift; b <= (to-1)>>blockShift; b++ {
		dst = append(dst, filterKey(a, cell, uint64(b)))
	}
	return dst
}

func filterBytes(keys int) int { return (keys*filterBits + 7) / 8 }

// fillFilter sets the keys in f, which is zero.
func fillFilter(f []byte, keys []uint64) {
	n := uint64(len(f)) * 8
	for _, h := range keys {
		step := h>>33 | 1
		for range filterProbes {
			bit := (h & (1<<32 - 1)) * n >> 32
			f[bit>>3] |= 1 << (bit & 7)
			h += step
		}
	}
}

// mayHold says whether any of the probes may be in the filter.
func mayHold(f []byte, probes []uint64) bool {
	n := uint64(len(f)) * 8
next:
	for _, h := range probes {
		step := h>>33 | 1
		for range filterProbes {
			bit := (h & (1<<32 - 1)) * n >> 32
			if f[bit>>3]&(1<<(bit&7)) == 0 {
				continue next
			}
			h += step
		}
		return true
	}
	return false
}

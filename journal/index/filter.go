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

// appendFilterKeys appends what the group's versions stand under.
func appendFilterKeys(dst []uint64, g *group) []uint64 {
	if g.area.level() > 0 {
		return append(dst, filterKey(g.area, g.cell, wholeCell))
	}
	off, n := uint64(g.span>>32), uint64(uint32(g.span))
	first, last := off>>blockShift, (off+n-1)>>blockShift
	switch {
	case last-first > 1:
		return append(dst, filterKey(g.area, g.cell, wholeCell))
	case last > first:
		dst = append(dst, filterKey(g.area, g.cell, last))
	}
	return append(dst, filterKey(g.area, g.cell, first))
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

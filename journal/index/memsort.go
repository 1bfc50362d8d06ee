package index

import (
	"cmp"
	"math/bits"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// each calls fn with all versions in the order of a run; v is lent for the call.
func (m *memtable) each(fn func(v *version) error) error {
	m.mu.RLock() // nobody adds any more, or the caller is who adds
	defer m.mu.RUnlock()
	w := &emitted{m: m, fn: fn}
	for _, part := range m.areasLocked() {
		byPlace(part)
		for same := part; len(same) > 0; {
			n := 1
			for n < len(same) && same[n].off == same[0].off {
				n++
			}
			if n > 1 {
				m.orderLocked(same[:n])
			}
			same = same[n:]
		}
		for len(part) > 0 {
			n := min(len(part), gatherVersions)
			if err := w.gather(part[:n]); err != nil {
				return err
			}
			part = part[n:]
		}
	}
	return nil
}

// gatherVersions is how many versions are fetched at once: in the order of a run they lie
// anywhere in memory, and a processor waits for several places together as long as for one.
const gatherVersions = 32

// emitted gives out versions in order.
type emitted struct {
	m        *memtable
	fn       func(v *version) error
	versions [gatherVersions]memVersion
	records  [gatherVersions]memRecord
	blocks   [gatherVersions]blockEntry
	full     version
}

func (w *emitted) gather(part []placed) error {
	m := w.m
	for i := range part {
		w.versions[i] = *m.versions.at(part[i].n)
	}
	for i := range part {
		w.records[i] = *m.records.at(w.versions[i].rec)
	}
	for i := range part {
		if b := w.versions[i].block; b != zeroBlock {
			w.blocks[i] = *m.blocks.at(b)
		}
	}
	for i := range part {
		v := &w.versions[i]
		w.full.fill(m.ids[v.vol], v, &w.records[i], &w.blocks[i], m.list[w.records[i].stream].id)
		if err := w.fn(&w.full); err != nil {
			return err
		}
	}
	return nil
}

// placed is a version of an area by its place.
type placed struct {
	off uint64
	n   uint32
}

// areasLocked returns the versions of each area, in the order of areas, those of one from the
// newest to the oldest.
func (m *memtable) areasLocked() [][]placed {
	counts := make([]int, len(m.ids)*levels)
	place := func(v *memVersion) int { return int(v.vol)*levels + int(v.level()) }
	for n := 1; n < m.versions.n; n++ {
		counts[place(m.versions.at(uint32(n)))]++
	}
	order := make([]int, 0, len(counts))
	for i, n := range counts {
		if n > 0 {
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(m.ids[a/levels], m.ids[b/levels]), cmp.Compare(a%levels, b%levels))
	})
	all := make([]placed, m.versions.n-1)
	areas := make([][]placed, len(order))
	ranks := counts // the counts are not needed any more
	for rank, i := range order {
		n := counts[i]
		areas[rank], all = all[:0:n], all[n:]
		ranks[i] = rank
	}
	for n := m.versions.n - 1; n > 0; n-- {
		v := m.versions.at(uint32(n))
		a := &areas[ranks[place(v)]]
		*a = append(*a, placed{v.off(), uint32(n)})
	}
	return areas
}

// orderLocked puts versions that begin at one place, and are ordered from the newest to the
// oldest, into the order of a run.
func (m *memtable) orderLocked(same []placed) {
	compare := func(a, b placed) int {
		v, w := m.versions.at(a.n), m.versions.at(b.n)
		if v.length != w.length {
			return cmp.Compare(v.length, w.length)
		}
		r, s := m.records.at(v.rec), m.records.at(w.rec)
		if r.stream != s.stream {
			return cmp.Compare(m.list[r.stream].id, m.list[s.stream].id)
		}
		return cmp.Or(cmp.Compare(s.seq, r.seq), cmp.Compare(s.pos, r.pos), cmp.Compare(w.ext, v.ext))
	}
	if !slices.IsSortedFunc(same, compare) && !invariant.Planted("journal/index/unordered-place") {
		slices.SortFunc(same, compare)
	}
}

// digitBits is how many bits of a place one pass of byPlace sorts by at most, and fewPlaces how many
// places are sorted in another way, since a pass has a cost of its own.
const (
	digitBits = 11
	fewPlaces = 256
)

// byPlace sorts by off; what is equal stays in its order. A pass goes over all for each digit in
// which places differ at all: three for 4 KiB blocks of 32 TiB.
func byPlace(p []placed) {
	if len(p) <= fewPlaces {
		slices.SortStableFunc(p, func(a, b placed) int { return cmp.Compare(a.off, b.off) })
		return
	}
	all, none := uint64(0), uint64(0)
	for i := range p {
		all |= p[i].off
		none |= ^p[i].off
	}
	differ := all & none
	from, to := p, make([]placed, len(p))
	for differ != 0 {
		low := bits.TrailingZeros64(differ)
		passes := (bits.Len64(differ) - low + digitBits - 1) / digitBits
		width := (bits.Len64(differ) - low + passes - 1) / passes
		sortDigit(to, from, low, width)
		from, to = to, from
		differ &^= (1<<width - 1) << low
	}
	if &from[0] != &p[0] {
		copy(p, from)
	}
}

// sortDigit puts from into to, sorted by so many bits from low on.
func sortDigit(to, from []placed, low, width int) {
	var ends [1<<digitBits + 1]int
	mask := uint64(1)<<width - 1
	for i := range from {
		ends[from[i].off>>low&mask+1]++
	}
	for i := 1; i < 1<<width; i++ {
		ends[i] += ends[i-1]
	}
	for i := range from {
		d := from[i].off >> low & mask
		to[ends[d]] = from[i]
		ends[d]++
	}
}

package index

import (
	"fmt"
	"sort"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// target is what a cursor looks for: the first version of the group that has no higher
// seq and lies below a place; or else the first behind the group.
type target struct {
	group
	seq record.Seq
	pos segment.Pos // the version lies below
}

// before says whether a version stands before what is looked for. In the order of a run
// it is true for some, and then for none.
func (t *target) before(k *sortKey) bool {
	if c := k.group.compare(&t.group); c != 0 {
		return c < 0
	}
	return k.seq > t.seq || k.pos >= t.pos
}

const (
	anySeq = ^record.Seq(0)
	anyPos = segment.Pos(1<<63 - 1)
)

// cursor finds versions of a run; targets only rise. It reads a page of fences and
// at most one of data a seek, the same again none.
type cursor struct {
	r     *run
	l     *lookup // that is told of pages that are not in the cache; or nil
	key   sortKey // where it stands
	data  uint64
	under int  // of unknownPage: the page of fences that says which it is
	read  bool // key is version's; else it is the first of page data
	dr    dataReader
	v     version

	fences int // which page of fences is in fp; -1: none
	fp     []byte
}

const unknownPage = ^uint64(0)

func (c *cursor) reset(r *run, l *lookup) { *c = cursor{r: r, l: l, fences: -1} }

// seek moves to the first version that is not before t, and says whether there is one.
// Given probes, it may leave out versions that touch none of what they ask for: then it
// serves for that question only.
func (c *cursor) seek(t *target, probes []uint64) (bool, error) {
	if c.data != 0 && !t.before(&c.key) {
		return true, nil
	}
	if c.read { // the rest of the page
		for c.dr.next(&c.v) {
			if !t.before(&c.v.sortKey) {
				c.key = c.v.sortKey
				return true, nil
			}
		}
		if c.dr.d.bad {
			return false, c.bad(c.data)
		}
	}
	return c.descend(t, probes)
}

// descend goes from the top: to the last page whose first version is before t, or to the
// next, whose first then is the one looked for.
func (c *cursor) descend(t *target, probes []uint64) (bool, error) {
	n := c.r.fencesOf(t)
	if n == 0 {
		return c.first(0)
	}
	if err := c.loadFences(n - 1); err != nil {
		return false, err
	}
	f, ok := fenced(c.fp, t)
	if !ok {
		return false, c.bad(c.r.fences[n-1].page)
	}
	if at := f.page; probes == nil || mayHold(f.filter, probes) {
		if c.data != at || !c.read {
			if err := c.load(at); err != nil {
				return false, err
			}
		}
		c.dr.skip(t, &c.v)
		for c.dr.next(&c.v) {
			if !t.before(&c.v.sortKey) {
				c.key = c.v.sortKey
				return true, nil
			}
		}
		if c.dr.d.bad {
			return false, c.bad(at)
		}
	}
	if f.last {
		return c.first(n)
	}
	c.key, c.data, c.read = f.next, f.page+1, false
	return true, nil
}

// fencesOf is how many pages of fences begin before t.
func (r *run) fencesOf(t *target) int {
	return sort.Search(len(r.fences), func(i int) bool { return !t.before(&r.fences[i].sortKey) })
}

// fencedPage is what a page of fences says of the last data page that begins before a target.
type fencedPage struct {
	page   uint64
	filter []byte
	next   sortKey // where the data page behind it begins
	last   bool    // the page of fences leads to none behind it
}

// fenced looks into a page of fences that begins before t; false: it does not hold what it should.
func fenced(fences []byte, t *target) (f fencedPage, ok bool) {
	d := decoder{p: fences[pageHeader+8 : pageBytes]}
	count, i := int(le.Uint16(fences[atCount:])), 0
	for ; i < count; i++ {
		d.key(&f.next)
		if !t.before(&f.next) {
			break
		}
		f.filter = d.take(int(min(d.uvarint(), pageBytes)))
		if d.bad {
			break
		}
	}
	f.page, f.last = le.Uint64(fences[pageHeader:])+uint64(i)-1, i == count
	return f, !d.bad && i > 0
}

// first moves to the first version under page i of fences. Its key is in memory: the page is
// read only if somebody wants the version.
func (c *cursor) first(i int) (bool, error) {
	if i == len(c.r.fences) {
		return false, nil
	}
	c.key, c.data, c.under, c.read = c.r.fences[i].sortKey, unknownPage, i, false
	return true, nil
}

func (c *cursor) loadFences(i int) error {
	if c.fences == i {
		return nil
	}
	p, err := c.r.get(c.r.fences[i].page, pageFences, c.l)
	if err == nil {
		c.fp, c.fences = p, i
	}
	return err
}

func (c *cursor) load(page uint64) error {
	p, err := c.r.get(page, pageData, c.l)
	if err != nil {
		return err
	}
	c.dr.reset(p, c.r.origins)
	c.v = version{}
	c.data, c.read = page, true
	return nil
}

// version is where the cursor stands.
func (c *cursor) version() (*version, error) {
	if !c.read {
		if c.data == unknownPage {
			if err := c.loadFences(c.under); err != nil {
				return nil, err
			}
			c.data = le.Uint64(c.fp[pageHeader:])
		}
		if err := c.load(c.data); err != nil {
			return nil, err
		}
		if !c.dr.next(&c.v) || c.v.sortKey != c.key {
			return nil, c.bad(c.data)
		}
	}
	return &c.v, nil
}

func (c *cursor) bad(page uint64) error {
	return c.r.fail(fmt.Errorf("page %d: %w", page, ErrCorrupt))
}

// collect appends to l what the run has of [from, to) of the volume.
func (r *run) collect(l *lookup, vol record.VolumeID, from, to int64, masks []Span) error {
	mask := r.volumes[vol]
	if mask == 0 || !r.held(l) {
		return nil
	}
	for level := uint8(0); level < levels; level++ {
		if mask&(1<<level) == 0 {
			continue
		}
		l.cursor.reset(r, l) // it may stand behind versions that the filters kept from the last level
		if err := r.collectLevel(l, areaOf(vol, level), from, to, masks); err != nil {
			return err
		}
	}
	return nil
}

// held says whether the checkpoint can hold anything of the run.
func (r *run) held(l *lookup) bool {
	for i := range r.streams {
		if l.at.Upto(r.streams[i].stream) >= r.streams[i].min {
			return true
		}
	}
	return false
}

// filteredCells is how many cells a lookup may cross and still ask the filters.
const filteredCells = 4

func (r *run) collectLevel(l *lookup, a area, from, to int64, masks []Span) error {
	c := &l.cursor
	first, last := cellsOf(a, from, to)
	probes := probesOf(&l.probes, a, from, to)
	t := r.reaching(a, first, from)
	for {
		ok, err := c.seek(&t, probes)
		if !ok || err != nil {
			return err
		}
		g := c.key.group
		if g.area != a || g.cell > last {
			return nil
		}
		switch off, n := g.place(); {
		case off >= to: // of the last cell
			return nil
		case off+n <= from: // of the first cell: the next that reaches from
			t = target{group: g, seq: anySeq, pos: anyPos}
			t.span, t.stream = spanOf(int64(g.span>>32), from-off+1), 0
			continue
		}
		if err := r.newest(l, g, masks); err != nil {
			return err
		}
		t = behind(g)
	}
}

func cellsOf(a area, from, to int64) (first, last uint64) {
	shift := cellShift(a.level())
	return uint64(from) >> shift, uint64(to-1) >> shift
}

// probesOf is what filters are asked when [from, to) is looked for, in mem; nil: nothing, it is too much.
func probesOf(mem *[]uint64, a area, from, to int64) []uint64 {
	first, last := cellsOf(a, from, to)
	if last-first >= filteredCells {
		return nil
	}
	probes, shift := (*mem)[:0], cellShift(a.level())
	for cell := first; cell <= last; cell++ {
		base := int64(cell << shift)
		probes = appendProbes(probes, a, cell, max(from-base, 0), min(to-base, 1<<shift))
	}
	*mem = probes
	return probes
}

// reaching is the first group of the cell that can reach beyond from.
func (r *run) reaching(a area, cell uint64, from int64) target {
	t := target{group: group{area: a, cell: cell}, seq: anySeq, pos: anyPos}
	if a.level() <= partLevel {
		t.span = spanOf(0, max(from-int64(cell<<cellShift(a.level())), 0)+1)
	}
	return t
}

// behind is the first group behind g.
func behind(g group) target {
	if g.stream++; g.stream == 0 {
		g.span++
	}
	return target{group: g, seq: anySeq, pos: anyPos}
}

// newest takes the newest version of the group that is held and not masked, if it is
// not below what is looked for.
func (r *run) newest(l *lookup, g group, masks []Span) error {
	c := &l.cursor
	t := target{group: g, seq: l.at.Upto(g.stream), pos: anyPos}
	if invariant.Planted("journal/index/newest-of-run") {
		t.seq = anySeq
	}
	for {
		ok, err := c.seek(&t, nil)
		if !ok || err != nil {
			return err
		}
		if c.key.group != g || c.key.pos < l.from {
			return nil
		}
		if m := masked(masks, c.key.pos); m != nil {
			t.pos = m.From
			continue
		}
		v, err := c.version()
		if err == nil {
			l.take(v)
		}
		return err
	}
}

// masked returns the mask that hides pos; nil: none does.
func masked(masks []Span, pos segment.Pos) *Span {
	i := sort.Search(len(masks), func(i int) bool { return masks[i].To > pos })
	if i < len(masks) && masks[i].From <= pos {
		return &masks[i]
	}
	return nil
}

// next is a source's.
func (r *run) next(l *lookup, vol record.VolumeID, off int64, fine, coarse *int64) error {
	mask := r.volumes[vol]
	for level := uint8(0); level < levels; level++ {
		limit := fine
		if level > fineLevel {
			limit = coarse
		}
		if mask&(1<<level) == 0 || *limit <= off {
			continue
		}
		l.cursor.reset(r, nil)
		a := areaOf(vol, level)
		t := target{group: group{area: a, cell: uint64(off) >> cellShift(level)}, seq: anySeq, pos: anyPos}
		ok, err := l.cursor.seek(&t, nil)
		if err != nil {
			return err
		}
		if k := &l.cursor.key; ok && k.area == a {
			*limit = min(*limit, max(off, int64(k.cell<<cellShift(level))))
		}
	}
	return nil
}

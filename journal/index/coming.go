package index

import (
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// coming is what a lookup knows of the pages that it is going to read. A search goes from run
// to run, and in each from the fences to the versions: when nothing of that is in memory
// it would wait for the disk two times a run. So, as soon as one page is not in the
// cache, the disk is told of those of its kind that the runs behind will be asked for,
// and they come at once. A lookup that finds all it needs in the cache pays nothing.
type coming struct {
	wanted   bool // the disk is told
	vol      record.VolumeID
	from, to int64       // what is looked for
	rest     []sourceRef // behind the one that is being searched
	told     [pageFences + 1]bool
	probes   []uint64
}

// missed is told that a page of that kind was not in the cache.
func (l *lookup) missed(kind byte) {
	c := &l.coming
	if !c.wanted || c.told[kind] || invariant.Planted("journal/index/one-by-one") {
		return
	}
	c.told[kind] = true
	if kind == pageData { // which they are is in the fences
		l.missed(pageFences)
	}
	for i := range c.rest {
		if c.rest[i].hi <= l.from {
			break
		}
		if r, ok := c.rest[i].source.(*run); ok && r.held(l) {
			r.tell(l, kind)
		}
	}
}

// tell tells the disk of the pages of that kind that collect begins with on each level.
func (r *run) tell(l *lookup, kind byte) {
	c := &l.coming
	for level := uint8(0); level < levels; level++ {
		if r.volumes[c.vol]&(1<<level) == 0 {
			continue
		}
		a := areaOf(c.vol, level)
		first, _ := cellsOf(a, c.from, c.to)
		t := r.reaching(a, first, c.from)
		n := r.fencesOf(&t)
		if n == 0 { // the first version of all is not before what is looked for
			continue
		}
		page := r.fences[n-1].page
		if kind == pageData {
			var ok bool
			if page, ok = r.holding(page, &t, probesOf(&c.probes, a, c.from, c.to)); !ok {
				continue
			}
		}
		if _, ok := r.cached(page, kind); !ok {
			r.f.WillRead(int64(page)*pageBytes, pageBytes)
		}
	}
}

// holding returns the data page that the page of fences has for t, if the probes may be in it.
// What is wrong with the fences is left for the search to find.
func (r *run) holding(fences uint64, t *target, probes []uint64) (page uint64, ok bool) {
	p, ok := r.cached(fences, pageFences)
	if !ok {
		var err error
		if p, err = r.bring(fences, pageFences); err != nil {
			return 0, false
		}
	}
	f, ok := fenced(p, t)
	return f.page, ok && (probes == nil || mayHold(f.filter, probes))
}

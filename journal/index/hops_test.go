package index

import (
	"testing"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// A search of a page that begins at a hop finds what one from its beginning does, wherever
// the reader stood before.
func TestHops(t *testing.T) {
	origins := []streamLife{{5, 2, 3}, {5, 2, 4}, {record.FoldedStream, 1, 1}}
	var d dataPage
	var vs []version
	d.reset()
	for _, v := range goldenVersions() {
		origin := 0
		if v.zero {
			origin = 1
		}
		if !d.add(&v, origin) {
			break
		}
		vs = append(vs, v)
	}
	if len(vs) < 4*hopEvery {
		t.Fatalf("%d versions", len(vs))
	}
	page := make([]byte, pageBytes)
	copy(page, d.p)
	le.PutUint16(page[atCount:], uint16(len(vs)))
	page = appendHops(page, origins)
	if want := pageBytes + (len(vs)-1)/hopEvery*hopBytes; len(page) != want {
		t.Fatalf("%d bytes with hops, want %d", len(page), want)
	}
	find := func(from int, to target) {
		t.Helper()
		want := from
		for want < len(vs) && to.before(&vs[want].sortKey) {
			want++
		}
		var r dataReader
		var v version
		r.reset(page, origins)
		for range from {
			r.next(&v)
		}
		r.skip(&to, &v)
		steps, ok := 1, r.next(&v)
		for ; ok && to.before(&v.sortKey); steps++ {
			ok = r.next(&v)
		}
		if ok != (want < len(vs)) || ok && v != vs[want] || steps > hopEvery+1 {
			t.Fatalf("from %d after %d steps: %v %+v, want version %d", from, steps, ok, v, want)
		}
	}
	for i, v := range vs {
		for _, from := range []int{0, i / 2, i} {
			find(from, target{group: v.group, seq: v.seq, pos: anyPos})
			find(from, target{group: v.group, seq: v.seq, pos: v.pos}) // the one behind
			find(from, behind(v.group))
		}
	}
	le.PutUint16(page[atCount:], uint16(len(vs)+1)) // what is behind the last is none
	if p := appendHops(page[:pageBytes], origins[:1]); len(p) != pageBytes {
		t.Errorf("a page of streams that the run has not has %d bytes of hops", len(p)-pageBytes)
	}
}

// What is only noted is known for a while, takes no room, and is put with those that were
// asked for twice.
func TestCacheNotes(t *testing.T) {
	c := NewCache(16 * 64 << 10)
	key := func(i int) CacheKey { return CacheKey{Owner: 1, At: uint64(i)} }
	if c.Again(key(0)) {
		t.Error("again, at first")
	}
	c.Note(key(0))
	c.Note(key(0))
	if _, ok := c.Get(key(0)); ok || !c.Again(key(0)) || c.Bytes() != 0 {
		t.Error("a note is not one")
	}
	c.Put(key(0), make([]byte, 1000))
	c.Note(key(0)) // it is here
	if c.Again(key(0)) {
		t.Error("what was put is to be put again")
	}
	for i := 1000; i < 50000; i++ { // scans of both kinds
		c.Put(key(i), make([]byte, 1000))
		c.Note(key(-i))
	}
	if _, ok := c.Get(key(0)); !ok {
		t.Error("a scan drove out what was asked for twice")
	}
	notes := 0
	for i := 1000; i < 50000; i++ {
		if c.Again(key(-i)) {
			notes++
		}
	}
	if notes == 0 || notes > 2000 {
		t.Errorf("%d notes are remembered", notes)
	}
}

package index

import (
	"sort"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// A version in a data page says how it differs from the one before it, so that a search
// would decode half a page: most of what a lookup costs whose pages are in memory. The page
// in the cache has hops behind its bytes, made when it was read: after each hopEvery
// versions the last of these, and what a reader needs to go on from there. They are never on disk.
const (
	hopEvery = 16
	hopBytes = 56
	// hopRoom is for what most pages have: they hold about 150 versions.
	hopRoom = 4864 - pageBytes
)

// Where in a hop the key of the version before it stands, and what reads the next.
const (
	hopArea   = 0
	hopCell   = 8
	hopSpan   = 16
	hopStream = 24
	hopSeq    = 32
	hopPos    = 40
	hopOrigin = 48 // u32
	hopLeft   = 52 // u16: versions that follow
	hopAt     = 54 // u16: where in the page they do
)

// appendHops returns p, a verified data page, with its hops. One that does not hold what it
// should has none: whoever comes to what is wrong finds it.
func appendHops(p []byte, origins []streamLife) []byte {
	var r dataReader
	var v version
	r.reset(p, origins)
	for n := 1; r.next(&v); n++ {
		if n%hopEvery != 0 || r.left == 0 {
			continue
		}
		p = le.AppendUint64(p, uint64(v.area))
		p = le.AppendUint64(p, v.cell)
		p = le.AppendUint64(p, uint64(v.span))
		p = le.AppendUint64(p, uint64(v.stream))
		p = le.AppendUint64(p, uint64(v.seq))
		p = le.AppendUint64(p, uint64(v.pos))
		p = le.AppendUint32(p, uint32(r.origin))
		p = le.AppendUint16(p, uint16(r.left))
		p = le.AppendUint16(p, uint16(pageBytes-len(r.d.p)))
	}
	if r.d.bad {
		return p[:pageBytes]
	}
	return p
}

// hopKey is of the version before a hop.
func hopKey(h []byte) sortKey {
	return sortKey{
		group: group{area: area(le.Uint64(h[hopArea:])), cell: le.Uint64(h[hopCell:]), span: span(le.Uint64(h[hopSpan:])), stream: record.StreamID(le.Uint64(h[hopStream:]))},
		seq:   record.Seq(le.Uint64(h[hopSeq:])), pos: segment.Pos(le.Uint64(h[hopPos:])),
	}
}

// skip moves over versions that are before t, as far forward as a hop leads; v is then the
// one before the next.
func (r *dataReader) skip(t *target, v *version) {
	n := sort.Search(len(r.hops)/hopBytes, func(i int) bool {
		k := hopKey(r.hops[i*hopBytes:])
		return !t.before(&k)
	})
	if invariant.Planted("journal/index/hop-too-far") && n < len(r.hops)/hopBytes {
		n++
	}
	if n == 0 {
		return
	}
	h := r.hops[(n-1)*hopBytes:]
	if left := int(le.Uint16(h[hopLeft:])); left < r.left {
		*v = version{sortKey: hopKey(h)}
		r.left, r.origin, r.d.p = left, int(le.Uint32(h[hopOrigin:])), r.page[le.Uint16(h[hopAt:]):]
	}
}

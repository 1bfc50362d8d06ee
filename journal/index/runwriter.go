package index

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// runVersion is the version of the format. See FORMAT.md.
const runVersion = 1

// Head and foot of a run: what makes it itself, and where its tail is.
const (
	runMagic = "HFIXRUN1"

	atMagic     = pageHeader // 8 bytes
	atVersion   = atMagic + 8
	atGroup     = atVersion + 8
	atNumber    = atGroup + 8
	atLife      = atNumber + 8
	atPages     = atLife + 8 // of the foot: of the file, foot and all
	atTailPage  = atPages + 8
	atTailBytes = atTailPage + 8
	footEnd     = atTailBytes + 8
)

// tailPart is what a page of the tail holds.
const tailPart = pageBytes - pageHeader

// fence is the first version of a page of fences, and where that page is: in memory they
// lead to every page of a run in two steps.
type fence struct {
	sortKey
	page uint64
}

// seqRange is what a run holds of a stream.
type seqRange struct {
	stream   record.StreamID
	min, max record.Seq
}

// contents is what a run's tail says of it; the fences are apart.
type contents struct {
	versions int64
	lo, hi   segment.Pos // the records lie in [lo, hi)
	origins  []streamLife
	streams  []seqRange
	volumes  map[record.VolumeID]uint16 // which levels have versions
}

// runWriter writes a run from versions that come in order. It holds some 300 KiB, and 60
// bytes for every 24 pages.
type runWriter struct {
	id   runID
	f    ioengine.File
	pace func(int)

	contents
	originOf map[streamLife]int
	streamOf map[record.StreamID]int
	area     area       // of the last version
	origin   streamLife // its
	place    int        // of origin in origins
	stream   *seqRange  // its
	fences   []fence

	data       dataPage
	first      sortKey    // of data
	last       sortKey    // of all; for invariants
	keys       filterKeys // of data
	fencePage  []byte
	fenceCount int

	out     []byte // written behind page-len(out)/pageBytes
	page    uint64 // the next
	written int64
}

const writeBytes = 256 << 10

// newRunWriter makes the file, which must not be there.
func newRunWriter(fs ioengine.FS, name string, id runID, pace func(int)) (*runWriter, error) {
	f, err := fs.Open(name, ioengine.Create|ioengine.Exclusive)
	if err != nil {
		return nil, err
	}
	w := &runWriter{id: id, f: f, pace: pace, originOf: make(map[streamLife]int), streamOf: make(map[record.StreamID]int)}
	w.volumes = make(map[record.VolumeID]uint16)
	w.data.p = make([]byte, 0, pageBytes)
	w.data.reset()
	w.out = make([]byte, 0, writeBytes+2*pageBytes)
	w.resetFences()
	head := make([]byte, pageBytes)
	putFoot(head, id)
	w.emit(pageHead, 0, head)
	return w, nil
}

func putFoot(p []byte, id runID) {
	copy(p[atMagic:], runMagic)
	le.PutUint64(p[atVersion:], runVersion)
	le.PutUint64(p[atGroup:], uint64(id.group))
	le.PutUint64(p[atNumber:], id.number)
	le.PutUint64(p[atLife:], id.life)
}

func (w *runWriter) resetFences() {
	w.fencePage = append(w.fencePage[:0], make([]byte, pageHeader+8)...)
	w.fenceCount = 0
}

// emit puts a page behind those before it.
func (w *runWriter) emit(kind byte, count int, p []byte) uint64 {
	n := len(w.out)
	w.out = append(w.out, p...)
	w.out = append(w.out, make([]byte, n+pageBytes-len(w.out))...)
	w.id.seal(w.page, kind, count, w.out[n:])
	w.page++
	return w.page - 1
}

// drain writes what is complete.
func (w *runWriter) drain(least int) error {
	if len(w.out) < least || len(w.out) == 0 {
		return nil
	}
	if w.pace != nil {
		w.pace(len(w.out))
	}
	if _, err := w.f.WriteAt(w.out, int64(w.page)*pageBytes-int64(len(w.out))); err != nil {
		return err
	}
	w.written += int64(len(w.out))
	w.out = w.out[:0]
	return nil
}

// add appends a version, which sorts behind the last.
func (w *runWriter) add(v *version) error {
	if invariant.Enabled {
		if w.versions > 0 && w.last.compare(&v.sortKey) >= 0 {
			panic("BUG: versions out of order")
		}
		w.last = v.sortKey
	}
	if err := w.count(v); err != nil {
		return err
	}
	if !w.data.add(v, w.place) {
		w.endData()
		if err := w.drain(writeBytes); err != nil {
			return err
		}
		w.data.add(v, w.place)
	}
	if w.data.count == 1 {
		w.first = v.sortKey
	}
	w.keys.add(&v.group)
	return nil
}

// count notes what the tail says, and the version's place in the list of origins.
func (w *runWriter) count(v *version) error {
	o := streamLife{v.stream, v.epoch, v.inc}
	if w.versions == 0 || o != w.origin {
		if err := w.from(o, v); err != nil {
			return err
		}
	}
	w.versions++
	w.lo, w.hi = min(w.lo, v.pos), max(w.hi, v.pos+1)
	if v.area != w.area {
		w.area = v.area
		w.volumes[v.area.volume()] |= 1 << v.area.level()
	}
	w.stream.min, w.stream.max = min(w.stream.min, v.seq), max(w.stream.max, v.seq)
	return nil
}

// from makes o the origin of the versions from v on.
func (w *runWriter) from(o streamLife, v *version) error {
	if w.versions == 0 {
		w.lo = v.pos
	}
	i, ok := w.originOf[o]
	if !ok {
		if i = len(w.origins); i == maxRunStreams-1 {
			return fmt.Errorf("index: more than %d lives of streams", i)
		}
		w.originOf[o] = i
		w.origins = append(w.origins, o)
	}
	s, ok := w.streamOf[v.stream]
	if !ok {
		s = len(w.streams)
		w.streamOf[v.stream] = s
		w.streams = append(w.streams, seqRange{v.stream, v.seq, v.seq})
	}
	w.origin, w.place, w.stream = o, i, &w.streams[s]
	return nil
}

// endData makes the data page a page of the file, and a fence of it.
func (w *runWriter) endData() {
	if w.data.count == 0 {
		return
	}
	keys := w.keys.of
	size := filterBytes(len(keys))
	if len(w.fencePage)+maxVersion+size > pageBytes {
		w.endFences()
	}
	page := w.emit(pageData, w.data.count, w.data.p)
	if w.fenceCount == 0 {
		le.PutUint64(w.fencePage[pageHeader:], page)
		w.fences = append(w.fences, fence{sortKey: w.first})
	}
	w.fencePage = appendKey(w.fencePage, &w.first)
	w.fencePage = binary.AppendUvarint(w.fencePage, uint64(size))
	n := len(w.fencePage)
	w.fencePage = append(w.fencePage, make([]byte, size)...)
	if !invariant.Planted("journal/index/half-a-filter") {
		fillFilter(w.fencePage[n:], keys)
	} else {
		fillFilter(w.fencePage[n:], keys[:len(keys)/2])
	}
	w.fenceCount++
	w.keys.reset()
	w.data.reset()
}

func (w *runWriter) endFences() {
	if w.fenceCount == 0 {
		return
	}
	w.fences[len(w.fences)-1].page = w.emit(pageFences, w.fenceCount, w.fencePage)
	w.resetFences()
}

func appendKey(p []byte, k *sortKey) []byte {
	for _, v := range [...]uint64{uint64(k.area), k.cell, uint64(k.span >> 32), uint64(uint32(k.span)), uint64(k.stream), uint64(k.seq), uint64(k.pos), uint64(k.ext)} {
		p = binary.AppendUvarint(p, v)
	}
	return p
}

func (d *decoder) key(k *sortKey) {
	k.area, k.cell = area(d.uvarint()), d.uvarint()
	off := d.uvarint()
	k.span = span(off<<32 | d.uvarint()&(1<<32-1))
	k.stream, k.seq, k.pos = record.StreamID(d.uvarint()), record.Seq(d.uvarint()), segmentPos(d.uvarint())
	k.ext = uint16(d.uvarint())
}

// finish writes the rest, the tail and the foot, and makes the file durable; its name is
// the caller's to make so. It gives the file away to the run.
func (w *runWriter) finish() (*run, error) {
	w.endData()
	w.endFences()
	tail := w.appendTail(nil)
	at := w.page
	for p := tail; len(p) > 0; p = p[min(len(p), tailPart):] {
		page := make([]byte, pageHeader, pageBytes)
		w.emit(pageTail, 0, append(page, p[:min(len(p), tailPart)]...))
		if err := w.drain(writeBytes); err != nil {
			return nil, err
		}
	}
	foot := make([]byte, pageBytes)
	putFoot(foot, w.id)
	le.PutUint64(foot[atPages:], w.page+1)
	le.PutUint64(foot[atTailPage:], at)
	le.PutUint64(foot[atTailBytes:], uint64(len(tail)))
	w.emit(pageFoot, 0, foot)
	if err := w.drain(0); err != nil {
		return nil, err
	}
	if err := w.f.Sync(); err != nil {
		return nil, err
	}
	r := &run{id: w.id, f: w.f, pages: w.page, tail: at, fences: slices.Clip(w.fences), contents: w.contents}
	r.refs.Store(1)
	return r, nil
}

func (w *runWriter) appendTail(p []byte) []byte {
	p = binary.AppendUvarint(p, uint64(w.versions))
	p = binary.AppendUvarint(p, uint64(w.lo))
	p = binary.AppendUvarint(p, uint64(w.hi))
	p = binary.AppendUvarint(p, uint64(len(w.origins)))
	for _, o := range w.origins {
		p = le.AppendUint64(p, uint64(o.stream))
		p = le.AppendUint32(p, uint32(o.epoch))
		p = le.AppendUint32(p, uint32(o.inc))
	}
	p = binary.AppendUvarint(p, uint64(len(w.streams)))
	for _, s := range w.streams {
		p = le.AppendUint64(p, uint64(s.stream))
		p = binary.AppendUvarint(p, uint64(s.min))
		p = binary.AppendUvarint(p, uint64(s.max))
	}
	p = binary.AppendUvarint(p, uint64(len(w.volumes)))
	for _, v := range sortedVolumes(w.volumes) {
		p = binary.AppendUvarint(p, uint64(v))
		p = binary.AppendUvarint(p, uint64(w.volumes[v]))
	}
	p = binary.AppendUvarint(p, uint64(len(w.fences)))
	for i := range w.fences {
		p = appendKey(p, &w.fences[i].sortKey)
		p = binary.AppendUvarint(p, w.fences[i].page)
	}
	return p
}

func sortedVolumes(m map[record.VolumeID]uint16) []record.VolumeID {
	ids := make([]record.VolumeID, 0, len(m))
	for v := range m {
		ids = append(ids, v)
	}
	slices.Sort(ids)
	return ids
}

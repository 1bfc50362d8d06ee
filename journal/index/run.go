package index

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// run is an open run file. In memory are its fences of fences, a list of its streams and
// one of its volumes: about 60 bytes for every 3500 versions. All else is read page by
// page through the cache.
type run struct {
	id     runID
	f      ioengine.File
	pages  uint64
	tail   uint64 // the first page behind data and fences
	fences []fence
	contents

	cache   *Cache
	owner   uint64
	damaged func(*run, error)
	told    atomic.Bool
	refs    atomic.Int64
}

func runName(number uint64) string { return fmt.Sprintf("run-%016x", number) }

// openRun opens the run of that id, which has that many pages, and verifies what it reads: foot and tail.
func openRun(fs ioengine.FS, name string, id runID, pages uint64) (*run, error) {
	f, err := fs.Open(name, ioengine.ReadOnly)
	if err != nil {
		return nil, err
	}
	r := &run{id: id, f: f, pages: pages}
	r.refs.Store(1)
	if err := r.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	return r, nil
}

func (r *run) load() error {
	size, err := r.f.Size()
	if err != nil {
		return err
	}
	if r.pages < 2 || uint64(size) != r.pages*pageBytes {
		return fmt.Errorf("%d bytes, want %d pages: %w", size, r.pages, ErrCorrupt)
	}
	foot := make([]byte, pageBytes)
	if err := r.read(r.pages-1, foot, pageFoot); err != nil {
		return err
	}
	want := make([]byte, pageBytes)
	putFoot(want, r.id)
	if string(foot[atMagic:atPages]) != string(want[atMagic:atPages]) || le.Uint64(foot[atPages:]) != r.pages {
		return fmt.Errorf("foot of another run or version: %w", ErrCorrupt)
	}
	n := le.Uint64(foot[atTailBytes:])
	r.tail = le.Uint64(foot[atTailPage:])
	if r.tail < 1 || r.tail >= r.pages || n > (r.pages-1-r.tail)*tailPart || n <= (r.pages-2-r.tail)*tailPart {
		return fmt.Errorf("foot: place of the tail: %w", ErrCorrupt)
	}
	p := make([]byte, (r.pages-1-r.tail)*pageBytes)
	if _, err := r.f.ReadAt(p, int64(r.tail)*pageBytes); err != nil {
		return err
	}
	tail := p[:0]
	for at := r.tail; at < r.pages-1; at++ {
		page := p[(at-r.tail)*pageBytes:][:pageBytes]
		if err := r.id.verify(at, pageTail, page); err != nil {
			return err
		}
		tail = append(tail, page[pageHeader:]...) // behind what was read already
	}
	return r.parseTail(tail[:n])
}

// parseTail takes the tail apart; a wrong count is an error, never much memory.
func (r *run) parseTail(p []byte) error {
	d := decoder{p: p}
	r.versions, r.lo, r.hi = int64(d.uvarint()), segmentPos(d.uvarint()), segmentPos(d.uvarint())
	list := func(least int, each func()) {
		n := d.uvarint()
		if n > uint64(len(d.p)/least) {
			d.bad = true
		}
		for i := uint64(0); i < n && !d.bad; i++ {
			each()
		}
	}
	list(16, func() {
		r.origins = append(r.origins, streamLife{record.StreamID(d.u64()), record.Epoch(d.u32()), record.Incarnation(d.u32())})
	})
	list(10, func() {
		r.streams = append(r.streams, seqRange{record.StreamID(d.u64()), record.Seq(d.uvarint()), record.Seq(d.uvarint())})
	})
	r.volumes = make(map[record.VolumeID]uint16)
	list(2, func() {
		vol := record.VolumeID(d.uvarint())
		r.volumes[vol] = uint16(d.uvarint())
	})
	list(9, func() {
		var f fence
		d.key(&f.sortKey)
		f.page = d.uvarint()
		d.bad = d.bad || f.page >= r.tail || f.area.level() >= levels
		r.fences = append(r.fences, f)
	})
	r.fences = slices.Clip(r.fences)
	if d.bad || len(d.p) != 0 || r.versions < 0 || r.lo < 0 || r.hi < r.lo {
		return fmt.Errorf("tail: %w", ErrCorrupt)
	}
	return nil
}

// read reads and verifies a page.
func (r *run) read(page uint64, p []byte, kind byte) error {
	if n, err := r.f.ReadAt(p[:pageBytes], int64(page)*pageBytes); n < pageBytes {
		return fmt.Errorf("page %d: %w", page, errors.Join(err, ErrCorrupt))
	}
	return r.id.verify(page, kind, p)
}

// get returns a page through the cache, one of data with its hops; it is shared. An error tells Damaged.
// The lookup, which may be nil, is told when it was not there.
func (r *run) get(page uint64, kind byte, l *lookup) ([]byte, error) {
	if p, ok := r.cached(page, kind); ok {
		return p, nil
	}
	if l != nil {
		l.missed(kind)
	}
	p, err := r.bring(page, kind)
	if err != nil {
		return nil, r.fail(err)
	}
	return p, nil
}

func (r *run) cached(page uint64, kind byte) ([]byte, bool) {
	p, ok := r.cache.Get(CacheKey{Owner: r.owner, At: page})
	return p, ok && p[atPageKind] == kind
}

// bring reads a page into the cache.
func (r *run) bring(page uint64, kind byte) ([]byte, error) {
	p := make([]byte, pageBytes, pageBytes+hopRoom)
	if err := r.read(page, p, kind); err != nil {
		return nil, err
	}
	if kind == pageData {
		p = appendHops(p, r.origins)
	}
	r.cache.Put(CacheKey{Owner: r.owner, At: page}, p)
	return p, nil
}

// fail says what is wrong with the run, once to Damaged.
func (r *run) fail(err error) error {
	err = fmt.Errorf("index of group %s: %s: %w", r.id.group, runName(r.id.number), err)
	if !errors.Is(err, ErrCorrupt) {
		err = fmt.Errorf("%w: %w", err, ErrCorrupt)
	}
	if r.damaged != nil && !r.told.Swap(true) {
		r.damaged(r, err)
	}
	return err
}

// release gives back a use of the run; the last closes the file.
func (r *run) release() error {
	if r.refs.Add(-1) == 0 {
		return r.f.Close()
	}
	return nil
}

// scan reads the run from front to back, past the cache, for merges. It holds readAhead.
type scan struct {
	r    *run
	pace func(int)
	page uint64 // the next
	buf  []byte
	at   int
	data dataReader
	v    version
}

const readAhead = 128 << 10

func (r *run) scan(pace func(int)) *scan { return &scan{r: r, pace: pace, page: 1} }

// next moves v on; false at the end.
func (s *scan) next() (bool, error) {
	for !s.data.next(&s.v) {
		if s.data.d.bad {
			return false, s.r.fail(fmt.Errorf("page %d: %w", s.page-1, ErrCorrupt))
		}
		p, err := s.nextPage()
		if p == nil || err != nil {
			return false, err
		}
		if p[atPageKind] == pageData {
			s.data.reset(p, s.r.origins)
			s.v = version{}
		}
	}
	return true, nil
}

// nextPage returns the next page of data or fences, verified; nil at the end.
func (s *scan) nextPage() ([]byte, error) {
	if s.page >= s.r.tail {
		return nil, nil
	}
	if s.at == len(s.buf) {
		n := int(min(readAhead, (s.r.tail-s.page)*pageBytes))
		if s.pace != nil {
			s.pace(n)
		}
		s.buf, s.at = slices.Grow(s.buf[:0], n)[:n], 0
		if got, err := s.r.f.ReadAt(s.buf, int64(s.page)*pageBytes); got < n {
			return nil, s.r.fail(errors.Join(err, io.ErrUnexpectedEOF))
		}
	}
	p := s.buf[s.at:][:pageBytes]
	if err := s.r.id.verify(s.page, 0, p); err != nil {
		return nil, s.r.fail(err)
	}
	if p[atPageKind] != pageData && p[atPageKind] != pageFences {
		return nil, s.r.fail(fmt.Errorf("page %d: of kind %d: %w", s.page, p[atPageKind], ErrCorrupt))
	}
	s.at += pageBytes
	s.page++
	return p, nil
}

// overlaps says whether records of the run may lie in [from, to).
func (r *run) overlaps(from, to segment.Pos) bool { return r.lo < to && r.hi > from }

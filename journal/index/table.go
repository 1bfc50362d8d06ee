package index

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Lookups tells where the bytes of a group's volumes are. Table does from disk and
// memory, Versions from memory alone.
type Lookups interface {
	// Add takes the record at pos, which must lie above every one before, and be of a
	// higher seq than those of its stream. The record's payload is not looked at.
	Add(pos segment.Pos, r record.Record) error
	// Vector prepares a checkpoint's place for lookups.
	Vector(cp Checkpoint) Vector
	// Lookup appends to dst the pieces of [off, off+n) as the checkpoint holds them, in
	// order and without gaps. After an error dst is to be used for nothing.
	Lookup(dst []Piece, vol record.VolumeID, off, n int64, at Vector) ([]Piece, error)
	// Stored returns the places whose bytes lie in the spans, or in a block of a record
	// whose header or tables do.
	Stored(spans []Span) ([]Place, error)
	// Sum returns the header checksum of a record; ok is false for one that is not in memory.
	Sum(stream record.StreamID, seq record.Seq) (sum uint32, ok bool)
}

var (
	_ Lookups = (*Versions)(nil)
	_ Lookups = (*Table)(nil)
)

// TableConfig says where an index lives. FS, Dir, Group and Cache are needed.
type TableConfig struct {
	FS    ioengine.FS
	Dir   string // made when absent; the index has it alone
	Group record.GroupID
	Cache *Cache
	// Log takes what an operator should know; nil: nothing is said.
	Log *slog.Logger
	// Go runs a merge. Default: one goroutine, which Close waits for.
	Go func(func())
	// Pace is called as merges read and write, with the bytes; it may wait. Default: nothing.
	Pace func(bytes int)
	// Damaged is told, once a file, that it does not read: lookups that need it fail
	// until Reset. It must not call the Table.
	Damaged func(error)
	// FoldBytes is how much memory a Fold takes before it writes a run. Default 32 MiB.
	FoldBytes int64
	// RunBytes is how large a run of several may become: larger ones are not merged, so that
	// what is old goes in whole files. Default 1 GiB, some 35 million versions.
	RunBytes int64
}

// Snapshot is what an index holds on disk.
type Snapshot struct {
	Pos     segment.Pos // of all records below, and none above; 0: of none
	Segment uint64      // that Pos lies in, and the life of it: they say of which log
	Life    uint64
	State   []byte // the journal's own, at Pos
}

// Table is the index of one group. Add, Freeze, Flush, Drop, Fold, Reset and Close are for
// one goroutine; the others may be called beside them by any number.
//
// Records that were added stand in a memtable; a flush makes it a run, a sorted file that
// never changes; merges make one run of several. A lookup goes from the newest to the
// oldest of them and stops when all is found. Damage to a file is an error of the
// lookups that need it and never a wrong answer; an absent, damaged or old index is
// made good by adding the records again.
//
// A lookup that misses the cache tells the disk of all pages that it is going to need (see
// coming), so that a first read waits a few times for the disk and not twice a run.
//
// Pages are kept in the cache as they were read, those of versions with an eighth more that
// leads a search into them (see appendHops).
//
// On disk a version of 4 KiB takes about 27 bytes, each flush and merge writes it once; in
// memory a table at rest takes some kilobytes, and 60 bytes for 3500 versions.
type Table struct {
	cfg TableConfig

	mu struct {
		sync.RWMutex
		view    *tableView
		active  *memtable
		frozen  []*memtable // oldest first
		covered Snapshot
		merging bool
		closed  bool
	}

	// io is held to change what is on disk: by a flush, a merge, Drop, Fold and Reset when
	// they are done with their own files.
	io struct {
		sync.Mutex
		layout layout

		folds   []Span   // all since OpenTable
		garbage []string // files that the next current does without
	}

	// Of the goroutine that adds.
	last segment.Pos                    // of the newest record
	seqs map[record.StreamID]record.Seq // of those added since OpenTable, Reset

	generation atomic.Uint64 // how often it was reset
	first      atomic.Int64  // segment.Pos; what lies below was dropped
	closing    atomic.Bool
	merges     sync.WaitGroup
	number     atomic.Uint64 // of the next run
	written    atomic.Int64
	merged     atomic.Int64
}

// tableView is what lookups see: it does not change, and its runs are open as long as it is used.
type tableView struct {
	sources []sourceRef // by hi, from the newest
	runs    []*run
	refs    atomic.Int64
}

func (v *tableView) release() {
	if v.refs.Add(-1) == 0 {
		for _, r := range v.runs {
			_ = r.release() // it was only read
		}
	}
}

// OpenTable opens the index in cfg.Dir. What is absent or does not hold together is
// taken for an empty index: Covered says so, and the journal replays its log. An error
// is one of the disk.
func OpenTable(cfg TableConfig) (*Table, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Go == nil {
		cfg.Go = func(f func()) { go f() }
	}
	if cfg.FoldBytes <= 0 {
		cfg.FoldBytes = 32 << 20
	}
	if cfg.RunBytes <= 0 {
		cfg.RunBytes = 1 << 30
	}
	t := &Table{cfg: cfg}
	if err := cfg.FS.Mkdir(cfg.Dir); err != nil {
		return nil, fmt.Errorf("index of group %s: %w", cfg.Group, err)
	}
	l, err := t.load()
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) || l.next > 0 {
			cfg.Log.Warn("the index is made again from the log", "reason", err.Error())
		}
		l = layout{}
	}
	if l.next == 0 { // what is flushed later is not to go with the folder
		err = cfg.FS.SyncDir(path.Dir(cfg.Dir))
	} else {
		err = nil
	}
	if err == nil {
		err = t.clear(&l)
	}
	if err != nil {
		return nil, fmt.Errorf("index of group %s: %w", cfg.Group, errors.Join(err, l.close()))
	}
	t.adopt(l)
	return t, nil
}

// load reads current and opens all it names, or nothing.
func (t *Table) load() (layout, error) {
	l, err := readCurrent(t.cfg.FS, t.cfg.Dir, t.cfg.Group)
	if err != nil {
		return layout{}, err
	}
	for i := range l.runs {
		e := &l.runs[i]
		if e.run, err = openRun(t.cfg.FS, t.path(runName(e.id.number)), e.id, e.pages); err != nil {
			return l, errors.Join(err, l.close())
		}
		t.equip(e.run)
	}
	return l, nil
}

// equip gives a run what it reads by.
func (t *Table) equip(r *run) {
	r.cache, r.owner, r.damaged = t.cfg.Cache, t.cfg.Cache.Owner(), t.damaged
}

func (t *Table) damaged(_ *run, err error) {
	t.cfg.Log.Error("the index is damaged", "reason", err.Error())
	if t.cfg.Damaged != nil {
		t.cfg.Damaged(err)
	}
}

func (l *layout) close() (err error) {
	for _, r := range l.runs {
		if r.run != nil {
			err = errors.Join(err, r.run.release())
		}
	}
	return err
}

func (t *Table) path(name string) string { return path.Join(t.cfg.Dir, name) }

// clear removes what l does not name: what a crash left, or all of an index that is none. A
// file that does not go is tried again later.
func (t *Table) clear(l *layout) error {
	names, err := t.cfg.FS.List(t.cfg.Dir)
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, r := range l.runs {
		keep[runName(r.id.number)] = true
	}
	if l.next > 0 {
		keep[currentName] = true
	} else if slices.Contains(names, currentName) { // before the runs, so that it never names one that is gone
		if err := t.cfg.FS.Remove(t.path(currentName)); err != nil {
			return err
		}
		if err := t.cfg.FS.SyncDir(t.cfg.Dir); err != nil {
			return err
		}
		keep[currentName] = true
	}
	for _, name := range names {
		var number uint64
		if _, err := fmt.Sscanf(name, "run-%016x", &number); err == nil && strings.HasPrefix(name, "run-") {
			l.next = max(l.next, number+1)
		}
		if !keep[name] {
			t.io.garbage = append(t.io.garbage, name)
		}
	}
	if len(t.io.garbage) > 0 { // current is what we found only once its name is durable
		if err := t.cfg.FS.SyncDir(t.cfg.Dir); err != nil {
			return err
		}
	}
	t.sweepLocked()
	return nil
}

// sweepLocked removes files that nothing names any more.
func (t *Table) sweepLocked() {
	left := t.io.garbage[:0]
	for _, name := range t.io.garbage {
		if err := t.cfg.FS.Remove(t.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			left = append(left, name)
		}
	}
	t.io.garbage = left
}

// adopt makes l what the table holds.
func (t *Table) adopt(l layout) {
	t.io.layout = l
	if next := max(l.next, 1); t.number.Load() < next {
		t.number.Store(next)
	}
	t.first.Store(int64(l.first))
	t.last = l.covered.Pos - 1
	t.seqs = make(map[record.StreamID]record.Seq)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.covered, t.mu.active, t.mu.frozen = l.covered, newMemtable(), nil
	t.showLocked(l.runs)
}

// showLocked makes memtables and runs what lookups see.
func (t *Table) showLocked(runs []layoutRun) {
	v := &tableView{}
	v.refs.Store(1)
	for _, r := range runs {
		r.run.refs.Add(1)
		v.runs = append(v.runs, r.run)
		v.sources = append(v.sources, sourceRef{r.run, r.run.hi, r.masks})
	}
	for _, m := range t.mu.frozen {
		v.sources = append(v.sources, sourceRef{source: m, hi: m.hi})
	}
	v.sources = append(v.sources, sourceRef{source: t.mu.active, hi: anyPos})
	slices.SortStableFunc(v.sources, func(a, b sourceRef) int { return cmp.Compare(uint64(b.hi), uint64(a.hi)) })
	if old := t.mu.view; old != nil {
		old.release()
	}
	t.mu.view = v
}

// errTableClosed says that the table is closed.
var errTableClosed = errors.New("index is closed")

// use returns what lookups see; the caller releases it.
func (t *Table) use() (*tableView, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.mu.view == nil {
		return nil, errTableClosed
	}
	t.mu.view.refs.Add(1)
	return t.mu.view, nil
}

// Covered says what was found by OpenTable or last flushed: records below Pos need no
// replay. State is borrowed, not to be written.
func (t *Table) Covered() Snapshot {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.mu.covered
}

// Add takes the record at pos; see Lookups. Folded records may have any seq; streams have gaps
// where thinning folded.
func (t *Table) Add(pos segment.Pos, r record.Record) error {
	if pos <= t.last {
		return fmt.Errorf("index: record %s at %s: not above %s", r.Identity, pos, t.last)
	}
	if seq, ok := t.seqs[r.Stream]; ok && r.Seq <= seq && r.Stream != record.FoldedStream {
		return fmt.Errorf("index: record %s at %s: not behind seq %d", r.Identity, pos, seq)
	}
	t.mu.RLock()
	m := t.mu.active
	t.mu.RUnlock()
	if err := m.add(pos, &r); err != nil {
		return err
	}
	t.last, t.seqs[r.Stream] = pos, r.Seq
	return nil
}

// Memory is how many bytes of memory the next Flush gives back, and what one that is being
// written will.
func (t *Table) Memory() (n int64) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, m := range t.mu.frozen {
		n += m.bytes()
	}
	if t.mu.active != nil {
		n += t.mu.active.bytes()
	}
	return n
}

// Vector is NewVector.
func (t *Table) Vector(cp Checkpoint) Vector { return NewVector(cp) }

// Lookup finds pieces; see Lookups. Errors: ErrCorrupt when a file of the index does
// not read, which Damaged was told; never a wrong piece.
func (t *Table) Lookup(dst []Piece, vol record.VolumeID, off, n int64, at Vector) ([]Piece, error) {
	v, err := t.use()
	if err != nil {
		return dst, err
	}
	defer v.release()
	l := lookups.Get().(*lookup)
	defer lookups.Put(l)
	l.at, l.from, l.most, l.coming.wanted = at, segment.Pos(t.first.Load()), chunkBytes, true
	defer func() { l.coming = coming{probes: l.coming.probes} }()
	start := len(dst)
	for end := off + n; off < end; {
		if dst, off, err = l.step(dst, v.sources, vol, off, end); err != nil {
			return dst, err
		}
	}
	for i := start; i < len(dst); i++ {
		if dst[i].In == IsZero {
			dst[i].Pos, dst[i].ID = 0, record.Identity{}
		}
	}
	return joined(dst, start), nil
}

// Walk calls fn, in the order of their places, with the parts of [off, off+n) whose newest
// version held by the checkpoint is in the log at or above from: pieces in the log and
// zeros, each with the Pos and ID of its record. Untouched areas cost next to nothing. fn may
// stop it by an error, which is returned.
func (t *Table) Walk(vol record.VolumeID, off, n int64, at Vector, from segment.Pos, fn func(Piece) error) error {
	var pieces []Piece
	for end := off + n; off < end; {
		var err error
		if pieces, off, err = t.walkStep(pieces[:0], vol, off, end, at, from); err != nil {
			return err
		}
		for _, p := range pieces {
			if p.In == InReplica {
				continue
			}
			if err := fn(p); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *Table) walkStep(dst []Piece, vol record.VolumeID, off, end int64, at Vector, from segment.Pos) ([]Piece, int64, error) {
	v, err := t.use()
	if err != nil {
		return dst, 0, err
	}
	defer v.release()
	l := lookups.Get().(*lookup)
	defer lookups.Put(l)
	l.at, l.from, l.most = at, max(from, segment.Pos(t.first.Load())), walkBytes
	return l.step(dst, v.sources, vol, off, end)
}

// Sum returns the header checksum of a record that was added since the last Flush.
func (t *Table) Sum(stream record.StreamID, seq record.Seq) (sum uint32, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.mu.active != nil {
		sum, ok = t.mu.active.sum(stream, seq)
	}
	for i := 0; i < len(t.mu.frozen) && !ok; i++ {
		sum, ok = t.mu.frozen[i].sum(stream, seq)
	}
	return sum, ok
}

// TableStats are figures of a Table for metrics.
type TableStats struct {
	Runs         int
	Extents      int64 // versions on disk
	Bytes        int64 // of files
	Memory       int64 // of records not flushed yet
	WrittenBytes int64 // since OpenTable: flushes, merges, folds
	Merges       int64 // since OpenTable
}

// Stats returns figures as of now.
func (t *Table) Stats() TableStats {
	s := TableStats{Memory: t.Memory(), WrittenBytes: t.written.Load(), Merges: t.merged.Load()}
	v, err := t.use()
	if err != nil {
		return s
	}
	defer v.release()
	for _, r := range v.runs {
		s.Runs++
		s.Extents += r.versions
		s.Bytes += int64(r.pages) * pageBytes
	}
	return s
}

// Close waits for a merge that runs, which ends early, and closes the files. It does not
// flush: what was not flushed is replayed.
func (t *Table) Close() error {
	t.closing.Store(true)
	t.mu.Lock()
	t.mu.closed = true
	t.mu.Unlock()
	t.merges.Wait()
	t.io.Lock()
	defer t.io.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.view == nil {
		return nil
	}
	t.mu.view.release()
	t.mu.view, t.mu.active, t.mu.frozen = nil, nil, nil
	err := t.io.layout.close()
	t.io.layout.runs = nil
	return err
}

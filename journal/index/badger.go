package index

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"github.com/holdfast-dr/holdfast/ioengine"
)

// BadgerConfig says where a catalogue lives and what it may use.
type BadgerConfig struct {
	FS  ioengine.FS // of this machine: Badger opens its files itself
	Dir string      // a folder of its own; its parent is there
	// Boot is another text at each boot of the machine; "": it is not known. What was
	// written under another is not trusted, unless the map was closed.
	Boot string
	// Floor is how many bytes must be free on the file system for anything to be
	// written; 0: DefaultFloor.
	Floor int64
	// Memory is the most bytes of changes that wait in memory; 0: DefaultWaiting.
	Memory int64
	Log    *slog.Logger // nil: none
}

const (
	// DefaultFloor is what must be free beside all that Badger may write until it is
	// asked again: others fill a disk meanwhile.
	DefaultFloor = 256 << 20
	// DefaultWaiting is about 250 000 checkpoints.
	DefaultWaiting = 64 << 20

	// openBytes is what an opening writes at most: two memtables become tables, and
	// a log, a memtable and what Badger throws away begin.
	openBytes = 16 << 20

	memtableBytes  = 2 << 20
	memtables      = 2
	thresholdBytes = 256 << 10 // the longest value of a checkpoint is 115 KiB
)

// OpenBadger opens a map that Badger keeps on disk. It does not fail: a folder that
// cannot be used, be it of another program, of an older release, damaged, or on a disk that is
// full, holds nothing, and what can be made anew in it is.
//
// Badger writes through mmap: on a full disk that is no error but a SIGBUS, which ends
// the process. So nothing is written while less than the floor is free, or when that
// cannot be told; changes wait in memory then, where all that reads sees them, and
// closing leaves them there. A disk that is filled up by more than the floor within
// the milliseconds that a write takes would still be the end of the process.
//
// Memory: at most 40 MiB, and what waits, whatever the map holds.
func OpenBadger(cfg BadgerConfig) Map {
	if cfg.Floor == 0 {
		cfg.Floor = DefaultFloor
	}
	if cfg.Memory == 0 {
		cfg.Memory = DefaultWaiting
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	f := &badgerFolder{cfg: cfg}
	g := &guarded{open: f.open, anew: f.anew, tidy: f.tidy, limit: cfg.Memory, log: cfg.Log}
	g.roomy = func(bytes int64) bool {
		if bytes == 0 {
			bytes = cfg.Floor
		}
		free, err := cfg.FS.Free(path.Dir(path.Clean(cfg.Dir)))
		return err == nil && free >= bytes
	}
	g.start()
	return g
}

// badgerOptions keep it small: the catalogue grows by some hundred bytes each
// checkpoint. There are no compactors: they would write at any time. See tidy.
func badgerOptions(dir string, log *slog.Logger) badger.Options {
	return badger.DefaultOptions(dir).
		WithLogger(badgerLog{log}).
		WithCompression(options.None).
		WithBlockCacheSize(0).
		WithMemTableSize(memtableBytes).
		WithBaseTableSize(memtableBytes).
		WithNumMemtables(memtables).
		WithNumCompactors(0).
		WithNumLevelZeroTables(tidyTables / 2).
		WithNumLevelZeroTablesStall(1 << 20).
		WithValueThreshold(thresholdBytes).
		WithValueLogFileSize(1 << 20).
		WithChecksumVerificationMode(options.OnBlockRead).
		WithDetectConflicts(false).
		WithBypassLockGuard(true). // the store has its own
		WithMetricsEnabled(false)
}

// badgerMap is a Map in one folder.
type badgerMap struct {
	db     *badger.DB
	folder *badgerFolder
	backed string // the memtable's file that has its space
}

// Get implements Map.
func (m *badgerMap) Get(key []byte) (value []byte, ok bool, err error) {
	err = m.db.View(func(tx *badger.Txn) error {
		item, err := tx.Get(key)
		if err != nil {
			return err
		}
		value, err = item.ValueCopy(nil)
		return err
	})
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, false, nil
	}
	return value, err == nil, err
}

// Scan implements Map.
func (m *badgerMap) Scan(from, to []byte, emit func(key, value []byte) bool) error {
	return m.walk(false, from, to, emit)
}

// Back implements Map.
func (m *badgerMap) Back(from, to []byte, emit func(key, value []byte) bool) error {
	return m.walk(true, from, to, emit)
}

func (m *badgerMap) walk(back bool, from, to []byte, emit func(key, value []byte) bool) error {
	return m.db.View(func(tx *badger.Txn) error {
		o := badger.DefaultIteratorOptions
		o.PrefetchValues, o.Reverse = false, back
		o.Prefix = commonPrefix(from, to)
		it := tx.NewIterator(o)
		defer it.Close()
		begin := from
		if back {
			begin = to
		}
		for it.Seek(begin); it.Valid(); it.Next() {
			item := it.Item()
			k := item.Key()
			switch {
			case back && bytes.Compare(k, to) >= 0:
				continue
			case back && bytes.Compare(k, from) < 0, !back && bytes.Compare(k, to) >= 0:
				return nil
			}
			goOn := false
			if err := item.Value(func(v []byte) error { goOn = emit(k, v); return nil }); err != nil {
				return err
			}
			if !goOn {
				return nil
			}
		}
		return nil
	})
}

// commonPrefix is what both keys begin with: tables with no such key are not looked at.
func commonPrefix(a, b []byte) []byte {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return a[:n]
}

// Update implements Map. Badger has copied what it keeps when it has committed.
func (m *badgerMap) Update(set []Pair, del [][]byte) error {
	err := m.db.Update(func(tx *badger.Txn) error {
		for _, p := range set {
			if err := tx.Set(p.Key, p.Value); err != nil {
				return err
			}
		}
		for _, k := range del {
			if err := tx.Delete(k); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		m.back()
	}
	return err
}

// back gives the memtable's file all its space, so that what goes there later needs none:
// Badger makes it as a hole. What does not succeed is tried again.
func (m *badgerMap) back() {
	names, err := m.folder.cfg.FS.List(m.folder.cfg.Dir)
	newest := ""
	for _, n := range names {
		if strings.HasSuffix(n, ".mem") {
			newest = max(newest, n)
		}
	}
	if err != nil || newest == "" || newest == m.backed {
		return
	}
	f, err := m.folder.cfg.FS.Open(path.Join(m.folder.cfg.Dir, newest), 0)
	if err != nil {
		return
	}
	if size, err := f.Size(); err == nil && f.Allocate(0, size) == nil {
		m.backed = newest
	}
	_ = f.Close() // nothing was written
}

// Close implements Map.
func (m *badgerMap) Close() error {
	if err := m.db.Close(); err != nil {
		return err
	}
	return m.folder.closed()
}

// leave ends the use of the map without a write: to close Badger would write its
// memtable down. Its goroutines and mappings stay until the process ends; they write
// nothing by themselves.
func (m *badgerMap) leave() {}

// badgerLog passes on what an operator may want to know.
type badgerLog struct{ log *slog.Logger }

func (l badgerLog) Errorf(f string, a ...any)   { l.log.Error("catalogue: " + line(f, a)) }
func (l badgerLog) Warningf(f string, a ...any) { l.log.Warn("catalogue: " + line(f, a)) }
func (l badgerLog) Infof(string, ...any)        {}
func (l badgerLog) Debugf(string, ...any)       {}

func line(f string, a []any) string { return strings.TrimSpace(fmt.Sprintf(f, a...)) }

package index

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// OpenBadger opens an empty map in memory. On disk Badger writes memtables and value
// log through mmap: where the disk is full, that is a SIGBUS, which ends the process
// and every group in it. What the map holds is a cache and rebuilt at every open, so
// nothing is lost by having no files.
func OpenBadger(log *slog.Logger) (Map, error) {
	db, err := badger.Open(badgerOptions(log))
	if err != nil {
		return nil, fmt.Errorf("catalogue: %w", err)
	}
	return &badgerMap{db: db}, nil
}

// badgerOptions keep it small: the catalogue grows by a hundred bytes or so each
// checkpoint. In memory no value may be longer than the threshold; the longest of a
// checkpoint is 115 KiB.
func badgerOptions(log *slog.Logger) badger.Options {
	return badger.DefaultOptions("").
		WithInMemory(true).
		WithLogger(badgerLog{log}).
		WithCompression(options.None).
		WithBlockCacheSize(0).
		WithMemTableSize(4 << 20).
		WithNumMemtables(2).
		WithNumCompactors(2).
		WithValueThreshold(256 << 10).
		WithDetectConflicts(false).
		WithMetricsEnabled(false)
}

type badgerMap struct{ db *badger.DB }

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

func (m *badgerMap) Scan(from, to []byte, emit func(key, value []byte) bool) error {
	return m.walk(false, from, to, emit)
}

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

func (m *badgerMap) Update(set []Pair, del [][]byte) error {
	return m.db.Update(func(tx *badger.Txn) error {
		for _, p := range set {
			if err := tx.Set(append([]byte(nil), p.Key...), append([]byte(nil), p.Value...)); err != nil {
				return err
			}
		}
		for _, k := range del {
			if err := tx.Delete(append([]byte(nil), k...)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (m *badgerMap) Close() error { return m.db.Close() }

// badgerLog passes on what an operator may want to know.
type badgerLog struct{ log *slog.Logger }

func (l badgerLog) Errorf(f string, a ...any)   { l.log.Error("catalogue: " + fmt.Sprintf(f, a...)) }
func (l badgerLog) Warningf(f string, a ...any) { l.log.Warn("catalogue: " + fmt.Sprintf(f, a...)) }
func (l badgerLog) Infof(string, ...any)        {}
func (l badgerLog) Debugf(string, ...any)       {}

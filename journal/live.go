package journal

import (
	"errors"
	"fmt"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// liveIndex is a group's index, which is only a cache: when a file of it turns out to be
// damaged it is built anew from the log, while records go on to come. Reads of views wait
// for that; who could act on what is missing meanwhile gets an error.
//
// Its methods are those of index.Table; also those for one goroutine may be called
// while it is built anew.
type liveIndex struct {
	table   *index.Table
	rebuild func() // begins rebuilding, on a goroutine of its own

	changing sync.Mutex  // Add, Freeze, Drop, Fold, and the end of rebuilding
	building bool        // records are left to the one who rebuilds
	upTo     segment.Pos // records below are in the index already
	first    segment.Pos // what lies below was dropped while it was built anew

	mu     sync.Mutex
	why    error         // what is damaged; nil: nothing
	round  uint64        // rises with each rebuilding
	begun  uint64        // tries to rebuild
	ended  uint64        // tries to rebuild
	done   chan struct{} // closed when a try has ended
	failed error         // of the last try
	over   bool          // nobody tries any more
}

// errReindexing says that the index cannot tell now.
var errReindexing = errors.New("the index is damaged and is being built anew")

// openLiveIndex opens the index in the folder.
func openLiveIndex(cfg index.TableConfig, rebuild func()) (*liveIndex, error) {
	x := &liveIndex{rebuild: rebuild, done: make(chan struct{})}
	cfg.Damaged = x.damaged
	var err error
	if x.table, err = index.OpenTable(cfg); err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	return x, nil
}

// damaged is told by the table, in the middle of a lookup or a merge.
func (x *liveIndex) damaged(why error) {
	x.mu.Lock()
	first := x.why == nil
	if first {
		x.why, x.failed, x.over = why, nil, false
	}
	x.mu.Unlock()
	if first {
		x.rebuild()
	}
}

// whole says whether the index can be asked, and which one it is.
func (x *liveIndex) whole() (round uint64, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.why != nil && !invariant.Planted("journal/ask-half-an-index") {
		return x.round, fmt.Errorf("%w: %w", errReindexing, x.why)
	}
	return x.round, nil
}

// asked calls f, whose answer counts only if the index was the same whole one before
// and after.
func (x *liveIndex) asked(f func() error) error {
	before, err := x.whole()
	if err != nil {
		return err
	}
	err = f()
	if after, now := x.whole(); now != nil || after != before {
		return errors.Join(errReindexing, now, err)
	}
	return err
}

// wait waits until the index was built anew, or could not be: then it says why. It speaks of
// a try that began after it was asked: what an earlier one failed of may be over.
func (x *liveIndex) wait() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	for before := x.begun; x.why != nil; {
		if x.over || x.ended > before || x.failed != nil && invariant.Planted("journal/failed-is-final") {
			return x.failed
		}
		done := x.done
		x.mu.Unlock()
		<-done
		x.mu.Lock()
	}
	return nil
}

// Lookup waits while the index is being built anew.
func (x *liveIndex) Lookup(dst []index.Piece, vol record.VolumeID, off, n int64, at index.Vector) (found []index.Piece, err error) {
	for begin := len(dst); ; {
		found, err = x.LookupNow(dst[:begin], vol, off, n, at)
		if !errors.Is(err, errReindexing) {
			return found, err
		}
		if failed := x.wait(); failed != nil {
			return found, failed
		}
	}
}

// LookupNow is Lookup, but does not wait: errReindexing.
func (x *liveIndex) LookupNow(dst []index.Piece, vol record.VolumeID, off, n int64, at index.Vector) (found []index.Piece, err error) {
	err = x.asked(func() error {
		found, err = x.table.Lookup(dst, vol, off, n, at)
		return err
	})
	return found, err
}

// Walk does not wait: after its error what fn was told is not all.
func (x *liveIndex) Walk(vol record.VolumeID, off, n int64, at index.Vector, from segment.Pos, fn func(index.Piece) error) error {
	return x.asked(func() error { return x.table.Walk(vol, off, n, at, from, fn) })
}

// Stored does not wait.
func (x *liveIndex) Stored(spans []index.Span) (found []index.Place, err error) {
	err = x.asked(func() error {
		found, err = x.table.Stored(spans)
		return err
	})
	return found, err
}

// Add takes a record, or leaves it to the one who rebuilds: it is in the log.
func (x *liveIndex) Add(pos segment.Pos, rec record.Record) error {
	x.changing.Lock()
	defer x.changing.Unlock()
	if x.building || pos < x.upTo {
		return nil
	}
	return x.table.Add(pos, rec)
}

// Freeze returns nil while the index is being built anew.
func (x *liveIndex) Freeze(s index.Snapshot) (write func() error) {
	x.changing.Lock()
	defer x.changing.Unlock()
	if x.building {
		return nil
	}
	return x.table.Freeze(s)
}

// Drop is index.Table's; an index that is being built anew has nothing of what is dropped
// when it is whole again, though the log still had it then.
func (x *liveIndex) Drop(first segment.Pos) error {
	x.changing.Lock()
	defer x.changing.Unlock()
	if x.building {
		x.first = max(x.first, first)
		return nil
	}
	return x.table.Drop(first)
}

// Fold is index.Table's; errReindexing while the index is being built anew.
func (x *liveIndex) Fold(from, to segment.Pos, add func(add func(segment.Pos, record.Record) error) error) error {
	x.changing.Lock()
	defer x.changing.Unlock()
	if x.building {
		return errReindexing
	}
	return x.table.Fold(from, to, add)
}

func (x *liveIndex) Covered() index.Snapshot                            { return x.table.Covered() }
func (x *liveIndex) Memory() int64                                      { return x.table.Memory() }
func (x *liveIndex) Stats() index.TableStats                            { return x.table.Stats() }
func (x *liveIndex) Vector(cp Checkpoint) index.Vector                  { return x.table.Vector(cp) }
func (x *liveIndex) Sum(s record.StreamID, q record.Seq) (uint32, bool) { return x.table.Sum(s, q) }
func (x *liveIndex) Close() error                                       { return x.table.Close() }

// reset forgets all that the index held, damage too. It is for the one who loads it.
func (x *liveIndex) reset() error {
	if err := x.table.Reset(); err != nil {
		return fmt.Errorf("index: %w", err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.why, x.failed = nil, nil
	x.round++
	return nil
}

// giveUp says that nobody builds the index anew any more.
func (x *liveIndex) giveUp(why error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.failed, x.over = why, true
	close(x.done)
	x.done = make(chan struct{})
}

// begin takes the changing of the table away from all others.
func (x *liveIndex) begin() {
	x.changing.Lock()
	defer x.changing.Unlock()
	x.building = true
	x.mu.Lock()
	defer x.mu.Unlock()
	x.begun++
}

// end gives the table back: last brings it up to the place that it returns, while no
// record comes.
func (x *liveIndex) end(last func() (segment.Pos, error)) error {
	x.changing.Lock()
	defer x.changing.Unlock()
	upTo, err := last()
	if err == nil && !invariant.Planted("journal/dropped-is-forgotten") {
		err = x.table.Drop(x.first)
	}
	if err == nil {
		x.building, x.upTo = false, upTo
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ended++
	if x.failed = err; err == nil {
		x.why = nil
		x.round++
	}
	close(x.done)
	x.done = make(chan struct{})
	return err
}

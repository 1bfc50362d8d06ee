package view

import (
	"sync"

	"github.com/holdfast-dr/holdfast/journal/index"
)

// How far is read ahead of someone who reads in order: twice as far each time, from
// aheadLeast on. It is brought into the cache in steps, so that a reader who comes near
// waits for no more than it needs.
const (
	aheadLeast = 256 << 10
	aheadMost  = 2 << 20
	aheadStep  = 256 << 10
	aheadRow   = 3 // reads in order that start it
)

// ahead brings what a reader in order will want next into the cache. Several such
// readers of one disk are not told apart: their order is not seen, and they read as
// others do.
type ahead struct {
	mu    sync.Mutex
	next  int64 // where the last read ended
	row   int   // how many reads began where the one before ended
	bytes int64 // of the next stretch
	upTo  int64 // what was brought, or is being brought, ends here

	// The stretch that is being brought.
	running bool
	done    int64     // up to where it is in the cache
	moved   sync.Cond // done, or running
}

// reading tells of a read that is about to begin, waits until what of it is being
// brought is here, and begins the next stretch when it is time. Who must not wait is told false instead of that, and
// has told of nothing.
func (d *Device) reading(off, n int64, mayWait bool) bool {
	a := &d.ahead
	a.mu.Lock()
	defer a.mu.Unlock()
	if !mayWait && a.comes(off, n) {
		return false
	}
	if off == a.next {
		a.row++
	} else {
		a.row, a.bytes, a.upTo = 0, aheadLeast, 0
	}
	a.next = off + n
	for a.comes(off, n) {
		a.moved.Wait()
	}
	if a.row < aheadRow || a.running || n > aheadStep {
		return true
	}
	from := max(a.upTo, a.next)
	if from-a.next > a.bytes/2 || from >= d.disk.Bytes {
		return true
	}
	a.done, a.upTo = from, min(from+a.bytes, d.disk.Bytes)
	a.bytes = min(2*a.bytes, aheadMost)
	a.running = true
	to := a.upTo
	d.view.ahead.Go(func() { d.bring(from, to) })
	return true
}

// comes says whether a part of the range is being brought, and soon here.
func (a *ahead) comes(off, n int64) bool {
	return a.running && off < a.upTo && off+n > a.done && a.done < a.upTo && off >= a.done-aheadStep
}

// bring brings the blocks of [from, to) into the cache. What does not read is left for
// the reader to find.
func (d *Device) bring(from, to int64) {
	cfg := &d.view.cfg
	var pieces []index.Piece
	for off := from; off < to; off += aheadStep {
		n := min(aheadStep, to-off)
		var err error
		if pieces, err = cfg.Versions.Lookup(pieces[:0], d.disk.ID, off, n, cfg.At); err != nil {
			break
		}
		for i := 0; i < len(pieces) && err == nil; {
			read := 1
			if pieces[i].In == index.InLog {
				read, err = d.view.readLog(nil, 0, pieces[i:])
			}
			i += read
		}
		d.ahead.mu.Lock()
		d.ahead.done = off + n
		d.ahead.moved.Broadcast()
		d.ahead.mu.Unlock()
		if err != nil {
			break
		}
	}
	d.ahead.mu.Lock()
	defer d.ahead.mu.Unlock()
	d.ahead.running = false
	d.ahead.moved.Broadcast()
}

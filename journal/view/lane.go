package view

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Lender is a Log that lends its files to who reads them by a loop.
type Lender interface {
	Lend(pos segment.Pos, n int) (segment.Loan, error)
}

// LaneReplica is a Replica that can be read by a loop.
type LaneReplica interface {
	Loop(entries int) (*ioengine.Loop, error)
	ReadBy(loop *ioengine.Loop, p []byte, off int64, done func(error)) bool
}

// LanePlain is a Plain that can be read by a loop.
type LanePlain interface {
	ReadBy(loop *ioengine.Loop, p []byte, off int64, done func(error)) bool
}

var _ Lender = (*segment.Log)(nil)

// laneRead is a read by a loop that waits for the disk.
type laneRead struct {
	d      *Device
	p      []byte
	off    int64
	pieces []index.Piece
	done   func(error)

	// Of the log.
	loan   segment.Loan
	mem    []byte // aligned
	parts  [1][]byte
	skip   int // in mem, where the blocks begin
	stored int

	words [scratchMost]word // of scratch

	ended func(int, error) // by the log's file
	wrote func(int, error) // by that of scratch
	told  func(error)      // by the replica
}

var laneReads sync.Pool // of *laneRead

// lookups is what it costs of late to look up where a read is found, in ns: what takes longer than quickLookup waits for a disk, and is not for
// a loop's goroutine, on which others wait.
type lookups struct{ cost atomic.Int64 }

// laneBytes is the most that is read of the log at once: a block that does not compress, wherever it begins.
const laneBytes = 2*record.LineBytes + 2*buf.Align

// scratchMost is how many blocks of scratch are read at once.
const scratchMost = 64

const quickLookup = 50 * time.Microsecond

// slow says that it does. After a while one is tried again.
func (l *lookups) slow() bool {
	c := l.cost.Load()
	if c < int64(quickLookup) {
		return false
	}
	l.cost.Store(c - c/8)
	return true
}

// Loop makes a loop that the device can be read by. ErrNoLoop: there is none.
func (d *Device) Loop(entries int) (*ioengine.Loop, error) {
	r, ok := d.disk.Replica.(LaneReplica)
	if !ok {
		return nil, fmt.Errorf("%w: a replica that is no file", ioengine.ErrNoLoop)
	}
	return r.Loop(entries)
}

// ReadBy begins to fill p by a loop, and calls done once, with what ReadAt would return: in this call, from the loop's Step, or on a
// goroutine. False: it is not begun, and ReadAt is to be asked, which may wait. It is for the loop's goroutine.
//
// What is read so is in one row of the log or of scratch, or in the replica, and as it should be; all else ReadAt does.
func (d *Device) ReadBy(loop *ioengine.Loop, p []byte, off int64, done func(error)) bool {
	if len(p) == 0 || d.lookups.slow() || !d.view.life.TryRLock() { // who waits for the lock may wait for a read of this loop
		return false
	}
	if d.entered(off, int64(len(p))) != nil {
		return false
	}
	r, ok := laneReads.Get().(*laneRead)
	if !ok {
		r = &laneRead{mem: buf.Aligned(laneBytes)}
		r.ended, r.wrote, r.told = r.end, r.endScratch, r.tell
	}
	r.d, r.p, r.off, r.done = d, p, off, done
	if begun, ended := r.begin(loop); ended {
		r.recycle()
		done(nil)
	} else if !begun {
		r.recycle()
		return false
	}
	return true
}

// begin begins the read, or ends it at once.
func (r *laneRead) begin(loop *ioengine.Loop) (begun, ended bool) {
	d, n := r.d, int64(len(r.p))
	if s := d.scratch; s != nil {
		switch in, where := s.blocks.run(r.off, n); {
		case in < n:
			return false, false
		case where == inFile:
			return r.scratch(loop), false
		case where == inZeros:
			clear(r.p)
			return true, true
		}
	}
	if d.plain != nil {
		plain, ok := d.plain.(LanePlain)
		return ok && plain.ReadBy(loop, r.p, r.off, r.told), false
	}
	if !d.reading(r.off, n, false) {
		return false, false
	}
	cfg := &d.view.cfg
	var err error
	began := time.Now()
	r.pieces, err = cfg.Versions.Lookup(r.pieces[:0], d.disk.ID, r.off, n, cfg.At)
	c := d.lookups.cost.Load()
	d.lookups.cost.Store(c + (int64(time.Since(began))-c)/8)
	if err != nil {
		return false, false
	}
	switch first := &r.pieces[0]; {
	case first.In == index.InLog:
		return r.log(loop)
	case len(r.pieces) > 1:
		return false, false
	case first.In == index.IsZero:
		clear(r.p)
		return true, true
	}
	replica, ok := d.disk.Replica.(LaneReplica)
	return ok && replica.ReadBy(loop, r.p, r.off, r.told), false
}

// scratch begins a read of what the view has written, where that stands in one row of slots.
func (r *laneRead) scratch(loop *ioengine.Loop) bool {
	s, count := r.d.scratch, len(r.p)/blockBytes
	if s.failure() != nil || r.off%blockBytes != 0 || len(r.p)%blockBytes != 0 || count > len(r.words) {
		return false
	}
	for i := range count {
		w := s.blocks.at(r.off/blockBytes + int64(i))
		if w.place() != inFile || i > 0 && w.slot() != r.words[0].slot()+uint32(i) {
			return false
		}
		r.words[i] = w
	}
	r.parts[0] = r.p
	return loop.Read(s.files.Load().data, r.parts[:], slotAt(r.words[0].slot()), r.wrote)
}

// endScratch is what the loop says of scratch. A block may have been written meanwhile, and its slot then too.
func (r *laneRead) endScratch(_ int, err error) {
	s := r.d.scratch
	for i := 0; err == nil && i < len(r.p)/blockBytes; i++ {
		if block := r.off/blockBytes + int64(i); !s.verifies(r.p[i*blockBytes:], block, r.words[i]) {
			err = fmt.Errorf("scratch: block %d: checksum: %w", block, ErrCorrupt)
		}
	}
	r.tell(err)
}

// log begins a read of the log.
func (r *laneRead) log(loop *ioengine.Loop) (begun, ended bool) {
	v := r.d.view
	lender, ok := v.cfg.Log.(Lender)
	if !ok {
		return false, false
	}
	count, stored := v.together(r.pieces)
	if count < len(r.pieces) {
		return false, false
	}
	if block, ok := v.cfg.Cache.Get(v.key(&r.pieces[0])); ok && count == 1 {
		in := give(r.p, r.off, &r.pieces[0], block) == nil // or only a beginning of it is kept
		return in, in
	}
	var err error
	if r.loan, err = lender.Lend(start(&r.pieces[0]), stored); err != nil {
		return false, false
	}
	begin, n := r.loan.Off, stored
	if r.loan.File.Align() > 1 {
		begin &^= buf.Align - 1
		n = buf.RoundUp(int(r.loan.Off-begin) + stored)
	}
	if n > len(r.mem) {
		r.loan.Return()
		return false, false
	}
	r.skip, r.stored = int(r.loan.Off-begin), stored
	r.parts[0] = r.mem[:n]
	if !loop.Read(r.loan.File, r.parts[:], begin, r.ended) {
		r.loan.Return()
		return false, false
	}
	return true, false
}

// end is what the loop says of the log.
func (r *laneRead) end(_ int, err error) {
	r.loan.Return()
	if err == nil {
		err = r.d.view.openSpan(r.p, r.off, r.pieces, r.mem[r.skip:][:r.stored])
	}
	r.tell(err)
}

// tell ends the read. What did not succeed, for whatever reason, is read again by who may wait, looks again, and has repaired what is damaged.
func (r *laneRead) tell(err error) {
	d, p, off, done := r.d, r.p, r.off, r.done
	r.recycle()
	if err != nil && !invariant.Planted("journal/view/lane-error-untold") {
		go func() { done(d.ReadAt(p, off)) }()
		return
	}
	done(nil)
}

// recycle lets go of the device and of the read.
func (r *laneRead) recycle() {
	r.d.leave()
	r.d, r.p, r.done, r.loan = nil, nil, nil, segment.Loan{}
	laneReads.Put(r)
}

package view

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Device is one disk of a view. Offsets and lengths are in bytes, inside [0, Size()),
// of any alignment. Calls may run concurrently; of writes that overlap, each block
// holds one or the other, or both where they differ in place.
type Device struct {
	view    *View
	disk    Disk
	scratch *scratch // nil: read-only
	ahead   ahead
	lookups lookups
	plain   Plain       // what lies beneath is written to; nil: it is not. Set while no call is inside
	alone   atomic.Bool // and all stands there, durably: scratch tells of nothing any more, and never will
}

// Size returns the disk's size in bytes.
func (d *Device) Size() int64 { return d.disk.Bytes }

// ReadOnly says whether writes are refused.
func (d *Device) ReadOnly() bool { return d.scratch == nil || d.view.cfg.ReadOnly }

// enter lets a call in; leave must follow.
func (d *Device) enter(off, n int64) error {
	d.view.life.RLock()
	return d.entered(off, n)
}

// entered is enter of who has the lock; with an error it has it no more.
func (d *Device) entered(off, n int64) error {
	var err error
	if d.view.closed {
		err = ErrClosed
	} else if off < 0 || n < 0 || off > d.disk.Bytes || n > d.disk.Bytes-off {
		err = fmt.Errorf("%d bytes at %d of %d: %w", n, off, d.disk.Bytes, ErrRange)
	}
	if err != nil {
		d.view.life.RUnlock()
	}
	return err
}

func (d *Device) leave() { d.view.life.RUnlock() }

// ReadAt fills p with what the checkpoint, and the view's writes over it, hold at
// off. What does not verify is an error; p is then worth nothing.
func (d *Device) ReadAt(p []byte, off int64) error {
	if err := d.enter(off, int64(len(p))); err != nil {
		return err
	}
	defer d.leave()
	if d.alone.Load() {
		return d.plain.ReadAt(p, off)
	}
	for len(p) > 0 {
		n, where := int64(len(p)), inBase
		if d.scratch != nil {
			n, where = d.scratch.blocks.run(off, n)
		}
		var err error
		switch where {
		case inFile:
			var got int
			got, err = d.scratch.read(p[:n], off)
			n, err = int64(got), d.spoiled(err)
		case inZeros:
			clear(p[:n])
		case inBase:
			if d.plain == nil {
				d.reading(off, n, true)
			}
			err = d.beneath(p[:n], off)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// beneath reads what the view has not written.
func (d *Device) beneath(p []byte, off int64) error {
	if d.plain != nil {
		return d.plain.ReadAt(p, off)
	}
	return d.readBase(p, off)
}

// WriteAt writes p into scratch, or into what lies beneath, if that is plain. ErrNoSpace: the limit is reached, and nothing was
// written.
func (d *Device) WriteAt(p []byte, off int64) error {
	if err := d.enter(off, int64(len(p))); err != nil {
		return err
	}
	defer d.leave()
	if d.ReadOnly() {
		return ErrReadOnly
	}
	if len(p) == 0 {
		return nil
	}
	if d.alone.Load() {
		return noSpace(d.plain.WriteAt(p, off))
	}
	first, last := off/blockBytes, (off+int64(len(p))-1)/blockBytes
	s := d.scratch
	defer s.unlock(s.lock(first, last))
	if d.plain != nil {
		return d.passWrite(p, off)
	}
	return d.put(p, off, first, last)
}

// put brings p into scratch, around it what else its blocks hold, and makes the blocks
// the view's own. They are locked. The map is told last: until then the blocks are
// what they were.
func (d *Device) put(p []byte, off, first, last int64) error {
	s := d.scratch
	fresh := last - first + 1 - s.blocks.inFile(first, last)
	if err := d.view.reserve(fresh * blockBytes); err != nil {
		return err
	}
	f, err := s.make()
	if err == nil {
		err = d.putWhole(f, p, off, first, last)
	}
	if err != nil {
		d.view.used.Add(-fresh * blockBytes)
		return noSpace(err)
	}
	s.wrote.Add(1)
	if s.tooLong(f) {
		_ = d.flush() // it is tried again, and a failure that is final is told to the next
	}
	return nil
}

// putWhole puts whole blocks, of which p covers the first and the last perhaps in part.
func (d *Device) putWhole(f *scratchFiles, p []byte, off, first, last int64) (err error) {
	s := d.scratch
	var entries []mapEntry
	if invariant.Planted("journal/view/map-first") {
		e, _ := s.put(f, nil, make([]byte, blockBytes), first)
		if err := s.enter(f, e); err != nil {
			return err
		}
	}
	mem := wholes.Get().(*[blockBytes]byte)
	defer wholes.Put(mem)
	for at := first; at <= last && err == nil; {
		if from := at*blockBytes - off; from >= 0 && int64(len(p))-from >= blockBytes { // as many as are whole
			n := (int64(len(p)) - from) / blockBytes
			entries, err = s.put(f, entries, p[from:from+n*blockBytes], at)
			at += n
			continue
		}
		if err = d.around(mem[:], at, off, int64(len(p))); err == nil {
			lo := max(off, at*blockBytes)
			copy(mem[lo-at*blockBytes:], p[lo-off:])
			entries, err = s.put(f, entries, mem[:], at)
		}
		at++
	}
	took := entries
	if err == nil {
		if err = s.enter(f, entries); err == nil {
			return nil
		}
		for _, e := range took {
			s.slots.doubt(e.slot, int(e.count))
		}
		return err
	}
	for _, e := range took {
		s.slots.giveBack(e.slot, int(e.count))
	}
	return err
}

// noSpace makes a full file system the same to the view's user as a full scratch.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// around fills whole with what a block of the disk holds that [off, off+n) covers only in
// part; behind the end of the disk are zeros. The block is locked.
func (d *Device) around(whole []byte, block, off, n int64) error {
	lo := block * blockBytes
	hi := min(lo+blockBytes, d.disk.Bytes)
	clear(whole)
	if off <= lo && off+n >= hi || invariant.Planted("journal/view/no-copy-up") {
		return nil
	}
	switch w := d.scratch.blocks.at(block); w.place() {
	case inFile:
		return d.spoiled(d.scratch.readLocked(whole, block, w))
	case inBase:
		return d.beneath(whole[:hi-lo], lo)
	}
	return nil
}

// spoiled tells of scratch that does not verify.
func (d *Device) spoiled(err error) error {
	if errors.Is(err, ErrCorrupt) {
		err = fmt.Errorf("volume %d: %w", d.disk.ID, err)
		d.view.spoil(err)
	}
	return err
}

// wholes are blocks on their way up.
var wholes = sync.Pool{New: func() any { return new([blockBytes]byte) }}

// Zero makes the range read as zeros; whole blocks take no space.
func (d *Device) Zero(off, n int64) error {
	if err := d.enter(off, n); err != nil {
		return err
	}
	defer d.leave()
	if d.ReadOnly() {
		return ErrReadOnly
	}
	if n == 0 {
		return nil
	}
	if d.alone.Load() {
		return noSpace(d.plain.Zero(off, n))
	}
	defer d.scratch.unlock(d.scratch.lock(off/blockBytes, (off+n-1)/blockBytes))
	if d.plain != nil {
		return d.passZero(off, n)
	}
	return d.zeroLocked(off, n)
}

// zeroLocked makes the range zeros in scratch. Its blocks are locked.
func (d *Device) zeroLocked(off, n int64) error {
	end := off + n
	if part := min((blockBytes-off%blockBytes)%blockBytes, n); part != 0 {
		if err := d.writeZeros(off, part); err != nil {
			return err
		}
		off += part
	}
	if part := end % blockBytes; part != 0 && end > off && end != d.disk.Bytes {
		end -= part
		if err := d.writeZeros(end, part); err != nil {
			return err
		}
	}
	if end <= off {
		return nil
	}
	s := d.scratch
	first, last := off/blockBytes, (end-1)/blockBytes
	f, err := s.make()
	if err != nil {
		return noSpace(err)
	}
	held := s.blocks.inFile(first, last)
	if err := s.zero(f, first, last); err != nil {
		return noSpace(err)
	}
	s.wrote.Add(1)
	d.view.used.Add(-held * blockBytes)
	return nil
}

// writeZeros zeroes a part of one block, which is locked and thereby comes to take space, unless it
// is zeros already.
func (d *Device) writeZeros(off, n int64) error {
	block := off / blockBytes
	if d.scratch.blocks.where(block) == inZeros {
		return nil
	}
	return d.put(zeros[:n], off, block, block)
}

var zeros [blockBytes]byte

// Flush makes durable what was answered before it. ErrFailed: it never will be, nor
// anything after it.
func (d *Device) Flush() error {
	if err := d.enter(0, 0); err != nil {
		return err
	}
	defer d.leave()
	if d.scratch == nil {
		return nil
	}
	return d.flush()
}

// flush makes scratch durable before what lies beneath it: a map that a crash takes back would show what scratch had held
// over what was written there since.
func (d *Device) flush() error {
	var err error
	if !d.alone.Load() {
		err = d.scratch.flush()
	}
	if err == nil && d.plain != nil && !invariant.Planted("journal/view/pass-unsynced") {
		if err = d.plain.Sync(); err != nil {
			err = fmt.Errorf("%w: %w", ErrFailed, err)
		}
	}
	if errors.Is(err, ErrFailed) {
		d.view.fail(err)
	}
	return noSpace(err)
}

// Extents tells what stands in [off, off+n), in order and without gaps, until emit
// returns false. A hole reads as zeros; what is no hole may do so too.
func (d *Device) Extents(off, n int64, emit func(n int64, hole bool) bool) error {
	if err := d.enter(off, n); err != nil {
		return err
	}
	defer d.leave()
	more := true
	tell := func(n int64, hole bool) bool { more = emit(n, hole); return more }
	for end := off + n; off < end && more; {
		k, where := end-off, inBase
		if d.scratch != nil {
			k, where = d.scratch.blocks.run(off, k)
		}
		if where != inBase {
			tell(k, where == inZeros)
		} else if d.plain != nil {
			if err := d.plain.Extents(off, k, tell); err != nil {
				return err
			}
		} else if err := d.baseExtents(off, k, tell); err != nil {
			return err
		}
		off += k
	}
	return nil
}

package view

import (
	"errors"
	"fmt"
	"sync"
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
}

// Size returns the disk's size in bytes.
func (d *Device) Size() int64 { return d.disk.Bytes }

// ReadOnly says whether writes are refused.
func (d *Device) ReadOnly() bool { return d.scratch == nil || d.view.cfg.ReadOnly }

// enter lets a call in; leave must follow.
func (d *Device) enter(off, n int64) error {
	d.view.life.RLock()
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
	for len(p) > 0 {
		n, where := int64(len(p)), inBase
		if d.scratch != nil {
			n, where = d.scratch.blocks.run(off, n)
		}
		var err error
		switch where {
		case inFile:
			err = d.scratch.readAt(p[:n], off)
		case inZeros:
			clear(p[:n])
		case inBase:
			d.reading(off, n)
			err = d.readBase(p[:n], off)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// WriteAt writes p into scratch. ErrNoSpace: the limit is reached, and nothing was
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
	first, last := off/blockBytes, (off+int64(len(p))-1)/blockBytes
	s := d.scratch
	defer s.unlock(s.lock(first, last))
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
	if invariant.Planted("journal/view/map-first") && err == nil && fresh > 0 {
		err = s.enter(f, first, last, inFile)
	}
	if err == nil {
		err = d.copyUp(f, first, off, int64(len(p)))
	}
	if err == nil && last != first {
		err = d.copyUp(f, last, off, int64(len(p)))
	}
	if err == nil {
		err = s.put(f, p, off)
	}
	if err == nil && fresh > 0 && !invariant.Planted("journal/view/map-first") {
		err = s.enter(f, first, last, inFile)
	}
	if err != nil {
		d.view.used.Add(-fresh * blockBytes)
		return noSpace(err)
	}
	s.wrote.Add(1)
	return nil
}

// noSpace makes a full file system the same to the view's user as a full scratch.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// copyUp brings a block into the data file that [off, off+n) covers only in part, so
// that the file holds whole blocks. The block is locked.
func (d *Device) copyUp(f *scratchFiles, block, off, n int64) error {
	lo := block * blockBytes
	hi := min(lo+blockBytes, d.disk.Bytes)
	if off <= lo && off+n >= hi || invariant.Planted("journal/view/no-copy-up") {
		return nil
	}
	mem := wholes.Get().(*[blockBytes]byte)
	defer wholes.Put(mem)
	whole := mem[:hi-lo]
	switch d.scratch.blocks.where(block) {
	case inFile:
		return nil
	case inZeros: // what the file has there is not known
		clear(whole)
	case inBase:
		if err := d.readBase(whole, lo); err != nil {
			return err
		}
	}
	return d.scratch.put(f, whole, lo)
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
	defer s.unlock(s.lock(first, last))
	f, err := s.make()
	if err != nil {
		return noSpace(err)
	}
	held := s.blocks.inFile(first, last)
	if err := s.enter(f, first, last, inZeros); err != nil {
		return noSpace(err)
	}
	s.wrote.Add(1)
	d.view.used.Add(-held * blockBytes)
	if held > 0 {
		_ = f.data.Zero(off, end-off) // the map says what is read there: only space is not given back
	}
	return nil
}

// writeZeros zeroes a part of one block, which thereby comes to take space, unless it
// is zeros already.
func (d *Device) writeZeros(off, n int64) error {
	block := off / blockBytes
	s := d.scratch
	defer s.unlock(s.lock(block, block))
	if s.blocks.where(block) == inZeros {
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
	err := d.scratch.flush()
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
		} else if err := d.baseExtents(off, k, tell); err != nil {
			return err
		}
		off += k
	}
	return nil
}

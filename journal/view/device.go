package view

import (
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Device is one disk of a view. Offsets and lengths are in bytes, inside [0, Size()),
// of any alignment. Calls may run concurrently; of writes that overlap, each block
// holds one or the other, or both where they differ in place.
type Device struct {
	view    *View
	disk    Disk
	scratch *scratch // nil: read-only
}

// Size returns the disk's size in bytes.
func (d *Device) Size() int64 { return d.disk.Bytes }

// ReadOnly says whether writes are refused.
func (d *Device) ReadOnly() bool { return d.scratch == nil }

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
			n, where = d.scratch.run(off, n)
		}
		var err error
		switch where {
		case inFile:
			err = d.scratch.readAt(p[:n], off)
		case inZeros:
			clear(p[:n])
		case inBase:
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
	if d.scratch == nil {
		return ErrReadOnly
	}
	if len(p) == 0 {
		return nil
	}
	first, last := off/blockBytes, (off+int64(len(p))-1)/blockBytes
	defer d.scratch.lock(first, last)()
	fresh := d.scratch.unbacked(first, last) * blockBytes
	if err := d.view.reserve(fresh); err != nil {
		return err
	}
	if err := d.put(p, off, first, last); err != nil {
		d.view.used.Add(-fresh)
		return err
	}
	d.scratch.set(first, last)
	return nil
}

// put brings p into the file, around it what else its blocks hold. They are locked.
func (d *Device) put(p []byte, off, first, last int64) error {
	err := d.copyUp(first, off, int64(len(p)))
	if err == nil && last != first {
		err = d.copyUp(last, off, int64(len(p)))
	}
	if err == nil {
		err = d.scratch.writeAt(p, off)
	}
	return err
}

// copyUp brings a block into scratch that [off, off+n) covers only in part, so that
// scratch holds whole blocks. The block is locked.
func (d *Device) copyUp(block, off, n int64) error {
	lo := block * blockBytes
	hi := min(lo+blockBytes, d.disk.Bytes)
	if off <= lo && off+n >= hi || d.scratch.has(block) || invariant.Planted("journal/view/no-copy-up") {
		return nil
	}
	var whole [blockBytes]byte
	if err := d.readBase(whole[:hi-lo], lo); err != nil {
		return err
	}
	return d.scratch.writeAt(whole[:hi-lo], lo)
}

// Zero makes the range read as zeros; whole blocks take no space.
func (d *Device) Zero(off, n int64) error {
	if err := d.enter(off, n); err != nil {
		return err
	}
	defer d.leave()
	if d.scratch == nil {
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
	first, last := off/blockBytes, (end-1)/blockBytes
	defer d.scratch.lock(first, last)()
	if err := d.scratch.file.Zero(off, end-off); err != nil {
		return fmt.Errorf("scratch: %w", err)
	}
	backed := last - first + 1 - d.scratch.unbacked(first, last)
	d.scratch.setZero(first, last)
	d.view.used.Add(-backed * blockBytes)
	return nil
}

// writeZeros zeroes a part of one block, which thereby comes to take space.
func (d *Device) writeZeros(off, n int64) error {
	block := off / blockBytes
	defer d.scratch.lock(block, block)()
	fresh := d.scratch.unbacked(block, block) * blockBytes
	if err := d.view.reserve(fresh); err != nil {
		return err
	}
	var zeros [blockBytes]byte
	if err := d.put(zeros[:n], off, block, block); err != nil {
		d.view.used.Add(-fresh)
		return err
	}
	d.scratch.set(block, block)
	return nil
}

// Flush is answered at once: a view's writes live as long as the view, which does not
// outlive its process.
func (d *Device) Flush() error {
	if err := d.enter(0, 0); err != nil {
		return err
	}
	d.leave()
	return nil
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
			k, where = d.scratch.run(off, k)
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

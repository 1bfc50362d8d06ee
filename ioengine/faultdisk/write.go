package faultdisk

import (
	"bytes"
	"errors"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// WriteAt writes p, or what a fault leaves of it.
func (h *handle) WriteAt(p []byte, off int64) (n int, err error) {
	d := h.disk
	fault := d.begin(OpWrite, h.name)
	d.mu.Lock()
	c, err := h.writeLocked(fault, p, off)
	if c.n > 0 {
		d.changeLocked(h.file, c)
	}
	d.mu.Unlock()
	d.callHook(OpWrite, h.name)
	switch {
	case err == nil:
		n = len(p)
	case fault.Short:
		n = int(c.n)
	}
	return n, h.wrap("write", err)
}

// WriteParts is WriteAt of what the parts hold.
func (h *handle) WriteParts(parts [][]byte, off int64) error {
	if len(parts) > ioengine.MaxParts {
		panic("BUG: a write of more parts than there may be")
	}
	_, err := h.WriteAt(slices.Concat(parts...), off)
	return err
}

// writeLocked returns what a write of p changes; nothing when n is 0.
func (h *handle) writeLocked(fault Fault, p []byte, off int64) (change, error) {
	err := h.checkLocked(OpWrite, p, off)
	if err != nil {
		return change{}, err
	}
	if err = fault.Err; err != nil {
		half := 0
		if fault.Short {
			half = len(p) / 2 &^ (sectorBytes - 1)
		}
		p = p[:half]
	}
	if fault.Lose {
		return change{}, err
	}
	return change{kind: changeWrite, off: max(off+fault.Shift, 0), n: int64(len(p)), data: bytes.Clone(p)}, err
}

// WriteStart counts as the write, with its hook called, when it starts; it ends on a
// goroutine of its own, after the stall if the fault says so. What the parts hold at the end is
// what was written: who changes them before spoils the file.
func (h *handle) WriteStart(parts [][]byte, off int64, done func(error)) {
	if len(parts) > ioengine.MaxParts {
		panic("BUG: a write of more parts than there may be")
	}
	d, p := h.disk, slices.Concat(parts...)
	fault := d.count(OpWrite, h.name)
	d.mu.Lock()
	c, err := h.writeLocked(fault, p, off)
	if c.n > 0 {
		c.flying = !invariant.Planted("ioengine/faultdisk/lands-at-once")
		d.changeLocked(h.file, c)
		c.at = d.mu.clock
	}
	counted := !h.closed
	if counted {
		h.flying.Add(1)
	}
	d.mu.Unlock()
	d.callHook(OpWrite, h.name)
	go func() {
		if fault.Stall != nil {
			<-fault.Stall
		}
		d.mu.Lock()
		h.file.land(c.at, slices.Concat(parts...))
		d.mu.Unlock()
		if counted {
			h.flying.Done()
		}
		done(h.wrap("write", err))
	}()
}

// land ends the write that is change number at, with what its memory holds now.
func (f *file) land(at int, p []byte) {
	for i := range f.pending {
		c := &f.pending[i]
		if c.at != at || !c.flying {
			continue
		}
		if now := p[:c.n]; !bytes.Equal(now, c.data) {
			c.data = bytes.Clone(now) // copies of the disk share the old one
		}
		c.flying = false
		c.apply(&f.now)
	}
}

// SyncFiles is one operation for each file, in order; when one fails, all have failed.
func (d *Disk) SyncFiles(files []ioengine.File) (err error) {
	for _, f := range files {
		err = errors.Join(err, f.Sync())
	}
	if err == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range files {
		if h, ours := f.(*handle); ours {
			h.distrusted = err
			h.file.failSync()
		}
	}
	return err
}

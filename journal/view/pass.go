package view

import (
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Plain is a disk beneath a view that is written as it is: no sum tells what it should hold. Calls may run concurrently.
type Plain interface {
	ReadAt(p []byte, off int64) error
	WriteAt(p []byte, off int64) error
	Zero(off, n int64) error
	// Sync makes durable what was written before. An error is final.
	Sync() error
	Extents(off, n int64, emit func(n int64, hole bool) bool) error
}

// Pass has the view write to the disks that lie beneath it, and read them alone, as Rebase does. What stands in
// scratch stays the truth, and is written there, until Settle has moved it; no other block comes to stand there. It is for good: who opens
// the view again passes before it is used. Calls on its devices wait until those under way have ended, and for nothing else.
func (v *View) Pass(disk func(record.VolumeID) Plain) {
	v.Rebase()
	v.life.Lock()
	defer v.life.Unlock()
	for _, d := range v.devices {
		if d.plain == nil && d.scratch != nil {
			d.plain = disk(d.disk.ID)
		}
	}
}

// Passed says whether the disks hold all that the view shows, durably but for what was not flushed since: from then on it
// does nothing but pass what it is asked for to them.
func (v *View) Passed() bool {
	for _, d := range v.devices {
		if !d.alone.Load() {
			return false
		}
	}
	return true
}

// plainly is the device's plain disk; nil: it has none.
func (d *Device) plainly() Plain {
	d.view.life.RLock()
	defer d.view.life.RUnlock()
	return d.plain
}

// standsAlone ends the part that scratch has in a disk that passes, once it holds nothing of it and that is durable.
func (d *Device) standsAlone() error {
	if err := d.enter(0, 0); err != nil {
		return err
	}
	defer d.leave()
	if d.plain == nil || d.alone.Load() {
		return nil
	}
	empty := true
	d.scratch.blocks.each(func(int64, int64, word) bool {
		empty = false
		return false
	})
	if !empty {
		return nil
	}
	if err := d.flush(); err != nil {
		return err
	}
	d.alone.Store(true)
	return nil
}

// eachRun calls do with the parts of a range, whose blocks are locked, that stand in one place each.
func (d *Device) eachRun(off, n int64, do func(off, n int64, where place) error) error {
	for n > 0 {
		k, where := d.scratch.blocks.run(off, n)
		if err := do(off, k, where); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// passWrite writes what scratch holds to scratch, and all else beneath. The blocks are locked.
func (d *Device) passWrite(p []byte, off int64) error {
	return d.eachRun(off, int64(len(p)), func(at, n int64, where place) error {
		part := p[at-off:][:n]
		if where == inBase || invariant.Planted("journal/view/passes-by") {
			return noSpace(d.plain.WriteAt(part, at))
		}
		return d.put(part, at, at/blockBytes, (at+n-1)/blockBytes)
	})
}

// passZero is passWrite of zeros.
func (d *Device) passZero(off, n int64) error {
	return d.eachRun(off, n, func(at, n int64, where place) error {
		switch where {
		case inBase:
			return noSpace(d.plain.Zero(at, n))
		case inZeros:
			return nil
		}
		return d.zeroLocked(at, n)
	})
}

// into moves what scratch holds into a plain disk.
type into struct{ Plain }

// Put implements Below.
func (i into) Put(parts []Part) (err error) {
	for _, p := range parts {
		if p.Data == nil {
			err = i.Zero(p.Off, p.Len)
		} else {
			err = i.WriteAt(p.Data, p.Off)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

package capture

import (
	"cmp"
	"errors"
	"fmt"
	"time"
)

// A disk grows under its guest: somebody made the file or the volume larger, and has the filter look (Filter.Grow).
// What is new is all dirty, whatever it holds, and lost tells of it: no checkpoint is cut before a resync has read
// it. So the order of things is
//
//	the activity log is made anew for the larger disk, and takes in the regions of what is new;
//	the marks move to a larger file, with what is new dirty, and lost is added to;
//	the VRA can see the size, and only then a guest may use it.
//
// A kill at any step leaves the disk at one of its two sizes with marks that tell all; the filter that follows finds
// the larger disk when it opens it.

// growWait is how long Grow waits for disks to answer.
const growWait = 10 * time.Second

// errGrowing says that a disk was asked for its size, and has not answered.
var errGrowing = errors.New("its disk does not answer: the guest has the size that it had, until it does")

// Grow takes the sizes of disks that are larger by now, and returns the names of their volumes. Their guests may use
// what is new once told is called, from any goroutine, with the volume's name; all of it is dirty. Each disk is asked by itself: one that
// does not answer in ten seconds is an error, holds up no other, and is told of later, once it does.
func (f *Filter) Grow(told func(volume string)) (grown []string, err error) {
	type answer struct {
		v     *volume
		grown bool
		err   error
	}
	answers := make(chan answer, len(f.volumes))
	open := make(map[*volume]bool)
	for _, v := range f.volumes {
		open[v] = true
		f.growths.Go(func() {
			ok, err := v.grow()
			if ok {
				told(v.name)
			}
			answers <- answer{v, ok, err}
		})
	}
	patience := time.NewTimer(cmp.Or(f.cfg.growWait, growWait))
	defer patience.Stop()
	for len(open) > 0 {
		select {
		case a := <-answers:
			delete(open, a.v)
			if a.grown {
				grown = append(grown, a.v.name)
			}
			if a.err != nil {
				err = errors.Join(err, fmt.Errorf("volume %s: %w", a.v.name, a.err))
			}
		case <-patience.C:
			for _, v := range f.volumes {
				if open[v] {
					err = errors.Join(err, fmt.Errorf("volume %s: %w", v.name, errGrowing))
				}
			}
			return grown, err
		}
	}
	return grown, err
}

// grow takes the size that the disk has by now; false: it is the one that is served.
func (v *volume) grow() (bool, error) {
	if !v.growing.TryLock() { // somebody asks it already
		return false, errGrowing
	}
	defer v.growing.Unlock()
	size, err := v.disk.grown()
	if size == 0 || err != nil {
		return false, err
	}
	was := v.disk.size.Load()
	v.activity.Grow(size)
	v.logNew(was, size)
	if err := v.growMarks(size); err != nil {
		return false, err
	}
	v.log.Info("the disk has grown: what is new is dirty", "bytes", size, "before", was)
	v.wake()
	return true, nil
}

// logNew has the regions of [off, end) stand in the activity log.
func (v *volume) logNew(off, end int64) {
	v.mu.Lock()
	stands := v.activity.EnterLocked(off, end)
	v.mu.Unlock()
	if stands != nil {
		v.activity.Wait(stands)
	}
}

// growMarks moves the marks to a larger file, and then the volume has that size. Its memory is set aside, and what is new
// is dirty there, before anybody waits; writes that begin meanwhile wait for as long as the bits that were set before take to be copied.
func (v *volume) growMarks(size int64) error {
	file := v.mu.marks.file // nobody else changes what it is
	id := file.id
	id.bytes = size
	mem, err := mapNewMarks(file.name+".new", id)
	if err != nil {
		return err
	}
	next, fresh := file.larger(mem, id)
	v.turning.Lock()
	defer v.turning.Unlock()
	v.mu.Lock()
	old := file.mem
	had, err := file.takeIn(next)
	if err == nil {
		v.mu.marks.dirty += fresh - had
		v.page.lost.Add(1)
		v.sizeWord.Store(uint64(size))
		v.disk.size.Store(size)
	}
	v.mu.Unlock()
	if err == nil {
		unmapAll(old)
	}
	return err
}

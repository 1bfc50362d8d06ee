package capture

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

// grow takes the size that the disk has by now; false: it is the one that is served.
func (v *volume) grow() (bool, error) {
	v.growing.Lock()
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

// growMarks moves the marks to a larger file, and then the volume has that size. Its memory is set aside before
// anybody waits; writes that begin meanwhile wait for as long as the bits that are set take to be copied.
func (v *volume) growMarks(size int64) error {
	v.mu.Lock()
	file := v.mu.marks.file
	name, id := file.name, file.id
	v.mu.Unlock()
	id.bytes = size
	mem, err := mapNewMarks(name+".new", id)
	if err != nil {
		return err
	}
	v.turning.Lock()
	defer v.turning.Unlock()
	v.mu.Lock()
	old := file.mem
	added, err := file.takeIn(mem, id)
	if err == nil {
		v.mu.marks.dirty += added
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

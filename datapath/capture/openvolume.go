package capture

import (
	"fmt"
	"io"
	"os"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/ioengine/wait"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// openVolume opens the disk and its marks. After anything but a clean close, all that
// was marked is dirty.
func openVolume(cfg FilterConfig, fv FilterVolume, boot bootID, page *orderPage) (_ *volume, err error) {
	if fv.Mirror > 0 {
		fv.Path = "" // QEMU's, who alone opens it
	}
	v := &volume{id: fv.ID, name: fv.Name, path: fv.Path, page: page, log: cfg.Log.With("volume", fv.Name)}
	if fv.Mirror > 0 {
		v.mirror, v.disk = newMirror(v, fv.Mirror, cfg.Dial)
	} else if v.disk, err = openDisk(cfg.FS, fv.Path, fv.Writeback); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			v.closeFiles()
		}
	}()
	v.owned, err = wait.Lock(succeedWait, func() (io.Closer, error) { return own(cfg.FS, v.disk.file, fv.Path) }, ioengine.ErrLocked)
	if err != nil {
		return nil, fmt.Errorf("lock disk: %w", err)
	}
	found := v.readLog(cfg, fv, boot)
	id := marksIdentity{boot: boot, group: cfg.Group, volume: fv.ID, bytes: v.disk.size.Load()}
	file, whole, err := openMarks(cfg.RunDir, id, found.told, func() { page.lost.Add(1) })
	if err != nil {
		return nil, err
	}
	log := v.log
	clean := file.clean().Load() == marksClean
	var elsewhere error
	if whole {
		elsewhere = found.elsewhere(file.log().Load())
	}
	past := whole && (elsewhere != nil || clean && file.mtime().Load() != mtimeOf(fv.Path))
	if !whole || past { // and what another host wrote is not what this one has in its page cache
		v.dropCache()
	}
	marks, moved := recoverMarks(file, whole && clean, page.last)
	v.mu.marks = marks
	if past && !invariant.Planted("capture/past-marked-late") { // before what says so is gone: a filter killed in between says it again
		v.mark(0, v.disk.size.Load())
	}
	file.clean().Store(marksOpen)
	v.openLog(found, whole) // before anything else is marked: it is to know
	switch {
	case !whole && file.log().Load()&logTold != 0:
		log.Info("no marks of this boot: what the activity log tells of is dirty", "blocks", marks.dirty)
		page.lost.Add(1)
	case !whole:
		log.Info("no marks of this boot: everything is dirty")
		page.lost.Add(1)
	case elsewhere != nil:
		log.Warn("the disk may have been served at another host since: everything is dirty", "why", elsewhere)
		v.mark(0, v.disk.size.Load())
	case past:
		log.Warn("somebody wrote to the disk past the filter: everything is dirty", "grown", file.grew)
		v.mark(0, v.disk.size.Load())
	case file.grew:
		log.Info("the disk has grown: what is new, and what the last filter left marked, is dirty", "bytes", v.disk.size.Load(), "blocks", marks.dirty)
		page.lost.Add(1)
	case moved:
		log.Info("the last filter did not close cleanly: what it had marked is dirty", "blocks", marks.dirty)
		page.lost.Add(1)
	}
	v.watched = watch(v.disk.file, fv.Path)
	v.openPast()
	v.look()
	return v, nil
}

// openPast has the volume begin with what an earlier filter noted of who writes past it.
func (v *volume) openPast() {
	past := v.past()
	if past == PastUnsynced {
		v.log.Error("a sync of the disk failed under an earlier filter: no flush succeeds", "until", "holdfast attach --no-guest")
	}
	if past == PastUnsynced || past == PastTold || past == PastSeen || past == PastUnmirrored && v.mirror == nil {
		v.mark(0, v.disk.size.Load()) // whatever the file says: it was written to since
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.mirror == nil && !invariant.Planted("capture/token-outlives-mirror") { // what QEMU notes in its bitmap meanwhile is not all
		v.mu.marks.file.mirror().Store(0)
	}
	switch {
	case v.mirror != nil: // nobody is connected yet
		v.unmirroredLocked()
	case past == PastUnmirrored: // it was a mirror target
		v.mu.marks.file.past().Store(uint64(PastNone))
	}
}

// own takes the disk for this filter alone: the very file that it writes through, so that the
// last write of a predecessor that was killed lands before it is had.
func own(fs ioengine.FS, file ioengine.File, path string) (io.Closer, error) {
	if invariant.Planted("capture/disk-not-held") {
		return io.NopCloser(nil), nil
	}
	if h, ok := file.(ioengine.Holder); ok {
		return io.NopCloser(nil), h.Hold()
	}
	return fs.Lock(path)
}

// mtimeOf is when a plain file was last written, in ns; 0 for what is none.
func mtimeOf(path string) uint64 {
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() {
		return 0
	}
	return uint64(st.ModTime().UnixNano())
}

// close notes that nothing is in flight and that the marks are whole; unless all that
// was published was taken, what is live is dirty first.
func (v *volume) close(taken bool) {
	v.active.Wait()
	if v.disk.cached && !invariant.Planted("capture/close-unsynced") { // whoever serves it next may do so from another host
		if err := v.sync(); err != nil {
			v.log.Error("the disk was not synced", "error", err)
		}
	}
	if !taken {
		v.fold()
	}
	v.turn(record.Ticket(v.page.durable.Load()))
	v.turn(record.Ticket(v.page.durable.Load())) // of the generation just closed
	v.activity.Close(func() uint64 { return mtimeOf(v.path) })
	v.activity = nil
	v.mu.Lock()
	m := v.mu.marks
	m.file.mtime().Store(mtimeOf(v.path))
	m.file.clean().Store(marksClean)
	v.mu.Unlock()
	v.closeFiles()
}

func (v *volume) closeFiles() {
	v.activity.Abandon()
	if v.mu.marks != nil {
		v.mu.marks.file.close()
	}
	if v.owned != nil {
		v.owned.Close()
	}
	if v.watched != nil {
		v.watched.Close()
	}
	if v.disk != nil {
		v.disk.file.Close()
	}
}

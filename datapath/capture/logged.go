package capture

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/capture/activity"
	"github.com/holdfast-dr/holdfast/datapath/capture/activity/regions"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// keepEvery is how often what is marked is written down beside the disk.
const keepEvery = 10 * time.Second

// foundLog is what an earlier filter left in a volume's activity log, and what it is good for now.
type foundLog struct {
	cfg   activity.Config
	log   *activity.Found // nil: none is kept
	mtime uint64          // of the disk
	v     *volume
	tells bool // it told what had changed before this boot
}

// readLog reads the volume's activity log, if it is to have one.
func (v *volume) readLog(cfg FilterConfig, fv FilterVolume, boot bootID) *foundLog {
	f := &foundLog{v: v}
	if fv.Log == "" {
		return f
	}
	f.cfg = activity.Config{
		FS: cfg.FS, Path: fv.Log, Idle: cfg.idleSeconds,
		ID:   activity.Identity{Boot: boot, Group: uint64(cfg.Group), Volume: uint32(fv.ID), Bytes: v.disk.size.Load()},
		Lock: &v.mu, Marks: v.allMarks, Flush: v.sync, Busy: v.busyLocked, Tell: v.tellLocked, Log: v.log,
	}
	if f.cfg.Idle == 0 {
		f.cfg.Idle = activity.IdleSeconds
	}
	f.mtime = mtimeOf(fv.Path)
	f.log = activity.Read(cfg.FS, fv.Log, f.cfg.ID)
	return f
}

// told sets what the log says may have changed before this boot, of which there are no marks.
func (f *foundLog) told(dirty []uint64) bool {
	if f.log == nil {
		return false
	}
	if err := f.log.Tells(f.cfg.ID.Boot, f.mtime); err != nil {
		f.v.log.Info("the activity log does not tell what changed", "why", err)
		return false
	}
	if f.log.Damaged > 0 {
		f.v.log.Warn("parts of the activity log are damaged: all that they are of is dirty", "sectors", f.log.Damaged)
	}
	f.log.Add(dirty, (f.cfg.ID.Bytes+BlockBytes-1)/BlockBytes)
	f.tells = true
	return true
}

var errElsewhere = errors.New("its activity log was kept by another host since")

// elsewhere says why the disk was, or may have been, served at another host since this one did, which has marks of this boot: they know nothing
// of what was written there. Nil: it was not. The log is of another boot; or it was whole here, as the marks' word says, and is gone or tells
// nothing, as one is that the other host could not keep.
func (f *foundLog) elsewhere(word uint64) error {
	switch {
	case f.log == nil:
	case f.log.Elsewhere(f.cfg.ID.Boot) && !invariant.Planted("capture/elsewhere-unseen"):
		return errElsewhere
	case word&logLacks == 0 && f.log.Err() != nil && !invariant.Planted("capture/gone-unseen"):
		return fmt.Errorf("its activity log was whole here, and tells nothing now: %w", f.log.Err())
	}
	return nil
}

// openLog goes on with the log that was found, or makes a new one. whole says that there were marks of this boot.
func (v *volume) openLog(f *foundLog, whole bool) {
	word := v.mu.marks.file.log()
	if f.log == nil {
		word.Or(logLacks) // whoever keeps it next does not go on with what stands there
		return
	}
	follows := f.tells || whole && word.Load()&logLacks == 0 && f.log.Follows(f.cfg.ID.Boot, f.mtime)
	word.Or(logLacks) // until Open has told
	v.activity = activity.Open(f.cfg, f.log, follows)
}

// tellLocked notes how the log is, where a successor and the VRA see it.
func (v *volume) tellLocked(s regions.State) {
	v.mu.log = s
	word := v.mu.marks.file.log()
	if s == regions.On {
		word.And(^uint64(logLacks))
	} else {
		word.Or(logLacks)
	}
	v.showLocked()
}

// How a volume's log is, in the pool's desc: one word a ring. Zero is a filter that keeps none, or of an older release.
const (
	shownKept  = 1 // a log is kept
	shownLacks = 2 // it may lack regions that were written to
	shownTold  = 4 // it told what had changed before this boot

	shownMirror   = 8  // the volume is a mirror target
	shownMirrored = 16 // and its mirror stands
)

func (v *volume) showLocked() {
	if v.logWord == nil {
		return
	}
	var w uint64
	if v.activity != nil {
		w = shownKept
		if v.mu.log != regions.On {
			w |= shownLacks
		}
		if v.mu.marks.file.log().Load()&logTold != 0 {
			w |= shownTold
		}
	}
	if v.mirror != nil {
		w |= shownMirror
		if v.pastLocked() == PastNone {
			w |= shownMirrored
		}
	}
	v.logWord.Store(w)
}

// allMarks sets a bit for each block that is dirty, or was written and is not known to be at the target. Closed
// generations stay as they are meanwhile; a block that moves does so from the dirty map to the current generation.
func (v *volume) allMarks(into []uint64) {
	v.turning.Lock()
	defer v.turning.Unlock()
	v.mu.Lock()
	m := v.mu.marks
	maps := []*bitmap{&m.file.dirty, &m.now.file.bits}
	for _, g := range m.closed {
		maps = append(maps, &g.file.bits)
	}
	v.mu.Unlock()
	for _, b := range maps {
		b.addTo(into)
	}
}

// busyLocked says that a write to a part of [off, end) is in flight.
func (v *volume) busyLocked(off, end int64) bool { return !v.mu.flights.free(off, end) }

// tickLog lets a second of the log pass.
func (v *volume) tickLog() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.activity.TickLocked()
}

// keepLog writes down what is marked of a volume, and lets regions that are idle leave its log, until ctx ends.
func (v *volume) keepLog(ctx context.Context) {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			v.activity.Keep()
		}
	}
}

// showLog begins to show the VRA how the log is.
func (v *volume) showLog(word *atomic.Uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.logWord = word
	v.showLocked()
}

// LogState is how a volume's activity log is, as its filter says.
type LogState struct {
	Kept  bool // there is one; not with a filter of an older release
	Lacks bool // regions were written to that it may not have
	Told  bool // it told what had changed before this boot, and that is dirty
}

// Whole says that a crash of the host leaves it known what changed.
func (s LogState) Whole() bool { return s.Kept && !s.Lacks }

// Logs tells how the activity logs of the volumes are whose filters are connected.
func (t *Tap) Logs() map[record.VolumeID]LogState {
	logs := map[record.VolumeID]LogState{}
	t.shown(func(v VolumeInfo, w uint64) {
		logs[v.ID] = LogState{Kept: w&shownKept != 0, Lacks: w&shownLacks != 0, Told: w&shownTold != 0}
	})
	return logs
}

// shown gives each volume whose filter is connected, and the word that the filter shows of its log.
func (t *Tap) shown(each func(v VolumeInfo, w uint64)) { t.shownAt(descAtLogs, each) }

// shownAt gives each volume whose filter is connected, and its word of those at that place in desc.
func (t *Tap) shownAt(at int64, each func(v VolumeInfo, w uint64)) {
	for _, l := range t.links() {
		l.mu.Lock()
		c, volumes := l.mu.conn, l.mu.volumes
		l.mu.Unlock()
		if c == nil {
			continue
		}
		t.merge.Lock()
		if p := t.poolLocked(c.pool); p != nil {
			p.shown(at, volumes, each)
		}
		t.merge.Unlock()
	}
}

// shown gives each volume of the pool's filter, and its word of those at that place in desc.
func (p *tapPool) shown(at int64, volumes []VolumeInfo, each func(v VolumeInfo, w uint64)) {
	for i, v := range volumes[:min(len(volumes), p.shape.rings)] {
		each(v, word(p.desc, at+8*int64(i)).Load())
	}
}

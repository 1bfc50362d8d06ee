package view

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Errors that a device's user tells apart.
var (
	ErrNoSpace  = errors.New("scratch is full")
	ErrReadOnly = errors.New("view is read-only")
	ErrClosed   = errors.New("view is closed")
	ErrRange    = errors.New("outside the volume")
	// ErrFailed: a sync of scratch has failed, and it is not known what a crash would leave.
	ErrFailed = errors.New("scratch has failed")
)

// Options say what a view may do.
type Options struct {
	Scratch      bool  // take writes
	ScratchLimit int64 // bytes of all volumes together; 0: no limit
}

// Volume is one disk of a view.
type Volume struct {
	ID    record.VolumeID
	Name  string
	Bytes int64
}

// Config says what a view shows. All is borrowed until the view is closed.
type Config struct {
	Checkpoint uint64
	Options
	Disks    []Disk
	Log      Log
	Versions Versions
	At       index.Vector // the checkpoint's place
	// FS and Dir say where scratch files go; Group and Number, which no other view of the
	// group ever had, name them.
	FS     ioengine.FS
	Dir    string
	Group  record.GroupID
	Number uint64
	// Again finds what was written to the view of that number before; else its scratch is
	// empty and there must be no files of it. ReadOnly refuses writes all the same.
	Again    bool
	ReadOnly bool
	// Boot names this boot of the machine: what was written in it and not flushed is still
	// there. Zero: that is not known.
	Boot [16]byte
	// Cache keeps blocks that were opened, under Owner; nil: 4 MiB of the view's own.
	Cache *index.Cache
	Owner uint64
	// Steady is held for writing while the log and what Versions tells of it change together;
	// nil: they never do.
	Steady *sync.RWMutex
	// Damaged is called with what did not verify, before the reader is told; nil: nobody is.
	Damaged func(Damage)
	// Repair is called with a piece that did not verify, before Damaged is, and
	// says whether it is worth to read it again; it may wait. nil: nothing is repaired.
	Repair func(Damage) bool
	// Failed is called once, when a sync of scratch has failed; nil: nobody is told.
	Failed func(error)
	// Spoiled is called once, when a block of scratch does not verify; nil: nobody is told.
	Spoiled func(error)
	// Closed is called once the view is closed; nil: nothing is.
	Closed func()
}

// Damage is a piece that a read could not have: a block of the log, whole, or a block
// of the replica (4 KiB of its volume, less at its end).
type Damage struct {
	Volume record.VolumeID
	Piece  index.Piece
	Err    error
}

// Disk is a volume and what lies beneath all its versions.
type Disk struct {
	Volume
	Replica Replica
}

// Log gives back the bytes of the log; segment.Log does.
type Log interface {
	ReadAt(p []byte, pos segment.Pos) error
}

// Versions tells where bytes are; index.Table does.
type Versions interface {
	Lookup(dst []index.Piece, vol record.VolumeID, off, n int64, at index.Vector) ([]index.Piece, error)
}

// Replica is the state before the log; replica.Volume is one.
type Replica interface {
	ReadAt(p []byte, off int64) error
	Extents(off, n int64, emit func(n int64, hole bool) bool) error
}

// View is a group at a checkpoint. It may be used by many goroutines.
type View struct {
	cfg     Config
	devices []*Device
	used    atomic.Int64 // bytes of scratch
	refused atomic.Uint64
	told    sync.Once // that scratch has failed
	spoilt  atomic.Pointer[error]
	ahead   sync.WaitGroup

	life   sync.RWMutex // held for reading by every call of a device
	closed bool
	ended  chan struct{}
}

// New opens a view. ErrCorrupt, ErrFormat: what was written to it before does not open.
func New(cfg Config) (*View, error) {
	if cfg.Cache == nil {
		cfg.Cache = index.NewCache(4 << 20)
		cfg.Owner = cfg.Cache.Owner()
	}
	v := &View{cfg: cfg, ended: make(chan struct{})}
	for _, disk := range cfg.Disks {
		d := &Device{view: v, disk: disk}
		d.ahead.moved.L = &d.ahead.mu
		v.devices = append(v.devices, d)
		if !cfg.Scratch {
			continue
		}
		h := mapHeader{version: version, group: cfg.Group, view: cfg.Number, volume: disk.ID, size: disk.Bytes, life: 1, boot: cfg.Boot}
		if !cfg.Again {
			d.scratch = newScratch(cfg.FS, cfg.Dir, h)
			continue
		}
		s, err := openScratch(cfg.FS, cfg.Dir, h)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("scratch of volume %d: %w", disk.ID, err), v.each((*scratch).close))
		}
		d.scratch = s
		v.used.Add(s.bytes())
	}
	return v, nil
}

// Checkpoint returns the number of the view's checkpoint.
func (v *View) Checkpoint() uint64 { return v.cfg.Checkpoint }

// Number returns the view's own number.
func (v *View) Number() uint64 { return v.cfg.Number }

// Volumes returns the view's disks, ordered by id.
func (v *View) Volumes() []Volume {
	vs := make([]Volume, len(v.devices))
	for i, d := range v.devices {
		vs[i] = d.disk.Volume
	}
	return vs
}

// Device returns the disk of a volume.
func (v *View) Device(vol record.VolumeID) (*Device, bool) {
	for _, d := range v.devices {
		if d.disk.ID == vol {
			return d, true
		}
	}
	return nil, false
}

// ScratchBytes returns how much the view's writes take.
func (v *View) ScratchBytes() int64 { return v.used.Load() }

// Refused returns how many writes failed because scratch was full.
func (v *View) Refused() uint64 { return v.refused.Load() }

// Ended is closed when the view is.
func (v *View) Ended() <-chan struct{} { return v.ended }

// Close ends the view and removes its scratch. It waits for calls on its devices;
// those that come later fail with ErrClosed.
func (v *View) Close() error { return v.end((*scratch).discard) }

// Leave ends the view and leaves its scratch for New with Again. What was written is
// there then unless the machine stops before it was flushed.
func (v *View) Leave() error { return v.end((*scratch).close) }

func (v *View) end(how func(*scratch) error) error {
	v.life.Lock()
	if v.closed {
		v.life.Unlock()
		return nil
	}
	v.closed = true
	v.life.Unlock()
	v.ahead.Wait()
	err := v.each(how)
	close(v.ended)
	if v.cfg.Closed != nil {
		v.cfg.Closed()
	}
	return err
}

func (v *View) each(do func(*scratch) error) error {
	var err error
	for _, d := range v.devices {
		if d.scratch != nil {
			err = errors.Join(err, do(d.scratch))
		}
	}
	return err
}

// reserve takes n bytes of the scratch limit.
func (v *View) reserve(n int64) error {
	if used := v.used.Add(n); n > 0 && v.cfg.ScratchLimit > 0 && used > v.cfg.ScratchLimit && !invariant.Planted("journal/view/limit") {
		v.used.Add(-n)
		v.refused.Add(1)
		return ErrNoSpace
	}
	return nil
}

// fail tells that a sync of scratch has failed.
func (v *View) fail(err error) {
	if v.cfg.Failed != nil {
		v.told.Do(func() { v.cfg.Failed(err) })
	}
}

// spoil tells of the first block of scratch that does not verify.
func (v *View) spoil(err error) {
	if v.spoilt.CompareAndSwap(nil, &err) && v.cfg.Spoiled != nil {
		v.cfg.Spoiled(err)
	}
}

// Spoiled says what the view has written and does not read any more: the first block that
// was met since it was opened. nil: none.
func (v *View) Spoiled() error {
	if err := v.spoilt.Load(); err != nil {
		return *err
	}
	return nil
}

// RemoveScratch removes the files in dir that belong to views that keep does not know.
func RemoveScratch(fs ioengine.FS, dir string, keep func(number uint64) bool) error {
	names, err := fs.List(dir)
	if err != nil {
		return err
	}
	removed := false
	for _, n := range names {
		number, _, _ := strings.Cut(n, "-")
		k, bad := strconv.ParseUint(number, 10, 64)
		if bad == nil && keep(k) {
			continue
		}
		err, removed = errors.Join(err, fs.Remove(path.Join(dir, n))), true
	}
	if removed && err == nil {
		err = fs.SyncDir(dir)
	}
	return err
}

package capture

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Plain is a disk that is served as it is: what a filter does with a volume, by its loops too, and nothing is captured. It is had alone: by QEMU's
// locks, and as a filter has its disk.
type Plain struct {
	disk  *disk
	path  string
	bytes int64
	used  io.Closer
	edges sync.RWMutex // held to write by who changes a block of the disk in part, which others may have parts of, and else to read
}

var _ front.Laned = (*Plain)(nil)

// OpenPlain opens the first bytes of a disk, which may be longer. ErrLocked of ioengine: somebody else has it. held says that this process keeps other filters from
// the disk already, by another opening of it.
func OpenPlain(fs ioengine.FS, path string, bytes int64, held bool) (_ *Plain, err error) {
	d := &Plain{path: path, bytes: bytes}
	if d.disk, err = openDisk(fs, path, false); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if size := d.disk.size.Load(); size < bytes {
		return nil, fmt.Errorf("disk %s: it has %d bytes, and the guest %d", path, size, bytes)
	}
	if h, ok := d.disk.file.(ioengine.Holder); ok && !held {
		if err := h.Hold(); err != nil {
			return nil, err
		}
	}
	d.used, err = ioengine.Use(path)
	return d, err
}

// Close gives the disk back. No call is under way.
func (d *Plain) Close() error {
	err := d.disk.file.Close()
	if d.used != nil {
		err = errors.Join(err, d.used.Close())
	}
	return err
}

// Size implements front.Device.
func (d *Plain) Size() int64 { return d.bytes }

// ReadOnly implements front.Device.
func (d *Plain) ReadOnly() bool { return false }

func (d *Plain) inside(off, n int64) error {
	if off < 0 || n < 0 || off > d.bytes || n > d.bytes-off {
		return fmt.Errorf("disk %s: [%d, +%d) is not within %d bytes", d.path, off, n, d.bytes)
	}
	return nil
}

// ReadAt implements front.Device.
func (d *Plain) ReadAt(p []byte, off int64) error {
	if err := d.inside(off, int64(len(p))); err != nil {
		return err
	}
	return told(d.disk.readAt(p, off))
}

// plainWrite is a write that a caller fills.
type plainWrite struct {
	d    *Plain
	off  int64
	mem  *[]byte // pooled; nil: it is from the heap
	runs [1][]byte
}

// BeginWrite implements front.Device.
func (d *Plain) BeginWrite(off int64, n int) (front.Write, error) {
	if err := d.inside(off, int64(n)); err != nil {
		return nil, err
	}
	w := &plainWrite{d: d, off: off}
	if from := privatesFor(n); from != nil {
		w.mem = from.Get().(*[]byte)
		w.runs[0] = (*w.mem)[:n]
	} else {
		w.runs[0] = buf.Aligned(n)
	}
	return w, nil
}

// Buffers implements front.Write.
func (w *plainWrite) Buffers() [][]byte { return w.runs[:] }

// Commit implements front.Write.
func (w *plainWrite) Commit(fua bool) error {
	err := w.d.write(w.runs[:], w.off)
	w.Abort()
	if err == nil && fua {
		err = w.d.disk.sync()
	}
	return told(err)
}

// Abort implements front.Write.
func (w *plainWrite) Abort() {
	if w.mem != nil {
		privatesFor(len(*w.mem)).Put(w.mem)
	}
	w.mem, w.runs[0] = nil, nil
}

// write waits for the disk.
func (d *Plain) write(runs [][]byte, off int64) error {
	defer d.enter(d.disk.directRuns(runs, off))()
	return d.disk.writeRuns(runs, off)
}

// enter lets a change in, which is one of whole blocks of the disk or not; leave must follow.
func (d *Plain) enter(whole bool) (leave func()) {
	if whole || invariant.Planted("capture/plain-edges") {
		d.edges.RLock()
		return d.edges.RUnlock
	}
	d.edges.Lock()
	return d.edges.Unlock
}

// Zero implements front.Device.
func (d *Plain) Zero(off, n int64, mayUnmap, fua bool) error {
	if err := d.inside(off, n); err != nil {
		return err
	}
	leave := d.enter(off%zeroUnit == 0 && n%zeroUnit == 0)
	err := d.disk.zero(off, n, mayUnmap)
	leave()
	if err == nil && fua {
		err = d.disk.sync()
	}
	return told(err)
}

// Trim implements front.Device.
func (d *Plain) Trim(off, n int64, fua bool) error { return d.Zero(off, n, true, fua) }

// Flush implements front.Device.
func (d *Plain) Flush() error { return told(d.disk.sync()) }

// Extents implements front.Device.
func (d *Plain) Extents(off, n int64, emit func(n int64, hole bool) bool) error {
	if err := d.inside(off, n); err != nil {
		return err
	}
	return d.disk.extents(off, n, emit)
}

// plainLane carries out a queue's requests by the queue's own loop.
type plainLane struct {
	d    *Plain
	loop *ioengine.Loop
	ops  sync.Pool // of *plainOp
}

// plainOp is a read or a write by the loop.
type plainOp struct {
	lane  *plainLane
	parts [][]byte
	off   int64
	write bool
	done  func(error)
	ended func(int, error)
}

// Lane implements front.Laned.
func (d *Plain) Lane(requests int) (front.Lane, error) {
	loop, err := ioengine.NewLoop(d.disk.file, requests)
	if err != nil {
		return nil, err
	}
	a := &plainLane{d: d, loop: loop}
	a.ops.New = func() any {
		op := &plainOp{lane: a}
		op.ended = op.end
		return op
	}
	return a, nil
}

// Loop implements front.Lane.
func (a *plainLane) Loop() *ioengine.Loop { return a.loop }

// Write implements front.Lane: what Pass did not take waits for others, or goes by a buffer.
func (a *plainLane) Write(w front.Write, done func(error)) {
	go func() { done(w.Commit(false)) }()
}

// Pass implements front.Lane. It waits for nobody: who changes a part of a block may be waiting for a write of this loop.
func (a *plainLane) Pass(parts [][]byte, off int64, done func(error)) bool {
	d := a.d
	if d.inside(off, int64(ioengine.Bytes(parts))) != nil || !d.disk.directRuns(parts, off) || !d.edges.TryRLock() {
		return false
	}
	op := a.ops.Get().(*plainOp)
	op.parts, op.off, op.write, op.done = parts, off, true, done
	if a.loop.Write(d.disk.file, parts, off, op.ended) {
		return true
	}
	d.edges.RUnlock()
	op.recycle()
	return false
}

// Read implements front.Lane, past any memory of ours.
func (a *plainLane) Read(parts [][]byte, off int64, done func(error)) bool {
	d := a.d
	if d.inside(off, int64(ioengine.Bytes(parts))) != nil || !d.disk.directRuns(parts, off) {
		return false
	}
	op := a.ops.Get().(*plainOp)
	op.parts, op.off, op.write, op.done = parts, off, false, done
	if a.loop.Read(d.disk.file, parts, off, op.ended) {
		return true
	}
	op.recycle()
	return false
}

func (op *plainOp) recycle() {
	op.parts, op.done = nil, nil
	op.lane.ops.Put(op)
}

// end is what the loop says.
func (op *plainOp) end(_ int, err error) {
	if unfinished(err) {
		go func() { op.finish(op.again()) }()
		return
	}
	op.finish(err)
}

// again does all of it, and waits.
func (op *plainOp) again() error {
	if op.write {
		return op.lane.d.disk.writeRuns(op.parts, op.off)
	}
	return op.lane.d.disk.readRuns(op.parts, op.off)
}

func (op *plainOp) finish(err error) {
	done := op.done
	if op.write {
		op.lane.d.edges.RUnlock()
	}
	op.recycle()
	done(told(err))
}

// Looks implements front.Lane.
func (*plainLane) Looks() bool { return false }

// Told implements front.Lane.
func (*plainLane) Told() {}

// Close implements front.Lane.
func (a *plainLane) Close() { a.loop.Close() }

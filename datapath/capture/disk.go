package capture

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
)

// disk is a guest's disk for unaligned use: what is not aligned goes through a bounce
// buffer, and a partial block is read, changed and written. The caller sees to it that
// no two writes touch one aligned block at a time.
type disk struct {
	file  ioengine.File
	align int64
	size  atomic.Int64 // in bytes; it only rises
	// cached: what is written stands in the page cache until a sync, and a write waits for no disk, as a rule.
	cached bool
	busy   atomic.Int64 // calls that wait for it, but for those of loops
}

const bounceBytes = 256 << 10

var bounces = sync.Pool{New: func() any { b := buf.Aligned(bounceBytes); return &b }}

// openDisk opens the disk past the page cache; one that is to be cached, or whose size is no multiple of what
// that needs, is opened through it.
func openDisk(fs ioengine.FS, path string, cached bool) (*disk, error) {
	ways := []ioengine.Flags{ioengine.Direct, 0}
	if cached {
		ways = ways[1:]
	}
	for _, flags := range ways {
		f, err := fs.Open(path, flags)
		if err != nil {
			return nil, err
		}
		size, err := f.Size()
		switch {
		case err != nil:
			return nil, errors.Join(err, f.Close())
		case size <= 0 || size%512 != 0:
			return nil, errors.Join(fmt.Errorf("disk %s: %d bytes is no multiple of 512 above 0", path, size), f.Close())
		case size%int64(f.Align()) == 0 && f.Align() <= buf.Align:
			d := &disk{file: f, align: int64(f.Align()), cached: cached}
			d.size.Store(size)
			return d, nil
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("disk %s: opens aligned even without asking for it", path)
}

// grown is the size that the disk has by now, if it is larger than what is served; else 0.
func (d *disk) grown() (int64, error) {
	size, err := d.file.Size()
	served := d.size.Load()
	switch {
	case err != nil:
		return 0, err
	case size == served:
		return 0, nil
	case size < served:
		return 0, fmt.Errorf("the disk has %d bytes and its guest has %d: a protected disk does not shrink; make it as large as it was", size, served)
	case size%max(512, d.align) != 0:
		return 0, fmt.Errorf("the disk has grown to %d bytes, which is no multiple of %d", size, max(512, d.align))
	}
	return size, nil
}

func (d *disk) down(n int64) int64 { return n - n%d.align }
func (d *disk) up(n int64) int64   { return d.down(n + d.align - 1) }

func (d *disk) direct(p []byte, off int64) bool {
	return off%d.align == 0 && int64(len(p))%d.align == 0 && int64(uintptr(unsafe.Pointer(unsafe.SliceData(p))))%d.align == 0
}

// directRuns says whether the runs may go to the disk, from off on, as they are.
func (d *disk) directRuns(runs [][]byte, off int64) bool {
	for _, p := range runs {
		if len(p) == 0 || !d.direct(p, off) {
			return false
		}
		off += int64(len(p))
	}
	return true
}

// readAt fills p.
func (d *disk) readAt(p []byte, off int64) error {
	d.busy.Add(1)
	defer d.busy.Add(-1)
	if d.direct(p, off) {
		return readFull(d.file, p, off)
	}
	bp := bounces.Get().(*[]byte)
	defer bounces.Put(bp)
	for len(p) > 0 {
		lo := d.down(off)
		hi := min(d.up(off+int64(len(p))), lo+bounceBytes)
		b := (*bp)[:hi-lo]
		if err := readFull(d.file, b, lo); err != nil {
			return err
		}
		n := copy(p, b[off-lo:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func readFull(f io.ReaderAt, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// readRuns fills the runs one behind the other from off on, as they are: directRuns.
func (d *disk) readRuns(runs [][]byte, off int64) error {
	for _, p := range runs {
		if err := readFull(d.file, p, off); err != nil {
			return err
		}
		off += int64(len(p))
	}
	return nil
}

func (d *disk) sync() error {
	d.busy.Add(1)
	defer d.busy.Add(-1)
	return d.file.Sync()
}

// nextData is NextData of the file.
func (d *disk) nextData(off int64) (at, n int64, err error) {
	d.busy.Add(1)
	defer d.busy.Add(-1)
	return d.file.NextData(off)
}

// dataFrom is where data begins at or after off; less than off when only a hole follows.
func (d *disk) dataFrom(off int64) (at int64, err error) {
	d.busy.Add(1)
	defer d.busy.Add(-1)
	if f, ok := d.file.(interface {
		DataFrom(off int64) (at int64, err error)
	}); ok {
		return f.DataFrom(off)
	}
	at, n, err := d.file.NextData(off)
	if n == 0 {
		at = -1
	}
	return at, err
}

// extents tells what stands in [off, off+n), in order and without gaps, until emit returns false.
func (d *disk) extents(off, n int64, emit func(n int64, hole bool) bool) error {
	for end := off + n; off < end; {
		at, size, err := d.nextData(off)
		if err != nil {
			return err
		}
		if size == 0 || at >= end {
			at = end
		}
		if at > off && !emit(at-off, true) {
			return nil
		}
		stop := min(at+size, end)
		if stop > at && !emit(stop-at, false) {
			return nil
		}
		off = max(stop, at)
	}
	return nil
}

// writeRuns writes the runs one behind the other from off on. All but the last are
// whole slots, so that they stay aligned if the first is.
func (d *disk) writeRuns(runs [][]byte, off int64) error {
	d.busy.Add(1)
	defer d.busy.Add(-1)
	if d.cached && len(runs) <= ioengine.MaxParts {
		return d.file.WriteParts(runs, off)
	}
	for _, p := range runs {
		if err := d.writeAt(p, off); err != nil {
			return err
		}
		off += int64(len(p))
	}
	return nil
}

func (d *disk) writeAt(p []byte, off int64) error {
	if d.direct(p, off) {
		_, err := d.file.WriteAt(p, off)
		return err
	}
	return d.writeBounced(int64(len(p)), off, func(b []byte, done int64) { copy(b, p[done:]) })
}

// writeBounced writes n bytes at off by whole aligned blocks; fill puts the bytes from
// place done on into b.
func (d *disk) writeBounced(n, off int64, fill func(b []byte, done int64)) error {
	bp := bounces.Get().(*[]byte)
	defer bounces.Put(bp)
	for done := int64(0); done < n; {
		at := off + done
		lo := d.down(at)
		hi := min(d.up(off+n), lo+bounceBytes)
		end := min(hi, off+n)
		b := (*bp)[:hi-lo]
		if lo < at { // the first block is not ours whole
			if err := readFull(d.file, b[:d.align], lo); err != nil {
				return err
			}
		}
		if last := hi - d.align; end < hi && (lo == at || last > lo) {
			if err := readFull(d.file, b[last-lo:], last); err != nil {
				return err
			}
		}
		fill(b[at-lo:end-lo], done)
		if _, err := d.file.WriteAt(b, lo); err != nil {
			return err
		}
		done = end - off
	}
	return nil
}

// zeroUnit is what a disk can zero without being written, at least.
const zeroUnit = 4096

// zero makes [off, off+n) read as zeros; what it can give back it may, if mayUnmap.
func (d *disk) zero(off, n int64, mayUnmap bool) error {
	d.busy.Add(1)
	defer d.busy.Add(-1)
	lo, hi := (off+zeroUnit-1)/zeroUnit*zeroUnit, (off+n)/zeroUnit*zeroUnit
	if lo >= hi {
		return d.writeZeros(off, n)
	}
	if err := d.file.Zero(lo, hi-lo); err != nil {
		if err := d.writeZeros(lo, hi-lo); err != nil {
			return err
		}
	} else if !mayUnmap {
		if err := d.file.Allocate(lo, hi-lo); err != nil {
			return err
		}
	}
	if err := d.writeZeros(off, lo-off); err != nil {
		return err
	}
	return d.writeZeros(hi, off+n-hi)
}

func (d *disk) writeZeros(off, n int64) error {
	return d.writeBounced(n, off, func(b []byte, _ int64) { clear(b) })
}

package replica

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/ioengine"
)

// Plain is the image of a replica as a disk of its own. Nothing that is read is verified, and what is written leaves no sum: who
// has written to it never reads the Volume again. Calls may run concurrently.
type Plain struct {
	v      *Volume
	failed atomic.Pointer[error] // of a sync: final
}

// Plain returns the image as a disk of its own. It is good until Close.
func (v *Volume) Plain() *Plain { return &Plain{v: v} }

// ReadAt fills p with the bytes at off.
func (d *Plain) ReadAt(p []byte, off int64) error {
	if err := d.v.inside(off, int64(len(p))); err != nil {
		return err
	}
	if n, err := d.v.raw.ReadAt(p, off); n < len(p) {
		return fmt.Errorf("%s: at %d: %w", d.v.place, off+int64(n), short(err))
	}
	return nil
}

// plainRead is a read by a loop.
type plainRead struct {
	d     *Plain
	parts [1][]byte
	off   int64
	done  func(error)
	ended func(int, error)
}

var plainReads sync.Pool // of *plainRead

// ReadBy begins to fill p with the bytes at off by a loop, and calls done from its Step, as ReadAt would return. False: it is not begun.
func (d *Plain) ReadBy(loop *ioengine.Loop, p []byte, off int64, done func(error)) bool {
	if len(p) == 0 || d.v.inside(off, int64(len(p))) != nil {
		return false
	}
	r, ok := plainReads.Get().(*plainRead)
	if !ok {
		r = new(plainRead)
		r.ended = r.end
	}
	r.d, r.off, r.done = d, off, done
	r.parts[0] = p
	if !loop.Read(d.v.raw, r.parts[:], off, r.ended) {
		r.recycle()
		return false
	}
	return true
}

func (r *plainRead) recycle() {
	r.d, r.parts[0], r.done = nil, nil, nil
	plainReads.Put(r)
}

// end is what the loop says.
func (r *plainRead) end(n int, err error) {
	if done := r.done; n < len(r.parts[0]) {
		err = fmt.Errorf("%s: at %d: %w", r.d.v.place, r.off+int64(n), short(err))
		r.recycle()
		done(err)
	} else {
		r.recycle()
		done(nil)
	}
}

// short is the error of a disk that has shrunk.
func short(err error) error {
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (d *Plain) writable(off, n int64) error {
	if err := d.failed.Load(); err != nil {
		return *err
	}
	return d.v.inside(off, n)
}

// WriteAt writes p at off.
func (d *Plain) WriteAt(p []byte, off int64) error {
	if err := d.writable(off, int64(len(p))); err != nil {
		return err
	}
	if _, err := d.v.raw.WriteAt(p, off); err != nil {
		return fmt.Errorf("%s: %w", d.v.place, err)
	}
	return nil
}

// Zero makes the range read as zeros, and gives its space back where that can be.
func (d *Plain) Zero(off, n int64) error {
	if err := d.writable(off, n); err != nil {
		return err
	}
	if err := d.v.raw.Zero(off, n); err != nil {
		return fmt.Errorf("%s: %w", d.v.place, err)
	}
	return nil
}

// Sync makes durable what was written before. An error is final: nothing is written from then on.
func (d *Plain) Sync() error {
	if err := d.writable(0, 0); err != nil {
		return err
	}
	if err := d.v.raw.Sync(); err != nil {
		err = fmt.Errorf("%s: %w: %w", d.v.place, ErrFailed, err)
		d.failed.CompareAndSwap(nil, &err)
		return err
	}
	return nil
}

// Extents tells what stands in [off, off+n), in order and without gaps, until emit returns false.
func (d *Plain) Extents(off, n int64, emit func(n int64, hole bool) bool) error {
	for end := off + n; off < end; {
		at, length, err := d.v.raw.NextData(off)
		if err != nil {
			return fmt.Errorf("%s: %w", d.v.place, err)
		}
		if length == 0 || at > end {
			at = end
		}
		if at > off && !emit(at-off, true) {
			return nil
		}
		if k := min(at+length, end) - at; k > 0 && !emit(k, false) {
			return nil
		}
		off = min(at+length, end)
		if length == 0 {
			off = end
		}
	}
	return nil
}

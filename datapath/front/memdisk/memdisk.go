// Package memdisk is a front.Device in memory, for tests and benchmarks: sparse,
// and atomic per write, so that what a reader sees is before or after it.
package memdisk

import (
	"sync"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// pageBytes is how memory is given out, and so how fine Extents tells holes.
const pageBytes = 64 << 10

// slotBytes is the size of the buffers that BeginWrite lends: as a filter's slots.
const slotBytes = 8 << 10

// Disk is the device. Hooks are set before its first use.
type Disk struct {
	size int64
	// Before, when set, is called at the start of each operation ("read", "write",
	// "zero", "trim", "flush"), with no lock held; an error is the operation's.
	Before func(op string, off, n int64) error
	// Sealed makes it read-only.
	Sealed bool

	mu struct {
		sync.RWMutex
		pages [][]byte // nil reads as zeros
	}
	writes sync.Pool // *write
}

// New returns a disk of size bytes, all holes.
func New(size int64) *Disk {
	d := &Disk{size: size}
	d.mu.pages = make([][]byte, (size+pageBytes-1)/pageBytes)
	d.writes.New = func() any { return &write{disk: d} }
	return d
}

// Size implements front.Device.
func (d *Disk) Size() int64 { return d.size }

// ReadOnly implements front.Device.
func (d *Disk) ReadOnly() bool { return d.Sealed }

func (d *Disk) before(op string, off, n int64) error {
	if d.Before == nil {
		return nil
	}
	return d.Before(op, off, n)
}

// ReadAt implements front.Device.
func (d *Disk) ReadAt(p []byte, off int64) error {
	if err := d.before("read", off, int64(len(p))); err != nil {
		return err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	for len(p) > 0 {
		at := off % pageBytes
		n := min(int64(len(p)), pageBytes-at)
		if page := d.mu.pages[off/pageBytes]; page != nil {
			copy(p[:n], page[at:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+n
	}
	return nil
}

// write is a front.Write; it keeps its slots from one use to the next.
type write struct {
	disk  *Disk
	off   int64
	slots [][]byte // all there are, each slotBytes long
	lent  [][]byte // those of this write, the last one cut to size
}

// BeginWrite implements front.Device.
func (d *Disk) BeginWrite(off int64, n int) (front.Write, error) {
	if d.Sealed {
		return nil, front.ErrReadOnly
	}
	if err := d.before("write", off, int64(n)); err != nil {
		return nil, err
	}
	w := d.writes.Get().(*write)
	w.off, w.lent = off, w.lent[:0]
	for i := 0; n > 0; i++ {
		if i == len(w.slots) {
			w.slots = append(w.slots, make([]byte, slotBytes))
		}
		take := min(n, slotBytes)
		w.lent = append(w.lent, w.slots[i][:take])
		n -= take
	}
	return w, nil
}

func (w *write) Buffers() [][]byte { return w.lent }

func (w *write) Commit(bool) error {
	d, off := w.disk, w.off
	d.mu.Lock()
	for _, p := range w.lent {
		d.storeLocked(p, off)
		off += int64(len(p))
	}
	d.mu.Unlock()
	d.writes.Put(w)
	return nil
}

func (w *write) Abort() {
	if invariant.Planted("memdisk/abort-writes") {
		w.Commit(false)
		return
	}
	w.disk.writes.Put(w)
}

func (d *Disk) storeLocked(p []byte, off int64) {
	for len(p) > 0 {
		at := off % pageBytes
		page := d.mu.pages[off/pageBytes]
		if page == nil {
			page = make([]byte, pageBytes)
			d.mu.pages[off/pageBytes] = page
		}
		n := copy(page[at:], p)
		p, off = p[n:], off+int64(n)
	}
}

// Zero implements front.Device: whole pages become holes when they may.
func (d *Disk) Zero(off, n int64, mayUnmap, _ bool) error {
	if d.Sealed {
		return front.ErrReadOnly
	}
	if err := d.before("zero", off, n); err != nil {
		return err
	}
	d.zero(off, n, mayUnmap)
	return nil
}

// Trim implements front.Device: the range reads as zeros.
func (d *Disk) Trim(off, n int64, _ bool) error {
	if d.Sealed {
		return front.ErrReadOnly
	}
	if err := d.before("trim", off, n); err != nil {
		return err
	}
	d.zero(off, n, true)
	return nil
}

func (d *Disk) zero(off, n int64, mayUnmap bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n > 0 {
		at := off % pageBytes
		take := min(n, pageBytes-at)
		i := off / pageBytes
		switch page := d.mu.pages[i]; {
		case page == nil && !mayUnmap:
			d.mu.pages[i] = make([]byte, pageBytes)
		case page == nil:
		case mayUnmap && (take == pageBytes || invariant.Planted("memdisk/page-lost")):
			d.mu.pages[i] = nil
		default:
			clear(page[at : at+take])
		}
		off, n = off+take, n-take
	}
}

// Flush implements front.Device.
func (d *Disk) Flush() error { return d.before("flush", 0, 0) }

// Extents implements front.Device.
func (d *Disk) Extents(off, n int64, emit func(n int64, hole bool) bool) error {
	if err := d.before("extents", off, n); err != nil {
		return err
	}
	for n > 0 {
		hole, run := d.run(off, n)
		if !emit(run, hole && !invariant.Planted("memdisk/holes-forgotten")) {
			return nil
		}
		off, n = off+run, n-run
	}
	return nil
}

// run tells how long, up to n, what stands at off goes on.
func (d *Disk) run(off, n int64) (hole bool, run int64) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	hole = d.mu.pages[off/pageBytes] == nil
	for run < n && (d.mu.pages[(off+run)/pageBytes] == nil) == hole {
		run += min(n-run, pageBytes-(off+run)%pageBytes)
	}
	return hole, run
}

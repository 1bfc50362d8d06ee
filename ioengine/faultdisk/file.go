package faultdisk

import (
	"io"
	"io/fs"
	"sync"
	"syscall"
	"unsafe"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// file is what handles and names share: what reads see, what a crash leaves for
// certain, and the changes between, in order.
type file struct {
	now, durable content
	pending      []change
}

// change is one change of a file's bytes or size.
type change struct {
	at     int // the disk's clock
	kind   changeKind
	off, n int64
	data   []byte // of a write
	doomed bool   // a Sync over it failed: no later one makes it durable
	flying bool   // its write has not ended: no Sync covers it, reads do not show it
}

type changeKind uint8

const (
	changeWrite changeKind = iota + 1
	changeZero
	changeSize // to off
)

func (c change) apply(to *content) {
	switch c.kind {
	case changeWrite:
		to.write(c.data, c.off)
	case changeZero:
		to.zero(c.off, c.n)
	case changeSize:
		to.resize(c.off)
	}
}

func (d *Disk) changeLocked(f *file, c change) {
	d.mu.clock++
	c.at = d.mu.clock
	if !c.flying {
		c.apply(&f.now)
	}
	f.pending = append(f.pending, c)
}

func (f *file) sync() {
	var flying []change
	for _, c := range f.pending {
		switch {
		case c.flying:
			flying = append(flying, c)
		case !c.doomed || invariant.Planted("ioengine/faultdisk/failed-sync-forgiven"):
			c.apply(&f.durable)
		}
	}
	f.pending = flying
}

func (f *file) failSync() {
	for i := range f.pending {
		f.pending[i].doomed = !f.pending[i].flying
	}
}

// handle is an open file.
type handle struct {
	disk     *Disk
	name     string
	file     *file
	readOnly bool
	align    int
	closed   bool // under the disk's lock
	flying   sync.WaitGroup

	distrusted error // why no Sync succeeds; under the disk's lock
}

var _ ioengine.File = (*handle)(nil)

func (h *handle) Align() int { return h.align }

// checkLocked says why the handle cannot do an operation.
func (h *handle) checkLocked(op Op, p []byte, off int64) error {
	switch {
	case h.closed:
		return fs.ErrClosed
	case h.readOnly && op&OpMutating != 0 && op != OpSync:
		return syscall.EBADF
	case off < 0:
		return syscall.EINVAL
	}
	a := uintptr(h.align)
	if len(p) > 0 && (uintptr(off)|uintptr(len(p))|uintptr(unsafe.Pointer(&p[0])))&(a-1) != 0 {
		return syscall.EINVAL // as a direct file refuses what is not aligned
	}
	return nil
}

func (h *handle) do(op Op, verb string, effect func() error) error {
	return h.disk.do(op, verb, h.name, func() error {
		if err := h.checkLocked(op, nil, 0); err != nil {
			return err
		}
		return effect()
	})
}

func (h *handle) ReadAt(p []byte, off int64) (n int, err error) {
	d := h.disk
	fault := d.begin(OpRead, h.name)
	d.mu.Lock()
	defer d.mu.Unlock()
	err = h.checkLocked(OpRead, p, off)
	if err == nil && (fault.Err == nil || fault.Short) {
		want := len(p)
		if fault.Short {
			want /= 2
		}
		n = h.file.now.read(p[:want], off)
	}
	if err == nil {
		err = fault.Err
	}
	if err == nil && n < len(p) {
		return n, io.EOF
	}
	return n, h.wrap("read", err)
}

func (h *handle) wrap(verb string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: verb, Path: h.name, Err: err}
}

// Sync makes the file durable. When it fails, what was unsynced is lost (see the package).
func (h *handle) Sync() error {
	d := h.disk
	fault := d.begin(OpSync, h.name)
	d.callHook(OpSync, h.name)
	d.mu.Lock()
	defer d.mu.Unlock()
	err := h.checkLocked(OpSync, nil, 0)
	switch {
	case err != nil:
	case h.distrusted != nil:
		err = h.distrusted
	case fault.Err != nil:
		h.file.failSync()
		err = fault.Err
	case !fault.Lose:
		h.file.sync()
	}
	return h.wrap("sync", err)
}

func (h *handle) Allocate(off, n int64) error {
	return h.do(OpAllocate, "allocate", func() error {
		if off < 0 || n <= 0 {
			return syscall.EINVAL
		}
		if off+n > h.file.now.size {
			h.disk.changeLocked(h.file, change{kind: changeSize, off: off + n})
		}
		return nil
	})
}

func (h *handle) Zero(off, n int64) error {
	return h.do(OpZero, "zero", func() error {
		if off < 0 || n < 0 {
			return syscall.EINVAL
		}
		if n = min(n, h.file.now.size-off); n > 0 {
			h.disk.changeLocked(h.file, change{kind: changeZero, off: off, n: n})
		}
		return nil
	})
}

func (h *handle) NextData(off int64) (at, n int64, err error) {
	err = h.do(OpRead, "seek", func() error {
		at, n = h.file.now.nextData(off)
		return nil
	})
	return at, n, err
}

// WillRead does nothing: nothing depends on it.
func (h *handle) WillRead(int64, int64) {}

// WriteBack does nothing: what is not synced may be on the disk at any time.
func (h *handle) WriteBack(int64, int64) {}

func (h *handle) Truncate(size int64) error {
	return h.do(OpTruncate, "truncate", func() error {
		if size < 0 {
			return syscall.EINVAL
		}
		h.disk.changeLocked(h.file, change{kind: changeSize, off: size})
		return nil
	})
}

func (h *handle) Size() (size int64, err error) {
	err = h.do(OpRead, "size", func() error {
		size = h.file.now.size
		return nil
	})
	return size, err
}

func (h *handle) Close() error {
	h.disk.mu.Lock()
	closed := h.closed
	h.closed = true
	h.disk.mu.Unlock()
	if closed {
		return h.wrap("close", fs.ErrClosed)
	}
	h.flying.Wait()
	return nil
}

package datapath

import (
	"errors"
	"sync"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/journal/view"
)

// viewDevice shows a disk of a view to a block server.
type viewDevice struct{ *view.Device }

var _ front.Laned = viewDevice{}

// viewBuffers hold writes on their way into scratch, by size: 64 KiB and the longest.
var viewBuffers [2]sync.Pool

const viewSmall = 64 << 10

// viewWrite is one write into scratch.
type viewWrite struct {
	d   viewDevice
	off int64
	mem *[]byte
	p   []byte
}

// told translates the view's errors into those a guest is told apart.
func told(err error) error {
	switch {
	case errors.Is(err, view.ErrNoSpace):
		return errors.Join(front.ErrNoSpace, err)
	case errors.Is(err, view.ErrReadOnly):
		return errors.Join(front.ErrReadOnly, err)
	}
	return err
}

// BeginWrite implements front.Device.
func (d viewDevice) BeginWrite(off int64, n int) (front.Write, error) {
	if d.ReadOnly() {
		return nil, front.ErrReadOnly
	}
	class, size := 0, viewSmall
	if n > viewSmall {
		class, size = 1, n
	}
	mem, _ := viewBuffers[class].Get().(*[]byte)
	if mem == nil || len(*mem) < n {
		p := make([]byte, size)
		mem = &p
	}
	return &viewWrite{d: d, off: off, mem: mem, p: (*mem)[:n]}, nil
}

// Buffers implements front.Write.
func (w *viewWrite) Buffers() [][]byte { return [][]byte{w.p} }

// Commit implements front.Write.
func (w *viewWrite) Commit(fua bool) error {
	err := w.d.WriteAt(w.p, w.off)
	w.Abort()
	if err == nil && fua {
		err = w.d.Device.Flush()
	}
	return told(err)
}

// Abort implements front.Write.
func (w *viewWrite) Abort() {
	class := 0
	if len(*w.mem) > viewSmall {
		class = 1
	}
	viewBuffers[class].Put(w.mem)
	w.mem, w.p = nil, nil
}

// Zero implements front.Device. Scratch is sparse: zeros take no space either way.
func (d viewDevice) Zero(off, n int64, _, fua bool) error {
	err := d.Device.Zero(off, n)
	if err == nil && fua {
		err = d.Device.Flush()
	}
	return told(err)
}

// Trim implements front.Device.
func (d viewDevice) Trim(off, n int64, fua bool) error { return d.Zero(off, n, true, fua) }

// Flush implements front.Device.
func (d viewDevice) Flush() error { return told(d.Device.Flush()) }

// viewLane reads a disk of a view by a loop.
type viewLane struct {
	d    viewDevice
	loop *ioengine.Loop
}

// Lane implements front.Laned.
func (d viewDevice) Lane(requests int) (front.Lane, error) {
	loop, err := d.Loop(requests)
	if err != nil {
		return nil, err
	}
	return &viewLane{d, loop}, nil
}

// Loop implements front.Lane.
func (a *viewLane) Loop() *ioengine.Loop { return a.loop }

// Write implements front.Lane. A write may wait for others, for room in the map, or for the disk.
func (a *viewLane) Write(w front.Write, done func(error)) {
	go func() { done(w.Commit(false)) }()
}

// Pass implements front.Lane: what is written has a checksum, so it must not change.
func (*viewLane) Pass([][]byte, int64, func(error)) bool { return false }

// Read implements front.Lane.
func (a *viewLane) Read(parts [][]byte, off int64, done func(error)) bool {
	return len(parts) == 1 && a.d.ReadBy(a.loop, parts[0], off, done)
}

// Looks implements front.Lane: a view reads into p what is compressed, and looks at checksums there.
func (*viewLane) Looks() bool { return true }

// Told implements front.Lane.
func (*viewLane) Told() {}

// Close implements front.Lane.
func (a *viewLane) Close() { a.loop.Close() }

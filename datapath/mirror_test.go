package datapath

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/wire/delta"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// qemu is a guest's QEMU, as far as a mirror volume sees it: what the guest writes it writes to the guest's disk, and then to the filter; it
// lets the disk be read; and its bitmap has what was written since it was asked last. The real one has its tests where attaching has.
type qemu struct {
	image string // its URI is that of the export of the disk; with changesURI behind, that of what the bitmap has
	disk  *os.File
	size  int64
	left  func() // ends the connection to the filter; nil while there is none

	mu    sync.Mutex
	dirty []capture.Extent // of the bitmap
	gate  chan struct{}    // reads wait until it is closed; nil: they do not
}

const changesURI = "#changes"

func newQEMU(t *testing.T, image string) *qemu {
	t.Helper()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	return &qemu{image: image, disk: f, size: size}
}

// write is the guest's. mirror is the filter's device; nil while nothing is mirrored.
func (q *qemu) write(mirror front.Device, p []byte, off int64) error {
	if _, err := q.disk.WriteAt(p, off); err != nil {
		return err
	}
	q.mu.Lock()
	q.dirty = append(q.dirty, capture.Extent{Off: off, Len: int64(len(p))})
	q.mu.Unlock()
	if mirror == nil {
		return nil
	}
	w, err := mirror.BeginWrite(off, len(p))
	if err != nil {
		return err
	}
	for _, b := range w.Buffers() {
		p = p[copy(b, p):]
	}
	return w.Commit(false)
}

// mirror connects to the filter's device, and joins: with all that the bitmap has, or, at first, without one.
func (q *qemu) mirror(t *testing.T, d front.Device, v capture.Filtered, first bool) {
	t.Helper()
	bitmap, changes := "b", q.image+changesURI
	if first {
		bitmap, changes = "", ""
	}
	q.left = d.(front.Watched).Connected(q)
	if err := v.Join(t.Context(), 7, q.image, bitmap, changes); err != nil {
		t.Fatal(err)
	}
	q.mu.Lock()
	q.dirty = nil
	q.mu.Unlock()
}

func (q *qemu) Gone() bool   { return false }
func (q *qemu) Process() int { return 0 }
func (q *qemu) Left() bool   { return true }
func (q *qemu) Drop()        {}

// guestExport is a connection to an export of its.
type guestExport struct {
	*qemu
	bitmap bool
	done   chan struct{}
	once   sync.Once
}

// dialQEMUs connects to what they export.
func dialQEMUs(qemus ...*qemu) capture.DialSource {
	return func(_ context.Context, uri, bitmap string) (capture.Source, error) {
		for _, q := range qemus {
			if bitmap == "" && uri == q.image || bitmap != "" && uri == q.image+changesURI {
				return &guestExport{qemu: q, bitmap: bitmap != "", done: make(chan struct{})}, nil
			}
		}
		return nil, fmt.Errorf("no export %s", uri)
	}
}

func (c *guestExport) Done() <-chan struct{} { return c.done }
func (c *guestExport) Close() error          { c.once.Do(func() { close(c.done) }); return nil }
func (c *guestExport) Size() int64           { return c.size }

func (c *guestExport) ReadAt(p []byte, off int64) (int, error) {
	c.mu.Lock()
	gate := c.gate
	c.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-c.done:
			return 0, errors.New("the export is gone")
		}
	}
	return c.disk.ReadAt(p, off)
}

func (c *guestExport) BlockStatus(off, n int64, emit func(n int64, hole bool) bool) error {
	if !c.bitmap {
		emit(n, false)
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	set := func(at int64) bool {
		for _, d := range c.dirty {
			if at < d.Off+d.Len && d.Off < at+capture.BlockBytes {
				return true
			}
		}
		return false
	}
	for end := off + n; off < end; off += capture.BlockBytes {
		if !emit(min(capture.BlockBytes, end-off), set(off)) {
			break
		}
	}
	return nil
}

// filtered names a volume of the world's filter.
func (w *world) filtered(i int) capture.Filtered {
	return capture.Filtered{PoolSocket: w.dir + "/pool", Group: testGroup, Volume: volumeID(i)}
}

// mirror has the i-th volume's guest mirrored.
func (w *world) mirror(i int, first bool) {
	w.t.Helper()
	w.qemus[i].mirror(w.t, w.f.Device(w.volumes[i]), w.filtered(i), first)
}

// mirroredWorld is a world whose volumes are all mirror targets, and mirrored.
func mirroredWorld(t *testing.T, change func(*world)) *world {
	w := newWorld(t, change)
	for _, v := range w.volumes {
		w.qemus = append(w.qemus, newQEMU(t, filepath.Join(w.dir, v+".img")))
	}
	w.start()
	for i := range w.volumes {
		w.mirror(i, true)
	}
	w.awaitState(api.StateProtected)
	return w
}

// awaitUnmirrored waits until a resync waits for a mirror.
func (w *world) awaitUnmirrored() {
	w.t.Helper()
	w.await("a resync that waits for the mirror", func() bool {
		s := w.status()
		return s.State == api.StateResync && strings.Contains(s.Reason, capture.PastUnmirrored.String())
	})
}

// TestMirrorComesBack: of a mirror that was lost and comes back the regions are compared in which something was written meanwhile,
// and what differs is sent, whenever it comes back: to a resync that waits for it, and to one that is just about something else.
func TestMirrorComesBack(t *testing.T) {
	t.Parallel()
	w := mirroredWorld(t, func(w *world) { w.volumes, w.size = []string{"vol1", "vol2"}, 2*delta.RegionBytes })
	f := w.s.flows[0]
	p := bytes.Repeat([]byte("past"), capture.BlockBytes/4)
	sent := func(compared int64, back func()) {
		t.Helper()
		raw, before := f.count.raw.Load(), f.count.compared.Load()
		w.qemus[0].left()
		w.awaitUnmirrored()
		if err := w.qemus[0].write(nil, p, delta.RegionBytes+8*capture.BlockBytes); err != nil {
			t.Fatal(err)
		}
		back()
		w.awaitState(api.StateProtected)
		p[0]++
		if n := f.count.raw.Load() - raw; n > 64<<10 {
			t.Errorf("%d bytes were sent after %d were written", n, len(p))
		}
		if n := f.count.compared.Load() - before; n != uint64(compared) {
			t.Errorf("%d bytes were compared, want %d", n, compared)
		}
		w.verify("after")
	}
	sent(delta.RegionBytes, func() { w.mirror(0, false) })

	// Another volume is being compared, and holds that up.
	sent(3*delta.RegionBytes, func() {
		gate := make(chan struct{})
		q := w.qemus[1]
		q.mu.Lock()
		q.gate = gate
		q.mu.Unlock()
		q.left()
		w.mirror(1, true)
		w.await("the comparing of the other", func() bool { return w.comparing(volumeID(1)) })
		w.mirror(0, false)
		close(gate)
	})
}

// comparing says whether a region of the volume is being compared.
func (w *world) comparing(id record.VolumeID) bool {
	c, _ := w.s.flows[0].comparing()
	if c == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range c.mu.floors {
		if k.Volume == id {
			return true
		}
	}
	return false
}

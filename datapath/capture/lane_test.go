package capture

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
)

// laneRig is a rig over a real file, since lanes know no other; it skips where there is no io_uring.
func laneRig(t *testing.T, size, pool int64) *rig {
	t.Helper()
	r := newRig(t, 512, size, pool, 1)
	r.cfg.FS = ioengine.OS()
	r.cfg.Volumes[0].Path = filepath.Join(r.dir, "disk")
	if err := os.WriteFile(r.cfg.Volumes[0].Path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	r.open()
	l, err := r.vol(0).Lane(1)
	if errors.Is(err, ioengine.ErrNoLoop) {
		t.Skip("this system offers no io_uring: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return r
}

// TestLanesKeepTheOrder has queues write over each other: what the tap gives, in ticket order, is what
// the disk holds.
func TestLanesKeepTheOrder(t *testing.T) {
	const size, depth, rounds, queues = 256 << 10, 16, 60, 3
	r := laneRig(t, size, 64<<20)
	tap := r.covered()
	v := r.vol(0)
	var wg sync.WaitGroup
	for q := range queues {
		wg.Go(func() {
			lane, err := v.Lane(depth)
			if err != nil {
				t.Error(err)
				return
			}
			defer lane.Close()
			rng := rand.New(rand.NewPCG(uint64(q), 5))
			for i := range rounds {
				if err := laneRound(v, lane, rng, depth, size, byte(1+q*rounds+i)); err != nil {
					t.Errorf("queue %d: %v", q, err)
				}
			}
		})
	}
	wg.Wait()
	image := make([]byte, size)
	for _, w := range next(t, tap, queues*rounds*depth) {
		copy(image[w.Off:], payload(w))
		tap.Free([]Write{w})
	}
	got := make([]byte, size)
	if err := v.ReadAt(got, 0); err != nil || !bytes.Equal(got, image) {
		t.Errorf("the disk does not hold what the tap gave: %v", err)
	}
	if n := v.pool.dropped.Load(); n != 0 || v.page.lost.Load() != tap.LostCovered() {
		t.Errorf("%d dropped", n)
	}
}

// laneRound has a lane write at random places, aligned and not, and waits until all is answered.
func laneRound(v *volume, lane front.Lane, rng *rand.Rand, depth int, size int64, b byte) error {
	var mu sync.Mutex
	var failed error
	left := depth
	for range depth {
		n := (1 + rng.Int64N(40)) * 512
		w, err := v.BeginWrite(rng.Int64N((size-n)/512)*512, int(n))
		if err != nil {
			return err
		}
		for _, p := range w.Buffers() {
			copy(p, fill(len(p), b))
		}
		lane.Write(w, func(err error) {
			mu.Lock()
			defer mu.Unlock()
			failed = errors.Join(failed, err)
			if left--; left == 0 {
				lane.Loop().Wake()
			}
		})
	}
	for {
		mu.Lock()
		done := left == 0
		mu.Unlock()
		if done {
			return failed
		}
		if err := lane.Loop().Wait(); err != nil {
			return err
		}
		if _, err := lane.Loop().Step(); err != nil {
			return err
		}
	}
}

// TestLaneReads: what was written, straight into the reader's memory; and not what is beyond.
func TestLaneReads(t *testing.T) {
	r := laneRig(t, 1<<20, 8<<20)
	v := r.vol(0)
	write(t, v, 8192, fill(4096, 7))
	lane, err := v.Lane(4)
	if err != nil {
		t.Fatal(err)
	}
	defer lane.Close()
	mem, err := syscall.Mmap(-1, 0, 8192, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(mem)
	var result error = fmt.Errorf("not answered")
	if !lane.Read([][]byte{mem[4096:], mem[:4096]}, 4096, func(err error) { result = err }) {
		t.Fatal("not begun")
	}
	for lane.Loop().Flying() > 0 {
		if err := lane.Loop().Wait(); err != nil {
			t.Fatal(err)
		}
		if _, err := lane.Loop().Step(); err != nil {
			t.Fatal(err)
		}
	}
	if result != nil || !bytes.Equal(mem, append(fill(4096, 7), make([]byte, 4096)...)) {
		t.Errorf("read %x.., %v", mem[:4], result)
	}
	for _, off := range []int64{1<<20 - 4096, 1 << 20, -4096, 100} {
		if lane.Read([][]byte{mem}, off, func(error) { t.Error("done") }) {
			t.Errorf("a read at %d is begun", off)
		}
	}
}

// TestLaneWriteFails: an error of the disk is the guest's, and the write is no record's.
func TestLaneWriteFails(t *testing.T) {
	r := laneRig(t, 1<<20, 8<<20)
	tap := r.covered()
	v := r.vol(0)
	lane, err := v.Lane(4)
	if err != nil {
		t.Fatal(err)
	}
	defer lane.Close()
	// A file that is opened for reading alone refuses every write.
	whole := v.disk.file
	v.disk.file, err = r.cfg.FS.Open(v.path, ioengine.ReadOnly|ioengine.Direct)
	if err != nil {
		t.Fatal(err)
	}
	before := v.page.lost.Load()
	if err := laneRound(v, lane, rand.New(rand.NewPCG(1, 1)), 4, 1<<20, 9); !errors.Is(err, syscall.EBADF) {
		t.Errorf("the guest is told %v", err)
	}
	if err := v.disk.file.Close(); err != nil {
		t.Error(err)
	}
	v.disk.file = whole
	none(t, tap)
	if got := v.page.lost.Load() - before; got < 1 || got > 4 || v.dirtyBlocks() == 0 { // one whose blocks are all dirty says nothing more
		t.Errorf("lost rose by %d, %d blocks are dirty", got, v.dirtyBlocks())
	}
	if err := laneRound(v, lane, rand.New(rand.NewPCG(2, 1)), 4, 1<<20, 9); err != nil {
		t.Error(err)
	}
}

// TestLaneWaitsForWhatItOverlaps: a write goes to the disk once what it overlaps has ended, also of
// the same lane.
func TestLaneWaitsForWhatItOverlaps(t *testing.T) {
	r := laneRig(t, 1<<20, 8<<20)
	v := r.vol(0)
	lane, err := v.Lane(4)
	if err != nil {
		t.Fatal(err)
	}
	defer lane.Close()
	answered := make(chan byte, 3)
	begin := func(off int64, n int, b byte) {
		t.Helper()
		w, err := v.BeginWrite(off, n)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range w.Buffers() {
			copy(p, fill(len(p), b))
		}
		lane.Write(w, func(err error) {
			if err != nil {
				t.Error(err)
			}
			answered <- b
			lane.Loop().Wake()
		})
	}
	begin(0, 8192, 1)
	begin(4096, 8192, 2) // waits
	begin(65536, 4096, 3)
	if n := lane.Loop().Flying(); n != 2 {
		t.Errorf("%d writes go to the disk, want 2", n)
	}
	var order []byte
	for len(order) < 3 {
		if err := lane.Loop().Wait(); err != nil {
			t.Fatal(err)
		}
		if _, err := lane.Loop().Step(); err != nil {
			t.Fatal(err)
		}
		for len(answered) > 0 {
			order = append(order, <-answered)
		}
	}
	if bytes.IndexByte(order, 1) > bytes.IndexByte(order, 2) {
		t.Errorf("answered in the order %v", order)
	}
	got := make([]byte, 12288)
	if err := v.ReadAt(got, 0); err != nil || !bytes.Equal(got, append(fill(4096, 1), fill(8192, 2)...)) {
		t.Errorf("the disk holds %d %d %d, %v", got[0], got[4096], got[8192], err)
	}
}

// TestDiskIsHeld: nobody else has the disk of a filter while that is open.
func TestDiskIsHeld(t *testing.T) {
	r := laneRig(t, 1<<20, 8<<20)
	hold := func() error {
		t.Helper()
		f, err := r.cfg.FS.Open(r.cfg.Volumes[0].Path, ioengine.Direct)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		return f.(ioengine.Holder).Hold()
	}
	if err := hold(); !errors.Is(err, ioengine.ErrLocked) {
		t.Errorf("another has it: %v", err)
	}
	r.kill()
	if err := hold(); err != nil {
		t.Errorf("after the filter: %v", err)
	}
	r.open()
}

// TestLaneReadsAgain: what the kernel did not do, or did in part, is done by who can wait; what the disk says then is told.
func TestLaneReadsAgain(t *testing.T) {
	r := laneRig(t, 1<<20, 8<<20)
	v := r.vol(0)
	l, err := v.Lane(4)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	want := fill(64<<10, 7)
	if err := v.disk.writeAt(want, 4096); err != nil {
		t.Fatal(err)
	}
	mem := buf.Aligned(len(want))
	parts := [][]byte{mem[:4096], mem[4096:]}
	read := func(err error, off int64) error {
		clear(mem)
		done := make(chan error, 1)
		l.(*lane).endRead(parts, off, err, func(err error) { done <- err })
		return <-done
	}
	for _, unfinished := range []error{syscall.EAGAIN, syscall.EINTR, io.ErrUnexpectedEOF} {
		if err := read(unfinished, 4096); err != nil || !bytes.Equal(mem, want) {
			t.Errorf("after %v: %v, or other bytes", unfinished, err)
		}
	}
	if err := read(syscall.EIO, 4096); !errors.Is(err, syscall.EIO) {
		t.Errorf("the disk failed, and the guest is told %v", err)
	}
	if err := os.Truncate(v.path, 8192); err != nil {
		t.Fatal(err)
	}
	if err := read(syscall.EAGAIN, 4096); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the disk has no more, and the guest is told %v", err)
	}
}

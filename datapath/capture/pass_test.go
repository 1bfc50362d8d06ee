package capture

import (
	"bytes"
	"context"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
)

// stepUntil lets requests of a lane end until over says so.
func stepUntil(t *testing.T, lane front.Lane, over func() bool) {
	t.Helper()
	for !over() {
		if err := lane.Loop().Wait(); err != nil {
			t.Fatal(err)
		}
		if _, err := lane.Loop().Step(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPass: a write goes to the disk from the guest's own memory where no record could carry it, and
// nowhere else.
func TestPass(t *testing.T) {
	r := laneRig(t, 1<<20, minSlots*SlotBytes)
	tap := r.covered()
	v := r.vol(0)
	lane, err := v.Lane(4)
	if err != nil {
		t.Fatal(err)
	}
	defer lane.Close()
	mem := buf.Aligned(8192)
	pass := func(off int64, n int, b byte) (begun bool) {
		t.Helper()
		copy(mem, fill(n, b))
		result := errNoHole // none of a write's
		begun = lane.Pass([][]byte{mem[:n/2], mem[n/2 : n]}, off, func(err error) { result = err })
		stepUntil(t, lane, func() bool { return lane.Loop().Flying() == 0 })
		if begun && result != nil {
			t.Errorf("a write at %d: %v", off, result)
		}
		return begun
	}
	holds := func(off int64, n int, b byte) {
		t.Helper()
		got := make([]byte, n)
		if err := v.ReadAt(got, off); err != nil || !bytes.Equal(got, fill(n, b)) {
			t.Errorf("at %d the disk holds %d, want %d: %v", off, got[0], b, err)
		}
	}
	if pass(0, 8192, 1) {
		t.Error("a write that a record can carry is begun")
	}
	v.mark(0, 8192)
	if lost := v.page.lost.Load(); !pass(0, 8192, 2) || v.page.lost.Load() != lost {
		t.Error("one to dirty blocks is not begun, or is lost")
	}
	holds(0, 8192, 2)
	if pass(4096, 8192, 3) {
		t.Error("one of whose blocks some are clean is begun")
	}
	for _, off := range []int64{100, -4096, 1<<20 - 4096, 1 << 20} {
		if pass(off, 8192, 4) {
			t.Errorf("one at %d is begun", off)
		}
	}
	if lane.Pass(nil, 0, nil) {
		t.Error("one of nothing is begun")
	}
	none(t, tap)

	v.active.Add(1)
	w := v.begin(4096, 4096, Data) // in flight over the second block
	if !v.tryEnter(w) {
		t.Fatal("a lone write waits")
	}
	if pass(0, 8192, 5) {
		t.Error("one that overlaps another is begun")
	}
	v.end(w, nil, func(error) {}, v.wake)

	slots, _ := v.pool.alloc(nil, v.pool.shape.slots, 0)
	lost, dropped := v.page.lost.Load(), v.pool.dropped.Load()
	if !pass(65536, 8192, 6) || v.page.lost.Load() == lost || v.pool.dropped.Load() != dropped+1 || v.dirtyBlocks() != 4 {
		t.Errorf("without slots: lost rose by %d, %d dropped, %d blocks are dirty", v.page.lost.Load()-lost, v.pool.dropped.Load()-dropped, v.dirtyBlocks())
	}
	holds(65536, 8192, 6)
	v.pool.release(slots)
	if v.mu.overrun.until == 0 {
		t.Error("captures do not rest after the slots ran out")
	}
	v.mu.overrun.until = math.MaxInt64
	if dropped = v.pool.dropped.Load(); !pass(196608, 8192, 8) || v.pool.dropped.Load() != dropped+1 {
		t.Error("slots have only just run out, and a write is captured")
	}
	v.mu.overrun = overrun{}
	if pass(131072, 4096, 7) {
		t.Error("with slots again a write that a record can carry is begun")
	}
}

// TestToldWakes: the VRA is woken once the guest has been told, and not before.
func TestToldWakes(t *testing.T) {
	r := laneRig(t, 1<<20, 8<<20)
	v := r.vol(0)
	lane, err := v.Lane(4)
	if err != nil {
		t.Fatal(err)
	}
	defer lane.Close()
	sleeps := func() bool { return v.page.sleeping.Load() == 1 }
	v.page.sleeping.Store(1)
	w, err := v.BeginWrite(0, 4096)
	if err != nil {
		t.Fatal(err)
	}
	lane.Write(w, func(error) {})
	stepUntil(t, lane, func() bool { return lane.Loop().Flying() == 0 })
	if !sleeps() {
		t.Error("woken before the guest was told")
	}
	if lane.Told(); sleeps() {
		t.Error("not woken")
	}
	v.page.sleeping.Store(1)
	if lane.Told(); !sleeps() {
		t.Error("woken for nothing")
	}
}

// TestPassedIsRead has lanes write what is dirty or not, over each other and beside sync reads, with few
// slots: what the tap gave, in ticket order, is in the end what the disk holds.
func TestPassedIsRead(t *testing.T) {
	const size, rounds, queues, depth = 512 << 10, 150, 2, 8
	r := laneRig(t, size, minSlots*SlotBytes)
	tap := r.covered()
	v := r.vol(0)
	image, ctx := make([]byte, size), context.Background()
	take := func() {
		ws, err := tap.Next(ctx, 64, 0)
		if err != nil {
			t.Error(err)
		}
		for _, w := range ws {
			switch w.Kind {
			case Data, SyncData:
				copy(image[w.Off:], payload(w))
			case SyncZero:
				clear(image[w.Off : w.Off+w.Len])
			}
		}
		tap.Free(ws)
	}
	var writers, reader sync.WaitGroup
	var passed [queues]int
	for q := range queues {
		writers.Go(func() {
			lane, err := v.Lane(depth)
			if err != nil {
				t.Error(err)
				return
			}
			defer lane.Close()
			rng := rand.New(rand.NewPCG(uint64(q), 9))
			mem := buf.Aligned(depth * 16384)
			for i := range rounds {
				left := make(chan struct{}, depth)
				for k := range depth {
					n := (1 + rng.IntN(4)) * 4096
					off := rng.Int64N((size-int64(n))/4096) * 4096
					p := mem[k*16384:][:n]
					copy(p, fill(n, byte(1+q*rounds+i)))
					if i%10 == 0 {
						v.mark(rng.Int64N(size), 64<<10)
					}
					done := func(err error) {
						if err != nil {
							t.Error(err)
						}
						left <- struct{}{}
						lane.Loop().Wake()
					}
					if lane.Pass([][]byte{p}, off, done) {
						passed[q]++
						continue
					}
					w, err := v.BeginWrite(off, n)
					if err != nil {
						t.Error(err)
						return
					}
					for _, b := range w.Buffers() {
						p = p[copy(b, p):]
					}
					lane.Write(w, done)
				}
				stepUntil(t, lane, func() bool { return len(left) == depth })
				lane.Told()
			}
		})
	}
	over := make(chan struct{})
	reader.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
			}
			if err := v.syncRead(ctx, 0, size); err != nil {
				t.Error(err)
				return
			}
		}
	})
	taking := make(chan struct{})
	var taker sync.WaitGroup
	taker.Go(func() {
		for {
			select {
			case <-taking:
				return
			default:
				take()
			}
		}
	})
	writers.Wait()
	close(over)
	reader.Wait()
	for v.dirtyBlocks() > 0 {
		if err := v.syncRead(ctx, 0, size); err != nil {
			t.Fatal(err)
		}
	}
	close(taking)
	taker.Wait()
	for range minSlots {
		take()
	}
	got := make([]byte, size)
	if err := v.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	for at := 0; at < size; at += BlockBytes {
		if !bytes.Equal(got[at:at+BlockBytes], image[at:at+BlockBytes]) {
			t.Fatalf("at %d the disk holds %d, the tap gave %d", at, got[at], image[at])
		}
	}
	if passed[0] == 0 || passed[1] == 0 || v.pool.captured.Load() == 0 {
		t.Errorf("%v passed, %d bytes captured: not both were tested", passed, v.pool.captured.Load())
	}
}

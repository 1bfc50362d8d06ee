package capture

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// dirty makes [from, to) dirty blocks of the volume, as a drop does.
func dirty(v *volume, from, to int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.dropLocked(from*BlockBytes, to*BlockBytes)
}

// syncing asks for a sync read and returns where its end is told.
func syncing(t testing.TB, tap *Tap, off, n int64) <-chan error {
	done := make(chan error, 1)
	ctx, stop := context.WithTimeout(context.Background(), patience)
	t.Cleanup(stop)
	go func() { done <- tap.SyncRead(ctx, 1, off, n) }()
	return done
}

func TestSyncReadsWhatIsDirty(t *testing.T) {
	r := newRig(t, 4096, 8*mib, 2*mib, 1)
	disk := r.model.disks["vol1"]
	copy(disk.data[mib:], fill(300_000, 5))
	tap := r.open().openTap() // new marks: all is dirty
	if got := dirtyBlocks(t, tap, 1); got != 8*mib/BlockBytes {
		t.Fatalf("%d blocks dirty at first", got)
	}
	ex, err := tap.DirtyExtents(t.Context(), 1, 0, 10)
	if err != nil || len(ex) != 1 || ex[0] != (Extent{0, 8 * mib}) {
		t.Fatalf("extents %+v, %v", ex, err)
	}
	done := syncing(t, tap, 0, 8*mib)
	got := fill(8*mib, 0xff)
	seen := int64(0)
	for seen < 8*mib {
		for _, w := range next(t, tap, 1) {
			switch w.Kind {
			case SyncData:
				copy(got[w.Off:], payload(w))
			case SyncZero:
				clear(got[w.Off : w.Off+w.Len])
			default:
				t.Fatalf("a %d", w.Kind)
			}
			seen += w.Len
			tap.Free([]Write{w})
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, disk.data) {
		t.Error("what was read is not what the disk holds")
	}
	if dirtyBlocks(t, tap, 1) != 0 {
		t.Error("dirty after all was read")
	}
	if seen > 8*mib {
		t.Errorf("%d bytes read", seen)
	}
	if s := tap.Stats(); s.SyncBytes != 8*mib {
		t.Errorf("stats: %+v", s)
	}
}

// TestSyncLooksOnce: the end of data is looked for once, however much of it there is, and not from the hole before it.
func TestSyncLooksOnce(t *testing.T) {
	const size = 16 * mib
	r := newRig(t, 4096, size, 2*mib, 1)
	disk := r.model.disks["vol1"]
	copy(disk.data[8*mib:], fill(7*mib, 5))
	tap := r.open().openTap()
	for off := int64(0); off < size; off += mib {
		done := syncing(t, tap, off, mib)
		for seen := int64(0); seen < mib; {
			for _, w := range next(t, tap, 1) {
				seen += w.Len
				tap.Free([]Write{w})
			}
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	disk.mu.Lock()
	defer disk.mu.Unlock()
	if disk.looks > 1 {
		t.Errorf("it looked %d times", disk.looks)
	}
}

// TestSyncLeavesOutWhatIsInFlight: to the byte, from the read's start until its ticket.
func TestSyncLeavesOutWhatIsInFlight(t *testing.T) {
	r := newRig(t, 512, mib, 2*mib, 1)
	disk := r.model.disks["vol1"]
	copy(disk.data, fill(mib, 7))
	r.open()
	tap := r.covered()
	v := r.vol(0)
	dirty(v, 1, 8)

	// The first write is in flight when the read starts; its blocks are not all dirty.
	inWrite, goWrite := stopAt(t, disk, func(write bool, off int64) bool { return write && off == 0 })
	inRead, goRead := stopAt(t, disk, func(write bool, off int64) bool { return !write && off == 4096 })
	var wg sync.WaitGroup
	wg.Go(func() { write(t, v, 0, fill(4096+1000, 1)) })
	<-inWrite
	done := syncing(t, tap, 0, mib)
	<-inRead
	write(t, v, 20_001, fill(600, 2)) // begins and ends within the read
	goRead()
	ws := next(t, tap, 3)
	select {
	case <-done: // the target has neither the first write nor what was there before it
		t.Fatal("the read ended before a write that it left out had its ticket")
	case <-time.After(20 * time.Millisecond):
	}
	if got := dirtyBlocks(t, tap, 1); got != 2 {
		t.Errorf("%d blocks said to be dirty, want the 2 of the first write", got)
	}
	goWrite()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if got := dirtyBlocks(t, tap, 1); got != 0 {
		t.Errorf("%d blocks dirty at the end", got)
	}
	ws = append(ws, next(t, tap, 1)...)
	want := []struct {
		kind     Kind
		off, end int64
	}{
		{Data, 20_001, 20_601},
		{SyncData, 4096 + 1000, 20_001},
		{SyncData, 20_601, 8 * 4096},
		{Data, 0, 4096 + 1000},
	}
	for i, w := range want {
		if ws[i].Kind != w.kind || ws[i].Off != w.off || ws[i].Off+ws[i].Len != w.end {
			t.Errorf("%d: kind %d [%d, %d), want %+v", i, ws[i].Kind, ws[i].Off, ws[i].Off+ws[i].Len, w)
		}
		if ws[i].Kind == SyncData && !bytes.Equal(payload(ws[i]), fill(int(ws[i].Len), 7)) {
			t.Errorf("%d: other bytes", i)
		}
	}
}

// TestSyncWaitsForUncaptured: a write that went uncaptured since its blocks were dirty
// is in what a read of them gives.
func TestSyncWaitsForUncaptured(t *testing.T) {
	r := newRig(t, 512, mib, 2*mib, 1).open()
	tap := r.covered()
	v := r.vol(0)
	dirty(v, 0, 2)
	inWrite, goWrite := stopAt(t, r.model.disks["vol1"], func(write bool, _ int64) bool { return write })
	var wg sync.WaitGroup
	wg.Go(func() { write(t, v, 512, fill(512, 3)) })
	<-inWrite
	done := syncing(t, tap, 0, 8192)
	within(t, "the read has begun", func() bool {
		v.mu.Lock()
		defer v.mu.Unlock()
		return len(v.mu.flights.syncs) == 1
	})
	select {
	case err := <-done:
		t.Fatalf("the read did not wait: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	goWrite()
	wg.Wait()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	ws := next(t, tap, 1)
	if ws[0].Kind != SyncData || ws[0].Len != 8192 || !bytes.Equal(payload(ws[0])[512:1024], fill(512, 3)) {
		t.Errorf("%+v", ws[0])
	}
	none(t, tap)
}

// TestFoldKeepsWhatIsInFlight: after a fold, a sync read may clear the dirty bits of a
// write that is in flight still; it must be marked in a generation even so.
func TestFoldKeepsWhatIsInFlight(t *testing.T) {
	r := newRig(t, 512, mib, 2*mib, 1).open()
	tap := r.covered()
	v := r.vol(0)
	write(t, v, 65536, fill(512, 1))
	inWrite, goWrite := stopAt(t, r.model.disks["vol1"], func(write bool, _ int64) bool { return write })
	var wg sync.WaitGroup
	wg.Go(func() { write(t, v, 512, fill(512, 3)) })
	<-inWrite
	lost := tap.Lost()
	if _, err := tap.Restart(t.Context(), 41); err != nil {
		t.Fatal(err)
	}
	if tap.Incarnation() != 42 {
		t.Errorf("incarnation %d", tap.Incarnation())
	}
	if dirtyBlocks(t, tap, 1) != 2 || tap.Lost() == lost {
		t.Errorf("after the fold: %d dirty, lost %d of %d", dirtyBlocks(t, tap, 1), tap.Lost(), lost)
	}
	none(t, tap) // what was published before is gone
	within(t, "its slot is home", func() bool { return homeSlots(v.pool) == v.pool.shape.slots-1 })
	done := syncing(t, tap, 0, mib)
	ws := next(t, tap, 3)
	last := ws[2].Ticket
	tap.Free(ws)
	tap.PublishDurable(last + 10)
	r.filter.turn()
	r.filter.turn()
	v.mu.Lock()
	marked := false
	for _, g := range append(v.mu.marks.closed, v.mu.marks.now) {
		marked = marked || g.file.bits.all(0, 1)
	}
	v.mu.Unlock()
	if !marked {
		t.Error("a write in flight is marked nowhere")
	}
	goWrite()
	wg.Wait()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if ws := next(t, tap, 1); ws[0].Off != 512 {
		t.Errorf("%+v", ws[0])
	}
}

func TestFailedSyncReadIsDirtyAgain(t *testing.T) {
	r := newRig(t, 512, mib, 2*mib, 1).open()
	tap := r.covered()
	if err := tap.SyncRead(t.Context(), 7, 0, mib); err == nil {
		t.Error("a volume that is not there was read")
	}
	if err := tap.MarkAll(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	lost := tap.Lost()
	write(t, r.vol(0), 0, fill(8192, 1))
	r.model.disks["vol1"].failRead.Store(true)
	if err := <-syncing(t, tap, 0, 8192); err == nil {
		t.Error("no error")
	}
	if dirtyBlocks(t, tap, 1) != mib/BlockBytes || tap.Lost() == lost {
		t.Errorf("%d blocks dirty", dirtyBlocks(t, tap, 1))
	}
}

// TestMarkExtents: exactly the blocks that are touched are dirty, lost tells, and they
// are read again.
func TestMarkExtents(t *testing.T) {
	r := newRig(t, 512, mib, 2*mib, 1).open()
	tap := r.covered()
	lost := tap.Lost()
	if err := tap.MarkExtents(t.Context(), 1, []Extent{{8192 + 512, 512}, {32768, 8192}, {mib - 512, 1 << 30}, {2 * mib, 4096}}); err != nil {
		t.Fatal(err)
	}
	if tap.Lost() == lost {
		t.Error("lost does not tell")
	}
	got, err := tap.DirtyExtents(t.Context(), 1, 0, 10)
	want := []Extent{{8192, 4096}, {32768, 8192}, {mib - 4096, 4096}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("dirty %v, %v, want %v", got, err, want)
	}
	if err := tap.MarkExtents(t.Context(), 7, []Extent{{0, 512}}); err == nil {
		t.Error("a volume that is not there was marked")
	}
}

func homeSlots(p *pool) int {
	p.allHome()
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.mu.free)
}

// TestGenerationsLiveUntilDurable follows one write through its generation.
func TestGenerationsLiveUntilDurable(t *testing.T) {
	r := newRig(t, 512, mib, 2*mib, 1).open()
	tap := r.covered()
	v := r.vol(0)
	closedBits := func() (n int64) {
		v.mu.Lock()
		defer v.mu.Unlock()
		if bad := v.mu.marks.check(); bad != "" {
			t.Error(bad)
		}
		for _, g := range v.mu.marks.closed {
			n += g.file.bits.count()
		}
		return n
	}
	var last record.Ticket
	for i := range int64(40) { // more seconds than generations
		write(t, v, i*BlockBytes, fill(512, 1))
		ws := next(t, tap, 1)
		tap.Free(ws)
		last = ws[0].Ticket
		v.turn(0)
	}
	if got := closedBits(); got != 40 {
		t.Errorf("%d blocks marked after merging, want 40", got)
	}
	v.turn(last - 1)
	if got := closedBits(); got == 0 || got > 2 {
		t.Errorf("%d blocks marked with all but one durable", got)
	}
	v.turn(last)
	if got := closedBits(); got != 0 {
		t.Errorf("%d blocks marked with all durable", got)
	}
}

func TestReclaim(t *testing.T) {
	r := newRig(t, 512, mib, 2*mib, 1).open()
	tap := r.covered()
	v := r.vol(0)
	write(t, v, 0, fill(20_000, 1))
	write(t, v, 65536, fill(20_000, 2))
	ws := next(t, tap, 2)
	p := ws[0].ring.pool
	// Killed in the middle of freeing: the first slot is free, nothing else happened.
	w := p.stateWord(ws[0].slot)
	w.Store(withState(w.Load(), slotFree))
	if err := tap.Close(); err != nil {
		t.Fatal(err)
	}
	tap = r.openTap()
	if ws = next(t, tap, 1); ws[0].Off != 65536 || !bytes.Equal(payload(ws[0]), fill(20_000, 2)) {
		t.Errorf("%+v", ws[0])
	}
	tap.Free(ws)
	within(t, "all slots are home", v.pool.allHome)
}

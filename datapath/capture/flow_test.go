package capture

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/wire/record"
)

const mib = 1 << 20

func TestWritesComeInOrder(t *testing.T) {
	r := newRig(t, 4096, 4*mib, 2*mib, 2).open()
	tap := r.covered()
	write(t, r.vol(0), 4096, fill(4096, 1))
	write(t, r.vol(1), 100, fill(512, 2))
	write(t, r.vol(0), 8192, fill(100_000, 3))
	cut := tap.TakeTicket()
	if err := r.vol(1).Zero(0, mib, true, false); err != nil {
		t.Fatal(err)
	}
	if err := r.vol(1).Trim(mib+100, 2*4096, false); err != nil {
		t.Fatal(err)
	}
	if got, want := r.filter.pool.captured.Load(), uint64(4096+512+100_000+mib+4096); got != want { // what was answered was split before
		t.Fatalf("%d bytes are captured, want %d", got, want)
	}
	ws := next(t, tap, 6)
	want := []Write{
		{Volume: 1, Off: 4096, Len: 4096, Kind: Data},
		{Volume: 2, Off: 100, Len: 512, Kind: Data},
		{Volume: 1, Off: 8192, Len: 100_000, Kind: Data},
		{Kind: Mark, Ticket: cut},
		{Volume: 2, Off: 0, Len: mib, Kind: Zero},
		{Volume: 2, Off: mib + 4096, Len: 4096, Kind: Zero},
	}
	for i, w := range ws {
		if w.Volume != want[i].Volume || w.Off != want[i].Off || w.Len != want[i].Len || w.Kind != want[i].Kind {
			t.Errorf("write %d: %+v, want %+v", i, w, want[i])
		}
		if i > 0 && w.Ticket <= ws[i-1].Ticket {
			t.Errorf("ticket %d after %d", w.Ticket, ws[i-1].Ticket)
		}
		if w.Kind == Data && !bytes.Equal(payload(w), fill(int(w.Len), byte(i+1))) {
			t.Errorf("write %d has other bytes", i)
		}
	}
	if ws[3].Ticket != cut {
		t.Errorf("cut %d came as %d", cut, ws[3].Ticket)
	}
	tap.Free(ws)
	within(t, "all slots are home", r.filter.pool.allHome)
	if tap.Lost() != tap.LostCovered() {
		t.Error("something was lost")
	}
	p := make([]byte, 512)
	if err := r.vol(1).ReadAt(p, mib/2); err != nil || !isZero(p) {
		t.Errorf("zeroed range reads %x, %v", p[:8], err)
	}
}

func TestDeadVRANeverStallsTheGuest(t *testing.T) {
	r := newRig(t, 512, 16*mib, mib, 1).open()
	tap := r.covered()
	lost := tap.Lost()
	for i := range int64(300) { // three times the pool, and nobody frees
		write(t, r.vol(0), i*SlotBytes, fill(SlotBytes, byte(i+1)))
	}
	if tap.Lost() == lost {
		t.Fatal("writes were dropped and lost does not say so")
	}
	slots := int64(mib / SlotBytes)
	if got := dirtyBlocks(t, tap, 1); got != (300-slots)*2 {
		t.Errorf("%d blocks dirty, want %d", got, (300-slots)*2)
	}
	// What fits stands in the pool, in order, for whoever comes.
	ws := next(t, tap, int(slots))
	tap.Free(ws)
	none(t, tap)
	if s := tap.Stats(); s.Dropped+s.Uncaptured != uint64(300-slots) || s.GuestWrites != 300 {
		t.Errorf("stats: %+v", s)
	}
	// A write to blocks that are all dirty is not captured; one that is not is.
	write(t, r.vol(0), 299*SlotBytes, fill(512, 9))
	write(t, r.vol(0), 0, fill(512, 9))
	if ws := next(t, tap, 1); ws[0].Off != 0 {
		t.Errorf("captured %+v", ws[0])
	}
}

// TestDropIsSaidBeforeTheAnswer holds that marks, then lost, come before the answer.
func TestDropIsSaidBeforeTheAnswer(t *testing.T) {
	r := newRig(t, 512, 4*mib, mib, 1).open()
	tap := r.covered()
	covered := tap.LostCovered()
	r.model.disks["vol1"].fail.Store(true)
	if err := tryWrite(r.vol(0), 8192, fill(512, 1)); err == nil {
		t.Fatal("the disk's error did not reach the guest")
	}
	if tap.Lost() == covered || dirtyBlocks(t, tap, 1) != 1 {
		t.Errorf("a failed write: lost %d of %d, %d blocks dirty", tap.Lost(), covered, dirtyBlocks(t, tap, 1))
	}
	r.model.disks["vol1"].fail.Store(false)
	none(t, tap)
	within(t, "its slot is home", r.filter.pool.allHome)
}

func TestMarkStandsBeforeTheDiskWrite(t *testing.T) {
	r := newRig(t, 512, 4*mib, mib, 1).open()
	r.covered()
	v := r.vol(0)
	saw := make(chan bool, 4)
	gate := func(w bool, off int64) {
		v.mu.Lock()
		defer v.mu.Unlock()
		saw <- v.mu.marks.now.file.bits.all(3, 5)
	}
	r.model.disks["vol1"].gate.Store(&gate)
	write(t, v, 3*4096, fill(8192, 1))
	if !<-saw {
		t.Error("the write was submitted unmarked")
	}
}

func TestOverlapWaits(t *testing.T) {
	r := newRig(t, 4096, 4*mib, mib, 1).open()
	tap := r.covered()
	entered, release := stopAt(t, r.model.disks["vol1"], func(_ bool, off int64) bool { return off == 4096 })
	var wg sync.WaitGroup
	wg.Go(func() { write(t, r.vol(0), 4096, fill(4096, 1)) })
	<-entered
	// 512 bytes in the same 4K block: another write, the same aligned block.
	wg.Go(func() { write(t, r.vol(0), 7000, fill(512, 2)) })
	within(t, "the second waits", func() bool {
		v := r.vol(0)
		v.mu.Lock()
		defer v.mu.Unlock()
		return len(v.mu.flights.list) == 2
	})
	write(t, r.vol(0), 65536, fill(4096, 3)) // elsewhere: waits for nobody
	release()
	wg.Wait()
	ws := next(t, tap, 3)
	if ws[0].Off != 65536 || ws[1].Off != 4096 || ws[2].Off != 7000 {
		t.Errorf("order: %d, %d, %d", ws[0].Off, ws[1].Off, ws[2].Off)
	}
	p := make([]byte, 4096)
	if err := r.vol(0).ReadAt(p, 4096); err != nil {
		t.Fatal(err)
	}
	want := fill(4096, 1)
	copy(want[7000-4096:], fill(512, 2))
	if !bytes.Equal(p, want) {
		t.Error("the disk has other bytes")
	}
}

// stopPublish makes the next publication of the ring wait at step until it is released.
func stopPublish(t *testing.T, r *ring, step publishStep) (entered <-chan struct{}, release func()) {
	came, free := make(chan struct{}), make(chan struct{})
	var taken atomic.Bool
	r.stop = func(at publishStep) {
		if at == step && taken.CompareAndSwap(false, true) {
			close(came)
			<-free
		}
	}
	release = sync.OnceFunc(func() { close(free) })
	t.Cleanup(release)
	return came, release
}

// TestRevoked holds that a slot stuck in ticketing is taken back, and that its write is
// dropped and said to be, whatever it was at.
func TestRevoked(t *testing.T) {
	for _, step := range []publishStep{stepTicket, stepEntry} {
		r := newRig(t, 512, 4*mib, mib, 2).open()
		tap := r.covered()
		lost := tap.Lost()
		stuck, release := stopPublish(t, &r.filter.pool.rings[0], step)
		var wg sync.WaitGroup
		wg.Go(func() { write(t, r.vol(0), 0, fill(512, 1)) })
		<-stuck
		write(t, r.vol(1), 0, fill(512, 2)) // a later ticket
		ws := next(t, tap, 1)
		if ws[0].Volume != 2 || tap.Stats().Revoked != 1 {
			t.Fatalf("step %d: got %+v, revoked %d", step, ws[0], tap.Stats().Revoked)
		}
		release()
		wg.Wait()
		if tap.Lost() == lost || dirtyBlocks(t, tap, 1) != 1 {
			t.Errorf("step %d: lost %d of %d, %d dirty", step, tap.Lost(), lost, dirtyBlocks(t, tap, 1))
		}
		write(t, r.vol(0), mib, fill(512, 3))
		if ws := next(t, tap, 1); ws[0].Off != mib {
			t.Errorf("step %d: after it: %+v", step, ws[0])
		}
		if err := tap.Close(); err != nil {
			t.Fatal(err)
		}
		r.tap = nil
	}
}

// TestTicketingHoldsTheOrder holds that nothing later is given while an earlier ticket
// may still be published.
func TestTicketingHoldsTheOrder(t *testing.T) {
	for _, step := range []publishStep{stepTicket, stepEntry} {
		r := newRig(t, 512, 4*mib, mib, 2).open()
		tap := r.covered()
		stuck, release := stopPublish(t, &r.filter.pool.rings[0], step)
		var wg sync.WaitGroup
		wg.Go(func() { write(t, r.vol(0), 0, fill(512, 1)) })
		<-stuck
		write(t, r.vol(1), 0, fill(512, 2))
		ws, waits, err := tap.collect(10)
		if err != nil || len(ws) != 0 || !waits {
			t.Errorf("step %d: %+v, %v; want nothing yet", step, ws, err)
		}
		release()
		wg.Wait()
		ws = next(t, tap, 2)
		if ws[0].Volume != 1 || ws[1].Volume != 2 {
			t.Errorf("step %d: order %+v", step, ws)
		}
		if err := tap.Close(); err != nil {
			t.Fatal(err)
		}
		r.tap = nil
	}
}

// TestKilledInTicketing: a filter that died with a ticket is not waited for longer than
// a slot may be in ticketing, and its successor says what was lost.
func TestKilledInTicketing(t *testing.T) {
	for _, step := range []publishStep{stepTicket, stepEntry} {
		r := newRig(t, 512, 4*mib, mib, 2).open()
		tap := r.covered()
		lost := tap.Lost()
		r.filter.pool.rings[0].stop = func(at publishStep) {
			if at == step {
				runtime.Goexit()
			}
		}
		var wg sync.WaitGroup
		wg.Go(func() { write(t, r.vol(0), 4096, fill(512, 1)) })
		wg.Wait()
		write(t, r.vol(1), 0, fill(512, 2))
		r.kill()
		if ws := next(t, tap, 1); ws[0].Volume != 2 {
			t.Errorf("step %d: %+v", step, ws[0])
		}
		r.open()
		if tap.Lost() == lost || r.vol(0).dirtyBlocks() != 1 {
			t.Errorf("step %d: lost %d of %d, %d dirty", step, tap.Lost(), lost, r.vol(0).dirtyBlocks())
		}
		if err := tap.Close(); err != nil {
			t.Fatal(err)
		}
		r.tap = nil
	}
}

// TestMissingTicketIsSkipped: a ticket that nobody has any more does not stop the merge.
func TestMissingTicketIsSkipped(t *testing.T) {
	r := newRig(t, 512, 4*mib, mib, 1).open()
	tap := r.covered()
	write(t, r.vol(0), 0, fill(512, 1))
	tap.Free(next(t, tap, 1))
	tap.page.take()
	write(t, r.vol(0), 4096, fill(512, 2))
	if ws := next(t, tap, 1); ws[0].Off != 4096 {
		t.Errorf("%+v", ws[0])
	}
	if tap.Lost() != tap.LostCovered() {
		t.Error("a skipped ticket is no loss")
	}
}

func TestCleanCloseKeepsGenerations(t *testing.T) {
	r := newRig(t, 512, 4*mib, mib, 1).open()
	tap := r.covered()
	write(t, r.vol(0), 4096, fill(512, 1))
	tap.Free(next(t, tap, 1))
	r.stopRun()
	if err := r.filter.Close(); err != nil {
		t.Fatal(err)
	}
	if got := len(tap.page.entered(nil)); got != 0 {
		t.Errorf("%d filters in the order page after a clean close", got)
	}
	lost := tap.Lost()
	r.open()
	if tap.Lost() != lost {
		t.Error("a clean restart lost something")
	}
	v := r.vol(0)
	v.mu.Lock()
	live := len(v.mu.marks.closed)
	v.mu.Unlock()
	if live != 1 || v.dirtyBlocks() != 0 {
		t.Errorf("%d generations, %d blocks dirty", live, v.dirtyBlocks())
	}
	write(t, v, 8192, fill(512, 2)) // and the tap finds the new filter
	if ws := next(t, tap, 1); ws[0].Off != 8192 {
		t.Errorf("%+v", ws[0])
	}
	tap.PublishDurable(tap.LastTicket())
	r.filter.turn()
	r.filter.turn()
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, g := range v.mu.marks.closed {
		if g.file.bits.count() > 0 && record.Ticket(g.file.note.Load()) <= record.Ticket(tap.page.durable.Load()) {
			t.Error("a generation that the durable ticket has passed is alive")
		}
	}
}

func TestUncleanCloseMakesMarksDirty(t *testing.T) {
	r := newRig(t, 512, 4*mib, mib, 1).open()
	tap := r.covered()
	write(t, r.vol(0), 4096, fill(8192, 1))
	lost := tap.Lost()
	r.kill()
	r.open()
	if tap.Lost() == lost {
		t.Error("lost does not tell of the crash")
	}
	if got := r.vol(0).dirtyBlocks(); got != 2 {
		t.Errorf("%d blocks dirty, want 2", got)
	}
	// What the dead one had published is there still, and comes.
	if ws := next(t, tap, 1); ws[0].Off != 4096 || !bytes.Equal(payload(ws[0]), fill(8192, 1)) {
		t.Errorf("%+v", ws[0])
	}
}

func TestOtherBootTrustsNothing(t *testing.T) {
	r := newRig(t, 512, 4*mib, mib, 1).open()
	r.covered()
	r.stopRun()
	if err := r.tap.Close(); err != nil {
		t.Fatal(err)
	}
	r.tap = nil
	if err := r.filter.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := openFilter(r.cfg, bootID{1})
	if err != nil {
		t.Fatal(err)
	}
	r.filter = f
	r.run()
	if got := r.vol(0).dirtyBlocks(); got != 4*mib/BlockBytes {
		t.Errorf("%d blocks dirty after a boot", got)
	}
	if f.page.lost.Load() == f.page.covered.Load() {
		t.Error("nothing lost after a boot")
	}
}

func TestOneTapAtATime(t *testing.T) {
	r := newRig(t, 512, 4*mib, mib, 1).open()
	r.openTap()
	_, err := OpenTap(TapConfig{RunDir: r.dir, Group: testGroup, Filters: []string{"x"}, Log: testLog(t)})
	if !errors.Is(err, ErrInUse) {
		t.Errorf("a second tap: %v", err)
	}
}

// TestMissingFilter: a filter that stands in the order page and cannot be mapped is
// waited for, then given up, and lost says so.
func TestMissingFilter(t *testing.T) {
	r := newRig(t, 512, 4*mib, mib, 1).open()
	tap := r.covered()
	lost := tap.Lost()
	if err := tap.page.enter(99, 98); err != nil {
		t.Fatal(err)
	}
	tap.page.take()
	write(t, r.vol(0), 0, fill(512, 1))
	ctx, stop := context.WithTimeout(t.Context(), missingAfter/4)
	defer stop()
	began := time.Now()
	switch ws, err := tap.Next(ctx, 1, time.Minute); {
	case err != nil:
		next(t, tap, 1)
	case time.Since(began) < missingAfter: // else the machine stood still that long
		t.Fatalf("did not wait: %+v", ws)
	}
	if tap.Lost() == lost {
		t.Error("lost does not tell of a filter that is missing")
	}
	tap.PublishDurable(tap.LastTicket())
	if tap.page.durable.Load() == 0 {
		t.Error("a dead filter holds the durable ticket back")
	}
}

// TestPassedOverFilter: a filter that lives and could not be mapped was gone on without.
// No generation is dropped before it has folded, and what it had published has no place
// in the order any more.
func TestPassedOverFilter(t *testing.T) {
	r := newRig(t, 512, mib, mib, 1).open()
	r.covered()
	if err := r.tap.Close(); err != nil {
		t.Fatal(err)
	}
	r.stopRun() // it lives, but does not answer
	tap, err := OpenTap(TapConfig{RunDir: r.dir, Group: testGroup, Filters: []string{r.cfg.PoolSocket}, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	r.tap = tap
	lost := tap.Lost()
	write(t, r.vol(0), 4096, fill(512, 1))
	cut := tap.TakeTicket()
	if ws := next(t, tap, 1); ws[0].Kind != Mark || tap.Lost() == lost {
		t.Fatalf("%+v, lost %d of %d", ws[0], tap.Lost(), lost)
	}
	tap.PublishDurable(cut)
	if tap.page.durable.Load() >= uint64(cut) {
		t.Error("a ticket is called durable that a live filter may have below it")
	}
	if !tap.Passed() {
		t.Error("the page does not say that a filter was passed over")
	}
	r.run()
	within(t, "the filter has folded", func() bool { return tap.page.durable.Load() >= uint64(cut) })
	if tap.Passed() {
		t.Error("the page says that a filter was passed over, which has folded")
	}
	if got := dirtyBlocks(t, tap, 1); got != 1 {
		t.Errorf("%d blocks dirty, want 1", got)
	}
	write(t, r.vol(0), 8192, fill(512, 2))
	if ws := next(t, tap, 1); ws[0].Off != 8192 {
		t.Errorf("%+v", ws[0])
	}
}

// TestWildMemory: what a filter's memory says of sizes is another process's word. A size that no volume can have, or its volume has no
// marks for, is not believed, and a write beyond its volume's end is not given to anyone.
func TestWildMemory(t *testing.T) {
	for what, f := range map[string]struct {
		size uint64 // that the pool shows; a write ends at mib
		off  int64  // that its descriptor is made to say; -1: what it said
		want error
	}{
		"as it is":                        {mib, -1, nil},
		"a size that no volume can have":  {record.VolumeLimit + 1, -1, nil},
		"a size above all":                {1 << 63, -1, nil},
		"a size that nobody has marks of": {256 * mib, -1, nil},
		"one that is smaller than it was": {mib - 512, -1, nil},
		"a filter of an older release":    {0, -1, nil},
		"a write beyond its volume":       {256 * mib, 128*mib - 512, ErrCorrupt},
		"one that is moved beyond it":     {mib, mib, ErrCorrupt},
		"one beyond every volume":         {0, record.VolumeLimit - 511, ErrCorrupt},
		"one that ends where all may end": {0, record.VolumeLimit - 512, nil},
	} {
		r := newRig(t, 512, mib, mib, 1).open()
		tap := r.covered()
		r.vol(0).sizeWord.Store(f.size)
		if f.size == 0 { // nor did it ever say one
			tap.merge.Lock()
			tap.merge.pools[0].rings[0].believed = 0
			tap.merge.Unlock()
		}
		write(t, r.vol(0), mib-512, fill(512, 1))
		if f.off >= 0 {
			tap.merge.Lock()
			ring := &tap.merge.pools[0].rings[0]
			if !ring.peek() {
				t.Fatal("nothing is published")
			}
			slot := int64(ring.slot)
			tap.merge.Unlock()
			binary.LittleEndian.PutUint64(r.vol(0).pool.desc[r.vol(0).pool.shape.descAt(uint32(slot))+descAtOff:], uint64(f.off))
		}
		if vs, ok := tap.Volumes(); !ok || vs[0].Bytes != mib {
			t.Errorf("%s: the VRA sees %v", what, vs)
		}
		ws, err := tap.Next(t.Context(), 1, patience)
		if !errors.Is(err, f.want) || (f.want == nil) != (len(ws) == 1) {
			t.Errorf("%s: %d writes, %v, want %v", what, len(ws), err, f.want)
		}
		tap.Free(ws)
	}
}

package capture

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// TestStress runs guests, filter and VRA against each other and kills the latter two.
// What the target holds must be the disk's bytes once all is quiet, and at every cut that
// stands an answered write's cause must be there if the write is.
//
// HOLDFAST_SEED picks one seed; interleavings differ from run to run even so.
func TestStress(t *testing.T) {
	seeds := []uint64{1, 2, 3}
	if s, err := strconv.ParseUint(os.Getenv("HOLDFAST_SEED"), 10, 64); err == nil {
		seeds = []uint64{s}
	}
	for _, kills := range []string{"none", "tap", "filter", "both"} {
		for _, seed := range seeds {
			t.Run(fmt.Sprintf("kill=%s/seed=%d", kills, seed), func(t *testing.T) {
				stress(t, seed, kills == "tap" || kills == "both", kills == "filter" || kills == "both")
			})
		}
	}
}

const (
	stressBytes = mib
	causeAt     = 300_000 // in both volumes: a counter, written to the first, then to the second
)

func stress(t *testing.T, seed uint64, killTap, killFilter bool) {
	align := []int{1, 512, 4096}[seed%3]
	w := &world{rig: newRig(t, align, stressBytes, int64(1+seed%2)*mib, 2), seed: seed}
	for i, d := range w.model.disks {
		copy(d.data, fill(stressBytes/2, i[3]))
	}
	w.target = [][]byte{make([]byte, stressBytes), make([]byte, stressBytes)}
	w.open()
	rng := rand.New(rand.NewPCG(seed, 0))
	w.startVRA()
	for round := range 6 {
		w.calm.Store(round%2 == 1)
		w.startGuests(round)
		for range 2 + rng.IntN(4) {
			if w.calm.Load() {
				w.waitCut() // so that the next kill finds the group protected
			}
			w.pause(rng, 15)
			w.turn()
			if killTap && rng.IntN(2) == 0 {
				w.stopVRA()
				w.startVRA()
			}
		}
		if killFilter {
			w.killFilter()
			w.open()
		} else {
			w.stopGuests()
		}
	}
	w.settle()
	w.stopVRA()
	for i, v := range w.target {
		if disk := w.model.disks[fmt.Sprintf("vol%d", i+1)].data; !bytes.Equal(v, disk) {
			at := 0
			for v[at] == disk[at] {
				at++
			}
			t.Fatalf("volume %d differs from its disk, first at %d (block %d)", i+1, at, at/BlockBytes)
		}
	}
	t.Logf("cuts that stood: %d; drops: %d", w.stood.Load(), w.drops)
	if w.stood.Load() == 0 {
		t.Error("no cut ever stood: the test saw nothing")
	}
}

// world is a rig with guests and a VRA.
type world struct {
	*rig
	seed   uint64
	target [][]byte // what the target has durable
	cause  uint64   // the highest counter begun

	guests     sync.WaitGroup
	guestsStop atomic.Bool

	vra     sync.WaitGroup
	vraStop context.CancelFunc
	calm    atomic.Bool // guests pause and the VRA does not stall
	quiet   atomic.Bool // settle: nobody writes any more
	settled atomic.Uint64
	stood   atomic.Uint64
	drops   uint64
}

func (w *world) pause(rng *rand.Rand, most int) {
	<-time.After(time.Duration(rng.IntN(most*1000)) * time.Microsecond)
}

// turn closes generations far more often than the second does.
func (w *world) turn() {
	if w.filter != nil {
		w.filter.turn()
	}
}

func (w *world) startGuests(round int) {
	w.guestsStop.Store(false)
	for i := range 6 {
		rng := rand.New(rand.NewPCG(w.seed, uint64(100*round+i+1)))
		d := w.filter.Device(fmt.Sprintf("vol%d", i%2+1))
		w.guests.Go(func() { w.guest(rng, d) })
	}
	a, b := w.filter.Device("vol1"), w.filter.Device("vol2")
	w.guests.Go(func() {
		for !w.guestsStop.Load() {
			w.cause++
			p := binary.LittleEndian.AppendUint64(nil, w.cause)
			if tryWrite(a, causeAt, p) == nil {
				_ = tryWrite(b, causeAt, p) // a dead disk ends us before it returns
			}
			if w.calm.Load() {
				<-time.After(100 * time.Microsecond)
			}
		}
	})
}

// guest writes, zeroes and discards, all but the counters, in places that often overlap.
func (w *world) guest(rng *rand.Rand, d front.Device) {
	for !w.guestsStop.Load() {
		n := 1 + rng.IntN([]int{512, 5000, 70_000}[rng.IntN(3)])
		if rng.IntN(2) == 0 {
			n = (n + 511) / 512 * 512
		}
		off := rng.Int64N(stressBytes - int64(n))
		if rng.IntN(2) == 0 {
			off = off / 512 * 512
		}
		if off < causeAt+8 && causeAt < off+int64(n) {
			continue
		}
		switch rng.IntN(12) {
		case 0:
			_ = d.Zero(off, int64(n), rng.IntN(2) == 0, rng.IntN(4) == 0)
		case 1:
			_ = d.Trim(off, int64(n), false)
		case 2:
			_ = d.Flush()
		default:
			_ = tryWrite(d, off, fill(n, byte(1+rng.IntN(255))))
		}
		w.rest(rng)
	}
}

// rest gives a calm guest's VRA the time to follow.
func (w *world) rest(rng *rand.Rand) {
	if w.calm.Load() {
		w.pause(rng, 4)
	}
}

// waitCut waits until a cut stood.
func (w *world) waitCut() {
	before := w.stood.Load()
	within(w.t, "a cut that stands", func() bool { return w.stood.Load() > before })
}

func (w *world) stopGuests() {
	w.guestsStop.Store(true)
	w.guests.Wait()
}

// killFilter ends the filter in the middle of whatever it does: whoever comes to the
// disk ends there, with all locks and marks as they are.
func (w *world) killFilter() {
	for _, d := range w.model.disks {
		d.dead.Store(true)
	}
	w.guestsStop.Store(true)
	released := make(chan struct{})
	go func() { w.guests.Wait(); close(released) }()
	for done := false; !done; { // those that wait for one that ended at the disk would wait for ever
		select {
		case <-released:
			done = true
		case <-time.After(time.Millisecond):
			w.letGo()
		}
	}
	stopped := make(chan struct{})
	go func() { w.stopRun(); close(stopped) }()
	for done := false; !done; {
		select {
		case <-stopped:
			done = true
		case <-time.After(time.Millisecond):
			w.letGo()
		}
	}
	w.filter.abandon()
	w.filter = nil
	for _, d := range w.model.disks {
		d.dead.Store(false)
		d.mu.Lock()
		d.flying = nil
		d.mu.Unlock()
	}
}

func (w *world) letGo() {
	for _, v := range w.filter.volumes {
		v.mu.Lock()
		for _, f := range v.mu.flights.list {
			if f.gone != nil {
				close(f.gone)
				f.gone = nil
			}
			if f.ready != nil && f.blockers > 0 {
				f.blockers = -1 << 30
				close(f.ready)
			}
		}
		v.mu.Unlock()
	}
}

// startVRA starts a VRA that knows nothing but what the target has: a new incarnation.
func (w *world) startVRA() {
	tap, err := OpenTap(TapConfig{RunDir: w.dir, Group: testGroup, Filters: []string{w.cfg.PoolSocket}, Log: testLog(w.t)})
	if err != nil {
		w.t.Fatal(err)
	}
	w.tap = tap
	ctx, stop := context.WithCancel(context.Background())
	w.vraStop = stop
	rng := rand.New(rand.NewPCG(w.seed, 99))
	w.vra.Go(func() {
		if _, err := tap.Restart(ctx, 0); err != nil {
			if ctx.Err() == nil {
				w.t.Errorf("restart: %v", err)
			}
			return
		}
		closing := make(chan closingMark, 1)
		var wg sync.WaitGroup
		wg.Go(func() { w.resync(ctx, tap, closing) })
		w.pump(ctx, tap, rng, closing)
		wg.Wait()
	})
}

// stopVRA kills the VRA: what it has not made durable is gone, slots and all.
func (w *world) stopVRA() {
	w.vraStop()
	w.vra.Wait()
	w.drops += w.tap.Stats().Dropped
	if err := w.tap.Close(); err != nil {
		w.t.Error(err)
	}
	w.tap = nil
}

// closingMark is the boundary that ends a resync, if its ticket is reached.
type closingMark struct {
	ticket record.Ticket
	lost   uint64
}

// held is a write in the window: taken, not durable.
type held struct {
	w    Write
	data []byte
	cut  bool // a cut that stands
}

// pump takes writes into a window and makes them durable, some time later, in order.
func (w *world) pump(ctx context.Context, tap *Tap, rng *rand.Rand, closing chan closingMark) {
	var window []held
	cuts := map[record.Ticket]bool{}
	var last, durable record.Ticket
	var resynced closingMark
	for ctx.Err() == nil {
		if !w.quiet.Load() && !w.calm.Load() && rng.IntN(40) == 0 {
			w.pause(rng, 20) // a stall: the pool fills
		}
		if rng.IntN(4) == 0 {
			cut := tap.TakeTicket()
			cuts[cut] = tap.Lost() == tap.LostCovered() // lost is read after the ticket
		}
		ws, err := tap.Next(ctx, 1+rng.IntN(64), time.Millisecond)
		if err != nil {
			if ctx.Err() == nil {
				w.t.Errorf("Next: %v", err)
			}
			return
		}
		for _, wr := range ws {
			if wr.Ticket <= last {
				w.t.Errorf("ticket %d after %d", wr.Ticket, last)
			}
			last = wr.Ticket
			window = append(window, held{w: wr, data: payload(wr), cut: cuts[wr.Ticket]})
			delete(cuts, wr.Ticket)
		}
		if rng.IntN(3) > 0 || w.quiet.Load() {
			tap.Free(ws)
		} else {
			slices.Reverse(ws) // any order is good
			tap.Free(ws)
		}
		select {
		case resynced = <-closing:
		default:
		}
		n := rng.IntN(len(window) + 1)
		if w.quiet.Load() {
			n = len(window)
		}
		for _, h := range window[:n] {
			w.apply(h)
			durable = h.w.Ticket
		}
		if n > 0 {
			tap.PublishDurable(durable)
			window = window[n:]
		}
		if resynced.ticket != 0 && resynced.ticket <= durable {
			tap.SetLostCovered(resynced.lost)
			resynced = closingMark{}
		}
	}
}

func (w *world) apply(h held) {
	switch h.w.Kind {
	case Data, SyncData:
		copy(w.target[h.w.Volume-1][h.w.Off:], h.data)
	case Zero, SyncZero:
		clear(w.target[h.w.Volume-1][h.w.Off : h.w.Off+h.w.Len])
	case Mark:
		if !h.cut {
			return
		}
		w.stood.Add(1)
		a, b := binary.LittleEndian.Uint64(w.target[0][causeAt:]), binary.LittleEndian.Uint64(w.target[1][causeAt:])
		if a < b {
			w.t.Errorf("a cut stands at ticket %d with write %d and its cause at %d", h.w.Ticket, b, a)
		}
		if w.quiet.Load() {
			w.settled.Add(1)
		}
	}
}

// resync sends what is dirty whenever lost says that something is.
func (w *world) resync(ctx context.Context, tap *Tap, closing chan<- closingMark) {
	for ctx.Err() == nil {
		lost := tap.Lost() // before the dirty maps
		if lost == tap.LostCovered() {
			<-time.After(time.Millisecond)
			continue
		}
		for vol := record.VolumeID(1); vol <= 2; vol++ {
			ex, err := tap.DirtyExtents(ctx, vol, 0, 100)
			for _, e := range ex {
				err = errors.Join(err, tap.SyncRead(ctx, vol, e.Off, e.Len))
			}
			if err != nil && ctx.Err() == nil && !errors.Is(err, ErrFilterGone) {
				w.t.Errorf("sync: %v", err)
			}
		}
		ticket := tap.TakeTicket()
		dirty, err := tap.Dirty(ctx)
		if err == nil && dirty[1].Blocks+dirty[2].Blocks == 0 && tap.Lost() == lost {
			select {
			case closing <- closingMark{ticket, lost}:
			case <-ctx.Done():
			}
		}
		<-time.After(time.Millisecond)
	}
}

// settle waits until cuts stood that came after everything.
func (w *world) settle() {
	w.quiet.Store(true)
	for range 2 { // in sync; and then what was taken before is durable
		before := w.settled.Load()
		for deadline := time.Now().Add(10 * time.Second); w.settled.Load() <= before+3; runtime.Gosched() {
			if time.Now().After(deadline) {
				dirty, err := w.tap.Dirty(w.t.Context())
				lost, covered := w.tap.Lost(), w.tap.LostCovered()
				w.stopVRA()
				w.t.Fatalf("never in sync: dirty %v, %v; lost %d, covered %d", dirty, err, lost, covered)
			}
		}
	}
}

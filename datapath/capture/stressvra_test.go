package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/wire/record"
)

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

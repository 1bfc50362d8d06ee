package datapath

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/dirty"
	"github.com/holdfast-dr/holdfast/datapath/group"
	"github.com/holdfast-dr/holdfast/datapath/pack"
	"github.com/holdfast-dr/holdfast/datapath/spill"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/ioengine/wait"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// resync does what takes its time: beginning a life, walking the dirty maps, closing.
func (f *flow) resync(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case t := <-f.work:
			t.do(t.ctx)
		}
	}
}

// begin makes the dirty maps say all that the target may lack, and then lets feed
// open the incarnation. The order is what keeps it safe: first what was captured is
// dropped, then the generations it stood in become dirty, then something is sent.
func (f *flow) begin(ctx context.Context, b group.Begin) {
	ticket := max(1, f.tap.Discard())
	for {
		err := f.markDirty(ctx, b)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return
		}
		f.log.Warn("what the target lacks cannot be marked yet", "error", err)
		if !pause(ctx, time.Second) {
			return
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	f.mu.lacks.folded = true
	f.marksNew = false // from here on they tell all that the target lacks
	f.wakeKeeper()
	// Only now, when all is marked, may a lower seq count as acknowledged.
	f.mu.ledger.Acked, f.mu.ledger.Unfinished = b.Next-1, b.Initial
	f.keepLocked()
	l := life{
		number: b.Life, ctx: ctx, epoch: f.mu.epoch, incarnation: b.Incarnation, next: b.Next, ticket: ticket,
		open: record.Resync{Initial: b.Initial, Reason: b.Reason},
	}
	l.open.Volumes = f.membersLocked()
	f.window.Begins(spill.Standing{Incarnation: b.Incarnation, Epoch: l.epoch, OpensAt: b.Next, Freezes: f.mu.freezes})
	select {
	case <-f.lives: // one that feed never saw, and that has ended
	default:
	}
	f.lives <- l
}

func (f *flow) markDirty(ctx context.Context, b group.Begin) error {
	ctx, cancel := context.WithTimeout(ctx, askFilters)
	defer cancel()
	if b.MarkAll || b.MarkUnknown {
		logs := f.tap.Logs()
		for _, v := range f.sent() {
			if !b.MarkAll && f.before.told(v.ID, logs[v.ID]) {
				continue
			}
			if err := f.tap.MarkAll(ctx, v.ID); err != nil {
				return fmt.Errorf("mark volume %d: %w", v.ID, err)
			}
		}
	}
	return f.tap.Fold(ctx)
}

// walk compares what may well be the same at the target, and reads everything that is dirty, once. A volume that nobody mirrors to
// is left out of both, also if somebody does by the time that it would be read: what is marked then is compared in the next walk.
func (f *flow) walk(ctx context.Context, a group.Walk) {
	if !pause(ctx, a.After) {
		return
	}
	var volumes []record.VolumeID
	var unmirrored error
	mirrors := f.mirrors()
	for _, v := range f.members() {
		if stands, mirror := mirrors[v.ID]; mirror && !stands {
			unmirrored = fmt.Errorf("volume %d: %s", v.ID, capture.PastUnmirrored)
			if !invariant.Planted("datapath/reads-unmirrored") {
				continue
			}
		}
		volumes = append(volumes, v.ID)
	}
	_, _ = f.askDirty(ctx) // for the status; whether the filters answer shows below
	err := f.compare(ctx, volumes, unmirrored != nil)
	if err == nil {
		err = f.readDirty(ctx, dirty.NewSweep(volumes, syncRead))
	}
	if ctx.Err() != nil {
		return
	}
	left, askErr := f.askDirty(ctx)
	err = cmp.Or(err, askErr, unmirrored)
	done := group.Walked{Life: a.Life, Left: left}
	if err != nil {
		f.log.Warn("resync waits", "error", err)
		done.Trouble = err.Error()
	}
	f.step(done)
}

// mirrors are the volumes that are mirror targets, and whether their mirrors stand.
func (f *flow) mirrors() map[record.VolumeID]bool {
	stand := map[record.VolumeID]bool{}
	for v, stands := range f.tap.Mirrors() {
		stand[v.ID] = stands
	}
	return stand
}

// readDirty carries a pass out, syncFlight reads at a time. When it returns no read is
// in flight.
func (f *flow) readDirty(ctx context.Context, p *dirty.Pass) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	flight := make(chan struct{}, syncFlight)
	for {
		s := p.Next()
		switch s.Kind {
		case dirty.Over:
			wg.Wait()
			return context.Cause(ctx)
		case dirty.Ask:
			page, err := f.askExtents(ctx, s.Extent)
			if err == nil {
				err = p.Told(page)
			}
			if err != nil {
				return err
			}
		case dirty.Read:
			if err := f.roomToSync(ctx); err != nil {
				return err
			}
			flight <- struct{}{}
			wg.Go(func() {
				defer func() { <-flight }()
				if err := f.tap.SyncRead(ctx, s.Volume, s.Off, s.Len); err != nil {
					fail(fmt.Errorf("read volume %d at %d: %w", s.Volume, s.Off, err))
					return
				}
				f.count.syncRead.Add(uint64(s.Dirty))
			})
		}
		if ctx.Err() != nil {
			wg.Wait()
			return context.Cause(ctx)
		}
	}
}

func (f *flow) askExtents(ctx context.Context, at dirty.Extent) ([]dirty.Extent, error) {
	ctx, cancel := context.WithTimeout(ctx, askFilters)
	defer cancel()
	es, err := f.tap.DirtyExtents(ctx, at.Volume, at.Off, syncPage)
	if err != nil {
		return nil, fmt.Errorf("ask what is dirty of volume %d: %w", at.Volume, err)
	}
	page := make([]dirty.Extent, len(es))
	for i, e := range es {
		page[i] = dirty.Extent{Volume: at.Volume, Off: e.Off, Len: e.Len}
	}
	return page, nil
}

// roomToSync waits until little enough stands in the window for guests' writes to
// find their way behind it soon, and for guests that a resync gains nothing on.
func (f *flow) roomToSync(ctx context.Context) error {
	began := time.Now()
	for {
		f.mu.Lock()
		rate := f.mu.ackRate.Rate()
		f.mu.Unlock()
		ahead := max(syncAheadMin, int64(rate*syncAhead.Seconds()))
		room := f.window.Stats().Raw < min(ahead, f.window.Limit()/2)
		if now := time.Now(); room && !givesWay(f.missed.step(now, f.tap.Stats()), pack.Workers(), now.Sub(began)) {
			return nil
		}
		if !pause(ctx, busyPoll) {
			return context.Cause(ctx)
		}
	}
}

// close takes the closing ticket and asks once more. The order is the safety of it:
// lost, the dirty maps, the ticket, lost, the dirty maps. No sync read is in flight,
// and none has ended before the writes that it left out had their tickets.
func (f *flow) close(ctx context.Context, a group.Take) {
	before := f.tap.Lost()
	if left, err := f.askDirty(ctx); err != nil || left > 0 {
		w := group.Walked{Life: a.Life, Left: left}
		if err != nil {
			w.Trouble = err.Error()
		}
		f.step(w)
		return
	}
	f.mu.Lock()
	if ctx.Err() != nil {
		f.mu.Unlock()
		return
	}
	m := f.ticketLocked()
	f.mu.Unlock()
	lost := f.tap.Lost()
	left, err := f.askDirty(ctx)
	if err != nil {
		left = math.MaxInt64 // not known: not closed
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.last = m
	f.stepLocked(group.Taken{Life: a.Life, Kind: group.Close, Lost: lost, Before: before, Left: left})
}

// pause waits, and says whether ctx lives on.
func pause(ctx context.Context, d time.Duration) bool { return wait.For(ctx, d) == nil }

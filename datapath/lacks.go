package datapath

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/roster"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// lacks is what is known of the blocks that the target may lack and that stand in no
// slot and no record of this life: those in the dirty maps, once the generations were
// folded into them. Until then it is not known, and must not be told.
//
// A life that has begun was folded. Before one begins, while there is no target, folding
// is safe at any time, since Begin folds everything anyway; what guests write after it is
// in a slot that nobody takes, or dropped, which raises lost.
type lacks struct {
	folded bool
	known  bool
	lost   uint64 // read before the filters were asked; dropped since, when the count is another
	dirty  map[record.VolumeID]int64
}

func (l *lacks) bytes() (sum int64) {
	for _, n := range l.dirty {
		sum += n
	}
	return sum
}

// askWhatLacks keeps fresh what is known.
func (f *flow) askWhatLacks(ctx context.Context) {
	for pause(ctx, dirtyEvery) {
		if err := f.askIfNeeded(ctx); err != nil {
			f.log.Debug("how much is dirty is not known", "error", err)
		}
	}
}

// askIfNeeded asks the filters for what may have changed.
func (f *flow) askIfNeeded(ctx context.Context) error {
	f.mu.Lock()
	l, life := f.mu.lacks, f.mu.life
	silent := f.mu.volumes == nil || f.mu.fatal != nil
	idle := f.mu.machine.Idle()
	f.mu.Unlock()
	switch {
	case silent:
		return nil
	case !l.folded && !idle: // being begun
		return nil
	case l.known && l.lost == f.tap.Lost() && l.bytes() == 0:
		return nil
	case !l.folded:
		if err := f.foldIdle(ctx, life); err != nil {
			return err
		}
	}
	_, err := f.askDirty(ctx)
	return err
}

// foldIdle moves what an earlier life left in the generations to the dirty maps.
func (f *flow) foldIdle(ctx context.Context, life uint64) error {
	ctx, cancel := context.WithTimeout(ctx, askFilters)
	defer cancel()
	if !invariant.Planted("datapath/behind-unfolded") {
		if err := f.tap.Fold(ctx); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.life == life {
		f.mu.lacks.folded = true
	}
	return nil
}

// askDirty asks the filters how many bytes are dirty; left is of the members.
func (f *flow) askDirty(ctx context.Context) (left int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, askFilters)
	defer cancel()
	f.mu.Lock()
	life, folded := f.mu.life, f.mu.lacks.folded
	f.mu.Unlock()
	lost, read := f.tap.Lost(), f.tap.Stats().SyncBytes
	all, err := f.tap.Dirty(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	mine := f.mu.life == life && folded
	if err != nil {
		if ctx.Err() != context.Canceled {
			f.count.silences.Add(1)
		}
		f.mu.lacks.known = f.mu.lacks.known && !mine
		return 0, fmt.Errorf("ask how much is dirty: %w", err)
	}
	dirty := make(map[record.VolumeID]int64)
	for id, d := range all {
		switch f.mu.roster.Phase(id) {
		case roster.Gone:
			continue
		case roster.Member:
			left += d.Blocks * capture.BlockBytes
		}
		dirty[id] = d.Blocks * capture.BlockBytes
	}
	if mine {
		f.mu.lacks = lacks{folded: true, known: true, lost: lost, dirty: dirty}
		f.mu.sync.Left(read, left)
	}
	return left, nil
}

// freshLacks is what is known of it now, asked for again if something was dropped since
// it was known; not known when a filter is gone, or does not answer at once.
func (f *flow) freshLacks(ctx context.Context) lacks {
	if s := f.tap.Stats(); s.Filters < s.Needed {
		return lacks{}
	}
	for asked := false; ; asked = true {
		f.mu.Lock()
		l := f.mu.lacks
		f.mu.Unlock()
		if asked || !l.known || l.lost == f.tap.Lost() {
			return l
		}
		ask, cancel := context.WithTimeout(ctx, askStatus)
		_, err := f.askDirty(ask)
		cancel()
		if err != nil {
			return lacks{}
		}
	}
}

// syncBeginsLocked starts to count what a resync does; base is what the life's records
// hold of earlier ones.
func (f *flow) syncBeginsLocked(base int64) {
	f.mu.syncBase = base
	f.mu.sync.Begin(f.tap.Stats().SyncBytes)
	f.mu.syncRate.Reset()
	f.mu.syncSeen = 0
}

// syncMeterLocked looks at what the resync has done. The ticket is looked at after the
// count: what is counted has one up to it.
func (f *flow) syncMeterLocked(now time.Time) {
	if !f.mu.machine.Syncing() {
		return
	}
	read := f.tap.Stats().SyncBytes
	f.mu.sync.Read(read, f.tap.LastTicket())
	done := f.mu.sync.Done()
	f.mu.syncRate.Add(now, done-f.mu.syncSeen)
	f.mu.syncSeen = done
}

package datapath

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/group"
	"github.com/holdfast-dr/holdfast/datapath/roster"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// watch tells the machine, again and again, how things stand.
func (f *flow) watch(ctx context.Context) {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		f.tick(time.Now())
		f.turning.Rest()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		f.turning.Turn()
	}
}

func (f *flow) tick(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	trouble := f.filtersLocked()
	f.announceLocked()
	f.metersLocked(now)
	lost := f.tap.Lost()
	f.lagLocked(lost)
	sense := group.Sense{Lost: lost, Lag: f.mu.lag, Full: f.window.Stats().Bytes >= f.window.Limit(), Trouble: trouble}
	f.spillLocked(&sense)
	if f.cuts != nil {
		if !f.mu.machine.Whole() {
			f.mu.listedAt = now // none is due
		}
		sense.NoCut = f.cuts.uncut(now.Sub(f.mu.listedAt))
	}
	f.stepLocked(group.Tick{Sense: sense})
}

// filtersLocked says what is wrong with the filters; empty when nothing is.
func (f *flow) filtersLocked() string {
	if f.mu.fatal != nil {
		return f.mu.fatal.Error()
	}
	vs, ok := f.tap.Volumes()
	if s := f.tap.Stats(); !ok || s.Filters < s.Needed {
		if f.mu.volumes == nil && time.Since(f.began) < startGrace {
			return ""
		}
		return fmt.Sprintf("%d of %d filters of the group do not answer", s.Needed-s.Filters, s.Needed)
	}
	if f.mu.volumes != nil {
		f.serveLocked()
		return ""
	}
	if why := f.mismatch(vs); why != "" {
		return why
	}
	f.learnLocked()
	f.mu.volumes = f.wantedOf(vs)
	f.goOnLocked()
	return ""
}

// mismatch compares the volumes that the filters serve with those of the configuration.
func (f *flow) mismatch(vs []capture.VolumeInfo) string {
	served := make(map[string]capture.VolumeInfo)
	for _, v := range vs {
		if !f.mu.roster.Left(v.ID) {
			served[v.Name] = v
		}
	}
	for _, want := range f.mu.roster.Wanted() {
		v, ok := served[want.Name]
		if !ok && want.Phase == roster.Adding {
			continue
		}
		if !ok {
			return fmt.Sprintf("volume %s is configured and no filter serves it", want.Name)
		}
		if v.ID != want.ID {
			return fmt.Sprintf("volume %s has id %d in the configuration and %d at its filter", want.Name, want.ID, v.ID)
		}
		delete(served, want.Name)
	}
	for name := range served {
		return fmt.Sprintf("volume %s is served by a filter and not configured", name)
	}
	return ""
}

// metersLocked looks at what was done. Time in which nothing waited for the target says
// nothing about what the link can do.
func (f *flow) metersLocked(now time.Time) {
	acked := f.count.acked.Load()
	waiting := f.window.Stats().Records > 0
	if n := acked - f.mu.ackSeen; n > 0 || waiting {
		f.mu.ackRate.Add(now, int64(n))
	} else {
		f.mu.ackRate.Skip(now)
	}
	f.mu.ackSeen = acked
	arrived, reports := f.arrivedLocked()
	f.mu.carried.look(now, int64(acked)+arrived, reports, waiting)
	f.syncMeterLocked(now)
	if f.mu.session != nil {
		f.mu.heard = f.mu.session.Heard()
	}
}

// lagLocked works out how old the oldest captured write is that is not durable. While
// something was dropped and not sent again, or read again and not acknowledged, nothing younger than the last time that
// all was well counts as durable: that may be too much, never too little.
func (f *flow) lagLocked(lost uint64) {
	now := monotonic()
	read := f.count.synced.Load() == f.mu.syncAcked || invariant.Planted("datapath/lag-of-a-resync")
	if f.mu.machine.Whole() && lost == f.tap.LostCovered() && read {
		whole := now
		oldest := f.window.Stats().Oldest
		if oldest == 0 {
			oldest, _ = f.pipe.stats()
		}
		if oldest != 0 {
			whole = min(now, oldest)
		}
		f.mu.ledger.Whole = whole
	}
	f.mu.lagKnown = f.mu.ledger.Whole != 0
	f.mu.lag = 0
	if f.mu.lagKnown {
		f.mu.lag = time.Duration(now - f.mu.ledger.Whole)
	}
}

package datapath

import (
	"time"

	"github.com/holdfast-dr/holdfast/datapath/dirty"
	"github.com/holdfast-dr/holdfast/datapath/spill"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// carried is how fast payload arrives at the target, durable or not. Several data connections
// carry records side by side, and these are acknowledged in order: for seconds much is on
// its way, or waits there for a record before it, and no acknowledgement comes. So a time
// left goes by what the target reports of its connections, about once a second;
// between two reports nothing is known, and nothing is concluded.
type carried struct {
	rate    dirty.Meter
	seen    int64     // payload at the last look that counted
	reports uint64    // then
	at      time.Time // of that look; zero before the first
}

// silentCarry is how long no report may come until nothing seems to arrive any more.
const silentCarry = 3 * time.Second

// reset forgets everything: what comes is another link.
func (c *carried) reset() { *c = carried{} }

// look is told how much payload was acknowledged or has arrived, in all, after how many reports, and
// whether anything waits for the target: if nothing does, the time says nothing. A target that
// never reports is judged by its acknowledgements.
func (c *carried) look(now time.Time, payload int64, reports uint64, waiting bool) {
	news := reports != c.reports || reports == 0 || now.Sub(c.at) >= silentCarry || invariant.Planted("datapath/carried-between")
	switch {
	case c.at.IsZero():
		c.rate.Add(now, 0)
	case !waiting && payload <= c.seen:
		c.rate.Skip(now)
	case !news:
		return
	default:
		c.rate.Add(now, max(0, payload-c.seen))
	}
	c.seen, c.reports, c.at = max(c.seen, payload), reports, now
}

// arrivedLocked is how much payload of what stands in the window has arrived at the target, at
// least, as its reports say, and how many those were. What other groups have on the same
// connections counts as this group's: beside them it may be too little, never too much.
func (f *flow) arrivedLocked() (payload int64, reports uint64) {
	if f.mu.under == nil || f.mu.session == nil {
		return 0, 0
	}
	transit, reports := f.mu.session.InTransit()
	return arrivedOf(f.window.Stats(), f.mu.under.Bytes(), transit), reports
}

// arrivedOf is how much payload of a window has arrived when so many bytes of its records were
// sent, and so many are still in transit.
func arrivedOf(w spill.Stats, sent, transit int64) int64 {
	all := w.Bytes + w.OnDisk
	there := min(sent-transit, all)
	if there <= 0 || invariant.Planted("datapath/only-acked") {
		return 0
	}
	return int64(float64(there) / float64(all) * float64(w.Raw))
}

package datapath

import (
	"time"

	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// missed is how fast guests write what no record carries: to blocks that are dirty, or without a slot.
type missed struct {
	since time.Time
	bytes uint64 // by then
	rate  float64
}

// step takes the counters of the filters, and returns bytes per second.
func (m *missed) step(now time.Time, s capture.Stats) float64 {
	bytes := s.GuestBytes - min(s.CapturedBytes, s.GuestBytes)
	switch took := now.Sub(m.since); {
	case m.since.IsZero() || bytes < m.bytes: // the first look, or a filter is gone
		m.since, m.bytes, m.rate = now, bytes, 0
	case took >= syncLook:
		m.rate = float64(bytes-m.bytes) / took.Seconds()
		m.since, m.bytes = now, bytes
	}
	return m.rate
}

// givesWay says whether a sync read waits for guests that write so many bytes a second which no record
// carries, when the read before it was so long ago: what it costs them gains nothing.
func givesWay(rate float64, workers int, ago time.Duration) bool {
	return rate > syncFutile*float64(workers) && (ago < syncAnyway || invariant.Planted("datapath/resync-stands-still"))
}

package retain

import (
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Instant is what the clocks of this machine say at one moment.
type Instant struct {
	Boot [16]byte      // which boot of which machine; zero: not known
	Mono time.Duration // of a clock that only runs forward within a boot, and no user sets
	Wall int64         // ns since 1970
}

// Clock adds up the time that has certainly passed. Its zero value begins at nothing.
type Clock struct {
	Passed time.Duration
	Last   Instant // of the last step
}

// Step takes what the clocks say now, counts what has certainly passed since the last
// step, and returns the sum.
func (c *Clock) Step(now Instant) time.Duration {
	c.Passed += certain(c.Last, now)
	c.Last = now
	return c.Passed
}

// certain is the time that both clocks agree has passed.
func certain(from, to Instant) time.Duration {
	wall := time.Duration(to.Wall - from.Wall)
	if invariant.Planted("journal/retain/wall") {
		return max(wall, 0)
	}
	if to.Wall < from.Wall || to.Mono < from.Mono || from.Boot != to.Boot || to.Boot == [16]byte{} {
		return 0
	}
	return max(0, min(wall, to.Mono-from.Mono))
}

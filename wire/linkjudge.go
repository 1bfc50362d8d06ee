package wire

import (
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// What is made of the measurements; nothing here acts.

func spread(all []seen) (s Spread) {
	if len(all) == 0 {
		return s
	}
	trips := make([]time.Duration, len(all))
	for i, one := range all {
		trips[i] = one.trip
	}
	slices.Sort(trips)
	return Spread{len(trips), trips[0], trips[len(trips)/2], trips[len(trips)-1]}
}

// clockOf takes the answer that travelled shortest: it was written at some moment of
// that time, most likely in the middle.
func clockOf(all []seen) (c Clock) {
	for i, s := range all {
		half := s.trip / 2
		if i > 0 && half >= c.Within {
			continue
		}
		c = Clock{Ahead: time.Duration(s.theirs - s.ourWall + int64(half)), Within: half}
		if invariant.Planted("wire/clock-without-trip") {
			c.Ahead -= half
		}
	}
	return c
}

// payloadRate is what a receiver got per second in bits. The first quarter of the time
// is left out, in which a sender finds out how fast it may be.
func payloadRate(samples []measured) int64 {
	if len(samples) == 0 {
		return 0
	}
	last := samples[len(samples)-1]
	from := measured{}
	for _, m := range samples {
		if m.took <= last.took/4 && !invariant.Planted("wire/slow-start-counts") {
			from = m
		}
	}
	took := last.took - from.took
	if took <= 0 {
		return 0
	}
	return int64(float64(last.bytes-from.bytes) * 8 / took.Seconds())
}

// onInterface is how many bytes an Ethernet interface counts for each byte of payload
// in segments of mss bytes; a usual size where that is not known.
func onInterface(mss uint32, ipv6 bool) float64 {
	const (
		ethernet   = 14
		tcpAndTime = 20 + 12
		tlsShare   = float64(16<<10+22) / (16 << 10)
	)
	headers := 20.0
	if ipv6 {
		headers = 40
	}
	if mss < 100 {
		mss = 1448
	}
	return tlsShare * (float64(mss) + headers + tcpAndTime + ethernet) / float64(mss)
}

// knownMTUs are the sizes that paths have: those of PPPoE, VXLAN, WireGuard, GRE, IPsec,
// the least of IPv6 and of IPv4, and steps between.
var knownMTUs = []int{576, 1000, 1200, 1280, 1300, 1320, 1340, 1360, 1380, 1400, 1412, 1420, 1428, 1440, 1450, 1460, 1472, 1476, 1480, 1492, 1500, 4000, 8000, 9000}

// findMTU is the largest of knownMTUs that passes, 0 for none. It takes it that what
// is smaller than one that passes does too, and asks five times at most.
func findMTU(passes func(mtu int) bool) int {
	low, high := -1, len(knownMTUs) // low passes, high does not
	for high-low > 1 {
		if mid := (low + high) / 2; passes(knownMTUs[mid]) {
			low = mid
		} else {
			high = mid
		}
	}
	if low < 0 {
		return 0
	}
	return knownMTUs[low]
}

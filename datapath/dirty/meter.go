package dirty

import (
	"math"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// halfLife is how old an amount is when it counts half: short enough to follow a
// link that changes, long enough that a time left does not jump.
const halfLife = 4 * time.Second

// Meter tells the present rate of something that is counted, and how long the rest
// will take. The zero value is ready.
type Meter struct {
	at     time.Time
	weight float64 // seconds seen, fading
	sum    float64 // bytes seen, fading
}

// Add notes that n bytes were done since the last Add, up to now.
func (m *Meter) Add(now time.Time, n int64) {
	if m.at.IsZero() || now.Before(m.at) {
		m.at = now
		return
	}
	dt := now.Sub(m.at).Seconds()
	fade := math.Exp2(-dt / halfLife.Seconds())
	m.sum = m.sum*fade + float64(n)
	m.weight = m.weight*fade + dt
	m.at = now
}

// Rate is in bytes per second; 0 when nothing is known.
func (m *Meter) Rate() float64 {
	if m.weight < 0.2 {
		return 0
	}
	return m.sum / m.weight
}

// Left is how long n bytes take at the present rate; ok is false when that cannot be said.
func (m *Meter) Left(n int64) (d time.Duration, ok bool) {
	if n == 0 {
		return 0, true
	}
	rate := m.Rate()
	if rate < 1 && !invariant.Planted("dirty/eta-of-nothing") {
		return 0, false
	}
	if s := float64(n) / rate; s < 1e9 {
		return time.Duration(s * float64(time.Second)), true
	}
	return 0, false
}

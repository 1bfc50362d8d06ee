package dirty

import (
	"math"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

const (
	// halfLife is how old an amount is when it counts half: short enough to follow a
	// link that changes, long enough that a time left does not jump.
	halfLife = 4 * time.Second
	// warmUp is how much must have been seen before a time left is told: acks come in
	// bursts, and the first of a session say nothing about its link.
	warmUp = 2 * time.Second
)

// Meter tells the present rate of something that is counted, and how long the rest
// will take. The zero value is ready.
type Meter struct {
	at     time.Time
	seen   time.Duration
	weight float64 // seconds seen, fading
	sum    float64 // bytes seen, fading
}

// Add notes that n bytes were done since the last Add or Skip, up to now.
func (m *Meter) Add(now time.Time, n int64) {
	if m.at.IsZero() || now.Before(m.at) {
		m.at = now
		return
	}
	d := now.Sub(m.at)
	fade := math.Exp2(-d.Seconds() / halfLife.Seconds())
	m.sum = m.sum*fade + float64(n)
	m.weight = m.weight*fade + d.Seconds()
	m.seen += d
	m.at = now
}

// Skip leaves out the time since the last Add or Skip: there was nothing to do.
func (m *Meter) Skip(now time.Time) { m.at = now }

// Reset forgets everything: what comes is another link, or another work.
func (m *Meter) Reset() { *m = Meter{} }

// Rate is in bytes per second, after a fifth of one; 0 when nothing is known.
func (m *Meter) Rate() float64 {
	if m.weight < 0.2 {
		return 0
	}
	return m.sum / m.weight
}

// Warm says that enough was seen for people to be told.
func (m *Meter) Warm() bool { return m.seen >= warmUp || invariant.Planted("dirty/never-cold") }

// Left is how long n bytes take at the present rate; ok is false when that cannot be said.
func (m *Meter) Left(n int64) (d time.Duration, ok bool) {
	if n == 0 {
		return 0, true
	}
	rate := m.Rate()
	if (rate < 1 || !m.Warm()) && !invariant.Planted("dirty/eta-of-nothing") {
		return 0, false
	}
	if s := float64(n) / rate; s < 1e9 {
		return time.Duration(s * float64(time.Second)), true
	}
	return 0, false
}

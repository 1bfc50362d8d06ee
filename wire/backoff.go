package wire

import "time"

// How long to wait between attempts: somewhere between backoffMin and a window
// that doubles with each failure up to backoffMax, so that many sources do not
// come back at once.
const (
	backoffMin = 200 * time.Millisecond
	backoffMax = 5 * time.Second
	// settledAfter is how long a session must have lasted to start again from the smallest window.
	settledAfter = 5 * time.Second
)

type backoff struct{ window time.Duration }

// next is the wait after an attempt whose session lasted so long (0 for none).
// chance gives a number in [0,1).
func (b *backoff) next(lasted time.Duration, chance func() float64) time.Duration {
	if lasted >= settledAfter {
		b.window = 0
	}
	b.window = min(max(2*b.window, 2*backoffMin), backoffMax)
	return backoffMin + time.Duration(chance()*float64(b.window-backoffMin))
}

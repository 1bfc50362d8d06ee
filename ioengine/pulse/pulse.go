// Package pulse tells from outside whether a loop turns.
//
// A loop says when it rests, that is waits for something that may take as long as it likes (the guest's disk, a
// request, the next tick), and when it goes on. One that neither rests nor gets on for a while stands: it is
// in a deadlock, or turns within itself.
package pulse

import (
	"sync/atomic"
	"time"
)

// Pulse is one loop's. The zero value is one that has just turned. It costs an atomic add a call.
type Pulse struct{ n atomic.Uint64 } // odd: it rests

// Rest says that the loop waits from now on, until Turn. They come in turns, from the loop's own goroutine.
func (p *Pulse) Rest() { p.n.Add(1) }

// Turn says that the loop goes on after Rest.
func (p *Pulse) Turn() { p.n.Add(1) }

// Step says that the loop, which does not rest, got on.
func (p *Pulse) Step() { p.n.Add(2) }

// Watch remembers how pulses were, to tell which stand.
type Watch struct {
	after time.Duration
	seen  map[*Pulse]seen
}

type seen struct {
	n     uint64
	since time.Time // by the watcher's clock
}

// NewWatch makes a watch for which a loop stands that does not get on for so long.
func NewWatch(after time.Duration) *Watch { return &Watch{after: after} }

// Stands returns the name of a loop that stands; empty: all turn. Pulses that are not among the named any more are forgotten.
// It is to be called several times in the span that counts, by one goroutine.
func (w *Watch) Stands(now time.Time, named map[*Pulse]string) (name string) {
	next := make(map[*Pulse]seen, len(named))
	for p, is := range named {
		s, n := w.seen[p], p.n.Load()
		if s.since.IsZero() || s.n != n || n%2 == 1 {
			s = seen{n, now}
		}
		if now.Sub(s.since) >= w.after {
			name = is
		}
		next[p] = s
	}
	w.seen = next
	return name
}

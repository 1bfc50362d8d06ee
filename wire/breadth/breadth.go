// Package breadth decides over how many connections a session spreads its records, by
// measurement. It is pure: samples and the time are passed in, about one a second.
//
// More connections help where one is held back by something of its own: a window too
// small for a long way, a loss that halves its rate, a processor that encrypts for it.
// Which it is does not matter: while records wait for connections, more are tried, and
// kept only when more arrives for it. What a user of a Breadth may rely on:
//   - A rate is the median of Samples samples in a row, each taken while records waited
//     for connections at least half of the time and the target could have taken more.
//     Nothing is decided from less; the first samples after a change do not count.
//   - More is kept only where the rate rises by a tenth, and the lowest sample lies above
//     the highest of before. Else it goes back, and the next trial waits twice as long.
//   - At most every quarter of an hour one step less is tried, and kept where that costs
//     no more than a twentieth, or than the samples differ. With nothing to do for five minutes it goes one step down.
package breadth

import (
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Max is the most connections there are.
const Max = 8

const (
	// Samples make a rate.
	Samples = 6
	// settle is how many samples do not count after a change: the newcomer starts slowly.
	settle = 2
	// fullFrom is the part of the time that records must have waited for connections.
	fullFrom = 0.5
	// idleBelow is the part below which fewer connections would do.
	idleBelow = 0.05
	// rise is what more connections must bring, and fall what fewer may cost.
	rise, fall = 0.10, 0.05
	// undecided is how long a trial may go without enough to send.
	undecided = time.Minute
	// connecting is how long connections may be missing before the number is given up.
	connecting = 30 * time.Second
	firstWait  = 30 * time.Second
	lastWait   = 30 * time.Minute
	fewerAfter = 15 * time.Minute
	idleAfter  = 5 * time.Minute
)

// steps are the numbers tried: each is so much more than the one before that it shows.
var steps = [...]int{1, 2, 3, 4, 6, Max}

// Sample is what was seen up to now.
type Sample struct {
	Bytes   uint64        // that arrived at the target, ever
	Waited  time.Duration // in which records waited for connections, ever
	Held    time.Duration // in which the target held up connections, ever, all together
	Up      int           // connections there are
	Refused bool          // the target wants no more connections, or cannot be reached by more
}

// Breadth is one session's. New makes one.
type Breadth struct {
	fixed  int
	at     int // in steps
	state  state
	before []float64 // rates before the trial, sorted
	began  time.Time
	rates  []float64
	skip   int

	last    Sample
	lastAt  time.Time
	missing time.Time // fewer are up than wanted, since
	idle    time.Time // next to nothing waited, since
	retry   time.Time // no trial of more before
	wait    time.Duration
	fewer   time.Time // no trial of fewer before
}

type state uint8

const (
	steady state = iota
	tryMore
	tryFewer
)

// New begins with one connection, or with fixed ones for good; 0 is by measurement.
func New(now time.Time, fixed int) *Breadth {
	return &Breadth{fixed: fixed, wait: firstWait, fewer: now.Add(fewerAfter), idle: now}
}

// Want is how many connections there should be.
func (b *Breadth) Want() int {
	if b.fixed > 0 {
		return min(b.fixed, Max)
	}
	return steps[b.at]
}

// Step takes a sample and says how many connections there should be.
func (b *Breadth) Step(now time.Time, s Sample) int {
	if b.fixed > 0 {
		return b.Want()
	}
	d := now.Sub(b.lastAt)
	if b.lastAt.IsZero() || s.Bytes < b.last.Bytes || s.Waited < b.last.Waited {
		b.last, b.lastAt = s, now
		return b.Want()
	}
	if d < 500*time.Millisecond {
		return b.Want()
	}
	rate := float64(s.Bytes-b.last.Bytes) / d.Seconds()
	waited := float64(s.Waited-b.last.Waited) / float64(d)
	held := float64(s.Held-b.last.Held) / float64(d) / float64(max(s.Up, 1))
	b.last, b.lastAt = s, now
	switch {
	case !b.complete(now, s):
	case b.skip > 0:
		b.skip--
	default:
		b.measure(now, rate, waited >= fullFrom && held < fullFrom, waited < idleBelow)
	}
	return b.Want()
}

// complete says that all connections wanted are up. Where that cannot be had, it goes
// back to what there is.
func (b *Breadth) complete(now time.Time, s Sample) bool {
	if s.Up >= b.Want() {
		b.missing = time.Time{}
		return s.Up == b.Want()
	}
	b.rates, b.skip = b.rates[:0], settle
	if b.missing.IsZero() {
		b.missing = now
	}
	if s.Refused || now.Sub(b.missing) >= connecting {
		for b.at > 0 && b.Want() > s.Up {
			b.at--
		}
		b.later(now)
		b.to(now, steady)
		b.missing = time.Time{}
	}
	return false
}

// measure takes in one rate; full says that it is what the connections can do.
func (b *Breadth) measure(now time.Time, rate float64, full, idle bool) {
	if !idle {
		b.idle = now
	}
	if !full && !(b.state == tryMore && rate > median(b.before)*(1+rise)) {
		b.short(now)
		return
	}
	if len(b.rates) == Samples {
		b.rates = slices.Delete(b.rates, 0, 1)
	}
	b.rates = append(b.rates, rate)
	if len(b.rates) < Samples && !invariant.Planted("breadth/one-sample") {
		return
	}
	b.decide(now)
}

// short is a sample without enough to send: what was gathered does not count any more.
func (b *Breadth) short(now time.Time) {
	b.rates = b.rates[:0]
	switch {
	case b.state == tryMore && now.Sub(b.began) >= undecided:
		b.at--
		b.to(now, steady)
	case b.state == tryFewer && now.Sub(b.began) >= undecided:
		b.to(now, steady) // they do
	case b.state == steady && b.at > 0 && now.Sub(b.idle) >= idleAfter:
		b.at--
		b.idle = now
		b.to(now, steady)
	}
}

func (b *Breadth) decide(now time.Time) {
	rates := slices.Sorted(slices.Values(b.rates))
	switch {
	case b.state == tryMore && b.rose(rates):
		b.wait = firstWait
		b.fewer = now.Add(fewerAfter)
		b.to(now, steady)
	case b.state == tryMore:
		if !invariant.Planted("breadth/never-back") {
			b.at--
		}
		b.later(now)
		b.to(now, steady)
	case b.state == tryFewer:
		if m := median(rates); m < median(b.before)*(1-fall) && m < b.before[len(b.before)/4] {
			b.at++
		}
		b.fewer = now.Add(fewerAfter)
		b.to(now, steady)
	case b.at+1 < len(steps) && !now.Before(b.retry):
		b.before = rates
		b.at++
		b.to(now, tryMore)
	case b.at > 0 && !now.Before(b.fewer):
		b.before = rates
		b.at--
		b.to(now, tryFewer)
	}
}

// rose says that rates are higher than before the trial: by a tenth in the middle, and
// the lowest above the highest.
func (b *Breadth) rose(rates []float64) bool {
	if invariant.Planted("breadth/noise-is-gain") {
		return median(rates) > median(b.before)
	}
	return median(rates) > median(b.before)*(1+rise) && rates[0] > b.before[len(b.before)-1]
}

// later puts off the next trial of more, each time longer.
func (b *Breadth) later(now time.Time) {
	b.retry = now.Add(b.wait)
	if !invariant.Planted("breadth/always-trying") {
		b.wait = min(2*b.wait, lastWait)
	}
}

func (b *Breadth) to(now time.Time, s state) {
	b.state, b.began, b.rates, b.skip = s, now, b.rates[:0], settle
}

func median(sorted []float64) float64 { return sorted[len(sorted)/2] }

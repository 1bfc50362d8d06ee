package journal

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/ioengine/wait"
)

// pacer knows the rate of what comes in, by which promotion and folding go: below live
// traffic, and not so slow that they do not keep up. Without intake there is nobody to be
// in the way of.
type pacer struct {
	mu    sync.Mutex
	taken int64     // bytes taken in since at
	last  float64   // bytes a second, smoothed
	at    time.Time // of the last reckoning
}

const (
	paceFloor  = 32 << 20 // bytes a second
	paceTimes  = 2.1      // of the intake: a pass reads what it frees and writes most of it; more is in the way of acks
	paceWindow = time.Second
	paceAhead  = 20 * time.Millisecond // how much may be granted at once, of work in large pieces
	// paceEven is the same of work in many small pieces; and how much of what was not used in
	// time, since nobody was awake to, may be used later.
	paceEven = 2 * time.Millisecond
)

func (p *pacer) init() { p.at = time.Now() }

// took counts what came in.
func (p *pacer) took(bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken += bytes
}

// rate is that of the intake, in bytes a second; 0: nothing comes in.
func (p *pacer) rate(now time.Time) float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := now.Sub(p.at); d >= paceWindow {
		p.last = (p.last + float64(p.taken)/d.Seconds()) / 2
		p.taken, p.at = 0, now
		if p.last < 1 {
			p.last = 0
		}
	}
	if p.last == 0 && p.taken > 0 {
		return 1
	}
	return p.last
}

// bucket grants bytes at a rate.
type bucket struct {
	mu   sync.Mutex
	next time.Time // when what was granted is used up
}

// grant grants bytes and says how long to wait for them. It is pure but for its state.
func (b *bucket) grant(now time.Time, bytes int64, rate float64, ahead time.Duration) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if least := now.Add(-ahead); b.next.Before(least) {
		b.next = least
	}
	b.next = b.next.Add(time.Duration(float64(bytes) / rate * float64(time.Second)))
	return max(0, b.next.Sub(now)-ahead)
}

// target is how fast promotion or folding is to read and write, in bytes a second: a multiple of the intake, at least
// the floor, and at least what is needed. Infinite: nothing comes in to be in the way of.
func (p *pacer) target(now time.Time, need float64) float64 {
	intake := p.rate(now)
	if intake == 0 {
		return math.Inf(1)
	}
	if invariant.Planted("journal/no-need") {
		need = 0
	}
	return max(paceFloor, paceTimes*intake, need)
}

// wait waits until bytes may be read or written at that rate.
func (b *bucket) wait(ctx context.Context, now time.Time, bytes int64, rate float64, ahead time.Duration) error {
	if ctx.Err() != nil || !math.IsInf(rate, 1) && bytes > 0 && wait.For(ctx, b.grant(now, bytes, rate, ahead)) != nil {
		return ErrClosed
	}
	return nil
}

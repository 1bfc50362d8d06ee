package journal

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/ioengine/wait"
	"github.com/holdfast-dr/holdfast/journal/replica"
)

// passage is how far a group's pass has come, and what follows for the pace of both sides:
// space is given back at the end of a pass at once, so what is left of a group's room has
// to last until then. The pass goes as fast as that takes; and where it cannot, the intake
// goes as slow, evenly from there on. Without that it would stop at the limit until the
// pass is through.
//
// All of it is pure but for its state; room is the bytes to the limit.
type passage struct {
	mu    sync.Mutex
	left  int64     // bytes that the pass has still to write, as far as it is known; 0: none is made
	wrote int64     // since at
	at    time.Time // of the last reckoning; zero: it wrote nothing yet
	speed float64   // bytes a second, smoothed; 0: not known
	held  time.Time // when a record was held up last
	aimed float64   // bytes a second that it is to write; 0: as many as it can
	deep  int       // see depth

	intake bucket
}

const (
	// passWindow is how often a pass' speed is reckoned.
	passWindow = 250 * time.Millisecond
	// passPart is the part of the room that is left at which a pass means to be through.
	passPart = 0.8
	// brakeMost is how long a record waits at most for those before it: a source is held up
	// by it as by a slow disk.
	brakeMost = time.Second
	// passHurry is how long after a record was held up the pass is not paced: the intake is slow
	// because of it, and a pass that followed that would become slower yet.
	passHurry = 250 * time.Millisecond
	// deepest is how many writes of a pass are under way at once at most, and shallowest at least. What
	// stands before the disk, the records that come in wait for; and a disk gives small
	// writes at random its best rate only when it has many to choose from.
	deepest, shallowest = replica.Placers, 4
	// aimedPart of a speed is as good as all of it: what paces keeps a pass a little below.
	aimedPart = 0.95
)

// plan says how much the pass has still to write.
func (p *passage) plan(left int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = left
}

// end says that no pass is made.
func (p *passage) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left, p.wrote, p.at = 0, 0, time.Time{}
}

// step counts what the pass wrote.
func (p *passage) step(now time.Time, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = max(0, p.left-bytes)
	if p.at.IsZero() { // what came before was reading
		p.at = now
		return
	}
	p.wrote += bytes
	d := now.Sub(p.at)
	if d < passWindow {
		return
	}
	speed := float64(p.wrote) / d.Seconds()
	if p.speed == 0 {
		p.speed = speed
	}
	p.speed, p.wrote, p.at = (3*p.speed+speed)/4, 0, now
}

// need is how fast the pass has to write beside that intake, in bytes a second; infinite: as fast as it can.
func (p *passage) need(now time.Time, room int64, intake float64) float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left == 0 {
		return 0
	}
	if now.Sub(p.held) < passHurry && !invariant.Planted("journal/no-hurry") {
		return math.Inf(1)
	}
	return float64(p.left) * intake / (passPart * float64(max(room, 1)))
}

// aim says how fast the pass is to write, in bytes a second.
func (p *passage) aim(rate float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.aimed = rate
}

// depth is how many writes are to be under way at once: as few as bring the speed that is aimed at. It is asked for
// each portion.
func (p *passage) depth() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.aimed == 0 || math.IsInf(p.aimed, 1):
		p.deep = deepest
	case p.speed < aimedPart*p.aimed:
		p.deep += 2
	default:
		p.deep--
	}
	p.deep = min(max(p.deep, shallowest), deepest)
	return p.deep
}

// passPace is how fast a pass is to read and write, in bytes a second: infinite where nothing comes in to be in the way of,
// also because there is no room for it.
func (r *retention) passPace(now time.Time, p *pacer) float64 {
	rate := math.Inf(1)
	if r.room.none() == nil {
		// what is written was read before: both are paced alike
		rate = p.target(now, 2*r.passage.need(now, r.room.left.Load(), p.rate(now)))
	}
	r.passage.aim(rate / 2)
	return rate
}

// hold says that a record is held up.
func (p *passage) hold(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = now
}

// allows is how fast the group may take in, in bytes a second, and its room lasts until the
// pass is through. It is never less than half of what the pass writes: no less than that is
// given back.
func (p *passage) allows(room, slack int64) float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left == 0 || p.speed == 0 || room >= slack || invariant.Planted("journal/no-brake") {
		return math.Inf(1)
	}
	return max(p.speed/2, p.speed*float64(room)/float64(p.left))
}

// brake has a record of so many bytes wait as long as the group has to go slower.
func (r *retention) brake(ctx context.Context, bytes int) error {
	room := r.room.left.Load()
	rate := r.passage.allows(room, room-r.room.soft.Load())
	if math.IsInf(rate, 1) {
		return nil
	}
	now := time.Now()
	d := r.passage.intake.grant(now, int64(bytes), rate, paceAhead)
	if d <= 0 {
		return nil
	}
	r.passage.hold(now)
	if err := wait.For(ctx, min(d, brakeMost)); err != nil {
		return fmt.Errorf("%w: history is being shortened: %w", ErrLimit, err)
	}
	return nil
}

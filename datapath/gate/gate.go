// Package gate lets the groups of a source onto the wire one after the other, and no
// faster than the cap: clocks, locks and channels around wire/shape, which decides.
//
// A Gate knows the sessions (Enter, Leave) and has a Turn for each group. A sender
// offers a record, waits, sends it with its Turn as the pace, and says at Done whether
// another stands ready. What the kernel says was put on the interface beside that is
// charged when a turn is done, and every 0.1 s (Run).
//
// A Gate's methods may be called concurrently; those of a Turn by its group's sender
// alone. In steady state a record costs two calls of the kernel a piece under a cap,
// and none without one.
package gate

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/shape"
)

// Keeper remembers the policy that a user set; until one is set, the configuration's holds.
type Keeper interface {
	// Get says too whether the policy was set.
	Get() (p shape.Policy, own bool, err error)
	Put(shape.Policy) error // durably
	Clear() error
	Configured() shape.Policy
	Configure(shape.Policy) // the configuration says something else now
}

// Gate is one source's. Open makes one.
type Gate struct {
	log  *slog.Logger
	file Keeper
	zone func(name string) (*time.Location, error)

	capNow atomic.Int64 // shape.Rate in force, for those who only want to know
	spent  atomic.Int64 // bytes on the interface, as settled

	changing sync.Mutex // held over reading, changing and keeping the policy

	mu struct {
		sync.Mutex
		shaper  *shape.Shaper
		own     bool // the policy was set, and is not that of the configuration
		since   time.Time
		lanes   map[*wire.Session]*lane
		nextID  uint64
		turns   map[string]*Turn
		timer   *time.Timer
		stopped bool
	}
}

// lane is a session with offers for its data connection.
type lane struct {
	id      uint64
	charged int64 // bytes, of those that the session says it spent
	sent    int64 // of these, as it said last
	settled time.Time
	writing bool // what was granted may be written at this moment
	framing shape.Framing
}

// Turn is a group's place at the gate, and the Pace of its records. Its methods are for
// the group's sender alone.
type Turn struct {
	g       *Gate
	group   string
	session *wire.Session
	framing shape.Framing
	grants  chan int64 // capacity 1
	have    int64      // granted and not used
	offered bool
	writing bool // granted and not done

	heldSeen time.Duration
	held     float64 // part of the last second or so in which only the cap held the group
}

const (
	// settleEvery is how often the gate compares what it granted with what the kernel
	// says was sent, and looks whether a window of the schedule began.
	settleEvery = 100 * time.Millisecond
	// heldAlpha makes of that an average over about a second.
	heldAlpha = 0.1
	// heldLimit is from where on the cap is what holds a group.
	heldLimit = 0.5
)

// Open opens the gate with what was set and kept, or else with the configuration's policy.
func Open(file Keeper, zone func(string) (*time.Location, error), log *slog.Logger) (*Gate, error) {
	p, own, err := file.Get()
	if err != nil {
		return nil, err
	}
	loc, err := zone(p.Zone)
	if err != nil {
		return nil, err
	}
	g := &Gate{log: log, file: file, zone: zone}
	now := time.Now()
	g.mu.shaper, g.mu.own, g.mu.since = shape.New(now, p, loc), own, now
	g.mu.lanes, g.mu.turns = make(map[*wire.Session]*lane), make(map[string]*Turn)
	g.mu.timer = time.AfterFunc(time.Hour, g.pump)
	g.mu.timer.Stop()
	g.capLocked(now)
	return g, nil
}

// Turn makes a group's turn.
func (g *Gate) Turn(group string) *Turn {
	t := &Turn{g: g, group: group, grants: make(chan int64, 1), framing: shape.Usual}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.turns[group] = t
	return t
}

// Run keeps the books until ctx ends.
func (g *Gate) Run(ctx context.Context) {
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			g.tick(time.Now())
		case <-ctx.Done():
			g.mu.Lock()
			g.mu.stopped = true
			g.mu.timer.Stop()
			g.mu.Unlock()
			return
		}
	}
}

func (g *Gate) tick(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for s, l := range g.mu.lanes {
		if !l.writing {
			g.settleLocked(now, s, l)
		}
	}
	for _, t := range g.mu.turns {
		held := g.mu.shaper.Held(now, t.group)
		part := min(1, float64(held-t.heldSeen)/float64(settleEvery))
		t.held += heldAlpha * (part - t.held)
		t.heldSeen = held
	}
	g.pumpLocked()
}

// Enter makes a session known, whose handshake is charged like all else.
func (g *Gate) Enter(s *wire.Session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.nextID++
	g.mu.lanes[s] = &lane{id: g.mu.nextID, framing: s.Spent().Framing}
	s.Bound(shape.Rate(g.capNow.Load()))
}

func (g *Gate) Leave(s *wire.Session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.mu.lanes, s)
	g.leftLocked(time.Now())
}

// settleLocked charges what a session put on the interface and nobody granted, and
// gives back what was granted and did not come to that.
func (g *Gate) settleLocked(now time.Time, s *wire.Session, l *lane) {
	spent := s.Spent()
	if s.Context().Err() != nil {
		return // the kernel may not know any more
	}
	extra := int64(spent.Sent+spent.Unsent) - l.charged
	l.charged += extra
	l.sent = int64(spent.Sent)
	l.settled, l.framing = now, spent.Framing
	g.spent.Add(extra)
	if !invariant.Planted("gate/never-settled") {
		g.mu.shaper.Charge(now, extra)
	}
	g.leftLocked(now)
}

// leftLocked tells the shaper what the kernel keeps.
func (g *Gate) leftLocked(now time.Time) {
	kept := int64(0)
	for _, l := range g.mu.lanes {
		kept += max(l.charged-l.sent, 0)
	}
	g.mu.shaper.Left(now, kept)
}

// pump wakes whoever may go on now.
func (g *Gate) pump() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pumpLocked()
}

func (g *Gate) pumpLocked() {
	if g.mu.stopped {
		return
	}
	for {
		now := time.Now()
		grant, wake, ok := g.mu.shaper.Next(now)
		g.capLocked(now)
		if !ok {
			if !wake.IsZero() {
				g.mu.timer.Reset(wake.Sub(now))
			}
			return
		}
		t := g.mu.turns[grant.Group]
		if l := g.mu.lanes[t.session]; l != nil {
			l.writing, t.writing = true, true
			l.charged += grant.Bytes
			g.spent.Add(grant.Bytes)
		}
		t.grants <- grant.Bytes // empty: a group has one offer
	}
}

// capLocked notes the cap, and when it is another tells the kernel.
func (g *Gate) capLocked(now time.Time) {
	c, old := g.mu.shaper.InForce(), shape.Rate(g.capNow.Load())
	if c == old {
		return
	}
	_, w := g.mu.shaper.Cap(now)
	g.capNow.Store(int64(c))
	g.mu.since = now
	window := ""
	if w != nil {
		window = w.String()
	}
	g.log.Info("cap", "cap", c.String(), "window", window)
	for s, l := range g.mu.lanes {
		s.Bound(c)
		if c > 0 && (old == 0 || c < old) {
			// What waits in the kernel was let go under another cap, and leaves under this one.
			spent := s.Spent()
			l.charged, l.sent = int64(spent.Sent+spent.Unsent), int64(spent.Sent)
			g.mu.shaper.Charge(now, int64(spent.Unsent))
			g.leftLocked(now)
		}
	}
}

// Offer asks for a turn with a record of bytes; when it stands in the row already, for
// the same session, it stays there.
func (t *Turn) Offer(s *wire.Session, bytes int) {
	if t.offered && t.session == s {
		return
	}
	t.Withdraw()
	t.g.mu.Lock()
	defer t.g.mu.Unlock()
	l := t.g.mu.lanes[s]
	if l == nil { // it is over; the sender will see that
		l = &lane{id: 1 << 63, framing: shape.Usual}
	}
	t.session, t.offered, t.framing = s, true, l.framing
	t.g.mu.shaper.Offer(time.Now(), t.group, l.id, t.wire(bytes))
	t.g.pumpLocked()
}

func (t *Turn) wire(bytes int) int64 { return t.framing.Wire(shape.Sealed(int64(bytes))) }

// Wait waits for the first grant of a record.
func (t *Turn) Wait(ctx context.Context) error {
	select {
	case t.have = <-t.grants:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Next implements wire.Pace.
func (t *Turn) Next(left int) (int, error) {
	if t.have == 0 {
		t.Done(left, 0)
		if err := t.Wait(t.session.Context()); err != nil {
			return 0, context.Cause(t.session.Context())
		}
	}
	have := t.have
	t.have = 0
	if have >= t.wire(left) {
		return left, nil
	}
	return int(min(t.framing.Fit(have), int64(left))), nil
}

// Done says that what was granted is written: left bytes of the record are not, and
// after it the next of that many stands ready, 0 for none.
func (t *Turn) Done(left, next int) {
	t.g.mu.Lock()
	defer t.g.mu.Unlock()
	now := time.Now()
	if l := t.g.mu.lanes[t.session]; l != nil {
		l.writing = false
		if t.g.capNow.Load() != 0 || now.Sub(l.settled) > settleEvery {
			t.g.settleLocked(now, t.session, l)
		}
	}
	t.writing = false
	t.g.mu.shaper.Done(now, t.group, t.wire(left), t.wire(next))
	if left == 0 && next == 0 {
		t.offered = false
	}
	t.g.pumpLocked()
}

// Withdraw gives up the turn.
func (t *Turn) Withdraw() {
	t.g.mu.Lock()
	defer t.g.mu.Unlock()
	if !t.offered {
		return
	}
	t.g.mu.shaper.Withdraw(time.Now(), t.group)
	if l := t.g.mu.lanes[t.session]; l != nil && t.writing {
		l.writing = false
	}
	t.offered, t.writing, t.have = false, false, 0
	select {
	case <-t.grants:
	default:
	}
	t.g.pumpLocked()
}

// HeldByCap says whether it is the cap that holds the group back, and the cap.
func (g *Gate) HeldByCap(t *Turn) (shape.Rate, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := shape.Rate(g.capNow.Load())
	return c, c > 0 && t.held > heldLimit
}

// Policy is what is in force.
func (g *Gate) Policy() shape.Policy {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.shaper.Policy()
}

// Set puts p into force; keep says that it outlives the process, which is so before it
// begins. ErrPolicy is in the error when p cannot be.
func (g *Gate) Set(p shape.Policy, keep bool) error {
	g.changing.Lock()
	defer g.changing.Unlock()
	return g.set(p, keep)
}

// set is Set with changing held. The file is written while senders go on.
func (g *Gate) set(p shape.Policy, keep bool) error {
	if err := p.Validate(); err != nil {
		return err
	}
	loc, err := g.zone(p.Zone)
	if err != nil {
		return err
	}
	if keep && !invariant.Planted("gate/shaping-forgotten") {
		if err := g.file.Put(p); err != nil {
			return fmt.Errorf("keep the shaping: %w", err)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.own = keep
	g.mu.shaper.Change(time.Now(), p, loc)
	g.pumpLocked()
	return nil
}

// Charge takes in what was put on the interface beside the sessions: they get less.
func (g *Gate) Charge(bytes int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	g.mu.shaper.Charge(now, bytes)
	g.leftLocked(now)
}

// Cap is the cap in force.
func (g *Gate) Cap() shape.Rate { return shape.Rate(g.capNow.Load()) }

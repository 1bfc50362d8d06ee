package capture

import (
	"math"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// HoldMost is how long filters hold back answers for a cut over several VRAs, at most.
const HoldMost = 2 * time.Millisecond

// holdPoll is how often one that waits looks at the word: nobody tells it.
const holdPoll = 50 * time.Microsecond

type holdState int

const (
	holdNone holdState = iota
	holdOn
	holdOver
)

// holds says what a filter does that looks at the hold word (a hold's number) now.
// A deadline further away than HoldMost is nonsense and counts as over.
func holds(number, deadline uint64, now int64) holdState {
	switch {
	case number == 0:
		return holdNone
	case deadline > math.MaxInt64 || int64(deadline) <= now || int64(deadline) > now+int64(HoldMost):
		return holdOver
	}
	return holdOn
}

// held says whether answers are held back at this moment. Past the deadline they are not, and
// the hold is broken, and said to be before anybody is answered. The ticket of who asks is
// taken, or its drop is said.
func (p *orderPage) held(clock monoClock) bool {
	number := p.hold.Load()
	switch holds(number, p.deadline.Load(), clock.now()) {
	case holdOn:
		return !invariant.Planted("capture/hold-unseen")
	case holdOver:
		if !invariant.Planted("capture/hold-unbroken") {
			p.breakHold(number)
		}
	}
	return false
}

// breakHold says that a hold ran over its deadline. The word only rises: a filter that was
// stopped in between must not take back what another says of a later hold.
func (p *orderPage) breakHold(number uint64) {
	for {
		was := p.broken.Load()
		if was >= number && !invariant.Planted("capture/broken-falls") || p.broken.CompareAndSwap(was, number) {
			return
		}
	}
}

// waitHold answers no guest while a cut over several VRAs is being placed.
func (v *volume) waitHold() {
	for v.page.held(v.clock) {
		time.Sleep(holdPoll)
	}
}

// Hold is a cut's ticket, and the hold of the guests' answers that began before it was taken.
type Hold struct {
	Ticket record.Ticket
	Lost   uint64        // read after the ticket was taken
	Began  time.Duration // CLOCK_MONOTONIC

	number, broken uint64
}

// BeginHold has the group's filters hold back answers, HoldMost at most, and then takes a
// ticket as TakeTicket does: no write with a later one is answered before EndHold, unless that
// says that it was. One hold is open at a time.
func (t *Tap) BeginHold() Hold {
	t.merge.Lock()
	defer t.merge.Unlock()
	p := t.page
	h := Hold{Began: time.Duration(t.clock.now()), broken: p.broken.Load()}
	// It rises over all lives of VRAs on the page: the clock does, within a boot.
	h.number = max(uint64(h.Began), h.broken+1, t.merge.holds+1)
	t.merge.holds = h.number
	early := invariant.Planted("capture/ticket-before-hold")
	if early {
		h.Ticket = t.takeLocked()
		time.Sleep(20 * time.Microsecond)
	}
	p.deadline.Store(uint64(h.Began + HoldMost))
	p.hold.Store(h.number)
	if !early {
		h.Ticket = t.takeLocked()
	}
	h.Lost = p.lost.Load()
	return h
}

// EndHold ends the hold and returns when it did, CLOCK_MONOTONIC, and whether it held: no
// write after the ticket was answered before that moment, and none was dropped.
func (t *Tap) EndHold(h Hold) (ended time.Duration, intact bool) {
	p := t.page
	broken := p.broken.Load()
	if invariant.Planted("capture/broken-read-early") {
		time.Sleep(time.Millisecond)
	}
	ended = time.Duration(t.clock.now())
	p.hold.Store(0)
	if !invariant.Planted("capture/broken-read-early") {
		broken = p.broken.Load()
	}
	return ended, broken == h.broken && p.lost.Load() == h.Lost
}

package capture

import (
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// pool is the filter's side of its slots: who is free, and what is published.
type pool struct {
	shape                      poolShape
	page                       *orderPage
	clock                      monoClock
	payload, desc, state       []byte
	payloadFD, descFD, stateFD int
	rings                      []ring

	guestWrites, guestBytes, captured, dropped, uncaptured, syncBytes *atomic.Uint64

	// mu guards the free slots. A slot is ours while it is free or being filled; once
	// published it is the VRA's, and comes home through the returns.
	mu struct {
		sync.Mutex
		free    []uint32 // last in, first out
		ours    []bool
		retHead uint64
	}
}

func newPool(slots, rings int, instance uint64, page *orderPage, clock monoClock) (_ *pool, err error) {
	p := &pool{shape: shapeOf(slots, rings, instance), page: page, clock: clock, payloadFD: -1, descFD: -1, stateFD: -1}
	if err := p.shape.check(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.payloadFD, p.payload, err = newMemfd("holdfast-payload", p.shape.payloadBytes()); err != nil {
		return nil, err
	}
	if p.descFD, p.desc, err = newMemfd("holdfast-desc", p.shape.descFileBytes()); err != nil {
		return nil, err
	}
	if p.stateFD, p.state, err = newMemfd("holdfast-state", p.shape.stateFileBytes()); err != nil {
		return nil, err
	}
	for _, fd := range []int{p.payloadFD, p.descFD} {
		if err := sealWrites(fd); err != nil {
			return nil, err
		}
	}
	putPoolHeader(p.desc, descMagic, p.shape)
	putPoolHeader(p.state, stateMagic, p.shape)
	p.guestWrites, p.guestBytes = word(p.desc, descAtGuestWrites), word(p.desc, descAtGuestBytes)
	p.captured, p.dropped = word(p.desc, descAtCaptured), word(p.desc, descAtDropped)
	p.uncaptured, p.syncBytes = word(p.desc, descAtUncaptured), word(p.desc, descAtSyncBytes)
	p.rings = make([]ring, rings)
	for i := range p.rings {
		p.rings[i].at(p, i)
	}
	p.mu.ours = make([]bool, slots)
	for s := slots - 1; s >= 0; s-- { // the lowest on top: a fresh pool gives long runs
		p.stateWord(uint32(s)).Store(nextUse(0, slotFree))
		p.mu.free = append(p.mu.free, uint32(s))
		p.mu.ours[s] = true
	}
	p.tellFreeLocked()
	return p, nil
}

func (p *pool) close() {
	unmapAll(p.payload, p.desc, p.state)
	for _, fd := range []int{p.payloadFD, p.descFD, p.stateFD} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func (p *pool) stateWord(slot uint32) *atomic.Uint64 { return word(p.state, p.shape.stateAt(slot)) }

func (p *pool) descOf(slot uint32) []byte {
	at := p.shape.descAt(slot)
	return p.desc[at : at+descBytes]
}

// alloc claims n slots, unless that leaves fewer than reserve; it never waits. The
// slots rise, so that neighbours are one buffer; they are appended to into.
func (p *pool) alloc(into []uint32, n, reserve int) ([]uint32, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.takeReturnsLocked()
	rest := len(p.mu.free) - n
	if rest < reserve || rest < 0 {
		return into, false
	}
	from := len(into)
	into = append(into, p.mu.free[rest:]...)
	p.mu.free = p.mu.free[:rest]
	p.tellFreeLocked()
	slices.Sort(into[from:])
	for _, s := range into[from:] {
		w := p.stateWord(s)
		w.Store(nextUse(w.Load(), slotClaimed))
	}
	return into, true
}

// short says that there are not n free slots. It costs a lock only where that is likely.
func (p *pool) short(n int) bool {
	if word(p.desc, descAtFree).Load() >= uint64(n) {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.takeReturnsLocked()
	return len(p.mu.free) < n
}

// takeReturnsLocked takes home what the VRA freed. It wrote these words, so nothing is taken on trust.
func (p *pool) takeReturnsLocked() {
	tail := word(p.state, p.shape.retTailAt()).Load()
	if tail-p.mu.retHead > uint64(p.shape.ringCap) {
		p.mu.retHead = tail // nonsense; the next attach finds what is lost here
	}
	for ; p.mu.retHead != tail; p.mu.retHead++ {
		p.homeLocked(word(p.state, p.shape.retAt(p.mu.retHead)).Load())
	}
	p.tellFreeLocked()
	word(p.desc, descAtRetHead).Store(p.mu.retHead)
}

func (p *pool) homeLocked(slot uint64) {
	if slot >= uint64(p.shape.slots) || p.mu.ours[slot] || stateOf(p.stateWord(uint32(slot)).Load()) != slotFree {
		return
	}
	p.mu.ours[slot] = true
	p.mu.free = append(p.mu.free, uint32(slot))
}

// release frees slots that were never published, or were revoked.
func (p *pool) release(slots []uint32) {
	if len(slots) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(slots) - 1; i >= 0; i-- {
		s := slots[i]
		w := p.stateWord(s)
		w.Store(withState(w.Load(), slotFree))
		p.mu.free = append(p.mu.free, s)
	}
	p.tellFreeLocked()
}

func (p *pool) tellFreeLocked() { word(p.desc, descAtFree).Store(uint64(len(p.mu.free))) }

// reclaim finds the slots that a VRA which died in the middle of freeing left behind:
// free but not returned, or members of a write whose first slot is free. No VRA may be
// attached. Writes still published stay so, for the next one.
func (p *pool) reclaim() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.takeReturnsLocked()
	held := make([]bool, p.shape.slots)
	for s := range uint32(p.shape.slots) {
		state := stateOf(p.stateWord(s).Load())
		if p.mu.ours[s] || state != slotPublished && state != slotTicketing {
			continue
		}
		for next, left := s+1, p.shape.slots; next != 0 && left > 0; left-- {
			held[next-1] = true
			next = leNext(p.descOf(next - 1))
		}
	}
	for s := range uint32(p.shape.slots) {
		w := p.stateWord(s)
		if p.mu.ours[s] || held[s] {
			continue
		}
		if stateOf(w.Load()) == slotMember {
			w.Store(withState(w.Load(), slotFree))
		}
		p.homeLocked(uint64(s))
	}
}

// allHome says that the VRA holds no slot.
func (p *pool) allHome() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.takeReturnsLocked()
	return len(p.mu.free) == p.shape.slots
}

// runs appends the memory of n bytes in slots to into, one buffer a run of neighbours.
func (p *pool) runs(into [][]byte, slots []uint32, n int) [][]byte {
	return slotRuns(into, p.payload, slots, n)
}

// slotRuns appends the n bytes that stand in slots of payload, one buffer a run of neighbours.
func slotRuns(into [][]byte, payload []byte, slots []uint32, n int) [][]byte {
	for i := 0; i < len(slots); {
		j := i + 1
		for j < len(slots) && slots[j] == slots[j-1]+1 {
			j++
		}
		at, size := int(slots[i])*SlotBytes, min((j-i)*SlotBytes, n)
		into = append(into, payload[at:at+size:at+size])
		n -= size
		i = j
	}
	return into
}

// ring is the filter's end of one ring: tickets are taken and published under its
// lock, so that they rise in it and at most one slot of it is in ticketing.
type ring struct {
	mu   sync.Mutex
	pool *pool
	base int64
	tail *atomic.Uint64
	busy *atomic.Uint64    // slot + 1 that may be in ticketing; 0 for none
	head *atomic.Uint64    // the VRA's
	stop func(publishStep) // a test's; nil elsewhere
}

// publishStep is a place in publish where a filter may be killed or stopped.
type publishStep int

const (
	stepTicket publishStep = iota // the ticket is taken, and to be seen nowhere
	stepEntry                     // it is in the ring, the slot in ticketing still
)

func (r *ring) at(p *pool, i int) {
	r.pool, r.base = p, p.shape.ringAt(i)
	r.tail, r.busy = word(p.desc, r.base+ringAtTail), word(p.desc, r.base+ringAtBusy)
	r.head = word(p.state, p.shape.headAt(i))
}

// publish takes a ticket for the write in slots (claimed, its descriptor but for
// ticket, time and chain in d) and gives it to the VRA. It fails when the ring is full
// or the VRA revoked the slot; the slots are then still the caller's.
func (r *ring) publish(slots []uint32, d desc) (record.Ticket, bool) {
	p, first := r.pool, slots[0]
	p.chain(slots)
	r.mu.Lock()
	defer r.mu.Unlock()
	tail := r.tail.Load()
	if tail-r.head.Load() >= uint64(p.shape.ringCap) { // also when the head is nonsense
		return 0, false
	}
	w := p.stateWord(first)
	claimed := w.Load()
	ticketing := withState(claimed, slotTicketing)
	r.busy.Store(uint64(first) + 1)
	w.Store(ticketing) // before the ticket: a missing ticket is looked for here
	d.ticket, d.captured = p.page.take(), p.clock.now()
	d.slots = uint32(len(slots))
	if len(slots) > 1 {
		d.next = slots[1] + 1
	}
	d.put(p.descOf(first))
	if r.stop != nil {
		r.stop(stepTicket)
	}
	at := r.base + ringAtEntries + int64(tail&uint64(p.shape.ringCap-1))*ringEntryBytes
	putRingEntry(p.desc[at:at+ringEntryBytes], d.ticket, first, useOf(claimed))
	r.tail.Store(tail + 1) // before the state: no ticketing slot means that all entries are to be seen
	if r.stop != nil {
		r.stop(stepEntry)
	}
	p.mine(slots, false)
	ok := w.CompareAndSwap(ticketing, withState(claimed, slotPublished))
	if !ok {
		p.mine(slots, true)
		ok = invariant.Planted("capture/ignore-revoked")
	}
	r.busy.Store(0)
	return d.ticket, ok
}

// chain makes all but the first slot members, each naming the next.
func (p *pool) chain(slots []uint32) {
	for i, s := range slots[1:] {
		var next uint32
		if i+2 < len(slots) {
			next = slots[i+2] + 1
		}
		desc{next: next}.put(p.descOf(s))
		w := p.stateWord(s)
		w.Store(withState(w.Load(), slotMember))
	}
}

// mine says whether slots are ours or, once published, the VRA's.
func (p *pool) mine(slots []uint32, ours bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range slots {
		p.mu.ours[s] = ours
	}
}

package capture

import (
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// generation holds the marks of the writes that began within about a second.
type generation struct {
	file     *genFile
	inflight int // writes and sync reads
	marked   bool
	closed   bool
	noted    bool        // closed and nothing in flight: no ticket of it is above note
	into     *generation // what it was merged into
}

// marks are one volume's generations and dirty map. The volume's lock guards all of
// it but the bits of closed generations, which the volume's turning lock guards.
type marks struct {
	file   *marksFile
	now    *generation
	closed []*generation // oldest first
	free   []*genFile
	number uint64
	dirty  int64 // bits in the dirty map
	last   func() record.Ticket
}

// recoverMarks takes over what a predecessor left: after a clean close its
// generations stand as they were, else they are all moved to the dirty map.
// moved says that the dirty map is not known to be covered by lost.
func recoverMarks(file *marksFile, clean bool, last func() record.Ticket) (m *marks, moved bool) {
	m = &marks{file: file, last: last}
	for i := range file.gens {
		g := &file.gens[i]
		state := g.state.Load()
		m.number = max(m.number, g.number.Load())
		switch {
		case state == genFree:
			m.free = append(m.free, g)
		case clean && state == genNoted && len(m.closed) < maxClosedGens:
			m.closed = append(m.closed, &generation{file: g, marked: true, closed: true, noted: true})
		default:
			moved = moved || g.bits.count() > 0
			if !invariant.Planted("capture/forget-generations") {
				g.bits.orInto(&file.dirty)
			}
			m.emptied(g)
		}
	}
	slices.SortFunc(m.closed, func(a, b *generation) int {
		return int(int64(a.file.number.Load() - b.file.number.Load()))
	})
	m.dirty = file.dirty.count()
	m.openNext()
	return m, moved || !clean
}

// emptied clears a generation's place, for use again.
func (m *marks) emptied(g *genFile) {
	g.bits.reset()
	g.state.Store(genFree)
	m.free = append(m.free, g)
}

func (m *marks) openNext() {
	g := m.free[len(m.free)-1]
	m.free = m.free[:len(m.free)-1]
	m.number++
	g.number.Store(m.number)
	g.note.Store(0)
	g.state.Store(genCurrent)
	m.now = &generation{file: g}
}

// begin marks blocks [from, to) for a write that starts now, and returns what end takes.
func (m *marks) begin(from, to int64) *generation {
	m.now.inflight++
	m.now.marked = true
	m.now.file.bits.set(from, to)
	return m.now
}

// end says that a write of g has its ticket, or is in the dirty map.
func (m *marks) end(g *generation) {
	for g.into != nil {
		g = g.into
	}
	g.inflight--
	m.settle(g)
}

// settle notes the current ticket in a closed generation once nothing of it is in flight.
func (m *marks) settle(g *generation) {
	if !g.closed || g.noted || g.inflight > 0 {
		return
	}
	g.file.note.Store(uint64(m.last()))
	g.file.state.Store(genNoted)
	g.noted = true
}

// addDirty sets blocks [from, to) in the dirty map. The caller adds to lost before it
// gives the lock up, so that nobody finds a block dirty that lost does not tell of.
func (m *marks) addDirty(from, to int64) {
	m.dirty += m.file.dirty.set(from, to)
}

// allDirty says that the target is to be sent [from, to) anyway.
func (m *marks) allDirty(from, to int64) bool {
	return m.dirty > 0 && m.file.dirty.all(from, to)
}

// take moves [from, to) from the dirty map to the current generation, for a sync read
// that starts now: set there first, then cleared here.
func (m *marks) take(from, to int64) *generation {
	g := m.begin(from, to)
	m.dirty -= m.file.dirty.clear(from, to)
	return g
}

// turn closes the current generation, unless it has no marks.
func (m *marks) turn() {
	if !m.now.marked {
		return
	}
	g := m.now
	g.closed = true
	g.file.state.Store(genClosed)
	m.closed = append(m.closed, g)
	m.openNext()
	m.settle(g)
}

// passed takes out the closed generations that the durable ticket has passed. The
// caller clears their places without the lock and then gives them to m.free.
func (m *marks) passed(durable record.Ticket) (out []*genFile) {
	m.closed = slices.DeleteFunc(m.closed, func(g *generation) bool {
		gone := canDrop(g, durable)
		if gone {
			out = append(out, g.file)
		}
		return gone
	})
	return out
}

// canDrop says that every write of g is durable at the target, or in the dirty map.
func canDrop(g *generation, durable record.Ticket) bool {
	if invariant.Planted("capture/drop-in-flight") {
		return g.closed && durable > 0
	}
	return g.closed && g.noted && record.Ticket(g.file.note.Load()) <= durable
}

// merged joins the oldest closed generation into the next, whose bits the caller has
// joined already, and returns the place to clear.
func (m *marks) merged() *genFile {
	a, b := m.closed[0], m.closed[1]
	m.closed = m.closed[1:]
	a.into = b
	b.inflight += a.inflight
	if b.noted = a.noted && b.noted; b.noted {
		b.file.note.Store(max(a.file.note.Load(), b.file.note.Load()))
	} else {
		b.file.state.Store(genClosed)
		m.settle(b)
	}
	return a.file
}

// check holds what every caller may rely on; for tests.
func (m *marks) check() string {
	switch {
	case len(m.closed) > maxClosedGens:
		return "too many closed generations"
	case len(m.closed)+len(m.free)+1 > genCount:
		return "more generations than places"
	case m.dirty != m.file.dirty.count():
		return "dirty count"
	case m.now.closed:
		return "the current generation is closed"
	}
	return ""
}

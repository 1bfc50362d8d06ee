package capture

import "github.com/holdfast-dr/holdfast/wire/record"

// turn closes the current generation and lets go of those that the durable ticket has passed.
func (v *volume) turn(durable record.Ticket) {
	v.turning.Lock()
	defer v.turning.Unlock()
	v.mu.Lock()
	gone := v.mu.marks.passed(durable)
	v.mu.Unlock()
	v.clearPlaces(gone)
	v.makeRoom()
	v.mu.Lock()
	v.mu.marks.turn()
	v.mu.Unlock()
}

// clearPlaces empties generations that nobody knows any more.
func (v *volume) clearPlaces(places []*genFile) {
	for _, g := range places {
		g.bits.reset()
		g.state.Store(genFree)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.marks.free = append(v.mu.marks.free, places...)
}

// makeRoom merges the oldest closed generations until one more may be closed. Closed
// ones change under turning alone, so that guests do not wait for the walk.
func (v *volume) makeRoom() {
	for {
		v.mu.Lock()
		closed := v.mu.marks.closed
		v.mu.Unlock()
		if len(closed) < maxClosedGens {
			return
		}
		closed[0].file.bits.orInto(&closed[1].file.bits)
		v.mu.Lock()
		place := v.mu.marks.merged()
		v.mu.Unlock()
		v.clearPlaces([]*genFile{place})
	}
}

// fold moves all live generations to the dirty map. One with writes in flight stays
// alive as well: a sync read may clear its dirty bits before those writes end.
func (v *volume) fold() {
	v.turning.Lock()
	defer v.turning.Unlock()
	v.makeRoom()
	v.mu.Lock()
	v.mu.marks.turn()
	gone := v.foldLocked()
	v.mu.Unlock()
	v.clearPlaces(gone)
}

func (v *volume) foldLocked() (gone []*genFile) {
	m := v.mu.marks
	keep := m.closed[:0]
	for _, g := range m.closed {
		if added := g.file.bits.orInto(&m.file.dirty); added > 0 {
			m.dirty += added
			v.page.lost.Add(1)
		}
		if g.inflight > 0 {
			keep = append(keep, g)
		} else {
			gone = append(gone, g.file)
		}
	}
	m.closed = keep
	return gone
}

package capture

// Stats is a snapshot of counters; all but Slots, Free, Filters and Needed only grow while this
// Tap is open and its filters live; a filter's own begin at zero with its process.
type Stats struct {
	GuestWrites   uint64 // writes, zeroings and discards answered
	GuestBytes    uint64
	CapturedBytes uint64
	Dropped       uint64 // writes dropped to the dirty map
	Uncaptured    uint64 // writes to blocks already dirty
	SyncBytes     uint64 // read for sync, holes and zeros included
	Revoked       uint64 // slots this Tap revoked
	Slots, Free   int    // of the pools mapped
	Filters       int    // connected, of those that are needed
	Needed        int    // filters
}

// Stats sums up over the filters.
func (t *Tap) Stats() Stats {
	t.merge.Lock()
	s := t.merge.past
	for _, p := range t.merge.pools {
		p.addTo(&s)
		s.Slots += p.shape.slots
		s.Free += p.freeSlots()
	}
	t.merge.Unlock()
	for _, l := range t.links() {
		if !l.needed.Load() {
			continue
		}
		s.Needed++
		if l.connected() != nil {
			s.Filters++
		}
	}
	return s
}

// freeSlots is how many slots the filter has free, with those on their way back to it.
func (p *tapPool) freeSlots() int {
	back := word(p.state, p.shape.retTailAt()).Load() - word(p.desc, descAtRetHead).Load()
	return int(min(word(p.desc, descAtFree).Load()+back, uint64(p.shape.slots)))
}

func (p *tapPool) addTo(s *Stats) {
	s.GuestWrites += word(p.desc, descAtGuestWrites).Load()
	s.GuestBytes += word(p.desc, descAtGuestBytes).Load()
	s.CapturedBytes += word(p.desc, descAtCaptured).Load()
	s.Dropped += word(p.desc, descAtDropped).Load()
	s.Uncaptured += word(p.desc, descAtUncaptured).Load()
	s.SyncBytes += word(p.desc, descAtSyncBytes).Load()
	s.Revoked += p.revoked
}

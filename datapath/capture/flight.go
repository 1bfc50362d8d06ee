package capture

import "slices"

// flight is a write on its way to the disk.
type flight struct {
	lo, hi   int64 // what the disk writes: the guest's bytes, widened to the disk's alignment
	off, end int64 // the guest's bytes
	// carries says that the write itself sees to its bytes, by a record or by the
	// dirty map. One that does not went to blocks that were all dirty: who reads
	// those waits for it.
	carries bool

	running  bool
	leftOut  bool          // of a sync read that has ended
	blockers int           // earlier flights that overlap
	ready    chan struct{} // closed when blockers is 0; nil when it never had any
	gone     chan struct{} // closed when it has ended; nil while nobody asked
	gen      *generation
}

// span is [off, end) in bytes.
type span struct{ off, end int64 }

// syncFlight is a sync read under way, and what it must leave out.
type syncFlight struct {
	span
	out []span
}

// flights knows what is in flight on one volume. It decides who waits for whom, and
// what a sync read leaves out; it neither locks nor waits itself.
type flights struct {
	list  []*flight // in the order they came
	syncs []*syncFlight
}

// free says that nothing in flight overlaps [lo, hi).
func (fs *flights) free(lo, hi int64) bool {
	for _, e := range fs.list {
		if e.lo < hi && lo < e.hi {
			return false
		}
	}
	return true
}

// add registers f; it may run at once if it overlaps nothing, else once f.ready is closed.
func (fs *flights) add(f *flight) (runs bool) {
	for _, e := range fs.list {
		if e.lo < f.hi && f.lo < e.hi {
			f.blockers++
		}
	}
	fs.list = append(fs.list, f)
	if f.blockers > 0 {
		f.ready = make(chan struct{})
	}
	return f.blockers == 0
}

// start says that f's disk write begins now.
func (fs *flights) start(f *flight, carries bool) {
	f.running, f.carries = true, carries
	if !carries {
		return // the blocks are dirty: no sync read that runs has them
	}
	for _, s := range fs.syncs {
		s.leaveOut(f)
	}
}

// remove ends f and frees those that waited for it.
func (fs *flights) remove(f *flight) {
	i := slices.Index(fs.list, f)
	fs.list = slices.Delete(fs.list, i, i+1)
	for _, e := range fs.list[i:] { // only later ones can wait for it
		if e.lo < f.hi && f.lo < e.hi {
			if e.blockers--; e.blockers == 0 {
				close(e.ready)
			}
		}
	}
	if f.gone != nil {
		close(f.gone)
	}
}

// startSync registers a sync read and returns the flights it must wait for before it reads.
func (fs *flights) startSync(s *syncFlight) (wait []<-chan struct{}) {
	fs.syncs = append(fs.syncs, s)
	for _, f := range fs.list {
		switch {
		case !f.running || f.off >= s.end || s.off >= f.end:
		case f.carries:
			s.leaveOut(f)
		default:
			wait = append(wait, f.ended())
		}
	}
	return wait
}

// endSync ends the sync read: what starts from now on has a later ticket. It returns
// the flights that were left out and are under way still: until they have their tickets
// the target holds neither their bytes nor what was there before them.
func (fs *flights) endSync(s *syncFlight) (wait []<-chan struct{}) {
	i := slices.Index(fs.syncs, s)
	fs.syncs = slices.Delete(fs.syncs, i, i+1)
	for _, f := range fs.list {
		if f.running && f.carries && f.off < s.end && s.off < f.end {
			f.leftOut = true
			wait = append(wait, f.ended())
		}
	}
	return wait
}

// unsettled counts the blocks that are in no dirty map, and that the target may lack even
// so: those being read, and those of flights that a read has left out.
func (fs *flights) unsettled() (blocks int64) {
	for _, s := range fs.syncs {
		from, to := blocksOf(s.off, s.end)
		blocks += to - from
	}
	for _, f := range fs.list {
		if f.leftOut {
			from, to := blocksOf(f.off, f.end)
			blocks += to - from
		}
	}
	return blocks
}

// ended is closed when f has its ticket, or is dropped.
func (f *flight) ended() <-chan struct{} {
	if f.gone == nil {
		f.gone = make(chan struct{})
	}
	return f.gone
}

func (s *syncFlight) leaveOut(f *flight) {
	if off, end := max(s.off, f.off), min(s.end, f.end); off < end {
		s.out = append(s.out, span{off, end})
	}
}

// rest returns what is left of the read once what it leaves out is gone, in order.
func (s *syncFlight) rest() (pieces []span) {
	slices.SortFunc(s.out, func(a, b span) int { return int(min(max(a.off-b.off, -1), 1)) })
	at := s.off
	for _, o := range s.out {
		if o.off > at {
			pieces = append(pieces, span{at, o.off})
		}
		at = max(at, o.end)
	}
	if at < s.end {
		pieces = append(pieces, span{at, s.end})
	}
	return pieces
}

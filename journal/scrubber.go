package journal

import (
	"context"
	"errors"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/scrub"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// scrubber reads back, in the background, all that a store keeps: see package scrub for
// what it reads when. What it finds damaged is repaired, or made known like what a view
// finds. It reads one thing at a time, and beside intake no faster than it has to.
type scrubber struct {
	s      *Store
	ctx    context.Context // ends with the store
	cancel context.CancelFunc
	wake   chan struct{} // capacity 1
	ended  chan struct{} // nil: it never began

	bytes, repairs atomic.Int64 // read, and brought back, since Open

	mu    sync.Mutex // after all others
	book  scrub.Book
	saved time.Duration
	dirty bool
	asked map[uint64]*asked // groups that somebody wants to have read
	now   doing
}

// asked is a wish to have a group read.
type asked struct {
	read  map[scrub.ID]bool // since somebody asked, whatever came of it
	total int64             // bytes, when it began; 0: not known yet
	left  int64
}

// doing is what is under way.
type doing struct {
	group uint64
	rate  int64
	next  time.Time // when what was read is paid for
	left  int64     // of all that is to be read now
	part  int64     // bytes read of the present unit
}

const (
	scrubName = "scrubbed"
	scrubNew  = "scrubbed.new"

	// scrubFirst is how long after an opening nothing is read: others want the disk then.
	scrubFirst = time.Minute
	// scrubRest is how long nothing is looked at when nothing is due.
	scrubRest = 10 * time.Minute
	// partBytes is how much of a replica is one unit.
	partBytes = 4 << 30
	// scrubBeside is which part of the cap is enough beside intake, when somebody asked.
	scrubBeside = 4
)

// open reads what an earlier run knew.
func (r *scrubber) open(s *Store) {
	r.s = s
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.wake, r.asked = make(chan struct{}, 1), make(map[uint64]*asked)
	p, err := readAll(s.cfg.FS, path.Join(s.cfg.Dir, scrubName))
	if err == nil {
		var b *scrub.Book
		if b, err = scrub.ParseBook(p); err == nil {
			r.book = *b
		}
	}
	if err != nil && !isAbsent(err) {
		s.log.Warn("when things were read back last is not known: all is read again", "error", err)
	}
}

// run reads until the store closes.
func (r *scrubber) run() {
	r.ended = make(chan struct{})
	go func() {
		defer close(r.ended)
		r.rest(scrubFirst)
		for r.ctx.Err() == nil {
			r.rest(r.one())
		}
	}()
}

// rest waits, or until somebody asks.
func (r *scrubber) rest(d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.wake:
	case <-r.ctx.Done():
	}
}

// close ends the reading and keeps what was done.
func (r *scrubber) close() {
	if r.cancel == nil {
		return
	}
	r.cancel()
	if r.ended != nil {
		<-r.ended
		r.mu.Lock()
		save := r.dirty && r.s.retainer.passed()-r.saved >= planEvery
		r.mu.Unlock()
		if save {
			r.save()
		}
	}
}

// one reads what is next, and says how long to rest then.
func (r *scrubber) one() time.Duration {
	now := r.s.retainer.passed()
	units := r.units()
	r.mu.Lock()
	if len(r.asked) == 0 && r.s.cfg.Scrub.Every < 0 {
		r.mu.Unlock()
		return scrubRest
	}
	step := scrub.Plan(units, &r.book, r.s.cfg.Scrub, r.wantedLocked, now)
	r.progressLocked(units, now)
	r.now = doing{rate: step.Rate, left: step.Left, next: time.Now()}
	if step.Unit >= 0 {
		r.now.group = units[step.Unit].Group
	}
	r.mu.Unlock()
	if step.Unit < 0 {
		r.mu.Lock()
		r.book.Keep(units)
		save := r.dirty
		r.mu.Unlock()
		if save {
			r.save()
		}
		if step.Wait > 0 {
			return min(step.Wait, scrubRest)
		}
		return scrubRest
	}
	if err := r.read(units[step.Unit]); err != nil && r.ctx.Err() == nil {
		r.s.log.Warn("what is kept could not be read back", "group", record.GroupID(units[step.Unit].Group).String(), "error", err)
	}
	if now-r.saved >= saveEvery {
		r.save()
	}
	return 0
}

// wantedLocked says whether somebody wants the unit to be read, and it was not since.
func (r *scrubber) wantedLocked(id scrub.ID) bool {
	a := r.asked[id.Group]
	return a != nil && !a.read[id]
}

// noteLocked writes into the book what a reading found.
func (r *scrubber) noteLocked(id scrub.ID, whole bool, now time.Duration) {
	if whole {
		r.book.Read(id, now)
	} else {
		r.book.Tried(id, now)
	}
	if a := r.asked[id.Group]; a != nil {
		a.read[id] = true
	}
	r.dirty = true
}

// progressLocked reckons how much is left of what somebody asked for, and ends what is done.
func (r *scrubber) progressLocked(units []scrub.Unit, now time.Duration) {
	for id, a := range r.asked {
		all, left := int64(0), int64(0)
		for _, u := range units {
			if u.Group != id {
				continue
			}
			all += u.Bytes
			if r.wantedLocked(u.ID) {
				left += u.Bytes
			}
		}
		a.total, a.left = max(a.total, all), left
		if left > 0 {
			continue
		}
		delete(r.asked, id)
		if g, ok := r.s.Group(record.GroupID(id)); ok {
			b := r.book.Groups[id]
			if lineage := g.manifest.now().lineage; b.Lineage != lineage {
				b = scrub.Group{Lineage: lineage}
			}
			b.Full = now
			r.book.SetGroup(id, b)
		}
		r.dirty = true
	}
}

// units are all that can be read back now.
func (r *scrubber) units() (units []scrub.Unit) {
	for _, g := range r.s.Groups() {
		if g.opened() != nil {
			continue
		}
		id := uint64(g.info.ID)
		for _, i := range g.segments.Segments() {
			if i.State != segment.StateVerified && i.State != segment.StateBad {
				continue // it is read back as it is sealed
			}
			if _, life, ok := g.segments.Life(i.First); ok {
				units = append(units, scrub.Unit{ID: scrub.ID{Group: id, Kind: scrub.Segment, Number: i.Number, Life: life}, Bytes: int64(i.End - i.First)})
			}
		}
		if !g.settled() {
			continue
		}
		volumes, all := g.Volumes(), int64(0)
		for _, v := range volumes {
			all += v.Bytes
		}
		taken := g.retention.replicaBytes.Load() // of all of them
		lineage := g.manifest.now().lineage
		for _, v := range volumes {
			for part := int64(0); part*partBytes < v.Bytes; part++ {
				n := min(v.Bytes-part*partBytes, partBytes)
				if taken > 0 {
					n = min(n, int64(float64(n)*float64(taken)/float64(all))+1)
				}
				units = append(units, scrub.Unit{ID: scrub.ID{Group: id, Kind: scrub.Replica, Number: uint64(v.ID)<<32 | uint64(part), Life: lineage}, Bytes: n})
			}
		}
	}
	return units
}

// settled says whether every block of the replicas is what its sum says unless it is
// damaged, which is so before they are plain disks: what an initial sync or a promotion leaves torn is written again, and read by
// nobody until then.
func (g *Group) settled() bool {
	g.mu.Lock()
	initial := g.initial
	g.mu.Unlock()
	f := g.manifest.now()
	return !initial && !f.failover.State.Plain() && (f.gone == 0 || f.gone == f.promoted.number)
}

// read reads a unit back, and sees to what it finds.
func (r *scrubber) read(u scrub.Unit) error {
	g, ok := r.s.Group(record.GroupID(u.Group))
	if !ok {
		return nil
	}
	var whole bool
	var err error
	if u.Kind == scrub.Segment {
		whole, err = g.readSegment(u.Number, r.pace)
	} else {
		whole, err = g.readReplica(record.VolumeID(u.Number>>32), int64(uint32(u.Number))*partBytes, r.pace)
	}
	if r.ctx.Err() != nil || errors.Is(err, segment.ErrClosed) {
		return nil // it was not read to its end
	}
	now := r.s.retainer.passed()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.noteLocked(u.ID, whole, now)
	return err
}

// pace waits until so many bytes may be read.
func (r *scrubber) pace(bytes int) error {
	r.bytes.Add(int64(bytes))
	r.mu.Lock()
	r.now.part += int64(bytes)
	rate := max(r.now.rate, 1)
	if busy := r.s.readBacks.busy(); busy && r.asked[r.now.group] != nil {
		rate = max(rate/scrubBeside, 1)
	}
	now := time.Now()
	if r.now.next.Before(now) {
		r.now.next = now
	}
	r.now.next = r.now.next.Add(time.Duration(float64(bytes) / float64(rate) * float64(time.Second)))
	wait := r.now.next.Sub(now) - paceAhead
	r.mu.Unlock()
	if invariant.Planted("journal/scrub-unpaced") {
		wait = 0
	}
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-r.ctx.Done():
		}
	}
	if r.ctx.Err() != nil {
		return segment.ErrClosed
	}
	return nil
}

// busy says whether anything came in of late.
func (r *readBacks) busy() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.last.IsZero() && time.Since(r.last) < readBackIdle
}

// sealedNow notes that a segment was read back as it was sealed.
func (r *scrubber) sealedNow(f segment.FileInfo) {
	now := r.s.retainer.passed()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.noteLocked(scrub.ID{Group: uint64(f.Group), Kind: scrub.Segment, Number: f.Number, Life: f.Life}, true, now)
}

// save writes the book. What is not written is read again, so it is no more than a warning.
func (r *scrubber) save() {
	r.mu.Lock()
	p := r.book.AppendTo(nil)
	r.saved, r.dirty = r.s.retainer.passed(), false
	r.mu.Unlock()
	if err := writeWhole(r.s.cfg.FS, r.s.cfg.Dir, scrubNew, scrubName, p); err != nil {
		r.s.log.Warn("what was read back is not written down", "error", err)
	}
}

// Verification tells how a group's reading back stands.
type Verification struct {
	Asked             bool // all of the group is being read because somebody asked
	Total, Left, Rate int64
	// Last is how long ago all of the group had been read, the last time that somebody had
	// it read; Known is false when nobody did.
	Last  time.Duration
	Known bool
	// Oldest is for how long something of the group was not read, since this store knows of
	// it; Unread is how many bytes were never read since they were sealed.
	Oldest time.Duration
	Unread int64
	// Damaged is how many places are damaged and not repaired.
	Damaged int
}

// Verify has all of the group read back now. It returns at once.
func (g *Group) Verify() error {
	if err := g.opened(); err != nil {
		return err
	}
	r := &g.store.scrubber
	r.mu.Lock()
	if r.asked[uint64(g.info.ID)] == nil {
		r.asked[uint64(g.info.ID)] = &asked{read: make(map[scrub.ID]bool)}
		if invariant.Planted("journal/verify-by-book") {
			for id := range r.book.Units {
				r.asked[uint64(g.info.ID)].read[id] = true
			}
		}
	}
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return nil
}

// Verification tells how the group's reading back stands.
func (g *Group) Verification() (v Verification) {
	r := &g.store.scrubber
	if g.opened() != nil || r.s == nil {
		return v
	}
	now := r.s.retainer.passed()
	units := r.units()
	g.marking.Lock()
	v.Damaged = len(g.damages)
	g.marking.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.progressLocked(units, now)
	id := uint64(g.info.ID)
	for _, u := range units {
		if u.Group != id {
			continue
		}
		if e, ok := r.book.Get(u.ID, now); ok && e.At != scrub.Never {
			v.Oldest = max(v.Oldest, now-e.At)
		} else {
			v.Unread += u.Bytes
		}
	}
	if b, ok := r.book.Groups[id]; ok && b.Full >= 0 && b.Full <= now {
		v.Known, v.Last = true, now-b.Full
	}
	if a := r.asked[id]; a != nil {
		v.Asked, v.Total, v.Left = true, a.total, a.left
		if r.now.group == id {
			v.Left = max(v.Left-r.now.part, 0)
			v.Rate = r.now.rate
		}
	}
	return v
}

// Damaged is how many places of the group are damaged and not repaired.
func (g *Group) Damaged() int {
	g.marking.Lock()
	defer g.marking.Unlock()
	return len(g.damages)
}

// ScrubStats counts what was read back and brought back since the store was opened.
func (s *Store) ScrubStats() (bytes, repairs int64) {
	return s.scrubber.bytes.Load(), s.scrubber.repairs.Load()
}

// ScrubAge tells for how long something of this store was not read back, of what was at all since it was sealed.
func (s *Store) ScrubAge() (oldest time.Duration) {
	r := &s.scrubber
	if r.s == nil {
		return 0
	}
	now, units := s.retainer.passed(), r.units()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, u := range units {
		if e, ok := r.book.Get(u.ID, now); ok && e.At != scrub.Never {
			oldest = max(oldest, now-e.At)
		}
	}
	return oldest
}

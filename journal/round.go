package journal

import (
	"maps"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// A commit round is one sync for all groups of the store. Two goroutines make them:
//
//	gather ──► write ──► gather ──► write ──► …     (run)
//	               └──► sync, end ──┘   └──► …      (flight.land)
//
// Records are put into the open round of their log as they come, also while the round
// before is being synced, so that full buffers are written meanwhile. A round is ended
// and written when that sync has ended, since its commit says that the one before is
// durable.

const (
	// stageBytes is what the logs write at once, and stageCount bounds the buffers of a
	// store for that.
	stageBytes = 1 << 20
	stageCount = 64
	// maxStaged is how many groups may hold a buffer while they wait for the sync of
	// the round before: the others need some to end theirs.
	maxStaged = stageCount / 2
	// writers is how many groups write their part of a round at once.
	writers = 16
	// roundBytes is about how much all groups together put into one round, so that a
	// small record is not acknowledged after seconds of others.
	roundBytes = 64 << 20
	// retryAfter is how long the store waits before it tries again what it could not do.
	retryAfter = 3 * time.Second
	// ackDelay is the default of Config.AckDelay.
	ackDelay = 20 * time.Millisecond
)

// waiting is what the groups have queued since the last round took all.
type waiting struct {
	records, bytes int
	since          time.Time // of the first
	urgent         bool
	enough         int // records of the last round: as many begin the next
}

// add counts what was queued, of that size, and says whether the rounds are to hear of it:
// of what no record should wait for, of the first, of as many as begin a round, and each time
// that another buffer is full. To wake them costs as much as to take in a record.
func (w *waiting) add(bytes int) (wake bool) {
	buffers := w.bytes / stageBytes
	w.records++
	w.bytes += max(bytes, 0)
	w.urgent = w.urgent || bytes == urgent
	return w.urgent || w.records == 1 || w.records == w.enough && !invariant.Planted("journal/enough-unheard") || w.bytes/stageBytes > buffers
}

// urgent is the size of what no record should wait for: it begins a round at once.
const urgent = -1

// kick wakes the commit rounds.
func (s *Store) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// queued says that the group has something of that size for the next round.
func (s *Store) queued(g *Group, bytes int) {
	s.mu.Lock()
	s.pending[g] = struct{}{}
	w := &s.waiting
	if w.records == 0 {
		w.since = time.Now()
	}
	wake := w.add(bytes)
	s.mu.Unlock()
	if wake {
		s.kick()
	}
}

// pace decides when a round begins.
type pace struct {
	delay   time.Duration // the longest that a record waits for others; <= 0: none waits
	began   time.Time     // the last round
	records int           // in it
}

// wait returns how long the round is to wait for more. It begins at once when the store was
// idle, when there is a buffer's worth of data, and when as many have come as the
// last round let go: whoever waited for that one has answered.
func (p pace) wait(w waiting, now time.Time) time.Duration {
	if p.delay <= 0 || w.urgent || w.records == 0 || w.records >= p.records || w.bytes >= stageBytes || now.Sub(p.began) >= p.delay {
		return 0
	}
	if invariant.Planted("journal/ack-late") {
		return p.delay + now.Sub(w.since)
	}
	return max(0, p.delay-now.Sub(w.since))
}

// run is the commit rounds of all groups: whatever is appended while one is on its way
// goes into the next, so that a slow disk makes larger rounds and not more of them. What
// the world did not allow is tried again after a while. After Close it goes on until
// nothing is queued, and ends.
func (s *Store) run() {
	defer close(s.stopped)
	var last *flight
	flights := make(chan *flight) // to one goroutine: a new one for each has a small stack
	var landing sync.WaitGroup
	defer landing.Wait()
	defer close(flights)
	landing.Go(func() {
		for f := range flights {
			f.land()
		}
	})
	for {
		groups, closed := s.gather(last)
		if closed && len(groups) == 0 {
			(&flight{store: s}).list()
			return
		}
		last = s.write(groups)
		flights <- last
	}
}

// gather waits until a round is to begin and the last one has come to its end, and
// returns the groups that take part. After Close those are all that have anything
// queued.
func (s *Store) gather(last *flight) (groups map[*Group]struct{}, closed bool) {
	p := pace{delay: s.cfg.AckDelay}
	if p.delay == 0 {
		p.delay = ackDelay
	}
	groups = make(map[*Group]struct{})
	var landed chan struct{}
	if last != nil {
		p.began, p.records, landed = last.began, last.records, last.landed
	}
	timer := time.NewTimer(retryAfter)
	defer timer.Stop()
	timer.Stop() // until there is something to wait for
	for retry := false; ; {
		select {
		case <-s.wake:
		case <-timer.C:
			retry = landed == nil
		case <-landed:
			landed = nil
			if last.failed {
				last.again()
			}
		}
		w, closed := s.join(groups, false)
		if landed != nil {
			for g := range groups {
				g.stage()
			}
			continue
		}
		if closed {
			return s.unfinished(), true
		}
		wait := p.wait(w, time.Now())
		switch {
		case retry, w.records > 0 && wait == 0:
			s.join(groups, true)
			return groups, false
		case w.records > 0:
			timer.Reset(wait)
		case s.mayTake() != nil || len(s.behind) > 0 || s.flushes.failed.Load():
			timer.Reset(retryAfter)
		}
	}
}

// join adds the groups that have something queued, for a round that begins or may.
func (s *Store) join(groups map[*Group]struct{}, begins bool) (w waiting, closed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(groups, s.pending)
	clear(s.pending)
	w = s.waiting
	if begins {
		s.waiting = waiting{}
	}
	return w, s.closed
}

// unfinished returns the groups with something queued, said or not.
func (s *Store) unfinished() map[*Group]struct{} {
	groups := make(map[*Group]struct{})
	for _, g := range s.Groups() {
		if g.unfinished() {
			groups[g] = struct{}{}
		}
	}
	return groups
}

// share is how much each of so many groups may put into a round.
func (s *Store) share(groups int) int {
	return min(maxRound, max(stageBytes, roundBytes/max(groups, 1)))
}

// flight is a round that is written and on its way to be durable.
type flight struct {
	store   *Store
	began   time.Time
	records int
	parts   []part
	failed  bool // the sync failed: the parts are to be written again

	landed chan struct{} // closed at its end
}

// part is one group's part of a round.
type part struct {
	group  *Group
	items  []item
	places []segment.Pos
	file   ioengine.File // nil: nothing of it is in the log
}

// write has the groups write their parts, many at once.
func (s *Store) write(groups map[*Group]struct{}) *flight {
	f := &flight{store: s, began: time.Now(), landed: make(chan struct{})}
	var mu sync.Mutex
	share := s.share(len(groups))
	writeOne := func(g *Group) {
		p, more := g.write(share)
		if more {
			s.queued(g, urgent)
		}
		mu.Lock()
		defer mu.Unlock()
		f.parts = append(f.parts, p)
		f.records += len(p.items)
	}
	if len(groups) == 1 {
		for g := range groups {
			writeOne(g)
		}
	} else {
		inParallel(writers, maps.Keys(groups), writeOne)
	}
	s.mu.Lock()
	s.waiting.enough = f.records
	wake := s.waiting.records >= f.records
	s.mu.Unlock()
	if wake {
		s.kick() // they came while it was written
	}
	return f
}

// inParallel calls f for each of all, on at most n goroutines.
func inParallel[T any](n int, all func(yield func(T) bool), f func(T)) {
	var wg sync.WaitGroup
	free := make(chan struct{}, n)
	for x := range all {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			f(x)
		})
	}
	wg.Wait()
}

// land syncs the round, tells who waits for it, and lists the checkpoints that became
// complete, now or before: one write of the watermarks serves them all. A failed sync is
// final for all files in it: nobody is told yet, and the parts are written again.
func (f *flight) land() {
	defer close(f.landed)
	s := f.store
	var files []ioengine.File
	for _, p := range f.parts {
		if p.file != nil {
			files = append(files, p.file)
		}
	}
	if err := s.sync(files); err != nil {
		s.log.Warn("a commit round is not durable and is written again", "groups", len(files), "error", err)
		f.failed = true
		for _, p := range f.parts {
			if p.file != nil {
				_ = p.group.segments.Synced(err) // the error that it is given
			}
		}
		return
	}
	bytes := 0
	for _, p := range f.parts {
		for i := range p.items {
			bytes += p.items[i].logBytes()
		}
		p.end()
	}
	s.readBacks.took(bytes)
	f.list()
}

// sync makes the files durable, and says how long it took.
func (s *Store) sync(files []ioengine.File) error {
	if len(files) == 0 {
		return nil
	}
	if invariant.Planted("journal/sync-one") {
		files = files[:1]
	}
	began := time.Now()
	err := s.cfg.FS.SyncFiles(files)
	if invariant.Planted("journal/sync-unheard") {
		err = nil
	}
	if s.cfg.ObserveSync != nil {
		s.cfg.ObserveSync(time.Since(began))
	}
	return err
}

// again writes the parts of a failed round elsewhere, once, each with a sync of its own:
// one file that cannot be synced then concerns its group alone. What was in the logs of
// the next round went with them and is queued again.
func (f *flight) again() {
	inParallel(writers, values(f.parts), func(p part) {
		if p.file == nil {
			p.end()
			return
		}
		p.group.again(p.items)
	})
	f.list()
}

func values(parts []part) func(yield func(part) bool) {
	return func(yield func(part) bool) {
		for _, p := range parts {
			if !yield(p) {
				return
			}
		}
	}
}

// list makes the complete checkpoints of the round's groups visible, and of those where
// it failed before.
func (f *flight) list() {
	s := f.store
	groups := maps.Clone(s.behind)
	for _, p := range f.parts {
		groups[p.group] = struct{}{}
	}
	s.list(groups)
	clear(s.behind)
	for g := range groups {
		if g.waits() && !g.parting.Load() {
			s.behind[g] = struct{}{}
		}
	}
	s.flushIndexes(groups)
	for _, p := range f.parts {
		if p.group.parting.Load() {
			s.part(p.group)
		}
	}
}

// list makes the complete checkpoints of the groups visible. The watermark comes
// first: once a checkpoint was shown, damage to what it needs must never again pass
// for a torn tail.
func (s *Store) list(groups map[*Group]struct{}) {
	marks := make(map[record.GroupID]segment.Watermark)
	for g := range groups {
		if len(g.unlisted) > 0 {
			marks[g.info.ID] = g.watermark()
		}
	}
	if len(marks) == 0 {
		return
	}
	if err := s.raiseAll(marks); err != nil {
		for g := range groups {
			g.notListed(err) // tried again with the next, or after a while
		}
		return
	}
	for g := range groups {
		g.notListed(g.listAll())
	}
}

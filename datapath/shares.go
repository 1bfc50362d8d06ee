package datapath

import (
	"context"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/budget"
	"github.com/holdfast-dr/holdfast/datapath/group"
	"github.com/holdfast-dr/holdfast/datapath/pack"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// shares are the windows' parts of the memory that a source has for them: clock, lock and
// channels around a budget.Book, which decides.
type shares struct {
	mu      sync.Mutex
	book    *budget.Book
	changed chan struct{} // closed when somebody who waits may be let in
	waiting int
}

// share is one window's. It implements spill.Share.
type share struct {
	all *shares
	i   int
}

// shareOut gives each group's window its share. Nothing has been put yet.
func (s *Source) shareOut() {
	most, total := make([]int64, len(s.flows)), int64(0)
	for i, f := range s.flows {
		most[i] = f.cfg.Window
		total += most[i]
	}
	if b := s.cfg.WindowBudget; b > 0 {
		total = b
	}
	underWay := min(int64(pack.InFlight()+jobs)*batchRaw, total/8)
	s.share = &shares{book: budget.New(total, underWay, most), changed: make(chan struct{})}
	for i, f := range s.flows {
		f.window.Join(share{s.share, i})
	}
	s.prioritise()
}

// prioritise tells the book how the groups stand beside each other now.
func (s *Source) prioritise() {
	s.share.prioritise(s)
	if s.spill != nil {
		s.spill.share.prioritise(s)
	}
}

func (h *shares) prioritise(s *Source) {
	p := s.gate.Policy()
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, f := range s.flows {
		h.book.Prioritise(i, p.Of(f.cfg.Name))
	}
	h.wakeLocked() // a rest may be over too
}

// watchShares has groups give way while the memory is short, until ctx ends.
func (s *Source) watchShares(ctx context.Context) {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		s.prioritise()
		s.stand()
		s.share.mu.Lock()
		i, ok := s.share.book.GiveWay(time.Now())
		floor := s.share.book.Floor()
		s.share.mu.Unlock()
		// One that has a disk puts there what is above its floor, now that it rests.
		if ok && !s.flows[i].window.Spills(floor) && !invariant.Planted("datapath/nobody-gives-way") {
			s.flows[i].giveWay()
		}
	}
}

// stand tells the book of which groups nothing can be sent: windows that an earlier process left wait for their filters.
func (s *Source) stand() {
	for i, f := range s.flows {
		f.mu.Lock()
		waits := f.kept != nil
		f.mu.Unlock()
		s.share.mu.Lock()
		s.share.book.Stand(i, waits)
		s.share.mu.Unlock()
	}
}

// giveWay gives up what stands in the group's window.
func (f *flow) giveWay() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kept != nil {
		f.goOnWithoutLocked("its filters do not answer, and other groups need the memory")
		return
	}
	life := f.mu.life
	if f.stepLocked(group.GiveWay{}); f.mu.life != life {
		f.count.gaveWay.Add(1)
		f.log.Warn("the group gives way: its memory is needed by groups of higher priority, what it held is sent again later")
	}
}

// wakeLocked has those who wait look again.
func (s *shares) wakeLocked() {
	if s.waiting > 0 {
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

// Holds implements spill.Share.
func (h share) Holds(bytes int64) {
	s := h.all
	s.mu.Lock()
	defer s.mu.Unlock()
	less := bytes < s.book.Held(h.i)
	if s.book.Hold(h.i, bytes); less {
		s.wakeLocked()
	}
}

// Room implements spill.Share.
func (h share) Room() int64 {
	h.all.mu.Lock()
	defer h.all.mu.Unlock()
	return h.all.book.Room(time.Now(), h.i)
}

// Await implements spill.Share.
func (h share) Await(ctx context.Context) error {
	s := h.all
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.book.Room(time.Now(), h.i) <= 0 {
		s.book.Wait(h.i, true)
		s.waiting++
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		s.mu.Lock()
		s.waiting--
		if s.book.Wait(h.i, false); ctx.Err() != nil {
			s.wakeLocked() // equals were held back for this one
			return ctx.Err()
		}
	}
	return ctx.Err()
}

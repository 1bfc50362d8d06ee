package view

import (
	"math/bits"
	"slices"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// slots tells which places of the data file may be written. What a durable map may
// tell of is not written again: a block that changes goes to another slot, and its old
// one is free once a map that does not know it is durable.
type slots struct {
	mu    sync.Mutex
	used  []uint64 // a bit for each slot
	fresh []uint64 // of these, given out since the last cut: no durable map tells of them
	cuts  int      // slots below it may be fresh
	from  int      // all words before it are full
	count int      // in use
	end   int      // above all that ever were

	retired []retired // until a map that does not know them is durable
}

const (
	togetherSlots = 8
	spareSlots    = 64 << 20 / blockBytes
)

// retired is a slot that nothing tells of any more.
type retired struct {
	slot  uint32
	punch bool // its space is given back
}

// take gives out up to n slots that follow each other, at least one; got is 0 when there
// can be no more.
func (s *slots) take(n int) (slot uint32, got int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.from < len(s.used) && s.used[s.from] == ^uint64(0) {
		s.from++
	}
	at := s.from * 64
	if s.from < len(s.used) {
		at += bits.TrailingZeros64(^s.used[s.from])
	}
	// What is long stands together while that makes the file a quarter larger, or 64 MiB.
	if n >= togetherSlots && at < s.end && s.end < s.count*5/4+spareSlots {
		at = s.end
	}
	for got < n && at+got < maxSlots {
		i := at + got
		if i/64 == len(s.used) {
			s.used, s.fresh = append(s.used, 0), append(s.fresh, 0)
		}
		if s.used[i/64]&(1<<(i%64)) != 0 {
			break
		}
		s.used[i/64] |= 1 << (i % 64)
		s.fresh[i/64] |= 1 << (i % 64)
		got++
	}
	s.count += got
	s.end, s.cuts = max(s.end, at+got), max(s.cuts, at+got)
	return uint32(at), got
}

// hold says that a slot is in use, of which a durable map may tell.
func (s *slots) hold(slot uint32) {
	for int(slot/64) >= len(s.used) {
		s.used, s.fresh = append(s.used, 0), append(s.fresh, 0)
	}
	s.used[slot/64] |= 1 << (slot % 64)
	s.count++
	s.end = max(s.end, int(slot)+1)
}

// holdBelow retires all slots below high that are not held.
func (s *slots) holdBelow(high uint32) {
	for slot := range high {
		if int(slot/64) >= len(s.used) || s.used[slot/64]&(1<<(slot%64)) == 0 {
			s.hold(slot)
			s.retired = append(s.retired, retired{slot: slot})
		}
	}
}

// retire takes back a slot that nothing tells of any more. True: it is sure that no durable
// map does. Then it is free, but if it is to be punched: who did that gives it back.
func (s *slots) retire(slot uint32, punch bool) (now bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fresh[slot/64]&(1<<(slot%64)) == 0 && !invariant.Planted("journal/view/reuse-early") {
		s.retired = append(s.retired, retired{slot, punch})
		return false
	}
	if !punch {
		s.freeLocked(slot)
	}
	return true
}

// doubt takes back slots of which the map may tell or not.
func (s *slots) doubt(slot uint32, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range uint32(n) {
		s.retired = append(s.retired, retired{slot: slot + i})
	}
}

// giveBack takes back slots that nothing tells of.
func (s *slots) giveBack(slot uint32, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range uint32(n) {
		s.freeLocked(slot + i)
	}
}

func (s *slots) freeLocked(slot uint32) {
	s.count--
	s.used[slot/64] &^= 1 << (slot % 64)
	s.fresh[slot/64] &^= 1 << (slot % 64)
	s.from = min(s.from, int(slot/64))
}

// cut begins to make the map durable as it is. What it returns may be freed once it is.
func (s *slots) cut() []retired {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.fresh[:min(len(s.fresh), s.cuts/64+1)])
	s.cuts = 0
	r := s.retired
	s.retired = nil
	return r
}

// uncut takes back what cut returned: the map did not become durable.
func (s *slots) uncut(r []retired) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired = append(r, s.retired...)
}

// runsOf sorts slots, and calls tell with those that follow each other.
func runsOf(all []uint32, tell func(slot uint32, n int)) {
	slices.Sort(all)
	for i := 0; i < len(all); {
		n := 1
		for i+n < len(all) && all[i+n] == all[i]+uint32(n) {
			n++
		}
		tell(all[i], n)
		i += n
	}
}

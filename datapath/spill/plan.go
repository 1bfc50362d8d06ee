package spill

import "time"

// stand is how a window and its files stand, as far as it decides what goes to disk and what comes back.
type stand struct {
	limit  int64 // what the window may hold in memory now, bytes
	memory int64 // what its records there hold, without what is known of others: that makes no room for more on disk
	room   int64 // what its files may still take, bytes
	onDisk int   // records that stand in files alone
	wanted bool  // one of those is to be sent next
	broken bool  // a record could not be read back, or hangs: nothing more is put there
	rests  bool  // the files failed a moment ago
}

// From which part of what it may hold a window begins to put records on disk, and how much stays in
// memory while some are there: far enough apart that none comes back only to go again.
const (
	spillFrom = 3 // quarters of the limit
	spillKeep = 2
	quarters  = 4
	// spillStep is how much goes at a time, in bytes, at least where memory is not short: a few writes.
	spillStep = 4 << 20
)

// step is how much goes at a time.
func (s stand) step() int64 { return min(spillStep, s.limit/16) }

// keeps is how many bytes stay in memory: what is sent next, and comes back to be.
func (s stand) keeps() int64 { return s.limit / quarters * spillKeep }

// due is how many bytes of memory are to be freed; 0: none.
func (s stand) due() int64 {
	from, to := s.limit/quarters*spillFrom, s.limit/quarters*spillFrom-s.step()
	if s.onDisk > 0 {
		from, to = s.keeps()+s.step(), s.keeps()
	}
	if s.memory <= from {
		return 0
	}
	return s.memory - to
}

// evicts is how many bytes of memory go to disk now; 0: none.
func (s stand) evicts() int64 {
	if s.broken || s.rests || s.room <= 0 {
		return 0
	}
	return s.due()
}

// full says that records are to go to disk, and it has no room for them.
func (s stand) full() bool { return s.due() > 0 && s.room <= 0 }

// fetches is how many bytes of records come back now; 0: none. What is sent next comes
// whatever memory holds, or it would wait for what is behind it.
func (s stand) fetches() int64 {
	if s.onDisk == 0 || s.broken {
		return 0
	}
	bytes := s.keeps() - s.memory
	if s.wanted {
		bytes = max(bytes, runBytes)
	}
	return max(0, bytes)
}

// Patience is how long the spill disk may take for one read or write until it counts as one that hangs.
const Patience = 10 * time.Second

// restAfter is how long files that failed are left alone.
const restAfter = 10 * time.Second

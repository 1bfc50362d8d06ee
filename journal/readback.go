package journal

import (
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
)

// readBacks reads closed segments back, one at a time over all groups, and behind
// intake: what was just written can wait, what comes in cannot. It goes at full speed
// when the store has nothing else to do, or when too many segments wait; before it comes to
// that, the faster the more of them wait.
//
// To read a GiB back costs about as much of the processor as to take it in, half of it
// for the checksums. While segments wait an opening after a kill reads their tables.
type readBacks struct {
	closing chan struct{} // closed by close
	woken   chan struct{} // capacity 1: a round ended

	mu      sync.Mutex
	queue   []func()
	running bool
	budget  budget
	last    time.Time // a round ended
}

const (
	// readBackRate is how much is read back in a second beside any intake, and
	// readBackShare which part of the intake beyond that.
	readBackRate  = 64 << 20
	readBackShare = 16
	// readBackWaiting is how many segments may wait, 6 GiB: each one more adds
	// readBackMore such parts of the intake, so that a steady one is soon kept up with, evenly.
	readBackWaiting = 24
	readBackMore    = 4
	// readBackMost is how many wait when nothing holds the read-back up any more.
	readBackMost = 32
	// readBackIdle is how long nothing has come in when nothing is held up.
	readBackIdle = time.Second
)

// budget is what may be read; it grows with time and with intake.
type budget struct {
	at     time.Time
	credit int // bytes; no more than a second's
}

func (b *budget) grow(now time.Time, intake, waiting int) {
	if !b.at.IsZero() {
		b.credit += int(now.Sub(b.at).Seconds() * readBackRate)
	}
	parts := 1 + readBackMore*max(0, waiting-readBackWaiting)
	if invariant.Planted("journal/read-back-uneven") {
		parts = 1
	}
	b.credit = min(b.credit+intake/readBackShare*parts, readBackRate)
	b.at = now
}

// take takes bytes, or says how long it will be until there are enough.
func (b *budget) take(bytes int) time.Duration {
	if b.credit > 0 || invariant.Planted("journal/read-back-first") {
		b.credit -= bytes // may be in debt for one read
		return 0
	}
	return max(time.Millisecond, time.Duration(-b.credit)*time.Second/readBackRate)
}

func newReadBacks() *readBacks {
	return &readBacks{closing: make(chan struct{}), woken: make(chan struct{}, 1)}
}

// run has work run, after what came before.
func (r *readBacks) run(work func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queue = append(r.queue, work)
	if !r.running {
		r.running = true
		go r.work()
	}
}

func (r *readBacks) work() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.queue) > 0 {
		work := r.queue[0]
		r.queue[0] = nil
		r.queue = r.queue[1:]
		r.mu.Unlock()
		work()
		r.mu.Lock()
	}
	r.running = false
}

// pace waits until so many bytes may be read.
func (r *readBacks) pace(bytes int) error {
	for {
		select {
		case <-r.closing:
			return segment.ErrClosed
		default:
		}
		r.mu.Lock()
		now := time.Now()
		r.budget.grow(now, 0, 0)
		free := len(r.queue) >= readBackMost || now.Sub(r.last) >= readBackIdle
		wait := r.budget.take(bytes)
		r.mu.Unlock()
		if free || wait == 0 {
			return nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-r.woken:
		case <-r.closing:
		}
		timer.Stop()
	}
}

// took is told of each round that took in so many bytes. It wakes who waits only where
// something may be read now: rounds come a thousand times a second, and each would wake
// a thread in vain.
func (r *readBacks) took(bytes int) {
	r.mu.Lock()
	r.last = time.Now()
	r.budget.grow(r.last, bytes, len(r.queue))
	may := r.budget.credit > 0
	r.mu.Unlock()
	if !may && !invariant.Planted("journal/read-back-wakes") {
		return
	}
	select {
	case r.woken <- struct{}{}:
	default:
	}
}

// close ends what waits; the logs wait for what runs.
func (r *readBacks) close() { close(r.closing) }

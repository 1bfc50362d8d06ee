package sidecar

import (
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Bounds that no configuration moves: callers that are remembered, how long one that is silent is, and how
// many streams one may have open at a port beside its calls.
const (
	maxCallers   = 1024
	callerLife   = time.Minute
	maxStreams   = 8
	burstSeconds = 4 // so much of a caller's rate may come at once
)

// limits bounds what each caller of one port asks for.
type limits struct {
	rate       float64 // calls a second
	concurrent int
	now        func() time.Time

	mu struct {
		sync.Mutex
		callers map[string]*budget
	}
}

// budget is what one caller has left.
type budget struct {
	calls   float64 // that may be made at once
	seen    time.Time
	running int
	streams int
}

func newLimits(rate, concurrent int, now func() time.Time) *limits {
	l := &limits{rate: float64(rate), concurrent: concurrent, now: now}
	l.mu.callers = make(map[string]*budget)
	return l
}

// why says what a call was refused for; empty: it may be made.
type why string

const (
	tooFast    why = "rate"
	tooMany    why = "concurrency"
	tooStreams why = "streams"
	tooCallers why = "callers"
)

// begin asks for a call of a caller. Where it may be made, end is called when it is over.
func (l *limits) begin(caller string, stream bool) (end func(), refused why) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	b := l.mu.callers[caller]
	if b == nil {
		if l.forgetLocked(now); len(l.mu.callers) >= maxCallers {
			return nil, tooCallers
		}
		b = &budget{calls: l.rate * burstSeconds, seen: now}
		l.mu.callers[caller] = b
	}
	b.calls = min(b.calls+max(0, now.Sub(b.seen).Seconds())*l.rate, l.rate*burstSeconds)
	b.seen = now
	switch {
	case invariant.Planted("control/sidecar/no-limit"):
	case b.calls < 1:
		return nil, tooFast
	case stream && b.streams >= maxStreams:
		return nil, tooStreams
	case !stream && b.running >= l.concurrent:
		return nil, tooMany
	}
	b.calls--
	count := &b.running
	if stream {
		count = &b.streams
	}
	*count++
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		*count--
	}), ""
}

// forgetLocked drops callers that have been silent, when there are many.
func (l *limits) forgetLocked(now time.Time) {
	if len(l.mu.callers) < maxCallers {
		return
	}
	for name, b := range l.mu.callers {
		if b.running == 0 && b.streams == 0 && now.Sub(b.seen) > callerLife {
			delete(l.mu.callers, name)
		}
	}
}

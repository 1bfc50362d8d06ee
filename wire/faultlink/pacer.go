package faultlink

import (
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// catchUp is how much lateness a pacer makes up for while there is always
// something to send; idleSlack is what it grants to one that had nothing.
const (
	catchUp   = 100 * time.Millisecond
	idleSlack = 2 * time.Millisecond
)

// pacer gives out the time of one direction of a link, to all its connections.
type pacer struct {
	mu   sync.Mutex
	bits int64     // a second; 0 is no limit
	next time.Time // when the link is free
}

// reserve takes the time that n bytes need and returns when they are through.
// idle says that the caller had nothing to send before now.
func (p *pacer) reserve(now time.Time, n int, idle bool) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bits == 0 {
		return time.Time{}
	}
	slack := catchUp
	if idle {
		slack = idleSlack
	}
	if invariant.Planted("wire/faultlink/drift") {
		slack = 0
	}
	if earliest := now.Add(-slack); p.next.Before(earliest) {
		p.next = earliest
	}
	p.next = p.next.Add(time.Duration(int64(n) * 8 * int64(time.Second) / p.bits))
	return p.next
}

// quantum is how many bytes go at once.
func (p *pacer) quantum() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bits == 0 {
		return maxQuantum
	}
	if invariant.Planted("wire/faultlink/long-quantum") {
		return maxQuantum
	}
	return int(min(max(p.bits/8/500, 512), 16<<10))
}

// maxQuantum is what goes at once without a rate.
const maxQuantum = 128 << 10

func (p *pacer) set(bits int64, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bits, p.next = bits, now
}

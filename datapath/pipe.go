package datapath

import "sync"

// pipe knows what is between the tap and the window: the batch being filled and
// those being packed.
type pipe struct {
	mu struct {
		sync.Mutex
		filling int64   // capture time of the oldest guest write in the batch being filled; 0 for none
		oldest  []int64 // the same of each record under way
		raw     int64   // bytes of payload under way
	}
}

// fill says that the batch being filled got its first guest write.
func (p *pipe) fill(captured int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.filling = captured
}

// push says that a record was numbered, pop that the first one was stowed.
func (p *pipe) push(oldest, raw int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if oldest != 0 {
		p.mu.filling = 0
	}
	p.mu.oldest = append(p.mu.oldest, oldest)
	p.mu.raw += raw
}

func (p *pipe) pop(raw int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.oldest = append(p.mu.oldest[:0], p.mu.oldest[1:]...)
	p.mu.raw -= raw
}

func (p *pipe) empty() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.mu.oldest) == 0
}

// stats tells the capture time of the oldest guest write under way, 0 for none, and the bytes under way.
func (p *pipe) stats() (oldest, raw int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.mu.oldest {
		if t != 0 {
			return t, p.mu.raw
		}
	}
	return p.mu.filling, p.mu.raw
}

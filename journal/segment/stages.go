package segment

import (
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine/buf"
)

// Stages are the buffers in which logs put their rounds together, for any number of
// logs: a log holds some between its first Append of a round and the end of Write. All
// methods may be called concurrently.
//
// A log that holds one needs no other to end its round. So if fewer logs than there
// are buffers wait with a round begun, every Write comes to its end.
type Stages struct {
	bytes, count int

	mu   sync.Mutex
	home sync.Cond
	free []*stage // last in, first out: the warmest goes first
	made int
}

// NewStages returns at most count buffers of bytes each (raised to whole pages), made
// when they are first needed and kept. bytes is also how much is written at once.
func NewStages(bytes, count int) *Stages {
	s := &Stages{bytes: buf.RoundUp(max(bytes, 1)), count: max(count, 1)}
	s.home.L = &s.mu
	return s
}

// stage is one buffer. While it is being written its writer is that of the file.
type stage struct {
	mem  []byte
	n    int // filled
	w    *writer
	done func(error) // tells w that the write of this stage ended; made once
}

// tryGet gives a buffer; nil when all are out.
func (s *Stages) tryGet() *stage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.takeLocked()
}

// get is tryGet, but waits.
func (s *Stages) get() *stage {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if g := s.takeLocked(); g != nil {
			return g
		}
		s.home.Wait()
	}
}

func (s *Stages) takeLocked() *stage {
	if last := len(s.free) - 1; last >= 0 {
		g := s.free[last]
		s.free = s.free[:last]
		return g
	}
	if s.made == s.count {
		return nil
	}
	for _, mem := range s.row() {
		g := &stage{mem: mem}
		g.done = func(err error) { g.w.ended(g, err) }
		s.free = append(s.free, g)
		s.made++
	}
	return s.takeLocked()
}

// row makes the next buffers: large ones as many as one log may hold.
func (s *Stages) row() [][]byte {
	if s.bytes < rowBytes {
		return [][]byte{buf.Aligned(s.bytes)}
	}
	return buf.Row(s.bytes, min(maxFlying+1, s.count-s.made))
}

// rowBytes is from what size on buffers are made in rows.
const rowBytes = 512 << 10

func (s *Stages) put(g *stage) {
	g.n, g.w = 0, nil
	s.mu.Lock()
	s.free = append(s.free, g)
	s.mu.Unlock()
	s.home.Signal()
}

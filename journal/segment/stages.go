package segment

import (
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine"
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

	parts [][]byte // what is written: of mem up to cut, and what was lent between
	cut   int
	lent  int // bytes of parts that are not of mem
}

// close gives parts the rest of what is filled.
func (g *stage) close() {
	if g.n > g.cut {
		g.parts = append(g.parts, g.mem[g.cut:g.n])
		g.cut = g.n
	}
}

// lend adds bytes that are written from where they lie, behind what is filled, up to the end
// of a page: what is filled next begins one, here too.
func (g *stage) lend(p []byte) {
	g.close()
	g.parts = append(g.parts, p)
	g.lent += len(p)
	g.n = buf.RoundUp(g.n)
	g.cut = g.n
}

// lentStages is how many times its own size a stage that was lent to is written at once:
// each write costs the kernel some wake-ups, whatever its size.
const lentStages = 4

// full says whether a stage that was just lent to is to be written.
func (g *stage) full() bool {
	return g.n == len(g.mem) || g.lent > 0 && (g.n+g.lent >= lentStages*len(g.mem) || len(g.parts) > ioengine.MaxParts-3)
}

// clear makes it an empty stage of nobody.
func (g *stage) clear() {
	clear(g.parts)
	g.n, g.cut, g.lent, g.parts, g.w = 0, 0, 0, g.parts[:0], nil
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
	g.clear()
	s.mu.Lock()
	s.free = append(s.free, g)
	s.mu.Unlock()
	s.home.Signal()
}

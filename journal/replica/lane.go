package replica

import (
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine"
)

// Loop makes a loop that reads of the volume can be made by. ErrNoLoop: there is none.
func (v *Volume) Loop(entries int) (*ioengine.Loop, error) { return ioengine.NewLoop(v.raw, entries) }

// laneRead is a read by a loop.
type laneRead struct {
	v        *Volume
	p        []byte
	parts    [1][]byte
	first    int64
	one, two *sync.RWMutex
	done     func(error)
	ended    func(int, error)
}

var laneReads sync.Pool // of *laneRead

// ReadBy begins to fill p with the blocks at off by a loop, and calls done from its Step, as ReadAt would return. False: it is not
// begun, as they are no whole blocks, or too many, or somebody writes there, or the loop takes nothing.
func (v *Volume) ReadBy(loop *ioengine.Loop, p []byte, off int64, done func(error)) bool {
	n := int64(len(p))
	if off%BlockBytes != 0 || n%BlockBytes != 0 || n == 0 || n > chunkBytes || v.inside(off, n) != nil {
		return false
	}
	one, two := v.locks.stripes(off, n)
	if !one.TryRLock() {
		return false
	}
	if two != nil && !two.TryRLock() {
		one.RUnlock()
		return false
	}
	r, ok := laneReads.Get().(*laneRead)
	if !ok {
		r = new(laneRead)
		r.ended = r.end
	}
	r.v, r.p, r.first, r.one, r.two, r.done = v, p, off/BlockBytes, one, two, done
	r.parts[0] = p
	if !loop.Read(v.raw, r.parts[:], off, r.ended) {
		r.recycle()
		return false
	}
	return true
}

// recycle lets go of the range and of the read.
func (r *laneRead) recycle() {
	r.one.RUnlock()
	if r.two != nil {
		r.two.RUnlock()
	}
	r.v, r.p, r.parts[0], r.one, r.two, r.done = nil, nil, nil, nil, nil, nil
	laneReads.Put(r)
}

// end is what the loop says.
func (r *laneRead) end(_ int, err error) {
	done := r.done
	if err == nil {
		b := readBufs.Get().(*readBuf)
		err = r.v.verifyBlocks(r.p, b.sums, r.first)
		readBufs.Put(b)
	}
	r.recycle()
	done(err)
}

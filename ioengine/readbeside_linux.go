package ioengine

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// A read that is alone waits in the kernel: nothing is faster. While others are under way it
// goes through a ring of the readers, so that waiting for the disk holds up nobody who has
// work to do (see ring.poll).

// besideMost is the longest read that does: of long ones there are few, and the wait is
// small beside what they copy.
const besideMost = 64 << 10

// startedRead is a read on its way through the ring.
type startedRead struct {
	op    ringOp
	part  [1][]byte
	ended chan int32
}

var startedReads = sync.Pool{New: func() any {
	s := new(startedRead)
	s.op.code, s.op.done = opReadv, func(_ *ringOp, res int32) { s.ended <- res }
	return s
}}

// readBeside reads what it can without keeping a thread waiting for the disk, and returns how much
// that was: at once what is in the page cache, through the ring what is not. Where it ends short, or
// fails, or there is no ring, the caller reads on and sees why. The file is held open.
func (f *osFile) readBeside(p []byte, off int64) (n int) {
	if f.align == 1 {
		var err error
		n, err = unix.Preadv2(f.fd, [][]byte{p}, off, unix.RWF_NOWAIT)
		if n = max(n, 0); n == len(p) || err != nil && err != unix.EAGAIN { // all, or the kernel does not know how
			return n
		}
	}
	return n + f.readByRing(p[n:], off+int64(n))
}

// readByRing is readBeside of what is not in the page cache.
func (f *osFile) readByRing(p []byte, off int64) int {
	f.reads.once.Do(func() { f.reads.ring = f.fs.readers.acquire() })
	if f.reads.ring == nil || len(p) == 0 || off < 0 { // to io_uring -1 is the file's position
		return 0
	}
	s := startedReads.Get().(*startedRead)
	s.part[0], s.ended = p, make(chan int32, 1)
	s.op.fd, s.op.off, s.op.parts = f.fd, off, s.part[:]
	f.reads.ring.start(&s.op)
	res := <-s.ended
	s.part[0], s.ended = nil, nil
	clear(s.op.vectors)
	startedReads.Put(s)
	if res < 0 && invariant.Planted("ioengine/failed-is-read") {
		return len(p)
	}
	n := max(int(res), 0)
	return n - n%f.align // a direct read stops unaligned only at the end: the caller finds it again
}

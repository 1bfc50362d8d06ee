package replica

import "sync"

// rangeLocks keep readers away from blocks that stand between their bytes and their
// sum. A lock is for every 256th chunk, so that they cost the same for any volume,
// 6 KiB, and the writes of a promotion, at random places, seldom meet.
type rangeLocks [256]sync.RWMutex

// stripes returns the one or two locks of a range of at most chunkBytes, in the order in
// which they are taken.
func (l *rangeLocks) stripes(off, n int64) (a, b *sync.RWMutex) {
	i, j := off/chunkBytes%int64(len(l)), (off+max(n, 1)-1)/chunkBytes%int64(len(l))
	if i == j {
		return &l[i], nil
	}
	return &l[min(i, j)], &l[max(i, j)]
}

// read takes the range, of at most chunkBytes, for reading and returns what gives it back.
func (l *rangeLocks) read(off, n int64) (unlock func()) {
	a, b := l.stripes(off, n)
	a.RLock()
	if b == nil {
		return a.RUnlock
	}
	b.RLock()
	return func() { b.RUnlock(); a.RUnlock() }
}

// write takes it for writing.
func (l *rangeLocks) write(off, n int64) (unlock func()) {
	a, b := l.stripes(off, n)
	a.Lock()
	if b == nil {
		return a.Unlock
	}
	b.Lock()
	return func() { b.Unlock(); a.Unlock() }
}

// all takes everything for writing.
func (l *rangeLocks) all() (unlock func()) {
	for i := range l {
		l[i].Lock()
	}
	return func() {
		for i := range l {
			l[i].Unlock()
		}
	}
}

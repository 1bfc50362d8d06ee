package nbd

import "sync"

// readBuf holds the payload of a read from the device's answer until it is written
// to the socket. Each size is an allocation of its own, so it starts on a page and
// a device that reads past the page cache can fill it in place.
type readBuf struct {
	home *sync.Pool
	all  []byte
	gate chan struct{} // gets its token back at the release: the next big one may come; or nil
}

// bufSizes: a small request, a middle one, a piece, and two for clients that ask
// for no structured replies and so must get all in one.
var bufSizes = [...]int{8 << 10, 64 << 10, pieceBytes, 4 << 20, 32 << 20}

// readBufs is a server's store of them.
type readBufs struct{ pools [len(bufSizes)]sync.Pool }

// get gives a buffer with room for n bytes, n <= front.MaxWrite.
func (b *readBufs) get(n int) *readBuf {
	i := 0
	for bufSizes[i] < n {
		i++
	}
	if buf, ok := b.pools[i].Get().(*readBuf); ok {
		return buf
	}
	return &readBuf{home: &b.pools[i], all: make([]byte, bufSizes[i])}
}

func (b *readBuf) release() {
	gate := b.gate
	b.gate = nil
	b.home.Put(b)
	if gate != nil {
		<-gate
	}
}

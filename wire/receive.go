package wire

import (
	"context"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Received is one record as it came, in a pooled buffer aligned to buf.Align.
// Whoever holds it calls Release once.
type Received struct {
	header record.Header
	buf    *buf.Buf
	class  *class
}

// Header is the record's header: checked, and of the size that came.
func (r *Received) Header() record.Header { return r.header }

// Bytes is the whole record, valid until Release. Only its header is checked.
func (r *Received) Bytes() []byte { return r.buf.Bytes() }

// Release gives the buffer back; a second call panics.
func (r *Received) Release() {
	b := r.buf
	r.buf = nil
	b.Release()
	if !invariant.Planted("wire/received-thrown-away") {
		r.class.spare.Put(r)
	}
	<-r.class.slots
}

// memory is what all sessions of a server receive into: three sizes of buffers,
// a third of the budget each. When one size is used up its readers wait, which
// holds back their sources; no source can make more.
type memory [3]*class

// class is the buffers of one size; slots has an entry for each that is out.
type class struct {
	pool  *buf.Pool
	slots chan struct{}
	spare sync.Pool // of Received that were released
}

// DefaultReceiveBytes is seven of the largest records, and as much for the smaller ones twice.
const DefaultReceiveBytes = 96 << 20

func newMemory(bytes int64) *memory {
	m := new(memory)
	for i, size := range []int{64 << 10, 512 << 10, record.MaxRecordBytes} {
		count := max(2, int(bytes/int64(len(m)))/buf.RoundUp(size))
		m[i] = &class{pool: buf.NewPool(size, count), slots: make(chan struct{}, count)}
	}
	return m
}

// get makes room for a record whose header was checked; it waits until ctx ends.
func (m *memory) get(ctx context.Context, h record.Header) (*Received, error) {
	for _, c := range m {
		if h.Size > c.pool.Bytes() {
			continue
		}
		select {
		case c.slots <- struct{}{}:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		b := c.pool.Get() // at once: a slot is a buffer
		b.SetLen(h.Size)
		r, _ := c.spare.Get().(*Received)
		if r == nil {
			r = new(Received)
		}
		r.header, r.buf, r.class = h, b, c
		return r, nil
	}
	panic("BUG: a checked record larger than the largest")
}

// out is how many buffers are not home.
func (m *memory) out() (n int) {
	for _, c := range m {
		n += len(c.slots)
	}
	return n
}

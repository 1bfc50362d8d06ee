package wire

import (
	"context"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
	"github.com/holdfast-dr/holdfast/wire/reorder"
)

// Received is one record as it came, in a pooled buffer aligned to buf.Align.
// Whoever holds it calls Release once.
type Received struct {
	header record.Header
	buf    *buf.Buf
	class  *class
	early  bool // it came before its turn, and stands in class.early

	arrived bool // rec is what came
	rec     record.Record
}

// Header is the record's header: checked, and of the size that came.
func (r *Received) Header() record.Header { return r.header }

// Bytes is the whole record, valid until Release. Only its header is checked.
func (r *Received) Bytes() []byte { return r.buf.Bytes() }

// Record is the record, parsed, valid until Release. Its blocks' checksums were taken as it came: if
// they were right its VerifyPayload has no more to do.
func (r *Received) Record() (record.Record, error) {
	if r.arrived {
		return r.rec, nil
	}
	return record.Parse(r.Bytes())
}

// Release gives the buffer back; a second call panics.
func (r *Received) Release() {
	b, c := r.buf, r.class
	r.buf, r.arrived, r.rec = nil, false, record.Record{}
	r.inOrder()
	b.Release()
	if !invariant.Planted("wire/received-thrown-away") {
		c.spare.Put(r) // from here on it is somebody else's
	}
	<-c.slots
}

// inOrder says that its turn has come.
func (r *Received) inOrder() {
	if r.early {
		r.early = false
		<-r.class.early
	}
}

// memory is what all sessions of a server receive into: four sizes of buffers,
// a quarter of the budget each. When one size is used up its readers wait, which
// holds back their sources; no source can make more. A quarter of each size is kept
// from records that come before their turn, so that what they wait for finds room.
type memory [len(reorder.Rooms)]*class

// class is the buffers of one size; slots has an entry for each that is out, and early
// one for each of those that holds what came before its turn.
type class struct {
	pool         *buf.Pool
	slots, early chan struct{}
	spare        sync.Pool // of Received that were released
}

// DefaultReceiveBytes is seven of the largest records, and as much for the smaller ones
// three times: in each size there is room for a whole reorder.Window before its turn.
const DefaultReceiveBytes = 128 << 20

func newMemory(bytes int64) *memory {
	m := new(memory)
	for i, size := range reorder.Rooms {
		count := max(2, int(bytes/int64(len(m)))/buf.RoundUp(size))
		m[i] = &class{pool: buf.NewPool(size, count), slots: make(chan struct{}, count), early: make(chan struct{}, count-max(1, count/4))}
	}
	return m
}

// get makes room for a record whose header was checked; it waits until ctx ends.
func (m *memory) get(ctx context.Context, h record.Header) (*Received, error) {
	c := m.class(h)
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

func (m *memory) class(h record.Header) *class {
	for _, c := range m {
		if h.Size <= c.pool.Bytes() {
			return c
		}
	}
	panic("BUG: a checked record larger than the largest")
}

// farFrom is how many bytes of records that are not released yet leave no room in the caches.
const farFrom = 2 << 20

// far says whether the caches will have lost the record when it is looked at again.
func (r *Received) far() bool { return len(r.class.slots)*r.header.Size >= farFrom }

// out is how many buffers are not home.
func (m *memory) out() (n int) {
	for _, c := range m {
		n += len(c.slots)
	}
	return n
}

package guest

import "fmt"

// Kinds of request.
const (
	kindRead        = 0
	kindWrite       = 1
	kindFlush       = 4
	kindID          = 8
	kindDiscard     = 11
	kindWriteZeroes = 13
)

// Call is a request under way.
type Call struct {
	q    *queue
	slot int
	into []byte
}

// Wait waits for the answer, and gives the request's place back.
func (c *Call) Wait() error {
	err := <-c.q.slots[c.slot].done
	if err == nil && c.into != nil {
		if want := uint32(len(c.into) + 1); c.q.slots[c.slot].n != want {
			err = fmt.Errorf("%d bytes written, want %d", c.q.slots[c.slot].n, want)
		}
		copy(c.into, c.q.mem[c.q.payloadAt(c.slot):])
	}
	c.q.free <- c.slot
	return err
}

// Begin puts a request of any kind into a queue, once there is room: payload goes to the disk,
// and into, if it is not nil, is filled from it by Wait.
func (g *Guest) Begin(queue int, kind uint32, sector uint64, payload, into []byte) (*Call, error) {
	q := g.queues[queue]
	n := max(len(payload), len(into))
	if n > g.o.SlotBytes || g.o.Scatter > 0 && n/g.o.Scatter > maxPieces-3 {
		return nil, fmt.Errorf("%d bytes do not fit", n)
	}
	i := <-q.free
	h := q.mem[q.slotAt(i):]
	le.PutUint32(h, kind)
	le.PutUint32(h[4:], 0)
	le.PutUint64(h[8:], sector)
	h[atStatus] = 0xff
	copy(q.mem[q.payloadAt(i):], payload)
	q.describe(i, n, into != nil)
	return &Call{q, i, into}, q.submit(i)
}

func (g *Guest) do(queue int, kind uint32, sector uint64, payload, into []byte) error {
	c, err := g.Begin(queue, kind, sector, payload, into)
	if err != nil {
		return err
	}
	return c.Wait()
}

// Read fills p from byte off on; both are of whole sectors.
func (g *Guest) Read(queue int, p []byte, off int64) error {
	return g.do(queue, kindRead, uint64(off)/512, nil, p)
}

// Write writes p from byte off on; both are of whole sectors.
func (g *Guest) Write(queue int, p []byte, off int64) error {
	return g.do(queue, kindWrite, uint64(off)/512, p, nil)
}

// BeginWrite is Write, of which the answer is not waited for.
func (g *Guest) BeginWrite(queue int, p []byte, off int64) (*Call, error) {
	return g.Begin(queue, kindWrite, uint64(off)/512, p, nil)
}

// Flush makes durable what was answered before.
func (g *Guest) Flush(queue int) error { return g.do(queue, kindFlush, 0, nil, nil) }

// ID is the disk's name.
func (g *Guest) ID(queue int) (string, error) {
	p := make([]byte, 20)
	if err := g.do(queue, kindID, 0, nil, p); err != nil {
		return "", err
	}
	n := 0
	for n < len(p) && p[n] != 0 {
		n++
	}
	return string(p[:n]), nil
}

// Range is a part of the disk, in bytes.
type Range struct{ Off, Len int64 }

// Discard gives the ranges back.
func (g *Guest) Discard(queue int, list ...Range) error {
	return g.do(queue, kindDiscard, 0, ranges(list, 0), nil)
}

// WriteZeroes makes the ranges zeros, which may be holes if unmap.
func (g *Guest) WriteZeroes(queue int, unmap bool, list ...Range) error {
	var flags uint32
	if unmap {
		flags = 1
	}
	return g.do(queue, kindWriteZeroes, 0, ranges(list, flags), nil)
}

func ranges(list []Range, flags uint32) (p []byte) {
	for _, r := range list {
		p = le.AppendUint64(p, uint64(r.Off)/512)
		p = le.AppendUint32(le.AppendUint32(p, uint32(r.Len/512)), flags)
	}
	return p
}

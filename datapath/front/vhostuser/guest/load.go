package guest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Load says what Run does: requests of one size at random places, so many under way.
type Load struct {
	Write    bool
	Bytes    int // of a request; at most Options.SlotBytes
	Depth    int // at most Options.Slots
	Size     int64
	Duration time.Duration
	Seed     uint64
}

// Measured is what Run saw.
type Measured struct {
	Requests int
	Errors   int
	Took     time.Duration
	Kicks    int
	P50, P99 time.Duration
}

// Run drives queue 0 from one loop, which costs the least there is: what is measured is the back
// end. It takes the queue for itself, which was not used before; it cannot be used by other methods
// afterwards.
func (g *Guest) Run(l Load) (m Measured, err error) {
	q := g.queues[0]
	if l.Depth < 1 || l.Depth > len(q.slots) || l.Bytes%512 != 0 || l.Bytes < 512 || l.Bytes > g.o.SlotBytes || l.Size < int64(l.Bytes) {
		return m, fmt.Errorf("no such load: %+v", l)
	}
	if err := q.endReader(); err != nil {
		return m, err
	}
	own, err := unix.FcntlInt(uintptr(q.call), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return m, err
	}
	defer unix.Close(own)
	r := &runner{q: q, l: l, call: own, rng: rand.New(rand.NewPCG(l.Seed, 3)), at: make([]time.Time, l.Depth)}
	return r.run()
}

type runner struct {
	q    *queue
	l    Load
	call int
	rng  *rand.Rand
	at   []time.Time // when each slot's request was put there
	lat  []time.Duration
	m    Measured
}

func (r *runner) run() (Measured, error) {
	q, from := r.q, time.Now()
	kind := uint32(kindRead)
	if r.l.Write {
		kind = kindWrite
	}
	for i := range r.l.Depth {
		h := q.mem[q.slotAt(i):]
		le.PutUint32(h, kind)
		le.PutUint32(h[4:], 0)
		p := q.mem[q.payloadAt(i):][:r.l.Bytes]
		for k := range p {
			p[k] = byte(k*i ^ k>>3)
		}
		q.describe(i, r.l.Bytes, !r.l.Write)
		r.put(i)
	}
	if err := r.tell(q.avail - uint16(r.l.Depth)); err != nil {
		return r.m, err
	}
	flying := r.l.Depth
	for flying > 0 {
		used := q.usedIndex()
		if used == q.seen {
			if err := r.sleep(); err != nil {
				return r.m, err
			}
			continue
		}
		now, before := time.Now(), q.avail
		for ; q.seen != used; q.seen++ {
			i := int(le.Uint32(q.mem[q.usedAt+4+8*uint64(uint32(q.seen)&(q.size-1)):])) / descPerSlot
			if q.mem[q.slotAt(i)+atStatus] != 0 {
				r.m.Errors++
			}
			r.lat = append(r.lat, now.Sub(r.at[i]))
			if flying--; now.Sub(from) < r.l.Duration {
				r.put(i)
				flying++
			}
		}
		if q.avail != before {
			if err := r.tell(before); err != nil {
				return r.m, err
			}
		}
	}
	r.m.Took, r.m.Requests = time.Since(from), len(r.lat)
	slices.Sort(r.lat)
	r.m.P50, r.m.P99 = r.lat[len(r.lat)/2], r.lat[len(r.lat)*99/100]
	return r.m, nil
}

// put makes slot i a request at a place of its own.
func (r *runner) put(i int) {
	q := r.q
	h := q.mem[q.slotAt(i):]
	le.PutUint64(h[8:], uint64(r.rng.Int64N(r.l.Size/int64(r.l.Bytes))*int64(r.l.Bytes)/512))
	h[atStatus] = 0xff
	le.PutUint16(q.mem[q.availAt+4+2*uint64(uint32(q.avail)&(q.size-1)):], uint16(descPerSlot*i))
	q.avail++
	r.at[i] = time.Now()
}

// tell shows the back end what was put there since before, and kicks if it is asked to.
func (r *runner) tell(before uint16) error {
	q := r.q
	word32(q.mem[q.availAt:]).Store(uint32(q.avail) << 16)
	u := q.mem[q.usedAt:]
	kick := le.Uint16(u)&1 == 0
	if q.g.features&featEventIdx != 0 {
		kick = q.avail-le.Uint16(u[4+8*q.size:])-1 < q.avail-before
	}
	if !kick {
		return nil
	}
	r.m.Kicks++
	_, err := unix.Write(q.kick, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	return err
}

// sleep waits until the back end has answered something.
func (r *runner) sleep() error {
	q := r.q
	le.PutUint16(q.mem[q.availAt+4+2*uint64(q.size):], q.seen)
	fence.Add(1)
	if q.usedIndex() != q.seen {
		return nil
	}
	p := []unix.PollFd{{Fd: int32(r.call), Events: unix.POLLIN}}
	if n, err := unix.Poll(p, 10_000); err != nil && err != unix.EINTR {
		return err
	} else if n == 0 && err == nil {
		return fmt.Errorf("the back end has not answered for 10 s: %d requests so far", len(r.lat))
	}
	var count [8]byte
	if _, err := unix.Read(r.call, count[:]); err != nil && err != unix.EAGAIN && err != unix.EINTR {
		return err
	}
	return nil
}

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
	Data     []byte  // what is written: each place under way writes the next Bytes of it; nil: patterns
	Rate     float64 // requests a second, evenly; 0: as soon as there is room
}

// Measured is what Run saw.
type Measured struct {
	Requests int
	Errors   int
	Took     time.Duration
	Kicks    int
	// A request's time runs from when it was put there, or was due and found no room, to its answer.
	P50, P99 time.Duration
	Gap      time.Duration // the longest without an answer
}

// Run drives queue 0 from one loop, which costs the least there is: what is measured is the back
// end. It takes the queue for itself, which was not used before; it cannot be used by other methods
// afterwards.
func (g *Guest) Run(l Load) (m Measured, err error) {
	q := g.queues[0]
	if l.Depth < 1 || l.Depth > len(q.slots) || l.Bytes%512 != 0 || l.Bytes < 512 || l.Bytes > g.o.SlotBytes || l.Size < int64(l.Bytes) ||
		l.Data != nil && len(l.Data) < l.Bytes || l.Rate < 0 {
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
	free []int       // slots without a request under way
	at   []time.Time // when the time of each slot's request began
	from time.Time
	puts int       // requests so far
	room time.Time // when there was room again, after there was none
	last time.Time // when the last answer came
	lat  []time.Duration
	m    Measured
}

func (r *runner) run() (Measured, error) {
	for i := range r.l.Depth {
		r.prepare(i)
	}
	r.from = time.Now()
	r.last = r.from
	for now := r.from; ; now = time.Now() {
		over := now.Sub(r.from) >= r.l.Duration
		if over && len(r.free) == r.l.Depth {
			break
		}
		before := r.q.avail
		for !over && len(r.free) > 0 && !r.due().After(now) {
			r.put(now)
		}
		if r.q.avail != before {
			if err := r.tell(before); err != nil {
				return r.m, err
			}
		}
		if r.reap() {
			continue
		}
		wait := patience
		if !over && len(r.free) > 0 {
			wait = max(0, time.Until(r.due()))
		}
		if err := r.sleep(wait); err != nil {
			return r.m, err
		}
	}
	r.m.Took, r.m.Requests = time.Since(r.from), len(r.lat)
	slices.Sort(r.lat)
	r.m.P50, r.m.P99 = r.lat[len(r.lat)/2], r.lat[len(r.lat)*99/100]
	return r.m, nil
}

// prepare fills what is the same in all requests of slot i.
func (r *runner) prepare(i int) {
	q, kind := r.q, uint32(kindRead)
	if r.l.Write {
		kind = kindWrite
	}
	h := q.mem[q.slotAt(i):]
	le.PutUint32(h, kind)
	le.PutUint32(h[4:], 0)
	p := q.mem[q.payloadAt(i):][:r.l.Bytes]
	if from := r.l.Data; from != nil {
		copy(p, from[i%(len(from)/len(p))*len(p):])
	} else {
		for k := range p {
			p[k] = byte(k*i ^ k>>3)
		}
	}
	q.describe(i, r.l.Bytes, !r.l.Write)
	r.free = append(r.free, i)
}

// due is when the next request is to be put there.
func (r *runner) due() time.Time {
	if r.l.Rate == 0 {
		return r.from
	}
	return r.from.Add(time.Duration(float64(r.puts) / r.l.Rate * float64(time.Second)))
}

// reap takes the answers that are there.
func (r *runner) reap() bool {
	q := r.q
	used := q.usedIndex()
	if used == q.seen {
		return false
	}
	now := time.Now()
	r.m.Gap = max(r.m.Gap, now.Sub(r.last))
	r.last = now
	if len(r.free) == 0 {
		r.room = now
	}
	for ; q.seen != used; q.seen++ {
		i := int(le.Uint32(q.mem[q.usedAt+4+8*uint64(uint32(q.seen)&(q.size-1)):])) / descPerSlot
		if q.mem[q.slotAt(i)+atStatus] != 0 {
			r.m.Errors++
		}
		r.lat = append(r.lat, now.Sub(r.at[i]))
		r.free = append(r.free, i)
	}
	return true
}

// put makes a request at a place of its own.
func (r *runner) put(now time.Time) {
	q, i := r.q, r.free[len(r.free)-1]
	r.free = r.free[:len(r.free)-1]
	h := q.mem[q.slotAt(i):]
	le.PutUint64(h[8:], uint64(r.rng.Int64N(r.l.Size/int64(r.l.Bytes))*int64(r.l.Bytes)/512))
	h[atStatus] = 0xff
	le.PutUint16(q.mem[q.availAt+4+2*uint64(uint32(q.avail)&(q.size-1)):], uint16(descPerSlot*i))
	q.avail++
	r.at[i] = now
	if due := r.due(); r.l.Rate > 0 && due.Before(r.room) {
		r.at[i] = due
	}
	r.puts++
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

// patience is how long the back end may answer nothing.
const patience = 10 * time.Second

// sleep waits until the back end has answered something, for at most so long.
func (r *runner) sleep(wait time.Duration) error {
	q := r.q
	le.PutUint16(q.mem[q.availAt+4+2*uint64(q.size):], q.seen)
	fence.Add(1)
	if q.usedIndex() != q.seen {
		return nil
	}
	p := []unix.PollFd{{Fd: int32(r.call), Events: unix.POLLIN}}
	limit := unix.NsecToTimespec(int64(wait))
	n, err := unix.Ppoll(p, &limit, nil)
	if err != nil && err != unix.EINTR {
		return err
	}
	if time.Since(r.last) > patience && len(r.free) < r.l.Depth {
		return fmt.Errorf("the back end has not answered for %v: %d requests so far", patience, len(r.lat))
	}
	if n == 0 {
		return nil
	}
	var count [8]byte
	if _, err := unix.Read(r.call, count[:]); err != nil && err != unix.EAGAIN && err != unix.EINTR {
		return err
	}
	return nil
}

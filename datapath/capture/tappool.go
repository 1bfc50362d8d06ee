package capture

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// tapPool is one filter's pool as the VRA has it mapped. It outlives its filter until
// all that was published is taken and freed.
type tapPool struct {
	key                  uint64
	shape                poolShape
	payload, desc, state []byte
	rings                []tapRing
	marked               func(v record.VolumeID, bytes int64) bool

	// Guarded by the merge's lock.
	floor    record.Ticket // what is below was written while we went on without this filter
	mustFold bool          // its generations may have been passed by: no durable ticket until it folded
	revoked  uint64

	// mu guards freeing.
	mu struct {
		sync.Mutex
		out   int // given and not freed
		chain []uint32
	}
}

// mapPool maps the three files that a filter passed. Marked says whether a volume's marks are those of a disk of that size.
func mapPool(key uint64, shape poolShape, fds []int, volumes []VolumeInfo, marked func(record.VolumeID, int64) bool) (_ *tapPool, err error) {
	if len(fds) != 3 {
		return nil, fmt.Errorf("%d memory files, want 3: %w", len(fds), ErrCorrupt)
	}
	p := &tapPool{key: key, shape: shape, marked: marked}
	defer func() {
		if err != nil {
			p.unmap()
		}
	}()
	if p.payload, err = mapShared(fds[0], shape.payloadBytes(), false); err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	if p.desc, err = mapShared(fds[1], shape.descFileBytes(), false); err != nil {
		return nil, fmt.Errorf("descriptors: %w", err)
	}
	if p.state, err = mapShared(fds[2], shape.stateFileBytes(), true); err != nil {
		return nil, fmt.Errorf("states: %w", err)
	}
	if err := checkPoolHeader(p.desc, descMagic, shape); err != nil {
		return nil, err
	}
	if err := checkPoolHeader(p.state, stateMagic, shape); err != nil {
		return nil, err
	}
	p.rings = make([]tapRing, shape.rings)
	for i := range p.rings {
		r := &p.rings[i]
		r.pool, r.base = p, shape.ringAt(i)
		r.tail, r.busy = word(p.desc, r.base+ringAtTail), word(p.desc, r.base+ringAtBusy)
		r.shared, r.size = word(p.state, shape.headAt(i)), word(p.desc, descAtSizes+8*int64(i))
		r.freed = make([]uint64, shape.ringCap/64)
		if i < len(volumes) {
			r.volume = volumes[i].ID
		}
		r.read = r.shared.Load()
		r.head, r.seen = r.read, r.read
		r.bytes()
	}
	return p, nil
}

func (p *tapPool) unmap() { unmapAll(p.payload, p.desc, p.state) }

func (p *tapPool) stateWord(slot uint32) *atomic.Uint64 { return word(p.state, p.shape.stateAt(slot)) }

func (p *tapPool) descOf(slot uint32) []byte {
	at := p.shape.descAt(slot)
	return p.desc[at : at+descBytes]
}

// drained says that nothing of the pool is in a ring or in anyone's hands. Its filter
// must be gone: else there may be more at once.
func (p *tapPool) drained() bool {
	for i := range p.rings {
		if p.rings[i].read != p.rings[i].tail.Load() {
			return false
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.out == 0
}

// tapRing is the VRA's end of a ring. Entries stay in it, for the next Tap, until they are freed.
type tapRing struct {
	pool   *tapPool
	base   int64
	tail   *atomic.Uint64
	busy   *atomic.Uint64
	shared *atomic.Uint64 // the head that a next Tap begins at
	size   *atomic.Uint64 // of its volume; see bytes
	volume record.VolumeID

	// Guarded by the merge's lock.
	believed   int64  // of size
	read, seen uint64 // the next entry, and how far the ring was seen to go
	ticket     record.Ticket
	slot       uint32
	use        uint32
	watched    uint64 // a slot word seen in ticketing
	since      time.Time

	// Guarded by the pool's lock.
	head  uint64
	freed []uint64 // a bit an entry between head and read
}

// peek loads the head entry; false when there is none.
func (r *tapRing) peek() bool {
	if r.read == r.seen {
		if r.seen = r.tail.Load(); r.read == r.seen {
			return false
		}
	}
	at := r.base + ringAtEntries + int64(r.read&uint64(r.pool.shape.ringCap-1))*ringEntryBytes
	r.ticket, r.slot, r.use = parseRingEntry(r.pool.desc[at : at+ringEntryBytes])
	return true
}

func (r *tapRing) headState() entryState {
	if int64(r.slot) >= int64(r.pool.shape.slots) {
		return entryStale
	}
	return entryStateOf(r.use, r.pool.stateWord(r.slot).Load())
}

// bytes is how large the filter says that the ring's volume is; 0: it does not. What it says is another process's word, and
// what comes of it is a disk of that size at the target: it counts, from then on, where the volume's marks, which take memory of
// this host and have their place before a size is shown, are those of so large a disk.
func (r *tapRing) bytes() int64 {
	n := r.size.Load()
	if n > uint64(r.believed) && n <= record.VolumeLimit && (r.pool.marked(r.volume, int64(n)) || invariant.Planted("capture/any-size")) {
		r.believed = int64(n)
	}
	return r.believed
}

// takeHead makes a Write of the head, which is published. The descriptor is stable
// until we free it, but is another process's word: it is checked.
func (r *tapRing) takeHead() (Write, error) {
	p := r.pool
	d, err := parseDesc(p.descOf(r.slot), p.shape.slots)
	if err == nil && d.ticket != r.ticket {
		err = fmt.Errorf("slot %d has ticket %d, its ring says %d: %w", r.slot, d.ticket, r.ticket, ErrCorrupt)
	}
	// The size stands there before a guest may use it.
	if size := r.bytes(); err == nil && size > 0 && d.off+d.n > size {
		err = fmt.Errorf("slot %d ends at %d, its volume at %d: %w", r.slot, d.off+d.n, size, ErrCorrupt)
	}
	if err != nil {
		return Write{}, err
	}
	w := Write{
		Ticket: d.ticket, Volume: d.volume, Off: d.off, Len: d.n, Kind: d.kind, Captured: d.captured,
		ring: r, at: r.read, slot: r.slot,
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.chainLocked(r.slot)
	if len(p.mu.chain) != int(d.slots) {
		return Write{}, fmt.Errorf("slot %d: a chain of %d, want %d: %w", r.slot, len(p.mu.chain), d.slots, ErrCorrupt)
	}
	if d.kind == Data || d.kind == SyncData {
		w.Data = slotRuns(nil, p.payload, p.mu.chain, int(d.n))
	}
	p.mu.out++
	return w, nil
}

// chainLocked puts the slots of the write at first into mu.chain.
func (p *tapPool) chainLocked(first uint32) {
	p.mu.chain = p.mu.chain[:0]
	for next := first + 1; next != 0 && int64(next) <= int64(p.shape.slots) && len(p.mu.chain) <= p.shape.slots; {
		p.mu.chain = append(p.mu.chain, next-1)
		next = leNext(p.descOf(next - 1))
	}
}

// dropHead frees the head, which is published, without giving it to anyone.
func (r *tapRing) dropHead() {
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	r.pool.releaseLocked(r.slot)
	r.entryDoneLocked(r.read)
}

// skipHead steps over an entry that holds nothing.
func (r *tapRing) skipHead() {
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	r.entryDoneLocked(r.read)
}

// free gives a write's slots back.
func (r *tapRing) free(at uint64, slot uint32) {
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	r.pool.releaseLocked(slot)
	r.pool.mu.out--
	r.entryDoneLocked(at)
}

// releaseLocked frees the slots of a write, the first one first: killed in between we
// leave an entry that is stale, and members that the filter finds.
func (p *tapPool) releaseLocked(first uint32) {
	p.chainLocked(first)
	tailWord := word(p.state, p.shape.retTailAt())
	tail := tailWord.Load()
	for _, s := range p.mu.chain {
		w := p.stateWord(s)
		w.Store(withState(w.Load(), slotFree))
		word(p.state, p.shape.retAt(tail)).Store(uint64(s))
		tail++
	}
	tailWord.Store(tail)
}

// entryDoneLocked notes that an entry is done with; the shared head moves over all that are.
func (r *tapRing) entryDoneLocked(at uint64) {
	mask := uint64(r.pool.shape.ringCap - 1)
	bit := func(i uint64) (*uint64, uint64) { return &r.freed[(i&mask)/64], 1 << ((i & mask) % 64) }
	w, m := bit(at)
	*w |= m
	for moved := false; ; moved = true {
		w, m := bit(r.head)
		if *w&m == 0 {
			if moved {
				r.shared.Store(r.head)
			}
			return
		}
		*w &^= m
		r.head++
	}
}

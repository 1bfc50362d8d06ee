// Package spill keeps the sealed records of one stream from their sealing until
// the target has acknowledged them: the window, in memory, and the spill, files for
// what memory has no room for. When both are full the feeder is held up, never a guest.
//
// What a user of a Window may rely on:
//   - Records stand in it by seq, without a gap, from the oldest not acknowledged
//     to the newest. Put of any other seq than the next is a bug, and panics.
//   - A record leaves only by Ack or Reset. Its buffer is released once it has
//     left and nobody has it on loan: never while it is being sent.
//   - Bytes is what the records hold in memory, with what is known of each that stands on disk.
//     Room waits until that is below the limit; Put itself never refuses, so the excess is what
//     the pipeline in front holds (datapath/queues.go says how much). So a disk takes no more
//     records than half of the limit has room to know of, whatever room it has itself.
//   - A window that has a Share waits for that too, and tells it what it holds.
//   - A seq that was given up by Reset is never handed out by a loan again: a loan
//     of before a Reset ends with ErrReset.
//   - Memory and disk are one queue: what is lent is lent in the order of seq, wherever it
//     stands, and byte for byte what was put. What cannot be read back so is never lent:
//     SpillStats says that it is lost, and the owner gives up what stands here.
//   - Nobody but a lender ever waits for the disk. One that is full, fails or hangs leaves
//     the window as it is without one.
//   - The files of the spill end with the process: the filters' marks know all that was in them. What stands
//     in memory outlives it where that is a Kept file, and what outlives it is all that the window held
//     or counts for nothing: see Slabs.Keep.
//
// All methods may be called concurrently. Cost: 160 bytes a record beside its buffer, counted for those on
// disk, and with records there 2 MiB of buffers.
package spill

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Buffer holds one sealed record; a window releases it exactly once.
type Buffer interface {
	Bytes() []byte
	// Held is how much memory it keeps from others, at least len(Bytes()).
	Held() int64
	Release()
}

// Record is one sealed record and what its source must know of it until it is acknowledged.
type Record struct {
	Seq record.Seq
	// Through is the highest ticket such that every write up to it is whole in this
	// record and those before it: what may be called durable at its ack.
	Through record.Ticket
	// Oldest is when its oldest guest write was captured, on the monotonic clock in
	// ns; 0 for a record that holds none.
	Oldest int64
	Raw    int64  // bytes of payload before compression, zeros not counted
	Synced int64  // bytes read for synchronisation, in this record and those before it in its life
	Buffer Buffer // nil while it is on disk alone, which no record on loan is

	window *Window
	loans  int
	gone   bool // left the window; released when the last loan ends
	stored int64
	in     place // where it stands on disk, when Buffer is nil
	length int   // of the sealed record there, in bytes
}

// knownBytes is what a record on disk keeps of memory: a Record, and its place in the row, which has
// up to twice as many as are taken.
const knownBytes = int64(unsafe.Sizeof(Record{}) + 2*unsafe.Sizeof(&Record{}))

// ErrReset ends a loan or a wait over which the window was reset.
var ErrReset = errors.New("window was reset")

// Share is a window's part of a memory that several windows have together.
type Share interface {
	// Holds is told, in order, how many bytes the window holds now. It must not call the window.
	Holds(bytes int64)
	// Await waits until the window may hold more; an error is that of ctx.
	Await(ctx context.Context) error
	// Room is how many bytes it may hold beside what it holds; nothing or less: none.
	Room() int64
}

// Window is the queue. New makes one.
type Window struct {
	limit   int64
	share   Share    // nil for none
	spiller *spiller // nil for none
	kept    *Kept    // nil for none

	mu struct {
		sync.Mutex
		records []*Record // by seq; records[0] is the oldest
		first   record.Seq
		life    uint64 // counts resets
		bytes   int64  // of records in memory
		raw     int64
		sent    record.Seq // highest lent in this session
		disk    spilled
		changed chan struct{}

		alive    bool     // what is put is of an incarnation that may be gone on with
		standing Standing // as far as First and Next are not those of the window
	}
}

// New returns an empty window of limit bytes that expects next as its first seq.
func New(limit int64, next record.Seq) *Window {
	w := &Window{limit: limit}
	w.mu.first = next
	w.mu.changed = make(chan struct{})
	return w
}

// Join gives the window a share, before anything is put.
func (w *Window) Join(s Share) {
	w.mu.Lock() // who spills may look already
	defer w.mu.Unlock()
	w.share = s
	if w.heldLocked() > 0 {
		w.holdsLocked()
	}
}

// Limit is how much it may hold now, in bytes: its own limit, or less where its share is less.
func (w *Window) Limit() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.limitLocked()
}

func (w *Window) limitLocked() int64 {
	if w.share == nil {
		return w.limit
	}
	return min(w.limit, w.heldLocked()+max(0, w.share.Room()))
}

// heldLocked is what the window holds of memory: records, and what is known of those on disk.
func (w *Window) heldLocked() int64 {
	if invariant.Planted("spill/known-for-nothing") {
		return w.mu.bytes
	}
	return w.mu.bytes + int64(w.mu.disk.records)*knownBytes
}

// Put takes r, the next record of the stream.
func (w *Window) Put(r *Record) { w.PutAt(r, At{}) }

// PutAt is Put, and says how the stream stands behind r: what a Kept window is gone on with from. Once it has
// returned, who goes on needs nothing of what r was made of.
func (w *Window) PutAt(r *Record, at At) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if next := w.nextLocked(); r.Seq != next {
		panic(fmt.Sprintf("BUG: spill: record %d put where %d is next", r.Seq, next))
	}
	r.window = w
	r.stored = r.Buffer.Held()
	w.mu.records = append(w.mu.records, r)
	w.mu.bytes += r.stored
	w.mu.raw += r.Raw
	w.sayLocked(r)
	at.Through = r.Through
	w.mu.standing.At = at
	w.tellLocked()
	w.holdsLocked()
	w.wakeLocked()
}

// holdsLocked tells the share what the window holds.
func (w *Window) holdsLocked() {
	if w.share != nil {
		w.share.Holds(w.heldLocked())
	}
}

// Lend waits until the record of seq stands in the window and lends it: Return it.
// A seq that has been acknowledged lends the first record after it.
func (w *Window) Lend(ctx context.Context, seq record.Seq) (*Record, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	life := w.mu.life
	for {
		if w.mu.life != life {
			return nil, ErrReset
		}
		if r := w.lendLocked(seq); r != nil {
			return r, nil
		}
		w.wantLocked(seq)
		if err := w.waitLocked(ctx); err != nil {
			w.mu.disk.wanted = 0
			return nil, err
		}
	}
}

// wantLocked has the record of seq come back from disk, if it stands there.
func (w *Window) wantLocked(seq record.Seq) {
	at := max(seq, w.mu.first) - w.mu.first
	if at < record.Seq(len(w.mu.records)) {
		w.mu.disk.wanted = w.mu.first + at
		w.nudgeLocked()
	}
}

// TryLend lends the record of seq if it stands in memory now; else it returns nil.
func (w *Window) TryLend(seq record.Seq) *Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lendLocked(seq)
}

// lendLocked lends the record of seq, or the first after it; nil while there is none in memory.
func (w *Window) lendLocked(seq record.Seq) *Record {
	at := max(seq, w.mu.first) - w.mu.first
	if at >= record.Seq(len(w.mu.records)) {
		return nil
	}
	r := w.mu.records[at]
	if r.Buffer == nil {
		return nil
	}
	r.loans++
	w.mu.sent = max(w.mu.sent, r.Seq)
	return r
}

// Bytes are the sealed record.
func (r *Record) Bytes() []byte { return r.Buffer.Bytes() }

// Return ends a loan.
func (r *Record) Return() { r.window.Return(r) }

// Return ends a loan.
func (w *Window) Return(r *Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.loans--; r.loans < 0 {
		panic("BUG: spill: record returned twice")
	}
	if r.gone && r.loans == 0 {
		r.Buffer.Release()
	}
}

// Acked is what an acknowledgement freed.
type Acked struct {
	Records int
	Through record.Ticket // of the newest freed; 0 when none was
	Synced  int64         // as well
	Raw     int64
	Stored  int64
	Oldest  int64 // capture time of the oldest guest write among them, monotonic ns; 0 for none
}

// Ack frees every record up to seq. A seq below the oldest frees nothing; one that
// was never put is the peer's mistake, and an error.
func (w *Window) Ack(seq record.Seq) (Acked, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if seq >= w.nextLocked() {
		return Acked{}, fmt.Errorf("seq %d is acknowledged and the newest is %d", seq, w.nextLocked()-1)
	}
	if invariant.Planted("spill/ack-one-more") {
		seq++
	}
	var a Acked
	if n := w.nextLocked(); w.mu.first <= seq && w.mu.alive { // said before the first of them goes
		w.mu.standing.First = min(seq+1, n)
		w.tellLocked()
	}
	for len(w.mu.records) > 0 && w.mu.first <= seq {
		r := w.mu.records[0]
		a.Records++
		a.Through, a.Synced = r.Through, r.Synced
		a.Raw += r.Raw
		a.Stored += r.stored
		if a.Oldest == 0 {
			a.Oldest = r.Oldest
		}
		w.dropLocked(r)
		w.mu.records[0] = nil
		w.mu.records = w.mu.records[1:]
		w.mu.first++
	}
	if a.Records > 0 {
		w.holdsLocked()
		w.wakeLocked()
	}
	return a, nil
}

// Reset drops every record; next is the seq that comes next. Loans that are out stay valid until returned.
func (w *Window) Reset(next record.Seq) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.voidLocked()
	for _, r := range w.mu.records {
		w.dropLocked(r)
	}
	w.mu.records = nil
	w.mu.first, w.mu.sent = next, next-1
	w.mu.disk.from, w.mu.disk.fresh, w.mu.disk.wanted, w.mu.disk.lost, w.mu.disk.full = 0, 0, 0, nil, false
	if !invariant.Planted("spill/loan-over-reset") {
		w.mu.life++
	}
	w.holdsLocked()
	w.wakeLocked()
}

// Rewind says that what was sent may be lost: only what is lent from now on counts as sent.
func (w *Window) Rewind() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.sent = w.mu.first - 1
}

func (w *Window) dropLocked(r *Record) {
	w.mu.raw -= r.Raw
	r.gone = true
	if r.Buffer == nil {
		if r.in.in != nil {
			w.fromDiskLocked(r)
		}
		return
	}
	w.mu.bytes -= r.stored
	if r.loans == 0 || invariant.Planted("spill/release-on-loan") {
		r.Buffer.Release()
	}
}

// Room waits until the window holds less than its limit, and its share lets it hold more.
func (w *Window) Room(ctx context.Context) error {
	if err := w.belowLimit(ctx); err != nil || w.share == nil {
		return err
	}
	return w.share.Await(ctx)
}

func (w *Window) belowLimit(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.heldLocked() >= w.limit {
		if err := w.waitLocked(ctx); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Idle says whether every record that stands in the window was lent for sending.
func (w *Window) Idle() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.sent+1 >= w.nextLocked()
}

// Next is the seq that Put expects.
func (w *Window) Next() record.Seq {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nextLocked()
}

// Stats is how the window stands.
type Stats struct {
	Records int
	Bytes   int64 // held in memory, with what is known of records on disk
	OnDisk  int64 // bytes of the records that stand on disk alone
	Raw     int64 // payload before compression
	Unsent  int   // records not lent since the last Rewind
	Oldest  int64 // capture time of the oldest guest write, monotonic ns; 0 when there is none
}

// Stats is cheap but for Oldest, which looks at records until one holds a guest write.
func (w *Window) Stats() Stats {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := Stats{Records: len(w.mu.records), Bytes: w.heldLocked(), OnDisk: w.mu.disk.bytes, Raw: w.mu.raw}
	s.Unsent = int(w.nextLocked() - 1 - max(w.mu.sent, w.mu.first-1))
	for _, r := range w.mu.records {
		if r.Oldest != 0 {
			s.Oldest = r.Oldest
			break
		}
	}
	return s
}

func (w *Window) nextLocked() record.Seq { return w.mu.first + record.Seq(len(w.mu.records)) }

func (w *Window) wakeLocked() {
	w.nudgeLocked()
	close(w.mu.changed)
	w.mu.changed = make(chan struct{})
}

// waitLocked waits for the next change, without the lock.
func (w *Window) waitLocked(ctx context.Context) error {
	changed := w.mu.changed
	w.mu.Unlock()
	defer w.mu.Lock()
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

package spill

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// What goes to disk and comes back is decided by stand, under the window's lock; the disk is used
// without it, by two goroutines of the window's own: whoever puts, lends and acknowledges never
// waits for the disk. A lender waits for its record, and can give that up.
//
//	oldest                                                    newest
//	records that are sent, or soon │ on disk alone │ not on disk yet
//	            ◄──── fetch ───────┘               └──── evict ───►

// spiller is what a window has beside its memory.
type spiller struct {
	files files
	make  func(sealed []byte) Buffer // memory for what comes back

	evict, fetch chan struct{} // capacity 1: there may be something to do
}

// spilled is the window's part that its lock guards.
type spilled struct {
	records int        // on disk alone
	bytes   int64      // of those, sealed
	from    record.Seq // no record before it is on disk alone
	fresh   record.Seq // behind the newest that went to disk, while some is there
	wanted  record.Seq // to be sent next, and on disk; 0 for none

	writing, reading time.Time // since when; zero: the disk has nothing to do
	rests            time.Time // until when
	trouble          error     // why
	full             bool      // there is no room
	lost             error     // why records on disk will not come back; until Reset
	failures         uint64    // of the disk
	written, fetched uint64    // bytes of records, ever
}

// Spill has the window keep records on disk for which memory has no room, before anything is put.
// Make gives memory with the record that it is given in it. Without Run nothing goes there.
func (w *Window) Spill(d *Disk, a Allot, stream record.StreamID, make_ func(sealed []byte) Buffer) {
	w.spiller = &spiller{files: files{disk: d, allot: a, stream: stream}, make: make_, evict: make(chan struct{}, 1), fetch: make(chan struct{}, 1)}
}

// Run moves records between memory and disk until ctx ends and the disk has answered; then the files are
// gone. It returns at once where the window has no disk. What is on disk then does not come back: Reset is next.
func (w *Window) Run(ctx context.Context) {
	if w.spiller == nil {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { w.evictor(ctx) })
	wg.Go(func() { w.fetcher(ctx) })
	wg.Wait()
	w.mu.Lock()
	w.dropFilesLocked()
	w.mu.Unlock()
	_ = w.spiller.files.sweep() // the next start sees to what is left
}

// dropFilesLocked gives up what is on disk alone.
func (w *Window) dropFilesLocked() {
	for _, r := range w.mu.records {
		if r.in.in != nil {
			w.fromDiskLocked(r)
		}
	}
}

// standLocked is how things stand; candidate is the first record that would go to disk, if any.
func (w *Window) standLocked(candidate *Record) stand {
	s := stand{limit: w.limitLocked(), memory: w.mu.bytes, onDisk: w.mu.disk.records, wanted: w.mu.disk.wanted != 0}
	now := time.Now()
	s.rests = now.Before(w.mu.disk.rests)
	s.broken = w.mu.disk.lost != nil || !w.mu.disk.reading.IsZero() && now.Sub(w.mu.disk.reading) > Patience
	if candidate != nil {
		s.room = w.spiller.files.room(int64(space(len(candidate.Buffer.Bytes()))))
	}
	return s
}

// nudgeLocked wakes whoever of the two may have something to do.
func (w *Window) nudgeLocked() {
	if w.spiller == nil {
		return
	}
	s := w.standLocked(nil)
	if s.room = 1; s.evicts() > 0 || !s.rests && w.spiller.files.empty() {
		wake(w.spiller.evict)
	}
	if s.fetches() > 0 {
		wake(w.spiller.fetch)
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// lookEvery is how often it is looked again where nothing wakes: limits change as others come and go.
const lookEvery = time.Second

// await waits for c, or until it is time to look again; false: ctx has ended.
func await(ctx context.Context, c chan struct{}, again *time.Ticker) bool {
	select {
	case <-c:
	case <-again.C:
	case <-ctx.Done():
		return false
	}
	return ctx.Err() == nil
}

// evictor puts records on disk, and sweeps files away that are not needed any more.
func (w *Window) evictor(ctx context.Context) {
	again := time.NewTicker(lookEvery)
	defer again.Stop()
	for ctx.Err() == nil {
		run, life := w.runToEvict()
		if len(run) == 0 {
			if w.sweep(false); !await(ctx, w.spiller.evict, again) {
				return
			}
			continue
		}
		places, err := w.spiller.files.write(life, run)
		if w.evicted(life, run, places, err); err != nil {
			w.sweep(true)
		}
	}
}

// sweep removes files that hold nothing; from a disk that rests only at once after its failure.
func (w *Window) sweep(failed bool) {
	w.mu.Lock()
	now := time.Now()
	sweeps := w.spiller.files.empty() && (failed || !now.Before(w.mu.disk.rests))
	if sweeps {
		w.mu.disk.writing = now
	}
	w.mu.Unlock()
	if !sweeps {
		return
	}
	err := w.spiller.files.sweep()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mu.disk.writing = (time.Time{}); err != nil {
		w.failedLocked(err)
	}
}

// failedLocked notes what the disk said, and leaves it alone for a while. One that has no room, or was not looked at
// yet, did not fail.
func (w *Window) failedLocked(err error) {
	w.mu.disk.trouble = err
	w.mu.disk.rests = time.Now().Add(restAfter)
	if !errors.Is(err, errFull) && !errors.Is(err, errAllot) && !errors.Is(err, errNotReady) {
		w.mu.disk.failures++
	}
}

// runToEvict lends the records that are to go to disk next; none: nothing is to.
func (w *Window) runToEvict() (run []*Record, life uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at, ok := w.candidateLocked()
	if !ok {
		w.mu.disk.full = false
		return nil, 0
	}
	s := w.standLocked(w.mu.records[at])
	w.mu.disk.full = s.full()
	free, room := s.evicts(), min(s.room, runBytes)
	for _, r := range w.mu.records[at:] {
		if r.Buffer == nil {
			break
		}
		if r.loans > 0 && len(run) == 0 && !invariant.Planted("spill/evicted-on-loan") {
			continue // it is sent this moment
		}
		n := int64(space(len(r.Buffer.Bytes())))
		if free <= 0 || len(run) > 0 && (n > room || r.loans > 0) {
			break
		}
		r.loans++
		run = append(run, r)
		room, free = room-n, free-r.stored
	}
	if len(run) > 0 {
		w.mu.disk.writing = time.Now()
	}
	return run, w.mu.life
}

// candidateLocked is the place of the record that goes to disk first: the one behind those that are
// there; where there is none, the first behind those that stay in memory because they are sent next.
func (w *Window) candidateLocked() (at int, ok bool) {
	records, s := w.mu.records, w.standLocked(nil)
	if s.due() <= 0 {
		return 0, false
	}
	if at = int(max(w.mu.disk.fresh, w.mu.first) - w.mu.first); w.mu.disk.records > 0 && at < len(records) {
		return at, true
	}
	at = 0
	for keep := s.keeps(); at < len(records) && (keep > 0 || records[at].Buffer == nil); at++ {
		if records[at].Buffer != nil {
			keep -= records[at].stored
		}
	}
	return at, at < len(records)
}

// evicted notes how it went, and ends the loans. What somebody else has on loan meanwhile stays in memory.
func (w *Window) evicted(life uint64, run []*Record, places []place, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.disk.writing = time.Time{}
	if err != nil {
		w.failedLocked(err)
	}
	for i, r := range run {
		r.loans--
		switch {
		case r.gone:
			if err == nil {
				w.spiller.files.drop(places[i])
			}
			if r.loans == 0 {
				r.Buffer.Release()
			}
		case err != nil:
		case r.loans > 0 && !invariant.Planted("spill/evicted-on-loan"):
			w.spiller.files.drop(places[i])
			w.mu.disk.fresh = max(w.mu.disk.fresh, r.Seq+1)
		default:
			w.toDiskLocked(r, places[i])
		}
	}
	w.holdsLocked()
	w.wakeLocked()
}

func (w *Window) toDiskLocked(r *Record, p place) {
	r.in, r.length = p, len(r.Buffer.Bytes())
	w.mu.bytes -= r.stored
	w.mu.disk.bytes += int64(r.length)
	w.mu.disk.written += uint64(r.length)
	if w.mu.disk.records == 0 {
		w.mu.disk.from, w.mu.disk.fresh = r.Seq, 0
	}
	w.mu.disk.records++
	w.mu.disk.from = min(w.mu.disk.from, r.Seq)
	w.mu.disk.fresh = max(w.mu.disk.fresh, r.Seq+1)
	r.Buffer.Release()
	r.Buffer = nil
}

// fromDiskLocked notes that r, which stood on disk alone, does so no more.
func (w *Window) fromDiskLocked(r *Record) {
	w.spiller.files.drop(r.in)
	r.in = place{}
	w.mu.disk.records--
	w.mu.disk.bytes -= int64(r.length)
	if w.mu.disk.wanted == r.Seq {
		w.mu.disk.wanted = 0
	}
}

// fetcher brings records back.
func (w *Window) fetcher(ctx context.Context) {
	again := time.NewTicker(lookEvery)
	defer again.Stop()
	for ctx.Err() == nil {
		run, places, life := w.runToFetch()
		if len(run) == 0 {
			if !await(ctx, w.spiller.fetch, again) {
				return
			}
			continue
		}
		buffers := make([]Buffer, len(run))
		err := w.spiller.files.read(life, run, places, func(i int, sealed []byte) { buffers[i] = w.spiller.make(sealed) })
		w.fetched(life, run, buffers, err)
	}
}

// runToFetch returns the records that are to come back next, and where they stand; none: nothing is to.
func (w *Window) runToFetch() (run []*Record, places []place, life uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.standLocked(nil)
	bytes := s.fetches()
	if bytes <= 0 {
		return nil, nil, 0
	}
	from := max(w.mu.disk.from, w.mu.first)
	if w.mu.disk.wanted != 0 {
		from = w.mu.disk.wanted
	}
	for _, r := range w.mu.records[from-w.mu.first:] {
		if r.in.in == nil {
			if len(run) > 0 {
				break
			}
			if w.mu.disk.from == r.Seq {
				w.mu.disk.from++
			}
			continue
		}
		if n := len(run); n > 0 {
			behind := places[n-1].off + int64(space(run[n-1].length))
			if r.in.in != places[0].in || r.in.off < behind || r.in.off+int64(space(r.length))-places[0].off > runBytes || int64(r.length) > bytes {
				break
			}
		}
		run, places = append(run, r), append(places, r.in)
		bytes -= int64(r.length)
	}
	if len(run) > 0 {
		w.mu.disk.reading = time.Now()
	}
	return run, places, w.mu.life
}

// fetched notes how it went: the buffers of those that came back are the window's now.
func (w *Window) fetched(life uint64, run []*Record, buffers []Buffer, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.disk.reading = time.Time{}
	for i, r := range run {
		switch b := buffers[i]; {
		case b == nil:
		case r.gone:
			b.Release()
		default:
			w.fromDiskLocked(r)
			r.Buffer, r.stored = b, b.Held()
			w.sayLocked(r)
			w.mu.bytes += r.stored
			w.mu.disk.fetched += uint64(r.length)
		}
	}
	if err != nil && life == w.mu.life && w.neededLocked(run, buffers) {
		w.mu.disk.lost = err
		w.mu.disk.failures++
	}
	w.holdsLocked()
	w.wakeLocked()
}

// neededLocked says whether one of the run that did not come back is still waited for.
func (w *Window) neededLocked(run []*Record, buffers []Buffer) bool {
	for i, r := range run {
		if buffers[i] == nil && !r.gone {
			return true
		}
	}
	return false
}

// SpillStats is how a window's files stand.
type SpillStats struct {
	Records  int
	Bytes    int64 // of records that stand on disk alone
	Disk     int64 // that the files take
	Full     bool  // memory has no room, nor has the disk
	Trouble  error // why nothing goes to disk; nil when nothing is wrong
	Lost     error // why records will not come back: only Reset helps
	Failures uint64
	Written  uint64 // bytes of records, ever
	Fetched  uint64
}

// errHangs says that the disk does not answer.
var errHangs = errors.New("its disk does not answer")

// SpillStats is cheap. A disk that has taken longer than Patience is in trouble, and what is to be sent next and
// does not come back in that time counts as lost.
func (w *Window) SpillStats() SpillStats {
	if w.spiller == nil {
		return SpillStats{}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	d := &w.mu.disk
	s := SpillStats{
		Records: d.records, Bytes: d.bytes, Disk: w.spiller.files.bytes(), Full: d.full, Lost: d.lost,
		Failures: d.failures, Written: d.written, Fetched: d.fetched,
	}
	if time.Now().Before(d.rests) {
		s.Trouble = d.trouble
	}
	hangs := func(since time.Time) bool { return !since.IsZero() && time.Since(since) > Patience }
	if hangs(d.writing) || hangs(d.reading) {
		s.Trouble = errHangs
	}
	if s.Lost == nil && d.wanted != 0 && hangs(d.reading) && !invariant.Planted("spill/hangs-for-ever") {
		s.Lost = errHangs
	}
	return s
}

// Spills says whether what stands in memory can go to disk until the window holds no more than keep bytes: there is a
// disk, nothing is wrong with it, it has room, and what is known of what it has already is not more.
func (w *Window) Spills(keep int64) bool {
	if w.spiller == nil {
		return false
	}
	w.mu.Lock()
	known := w.heldLocked() - w.mu.bytes
	w.mu.Unlock()
	if known > keep {
		return false
	}
	s := w.SpillStats()
	return s.Trouble == nil && s.Lost == nil && !s.Full && w.spiller.files.disk.ready() == nil
}

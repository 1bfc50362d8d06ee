package datapath

import (
	"context"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/group"
	"github.com/holdfast-dr/holdfast/datapath/pack"
	"github.com/holdfast-dr/holdfast/datapath/spill"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// load is what travels with a pack.Job: what becomes of its writes.
type load struct {
	life    uint64
	writes  []capture.Write // whole in this record or begun in one before: freed once it is stowed
	through record.Ticket   // every write up to it is whole by now
	oldest  int64           // capture time of the oldest guest write, monotonic ns; 0 for none
	raw     int64
	synced  int64    // as spill.Record's
	at      spill.At // the stream, behind it
	out     *spill.Slab
	spare   *record.Batch // of a control record, which has none
}

// life is what feed needs of an incarnation.
type life struct {
	number      uint64
	ctx         context.Context // ends with the life
	epoch       record.Epoch
	incarnation record.Incarnation
	next        record.Seq
	open        record.Resync  // its first record
	ticket      record.Ticket  // of that record
	kept        *spill.Carried // what is gone on with: there is no opening boundary then, and ticket is the last one's; else nil
}

// feed takes writes from the tap, gathers them into batches, numbers them and gives
// them to pack. It has lives one after the other; between them nothing is taken.
type feed struct {
	*flow
	life   life
	seq    record.Seq
	time   record.Time
	job    *pack.Job // being filled
	began  time.Time // of the first write in it
	sealed time.Time // the last one
	some   int       // writes that the tap gave the last time
	gather gather
	whole  record.Ticket
	at     spill.At // of the stream, as far as it is numbered
	limit  int      // of the batch, in bytes
	effort pack.Effort
	pool   int                       // bytes of all slots when the life began
	sync   *comparison               // of the resync that is open; nil for none
	sizes  map[record.VolumeID]int64 // that the stream has told by now
}

func (f *feed) run(ctx context.Context) {
	defer close(f.sealing)
	for {
		select {
		case <-ctx.Done():
			return
		case l := <-f.lives:
			f.live(l)
		}
	}
}

// live feeds one life from its opening boundary to its end.
func (f *feed) live(l life) {
	f.life, f.seq, f.whole = l, l.next, l.ticket
	f.count.synced.Store(0)
	f.sizes = make(map[record.VolumeID]int64)
	f.pool = f.tap.Stats().Slots * capture.SlotBytes
	defer f.abandon()
	f.at = spill.At{}
	if l.kept != nil {
		f.at, f.time = l.kept.At, l.kept.Time
		f.syncs(nil)
	} else {
		f.open(l)
	}
	for f.window.Room(l.ctx) == nil {
		f.rest(l.ctx)
		ws, err := f.tap.Next(l.ctx, takeWrites, f.patience())
		if err != nil {
			if l.ctx.Err() == nil {
				f.fail(err)
			}
			return
		}
		f.some = len(ws)
		f.gather.step(ws)
		if f.some < takeWrites && f.filling() && (f.lineIdle() && f.some == 0 || time.Since(f.began) >= batchAge) {
			f.add(ws)
			if f.filling() { // a mark may have sealed it
				f.seal()
			}
			continue
		}
		f.add(ws)
	}
}

// open puts the opening boundary of a life into the row.
func (f *feed) open(l life) {
	opened := f.control(l.ticket, func(dst []byte, id record.Identity, t record.Time) []byte {
		return record.AppendResyncOpen(dst, id, t, l.ticket, l.open)
	})
	f.syncs(newComparison(f.cfg.Stream, opened, opened == 1))
	f.step(group.Begun{Life: l.number})
}

// rest lets writes gather that come one closely behind the other: it looks at none before its time, and
// has no filter wake it for each. One that comes alone is not held up.
func (f *feed) rest(ctx context.Context) {
	if f.gather.plenty || invariant.Planted("datapath/never-gathers") {
		return
	}
	wait := f.gather.pause
	if !f.filling() || f.lineIdle() {
		wait -= time.Since(f.sealed)
	}
	pause(ctx, wait)
}

// abandon frees what was gathered and not sealed.
func (f *feed) abandon() {
	if f.job != nil {
		f.seal() // stow finds that its life has ended
	}
}

// patience is how long feed waits for a write: while it has some, rest does.
func (f *feed) patience() time.Duration {
	if f.filling() {
		return 0
	}
	return time.Second
}

func (f *feed) filling() bool { return f.job != nil && !f.job.Batch.Empty() }

// lineIdle says that nothing stands between here and the wire.
func (f *feed) lineIdle() bool { return f.pipe.empty() && f.window.Idle() }

func (f *feed) add(ws []capture.Write) {
	in := *f.intake.Load()
	for i := range ws {
		w := &ws[i]
		if w.Kind == capture.Mark {
			if !f.mark(w.Ticket) {
				return // the rest stays published
			}
			in = *f.intake.Load() // waiting there takes its time
			continue
		}
		if w.Ticket >= in[w.Volume].until {
			f.tap.Free(ws[i : i+1])
			f.whole = w.Ticket
			continue
		}
		if end := w.Off + w.Len; end > f.told(w.Volume) {
			f.grown(w.Volume, end, w.Ticket-1)
		}
		switch w.Kind {
		case capture.SyncData, capture.SyncZero:
			f.synced(w)
		default:
			f.sync.carries(w.Volume, w.Off, w.Len)
			f.part(w, w.Off, w.Len)
			f.end(w)
		}
	}
}

// told is how large the stream says at this place that a volume is: as the target was told when it was opened, until
// a record of it says more.
func (f *feed) told(id record.VolumeID) int64 {
	n, ok := f.sizes[id]
	if !ok {
		if n = f.toldSize(id); n > 0 {
			f.sizes[id] = n
		}
	}
	return n
}

// grown puts a record into the row that says how large a volume is by now: something that ends at end comes next, and
// all before it has tickets up to last. Since what is new of a volume is all dirty, and is read before the next cut,
// a volume that has grown always comes by here before the cuts that name its new size.
func (f *feed) grown(id record.VolumeID, end int64, last record.Ticket) {
	size := record.VolumeSize{ID: id, Bytes: end}
	served, _ := f.tap.Volumes() // what it can see now is at least what the write was held against
	for _, v := range served {
		if v.ID == id {
			size.Bytes = max(end, v.Bytes)
		}
	}
	f.sizes[id] = size.Bytes
	if invariant.Planted("datapath/resize-unsaid") {
		return
	}
	f.control(last, func(dst []byte, id record.Identity, at record.Time) []byte {
		return record.AppendResize(dst, id, at, last, size)
	})
}

// sized are the volumes, as large as they are at this place of the stream.
func (f *feed) sized(volumes []record.VolumeSize) []record.VolumeSize {
	volumes = slices.Clone(volumes)
	for i, v := range volumes {
		if n := f.told(v.ID); n > 0 {
			volumes[i].Bytes = n
		}
	}
	return volumes
}

// synced takes what a sync read has read. What is compared of it goes no further.
func (f *feed) synced(w *capture.Write) {
	if f.sync == nil {
		f.part(w, w.Off, w.Len)
		f.end(w)
		return
	}
	send := f.sync.take(w, f.sizeOf(w.Volume))
	for _, r := range send {
		f.part(w, r.Off, r.Len)
	}
	if len(send) > 0 {
		f.end(w)
		return
	}
	f.whole = w.Ticket
	f.tap.Free([]capture.Write{*w})
}

// part puts a part of w into batches.
func (f *feed) part(w *capture.Write, from, n int64) {
	if w.Kind == capture.Zero || w.Kind == capture.SyncZero {
		f.piece(record.Piece{Volume: w.Volume, Off: from, Len: n, Ticket: w.Ticket}, w)
		return
	}
	off := w.Off
	for _, run := range w.Data { // as long as the slots happened to be neighbours
		lo, hi := max(from, off), min(from+n, off+int64(len(run)))
		if lo < hi {
			at := lo
			for p := range slices.Chunk(run[lo-off:hi-off], pieceBytes) {
				f.piece(record.Piece{Volume: w.Volume, Off: at, Len: int64(len(p)), Ticket: w.Ticket, Data: p}, w)
				at += int64(len(p))
			}
		}
		off += int64(len(run))
	}
}

// piece puts a piece of w into the batch, which is sealed before when it is full.
func (f *feed) piece(p record.Piece, w *capture.Write) {
	f.fill()
	for !f.job.Batch.Empty() && f.job.Batch.Raw()+len(p.Data) > f.limit || !f.job.Batch.Add(p) {
		f.seal()
		f.fill()
	}
	l := f.job.Done.(*load)
	f.at.Last = p.Ticket
	if f.began.IsZero() {
		f.began = time.Now()
	}
	if w.Kind == capture.Data || w.Kind == capture.Zero {
		if l.oldest == 0 {
			l.oldest = w.Captured
			f.pipe.fill(w.Captured)
		}
	}
}

// end says that all of w is in batches: the record of its last piece frees its slots.
func (f *feed) end(w *capture.Write) {
	l := f.job.Done.(*load)
	l.writes = append(l.writes, *w)
	if (w.Kind == capture.SyncData || w.Kind == capture.SyncZero) && !(*f.intake.Load())[w.Volume].joining {
		f.count.synced.Add(w.Len)
	}
	f.whole = w.Ticket
	l.through = w.Ticket
}

// syncs says which resync is open.
func (f *feed) syncs(c *comparison) {
	f.sync = c
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.life == f.life.number {
		f.mu.compared = c
		f.mu.plain = f.mu.plain && c != nil
	}
}

// toldSize is how large the target was told that a volume is; 0: it does not know it.
func (f *flow) toldSize(id record.VolumeID) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.told[id]
}

// sizeOf is a volume's size in bytes.
func (f *flow) sizeOf(id record.VolumeID) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, v := range f.mu.volumes {
		if v.ID == id {
			return v.Bytes
		}
	}
	return 0
}

// fill makes sure that there is a batch to fill.
func (f *feed) fill() {
	if f.job == nil {
		f.job = <-f.free
		l := f.job.Done.(*load)
		*l = load{life: f.life.number, writes: l.writes[:0]}
		f.began = time.Time{}
		f.limit = f.batchLimit(f.pool)
	}
}

// seal numbers the batch and gives it to pack.
func (f *feed) seal() {
	j := f.job
	f.job, f.sealed = nil, time.Now()
	if j.Batch.Empty() {
		f.free <- j
		return
	}
	l := j.Done.(*load)
	l.through, l.raw = f.whole, int64(j.Batch.Raw())
	l.out = f.slabs.Get(j.Batch.Bound())
	j.Out = l.out.P
	so := f.totals()
	so.First = f.sync != nil && f.sync.fresh
	j.StoreOnly = f.effort.Step(time.Now(), so)
	if was := f.count.storing.Swap(j.StoreOnly); j.StoreOnly && !was && f.compression == pack.Auto {
		f.count.rawTurns.Add(1)
	}
	f.number(j)
}

// number gives the job its place in the stream. It blocks while pack is busy.
func (f *feed) number(j *pack.Job) {
	l := j.Done.(*load)
	l.synced = f.count.synced.Load()
	j.ID, j.Time = f.identity()
	f.seq++
	f.at.Time = j.Time
	l.at = f.at
	f.pipe.push(l.oldest, l.raw)
	if invariant.Planted("datapath/free-before-sealed") {
		f.tap.Free(l.writes)
		l.writes = l.writes[:0]
	}
	f.sealing <- j
}

func (f *feed) identity() (record.Identity, record.Time) {
	f.time = max(f.time+1, record.Time(time.Now().UnixNano()))
	return record.Identity{Stream: f.cfg.Stream, Epoch: f.life.epoch, Incarnation: f.life.incarnation, Seq: f.seq}, f.time
}

// control puts a control record into the row, which is sealed up to it.
func (f *feed) control(ticket record.Ticket, build func([]byte, record.Identity, record.Time) []byte) record.Seq {
	f.fill()
	if !f.job.Batch.Empty() {
		f.seal()
		f.fill()
	}
	j := f.job
	f.job = nil
	f.whole, f.at.Last = ticket, ticket
	l := j.Done.(*load)
	l.through = ticket
	l.out = f.slabs.Get(record.HeaderBytes + record.MaxBody)
	id, t := f.identity()
	l.out.P = build(l.out.P, id, t)
	batch := j.Batch
	j.Batch, j.Out = nil, l.out.P
	l.spare = batch
	seq := f.seq
	f.number(j)
	return seq
}

// mark is a ticket of ours that has come to its place. False: the run ended before it was known what stands there.
func (f *feed) mark(t record.Ticket) bool {
	m := f.takeMark(f.life.ctx, t)
	if m == nil && f.over() {
		return false
	}
	if m == nil || m.place == nil {
		f.whole = t
		if m != nil && m.met != nil {
			f.passed(m)
		}
		return true
	}
	p := *m.place
	placed := group.Placed{Life: p.Life, Kind: p.Kind}
	switch p.Kind {
	case group.Open, group.Close:
		build, r := record.AppendResyncOpen, record.Resync{Reason: p.Reason, Volumes: m.volumes}
		if p.Kind == group.Close {
			build = record.AppendResyncClose
		}
		seq := f.control(t, func(dst []byte, id record.Identity, at record.Time) []byte {
			if f.at.Since, f.at.Covered = 0, 0; p.Kind == group.Close {
				f.at.Since, f.at.Covered = id.Seq, p.Cover
			}
			return build(dst, id, at, t, r)
		})
		if p.Kind == group.Open {
			f.syncs(newComparison(f.cfg.Stream, seq, false))
		} else {
			f.syncs(nil)
		}
	case group.Cut:
		cut := record.Cut{Wall: m.taken.UnixNano(), Tag: p.Tag, Solo: true, Freeze: f.sayable(p.Freeze), Volumes: f.sized(m.volumes)}
		if p.Number != 0 {
			cut.Solo, cut.Sources, cut.Wall = false, uint8(len(f.cuts.members)), p.Wall
		}
		f.control(t, func(dst []byte, id record.Identity, at record.Time) []byte {
			// The number of a checkpoint is the seq of its cut: it rises for ever, over
			// every restart, without anybody having to remember it.
			// Several sources agree on one, in the same manner: see cutter.
			if cut.Checkpoint = p.Number; p.Number == 0 {
				cut.Checkpoint = uint64(id.Seq)
			}
			cut.Listed = min(f.listedNewest(), cut.Checkpoint-1)
			placed.Number = cut.Checkpoint
			return record.AppendCut(dst, id, at, t, cut)
		})
		f.noteCut(p.Ask, cut)
	case group.Confirm:
		f.control(t, func(dst []byte, id record.Identity, at record.Time) []byte {
			return record.AppendConfirm(dst, id, at, t, p.Number)
		})
		return true
	}
	if p.Kind == group.Close {
		f.tap.SetLostCovered(p.Cover)
	}
	f.step(placed)
	return true
}

// stow puts sealed records into the window, in order, frees their slots, and gives
// the jobs back. It ends when pack has closed its end.
func (f *flow) stow() {
	for j := range f.sealed {
		l := j.Done.(*load)
		l.out.P = j.Out
		if j.Batch != nil {
			f.count.batches.Add(1)
			f.count.packing.Add(int64(j.Took))
			f.packedWrong(j.Wrong)
		}
		f.stowOne(j.ID.Seq, l)
		f.pipe.pop(l.raw)
		f.tap.Free(l.writes)
		clear(l.writes)
		if j.Batch == nil {
			j.Batch = l.spare
			l.spare = nil
		}
		j.Batch.Reset()
		j.Out, l.out = nil, nil
		f.free <- j
	}
}

// packedWrong notes blocks that did not open as what they were made of. They went raw, so
// nothing is lost; but what made them is not to be trusted.
func (f *flow) packedWrong(blocks int) {
	if blocks > 0 {
		f.count.wrong.Add(uint64(blocks))
		f.log.Error("compressed blocks did not open as what they were made of, and were sent uncompressed: look for faults of this machine's memory or processor, and report it", "blocks", blocks)
	}
}

func (f *flow) stowOne(seq record.Seq, l *load) {
	f.count.stored.Add(uint64(len(l.out.P)))
	f.count.raw.Add(uint64(l.raw))
	b := l.out
	if s := f.window.Stats(); s.Unsent > 0 || s.Bytes > f.window.Limit()/fitFrom {
		b = f.slabs.Fit(b) // it stays; one that is sent at once is not worth the copy
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if l.life != f.mu.life {
		b.Release()
		return
	}
	if invariant.Planted("datapath/durable-when-stowed") {
		f.tap.PublishDurable(l.through)
	}
	f.window.PutAt(&spill.Record{Seq: seq, Through: l.through, Oldest: l.oldest, Raw: l.raw, Synced: l.synced, Buffer: b}, l.at)
}

package journal

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// promotion is one pass: it brings the replicas of a group to checkpoint P and then
// drops what of the log only older checkpoints needed.
//
//  1. "checkpoints below P are gone", synced: nobody is shown any more what is about to
//     be overwritten;
//  2. for each volume, the newest versions that P holds go into the replica, each place
//     once however often it was written, in portions of a bounded size;
//  3. what was found damaged is stated;
//  4. "promoted to P", synced, after the replicas were;
//  5. the watermark says where the log begins now, then the index finds what lies below no
//     more, then the segments go. A reader that had found a piece there finds it gone,
//     looks again, and is led to the replica.
//
// Until the fourth step the log holds all that the replicas were given, so a crash or
// an error anywhere leaves a pass that is made again, from its beginning or, by the same
// process, from the place it had come to. After it only the dropping is left, which the
// next pass or the next opening does.
//
// The segment in which P's first cut stands is kept: a catalogue is made anew from the
// cuts of the log, and P is the oldest checkpoint that must be in it.
type promotion struct {
	g     *Group
	to    Checkpoint
	from  segment.Pos // what lies below is in the replicas already
	pace  func(bytes int64) error
	done  passDone
	batch batch
	found damages
}

// passDone is how far a pass has come: all of the volumes before, and of this one all
// below off. It holds for the same checkpoint and the same from alone.
type passDone struct {
	number uint64
	from   segment.Pos
	volume record.VolumeID
	off    int64
}

const (
	// portionBytes is how much of a volume is read from the log before it is written.
	portionBytes = 8 << 20
	// pieceBytes is the most that is read or checked at once.
	pieceBytes = 1 << 20
	// portionPieces bounds the pieces of a portion, however small they are.
	portionPieces = 8192
	// readers is how many blocks of a portion are read at once: what is next to each other
	// in a volume lies anywhere in the log.
	readers = 8
	// alone is how many bytes one reader reads by itself: so few gain nothing.
	alone = 1 << 20
)

var errBelow = errors.New("checkpoints below are still in use")

// promote makes the pass to the checkpoint, which the group's plan has chosen, and
// returns when it is durable and the log is shorter. One pass of a group runs at a time.
func (g *Group) promote(number uint64, pace func(bytes int64) error) error {
	g.retention.passing.Lock()
	defer g.retention.passing.Unlock()
	cp, err := g.Checkpoint(number)
	if err != nil {
		return err
	}
	p := &promotion{g: g, to: cp, pace: pace, done: g.retention.done}
	p.from = max(g.logFirst(), g.retention.from)
	if err := p.run(); err != nil {
		g.retention.done = p.done
		return fmt.Errorf("promotion to checkpoint %d: %w", number, err)
	}
	g.retention.done = passDone{}
	return nil
}

func (p *promotion) run() error {
	g := p.g
	if err := g.goneBelow(p.to.Number); err != nil {
		return err
	}
	if p.done.number != p.to.Number || p.done.from != p.from {
		p.done = passDone{number: p.to.Number, from: p.from}
	}
	for _, v := range g.Volumes() {
		if v.ID < p.done.volume {
			continue
		}
		if v.ID > p.done.volume {
			p.done.volume, p.done.off = v.ID, 0
		}
		if err := p.volume(v); err != nil {
			return fmt.Errorf("volume %d: %w", v.ID, err)
		}
	}
	if err := g.retention.promoter.Finish(); err != nil {
		return err
	}
	before, err := p.dropBefore()
	if err != nil {
		return err
	}
	return p.conclude(before)
}

// goneBelow states that the checkpoints below are gone, unless one of them is in use,
// and lists them no more.
func (g *Group) goneBelow(number uint64) error {
	g.marking.Lock()
	defer g.marking.Unlock()
	facts := g.manifest.now()
	for n := range facts.pins {
		if n < number && !invariant.Planted("journal/promote-past-pin") {
			return fmt.Errorf("checkpoint %d is pinned: %w", n, errBelow)
		}
	}
	g.mu.Lock()
	var held error
	g.eachHeldLocked(func(n uint64, _ bool) {
		if n < number && !invariant.Planted("journal/promote-past-view") {
			held = fmt.Errorf("a view stands at checkpoint %d: %w", n, errBelow)
		}
	})
	if held != nil {
		g.mu.Unlock()
		return held
	}
	g.gone = max(facts.gone, number) // from here on no view of an older one is opened
	g.mu.Unlock()
	if facts.gone < number {
		if err := g.manifest.put(true, entry{kind: entryGone, number: number}); err != nil {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.gone = facts.gone
			return err
		}
	}
	if _, err := g.store.catalogue.ForgetBetween(g.info.ID, 1, number-1, nil); err != nil {
		g.log.Warn("checkpoints that are gone are still in the catalogue", "below", number, "error", err)
	}
	return g.recount()
}

// volume brings one volume's replica to the checkpoint, from where an earlier try of the
// same pass ended.
func (p *promotion) volume(v VolumeInfo) error {
	g := p.g
	g.mu.Lock()
	r := g.volumes[v.ID].replica
	g.mu.Unlock()
	p.batch.reset()
	to := p.to
	if invariant.Planted("journal/promote-unheld") { // what came after it too
		to.At = slices.Clone(to.At)
		for i := range to.At {
			to.At[i].Seq += 1 << 40
		}
	}
	at := g.index.Vector(to)
	err := g.index.Walk(v.ID, p.done.off, v.Bytes-p.done.off, at, p.from, func(piece index.Piece) error {
		for piece.Len > 0 {
			one := piece
			one.Len = min(piece.Len, pieceBytes) // zeros may be long
			if piece.In == index.IsZero {
				one.Len = piece.Len
			}
			if p.batch.full() && p.batch.ends(one.Off) {
				if err := p.write(r); err != nil {
					return err
				}
			}
			p.batch.add(one)
			piece.Off, piece.Len, piece.BlockOff = piece.Off+one.Len, piece.Len-one.Len, piece.BlockOff+int(one.Len)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := p.write(r); err != nil {
		return err
	}
	p.done.off = v.Bytes
	return nil
}

// write puts a portion into the replica.
func (p *promotion) write(r *replica.Volume) error {
	b := &p.batch
	if len(b.pieces) == 0 {
		return nil
	}
	if err := p.read(); err != nil {
		return err
	}
	changes := b.changes[:0]
	for i := range b.pieces {
		piece := &b.pieces[i]
		c := replica.Change{Off: piece.Off, Len: piece.Len}
		if piece.In == index.InLog {
			c.Data, c.Lost = b.data[b.at[i]:b.at[i]+int(piece.Len)], b.lost[i]
		}
		changes = append(changes, c)
	}
	b.changes = changes
	volume := p.done.volume
	g := p.g
	g.retention.promoter.Pace = func(n int64) error {
		g.retention.promoted.Add(n)
		return p.pace(n)
	}
	found, err := g.retention.promoter.Apply(r, changes)
	for _, d := range found {
		p.found = p.found.add(damage{volume: volume, from: d.Off, to: d.Off + d.Len, reason: cut(d.Err.Error())})
	}
	if err != nil {
		return err
	}
	if len(found) > 0 { // before a later try of the pass might begin behind it
		if err := p.state(); err != nil {
			return err
		}
	}
	last := &b.pieces[len(b.pieces)-1]
	p.done.off = last.Off + last.Len
	b.reset()
	return nil
}

// read fills the portion's data from the log, in the log's order, each block once, and a
// large portion with several readers.
func (p *promotion) read() error {
	b := &p.batch
	b.prepare()
	n := 1
	if b.bytes > alone {
		n = readers
	}
	for len(b.readers) < n {
		b.readers = append(b.readers, &blockReader{})
	}
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i, r := range b.readers[:n] {
		order := b.order[b.blockAt(i*len(b.order)/n):b.blockAt((i+1)*len(b.order)/n)]
		read := func() { errs[i] = p.readOrder(r, order) }
		if i == n-1 {
			read()
			break
		}
		wg.Go(read)
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil && !invariant.Planted("journal/promote-unread") {
			return err
		}
	}
	return nil
}

// readOrder fills the data of some pieces, which lie in the log in this order.
func (p *promotion) readOrder(r *blockReader, order []int) error {
	b := &p.batch
	for i := 0; i < len(order); {
		first := &b.pieces[order[i]]
		n := 1 // pieces of the same block
		for i+n < len(order) && sameBlock(&b.pieces[order[i+n]], first) {
			n++
		}
		raw, err := p.open(r, first)
		if err != nil && !isDamage(err) {
			return err
		}
		if err != nil {
			p.g.log.Error("what a checkpoint holds is lost on the way into the replica", "checkpoint", p.to.Number, "volume", p.done.volume,
				"offset", first.Off, "error", err)
		}
		for _, k := range order[i : i+n] {
			piece := &b.pieces[k]
			if err != nil || piece.BlockOff+int(piece.Len) > len(raw) {
				b.lost[k] = true
				continue
			}
			copy(b.data[b.at[k]:b.at[k]+int(piece.Len)], raw[piece.BlockOff:])
		}
		i += n
	}
	return nil
}

func sameBlock(x, y *index.Piece) bool { return x.Pos == y.Pos && x.Number == y.Number }

// open reads and opens a block of the log. It is lent until the reader's next.
func (p *promotion) open(r *blockReader, piece *index.Piece) ([]byte, error) {
	stored, err := r.window.read(p.g.segments, piece.Pos+segment.Pos(piece.Block.At), piece.Block.Stored)
	if err != nil {
		return nil, err
	}
	if err := p.pace(int64(piece.Block.Stored)); err != nil {
		return nil, err
	}
	r.raw, err = record.OpenStored(r.raw[:0], piece.ID, piece.Number, piece.Block, stored)
	return r.raw, err
}

// blockReader reads blocks of the log, one after the other.
type blockReader struct {
	window window
	raw    []byte
}

// window reads ahead: blocks that are wanted next lie behind each other more often
// than not. What cannot be read ahead is read by itself.
type window struct {
	pos segment.Pos
	buf []byte
	mem []byte
}

const windowBytes = 256 << 10

func (w *window) read(log *segment.Log, pos segment.Pos, n int) ([]byte, error) {
	if pos >= w.pos && pos+segment.Pos(n) <= w.pos+segment.Pos(len(w.buf)) {
		return w.buf[pos-w.pos:][:n], nil
	}
	if w.mem == nil {
		w.mem = make([]byte, windowBytes)
	}
	near := pos >= w.pos && pos < w.pos+segment.Pos(len(w.buf))+windowBytes/4
	w.buf = w.buf[:0]
	if ahead := min(windowBytes, int(log.Durable()-pos)); near && ahead >= n {
		if log.ReadAt(w.mem[:ahead], pos) == nil {
			w.pos, w.buf = pos, w.mem[:ahead]
			return w.buf[:n], nil
		}
	}
	if err := log.ReadAt(w.mem[:n], pos); err != nil {
		return nil, err
	}
	w.pos, w.buf = pos, w.mem[:n]
	return w.buf, nil
}

// state puts into the manifest what was found damaged.
func (p *promotion) state() error {
	if len(p.found) == 0 {
		return nil
	}
	es := make([]entry, 0, len(p.found))
	for _, d := range p.found {
		es = append(es, d.entry())
	}
	return p.g.manifest.put(true, es...)
}

// dropBefore is where the log may begin once the pass is done: with the segment in
// which the first cut of the checkpoint stands. All records before a checkpoint's first
// cut are held by it.
func (p *promotion) dropBefore() (segment.Pos, error) {
	g := p.g
	var cutAt segment.Pos
	errFound := errors.New("found")
	for _, s := range g.segments.Segments() {
		err := g.segments.Replay(s.First, s.End, segment.ReplayOptions{ControlOnly: true}, func(pos segment.Pos, rec record.Record) error {
			if rec.Kind != record.KindCut {
				return nil
			}
			c, err := record.ParseCut(rec)
			if err == nil && c.Checkpoint == p.to.Number {
				cutAt = pos
				return errFound
			}
			return nil
		})
		if cutAt != 0 {
			if invariant.Planted("journal/drop-the-cut") {
				return s.End, nil
			}
			return s.First, nil
		}
		if err != nil && !isDamage(err) {
			return 0, err
		}
		if err != nil { // what cannot be read may hold the cut
			return s.First, nil
		}
	}
	return 0, fmt.Errorf("its cut is not in the log: %w", ErrCorrupt)
}

// conclude states that the replicas hold the checkpoint, and lets go of what they hold.
func (p *promotion) conclude(before segment.Pos) error {
	g := p.g
	if err := p.state(); err != nil {
		return err
	}
	now := promoted{number: p.to.Number, at: slices.Clone(p.to.At)}
	if !invariant.Planted("journal/promoted-unsaid") {
		if err := g.manifest.put(true, now.entries()...); err != nil {
			return err
		}
	}
	g.retention.note(func(r *retention) { r.base = p.to.Number })
	if err := g.drop(before); err != nil {
		return err
	}
	g.retention.from = before
	g.retention.note(func(r *retention) { r.ages.Forget(p.to.Number) })
	if len(p.found) > 0 {
		g.wounded(p.found, nil)
	}
	return p.heal(before)
}

// drop makes the log begin there.
func (g *Group) drop(before segment.Pos) error {
	if before <= g.logFirst() {
		return nil
	}
	mark := segment.Watermark{First: before, Durable: g.segments.Durable()}
	if err := g.store.raiseAll(map[record.GroupID]segment.Watermark{g.info.ID: mark}); err != nil {
		return err
	}
	if invariant.Planted("journal/drop-log-first") {
		if err := g.segments.Drop(before); err != nil {
			return err
		}
	}
	if err := g.onCommit(func() error { return g.index.Drop(before) }); err != nil {
		return err
	}
	return g.segments.Drop(before)
}

// onCommit has f called on the goroutine that commits, between two rounds of the group.
func (g *Group) onCommit(f func() error) error {
	result := make(chan error, 1)
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return ErrClosed
	}
	g.queue = append(g.queue, item{verdict: barrier, done: func(error) { result <- f() }})
	g.mu.Unlock()
	g.store.queued(g, urgent)
	return <-result
}

// heal takes back known damage that is no more: of the log below its beginning, and of
// blocks of the replicas that were written anew.
func (p *promotion) heal(first segment.Pos) error {
	g := p.g
	for _, d := range g.manifest.now().damaged {
		switch {
		case d.volume == 0 && d.from < int64(first):
			d.to = min(d.to, int64(first))
		case d.volume != 0 && p.reads(d):
		default:
			continue
		}
		if err := g.mended(d); err != nil {
			return err
		}
	}
	return nil
}

// reads says whether a damaged part of a replica is whole again.
func (p *promotion) reads(d damage) bool {
	g := p.g
	g.mu.Lock()
	v := g.volumes[d.volume]
	g.mu.Unlock()
	if v == nil {
		return false
	}
	to := min(d.to, v.replica.Bytes())
	one := make([]byte, pieceBytes)
	for off := d.from; off < to; off += pieceBytes {
		if v.replica.ReadAt(one[:min(pieceBytes, to-off)], off) != nil {
			return false
		}
	}
	return true
}

// batch is a portion on its way from the log into a replica.
type batch struct {
	pieces  []index.Piece
	bytes   int
	order   []int // of the pieces in the log, as they lie there
	at      []int // where a piece's bytes are in data
	lost    []bool
	data    []byte
	changes []replica.Change
	readers []*blockReader
}

func (b *batch) reset() { b.pieces, b.bytes = b.pieces[:0], 0 }

func (b *batch) full() bool { return b.bytes >= portionBytes || len(b.pieces) >= portionPieces }

// ends says whether a portion may end before what comes at off: not within a block.
func (b *batch) ends(off int64) bool {
	last := &b.pieces[len(b.pieces)-1]
	return off/replica.BlockBytes != (last.Off+last.Len-1)/replica.BlockBytes
}

func (b *batch) add(p index.Piece) {
	b.pieces = append(b.pieces, p)
	if p.In == index.InLog {
		b.bytes += int(p.Len)
	}
}

// prepare makes room for the data and brings the pieces into the log's order.
func (b *batch) prepare() {
	if cap(b.data) < b.bytes { // small portions are most of all, and in turn
		b.data = make([]byte, max(b.bytes, min(2*cap(b.data), portionBytes+pieceBytes)))
	}
	b.data, b.order, b.at, b.lost = b.data[:cap(b.data)], b.order[:0], b.at[:0], b.lost[:0]
	used := 0
	for i := range b.pieces {
		b.at, b.lost = append(b.at, used), append(b.lost, false)
		if b.pieces[i].In == index.InLog {
			used += int(b.pieces[i].Len)
			b.order = append(b.order, i)
		}
	}
	slices.SortFunc(b.order, func(i, j int) int {
		x, y := &b.pieces[i], &b.pieces[j]
		return cmp.Or(cmp.Compare(x.Pos, y.Pos), cmp.Compare(x.Block.At, y.Block.At))
	})
}

// blockAt is the first place at or behind i in the order at which another block begins.
func (b *batch) blockAt(i int) int {
	for i > 0 && i < len(b.order) && sameBlock(&b.pieces[b.order[i-1]], &b.pieces[b.order[i]]) {
		i++
	}
	return i
}

package journal

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

const (
	// readDepth is how many writes there are for each part of a portion that is read at once: of a pass at
	// full depth eight are.
	readDepth = 4
	// alone is how many bytes one reader reads by itself: so few gain nothing.
	alone = 1 << 20
)

// volume brings one volume's replica to the checkpoint, from where an earlier try of the
// same pass ended.
func (p *promotion) volume(v VolumeInfo) error {
	g := p.g
	g.mu.Lock()
	r := g.volumes[v.ID].replica
	g.mu.Unlock()
	s := &p.stretch
	s.reset()
	s.most = cmp.Or(g.retention.stretchPieces, stretchPieces)
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
			if s.full(one.Off) {
				if err := p.bring(r); err != nil {
					return err
				}
			}
			s.add(one)
			piece.Off, piece.Len, piece.BlockOff = piece.Off+one.Len, piece.Len-one.Len, piece.BlockOff+int(one.Len)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := p.bring(r); err != nil {
		return err
	}
	p.done.off = v.Bytes
	return nil
}

// bring puts a stretch into the replica.
func (p *promotion) bring(r *replica.Volume) error {
	s := &p.stretch
	if len(s.pieces) == 0 {
		return nil
	}
	s.order()
	p.plan()
	now, next := &p.portions[0], &p.portions[1]
	s.take(now)
	passage := &p.g.retention.passage
	err := p.read(now, passage.depth())
	for err == nil && len(now.pieces) > 0 {
		var wg sync.WaitGroup
		var unread error
		depth := passage.depth()
		if s.take(next); len(next.pieces) > 0 {
			wg.Go(func() { unread = p.read(next, depth) })
		}
		p.g.retention.promoter.Depth = depth
		err = p.write(r, now)
		wg.Wait()
		if !invariant.Planted("journal/promote-next-unread") {
			err = errors.Join(err, unread)
		}
		now, next = next, now
	}
	if err != nil {
		return err
	}
	last := &s.pieces[len(s.pieces)-1]
	p.done.off = last.Off + last.Len
	s.reset()
	return nil
}

// plan says how much the pass has to write: the stretch, and of what was not looked at yet
// as much as of what was.
func (p *promotion) plan() {
	s := &p.stretch
	here, last := int64(0), &s.pieces[len(s.pieces)-1]
	for i := range s.units {
		here += int64(s.units[i].bytes)
	}
	p.planned += here
	looked, all := last.Off+last.Len, int64(0)
	for _, v := range p.g.Volumes() {
		if all += v.Bytes; v.ID < p.done.volume {
			looked += v.Bytes
		}
	}
	rest := float64(p.planned) / float64(max(looked, 1)) * float64(max(all-looked, 0))
	p.g.retention.passage.plan(here + int64(rest))
}

// write puts a portion into the replica.
func (p *promotion) write(r *replica.Volume, b *portion) error {
	changes := b.changes[:0]
	for i := range b.pieces {
		piece := &b.pieces[i]
		c := replica.Change{Off: piece.Off, Len: piece.Len}
		if piece.In == index.InLog {
			c.Data, c.Lost = b.dataOf(i), b.lost[i]
		}
		changes = append(changes, c)
	}
	b.changes = changes
	volume := p.done.volume
	g := p.g
	g.retention.promoter.Pace = func(n int64) error {
		g.retention.promoted.Add(n)
		g.retention.room.step()
		g.retention.passage.step(time.Now(), n)
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
		return p.state()
	}
	return nil
}

// read fills the portion's data from the log, in the log's order, each block once, and a
// large portion with several readers, by that depth.
func (p *promotion) read(b *portion, depth int) error {
	b.prepare()
	n := 1
	if b.bytes > alone {
		n = (depth + readDepth - 1) / readDepth
	}
	for len(b.readers) < n {
		b.readers = append(b.readers, &blockReader{})
	}
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i, r := range b.readers[:n] {
		order := b.order[b.blockAt(i*len(b.order)/n):b.blockAt((i+1)*len(b.order)/n)]
		read := func() { errs[i] = p.readOrder(b, r, order) }
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
func (p *promotion) readOrder(b *portion, r *blockReader, order []int) error {
	if len(order) > 0 {
		last := &b.pieces[order[len(order)-1]]
		r.window.end = last.Pos + segment.Pos(last.Block.At+last.Block.Stored)
	}
	for i := 0; i < len(order); {
		first := &b.pieces[order[i]]
		n := 1 // pieces of the same block
		for i+n < len(order) && sameBlock(&b.pieces[order[i+n]], first) {
			n++
		}
		raw, err := p.open(r, first, b.wholly(order[i], n))
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
			if dst := b.dataOf(k); &dst[0] != &raw[0] {
				copy(dst, raw[piece.BlockOff:])
			}
		}
		i += n
	}
	return nil
}

// open reads and opens a block of the log, into dst where that is not nil. Otherwise it is lent until the
// reader's next.
func (p *promotion) open(r *blockReader, piece *index.Piece, dst []byte) ([]byte, error) {
	stored, err := r.window.read(p.g.segments, piece.Pos+segment.Pos(piece.Block.At), piece.Block.Stored)
	if err != nil {
		return nil, err
	}
	if err := p.pace(int64(piece.Block.Stored)); err != nil {
		return nil, err
	}
	if dst != nil {
		return record.OpenStored(dst[:0], piece.ID, piece.Number, piece.Block, stored)
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
// than not. What cannot be read ahead is read by itself; what was, is read once.
type window struct {
	pos  segment.Pos
	buf  []byte // of mem, from skip on where it was read ahead
	skip int
	mem  []byte
	end  segment.Pos // of what is wanted: behind it others read
}

const windowBytes = 512 << 10

// forget makes it a window of any log, which was not read yet.
func (w *window) forget() { *w = window{mem: w.mem} }

func (w *window) read(log *segment.Log, pos segment.Pos, n int) ([]byte, error) {
	if pos >= w.pos && pos+segment.Pos(n) <= w.pos+segment.Pos(len(w.buf)) {
		return w.buf[pos-w.pos:][:n], nil
	}
	if w.mem == nil {
		w.mem = buf.Row(windowBytes+buf.Align, 1)[0]
	}
	mem, held := w.mem, 0
	switch next := w.pos + segment.Pos(len(w.buf)); {
	case pos < w.pos || pos >= next+windowBytes/4: // who knows whether what follows is wanted
		mem = mem[:min(buf.RoundUp(n+buf.Align), len(mem))]
	case pos < next && w.skip >= 0 && !invariant.Planted("journal/promote-reads-twice"):
		from := w.skip + int(pos-w.pos)
		held = copy(mem[from&(buf.Align-1):], w.buf[pos-w.pos:])
	}
	if most := buf.RoundUp(int(max(w.end-pos, segment.Pos(n))) + buf.Align); most < len(mem) && !invariant.Planted("journal/promote-reads-twice") {
		mem = mem[:most]
	}
	w.buf = w.buf[:0]
	if p, err := log.ReadAhead(mem, pos, n, held); err == nil {
		w.pos, w.buf, w.skip = pos, p, cap(mem)-cap(p)
		return p[:n], nil
	}
	if err := log.ReadAt(w.mem[:n], pos); err != nil {
		return nil, err
	}
	w.pos, w.buf, w.skip = pos, w.mem[:n], -1
	return w.buf, nil
}

package segment

import (
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// writer writes rounds to one segment file: whole pages, each once. A round is put
// together in buffers; a full one is written while the next is filled, and what is
// left is written by finish, which waits for all. After the first error nothing more
// goes to the file.
//
//	records ──► stage ──full──► in flight (several) ──► free again
//	               └──finish──► written, when nothing else is in flight
type writer struct {
	file   ioengine.File
	life   uint64
	first  Pos // of the segment
	stages *Stages

	// The round being staged: [begin, end), of which [begin, out) was given to the file
	// and the rest is in stage.
	begin, out, end Pos
	chain           uint32
	entries         []entry
	stage           *stage // nil: none is held
	pad             [pageBytes + commitBytes]byte

	mu struct {
		sync.Mutex
		flying  int    // stages that are being written
		waiting bool   // for a stage to land, and for its buffer
		landed  *stage // the buffer for whom waits
		failed  error
	}
	landing sync.Cond // a stage landed
}

// maxFlying is how many buffers of one log are written at once: one fills while the
// disk has another and the next one waits for it.
const maxFlying = 3

func newWriter(file ioengine.File, h header, stages *Stages) *writer {
	w := &writer{
		file: file, life: h.Life, first: h.First, stages: stages,
		begin: h.First, out: h.First, end: h.First,
		chain: h.Chain,
	}
	w.landing.L = &w.mu
	return w
}

// offset is where a place of a segment is in its file.
func offset(first, pos Pos) int64 { return pageBytes + int64(pos-first) }

// append stages a copy of one record, giving to the file what is full.
func (w *writer) append(h record.Header, rec []byte) error {
	w.add(h)
	return w.put(rec)
}

// appendLent is append, but most of the record is written from where it lies: rec, aligned
// for the file, is borrowed until land. It begins where the file can be written to directly, so
// zeros may come before it; what lies beyond the last page that it fills is copied.
func (w *writer) appendLent(h record.Header, rec []byte) error {
	if err := w.padTo(roundUp(w.end, w.unit())); err != nil {
		return err
	}
	w.add(h)
	n := max((w.end+Pos(len(rec)))&^(pageBytes-1)-w.end, 0)
	if err := w.lend(rec[:n]); err != nil {
		return err
	}
	return w.put(rec[n:])
}

// unit is what the place of a record that is lent is a multiple of.
func (w *writer) unit() Pos { return Pos(max(w.file.Align(), sectorBytes)) }

func (w *writer) add(h record.Header) {
	w.entries = append(w.entries, entryOf(w.end, h))
	w.chain = chainNext(w.chain, h)
}

// padTo puts zeros up to a place less than a page away.
func (w *writer) padTo(to Pos) error {
	pad := w.pad[:to-w.end]
	clear(pad)
	return w.put(pad)
}

// sectorBytes is the least that a disk is written by.
const sectorBytes = 512

// roundUp returns pos, or the next multiple of unit, a power of two.
func roundUp(pos, unit Pos) Pos { return (pos + unit - 1) &^ (unit - 1) }

// lend stages bytes up to the end of a page without copying them.
func (w *writer) lend(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if w.stage == nil {
		if err := w.take(); err != nil {
			return err
		}
	}
	w.stage.lend(p)
	w.end += Pos(len(p))
	if w.stage.full() {
		w.start()
	}
	return nil
}

func entryOf(pos Pos, h record.Header) entry {
	return entry{Pos: pos, Size: uint32(h.Size), Kind: h.Kind, Sum: h.Checksum, Stream: h.Stream, Seq: h.Seq}
}

func (w *writer) put(p []byte) error {
	for len(p) > 0 {
		if w.stage == nil {
			if err := w.take(); err != nil {
				return err
			}
		}
		g := w.stage
		n := copy(g.mem[g.n:], p)
		p, g.n, w.end = p[n:], g.n+n, w.end+Pos(n)
		if g.n == len(g.mem) {
			w.start()
		}
	}
	return nil
}

// take gets a buffer: a free one, or the next of its own that lands.
func (w *writer) take() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		if w.mu.failed != nil {
			return w.mu.failed
		}
		if w.mu.flying < maxFlying {
			if w.stage = w.stages.tryGet(); w.stage != nil {
				return nil
			}
			if w.mu.flying == 0 {
				w.mu.Unlock()
				w.stage = w.stages.get()
				w.mu.Lock()
				return nil
			}
		}
		w.mu.waiting = true
		for w.mu.landed == nil && w.mu.flying > 0 {
			w.landing.Wait()
		}
		w.mu.waiting = false
		if g := w.mu.landed; g != nil {
			w.mu.landed = nil
			if w.mu.failed == nil {
				w.stage = g
				return nil
			}
			w.stages.put(g)
		}
	}
}

// start gives the full buffer to the file.
func (w *writer) start() {
	g := w.stage
	w.stage, g.w = nil, w
	off := offset(w.first, w.out)
	w.out = w.end
	w.mu.Lock()
	w.mu.flying++
	w.mu.Unlock()
	g.close()
	w.file.WriteStart(g.parts, off, g.done)
}

// ended is told that the write of a buffer has come to its end.
func (w *writer) ended(g *stage, err error) {
	w.mu.Lock()
	w.mu.flying--
	if err != nil && w.mu.failed == nil && !invariant.Planted("journal/segment/write-unheard") {
		w.mu.failed = err
	}
	if w.mu.waiting && w.mu.landed == nil {
		g.clear()
		w.mu.landed, g = g, nil
	}
	w.mu.Unlock()
	if g != nil {
		w.stages.put(g)
	}
	w.landing.Signal()
}

// land waits until nothing is in flight and says what went wrong.
func (w *writer) land() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.mu.flying > 0 && !invariant.Planted("journal/segment/sync-in-flight") {
		w.landing.Wait()
	}
	return w.mu.failed
}

// flush writes what is staged, which ends at a page's end, and waits for all. The last
// buffer of a round is mostly the only one, and then cheapest to write from here.
func (w *writer) flush() error {
	var err error
	if g := w.stage; g != nil {
		if w.failure() == nil {
			g.close()
			err = w.file.WriteParts(g.parts, offset(w.first, w.out))
		}
		w.out, w.stage = w.end, nil
		w.stages.put(g)
	}
	if landed := w.land(); landed != nil {
		return landed
	}
	if err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.mu.failed = err
	}
	return err
}

func (w *writer) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.failed
}

// drop ends the writing: it waits for what is in flight and gives the buffers back.
func (w *writer) drop() {
	_ = w.land() // whoever drops a writer knows
	if w.stage != nil {
		w.stages.put(w.stage)
		w.stage = nil
	}
}

// empty says whether no record was appended since the last finish.
func (w *writer) empty() bool { return len(w.entries) == 0 }

// finish ends the round with its commit and writes what is left. It is durable
// once the file was synced.
func (w *writer) finish() error {
	c := commit{
		Life: w.life, Durable: w.begin,
		Records: w.end, End: commitEnd(w.end),
		Count: uint32(len(w.entries)), Chain: w.chain,
	}
	pad := w.pad[:c.End-w.end]
	clear(pad)
	c.put(pad[len(pad)-commitBytes:])
	if err := w.put(pad); err != nil {
		return err
	}
	return w.flush()
}

// writtenRound is a round that is in the file and not known to be durable.
type writtenRound struct {
	file    ioengine.File // nil: there is none
	end     Pos
	chain   uint32
	entries []entry
}

// next begins the next round and gives the one that was finished; spare is memory for
// the entries of the new one.
func (w *writer) next(spare []entry) writtenRound {
	done := writtenRound{w.file, w.end, w.chain, w.entries}
	w.begin, w.entries = w.end, spare[:0]
	return done
}

package replica

import (
	"cmp"
	"sync"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

const (
	// Placers is how many writes of a cycle are under way at once at most. Disks give small writes at
	// random their rate only when they have many to choose from.
	Placers = 32
	// alone is how many bytes are written one after the other: so few gain nothing.
	alone = 1 << 20
)

// run is a row of neighbouring blocks, of at most chunkBytes: pieces[from:to] of its rows.
type run struct {
	first, count int64
	from, to     int
}

// rows are the blocks that ops put in place, as they are written.
type rows struct {
	runs   []run
	pieces [][]byte
	blocks int64
}

func (r *rows) reset() { r.runs, r.pieces, r.blocks = r.runs[:0], r.pieces[:0], 0 }

// add takes blocks that stand behind those before.
func (r *rows) add(first int64, data []byte) {
	for len(data) > 0 {
		n := len(r.runs) - 1
		if n < 0 || r.runs[n].first+r.runs[n].count != first || r.runs[n].count*BlockBytes == chunkBytes {
			r.runs = append(r.runs, run{first: first, from: len(r.pieces), to: len(r.pieces)})
			n++
		}
		last := &r.runs[n]
		part := data[:min(len(data), chunkBytes-int(last.count)*BlockBytes)]
		data = data[len(part):]
		count := int64(len(part) / BlockBytes)
		r.pieces = append(r.pieces, part)
		last.to++
		last.count += count
		first += count
		r.blocks += count
	}
}

// place writes what the ops say: data first, neighbours together and several at once.
// After an error some of it was not written.
func (p *Promoter) place(v *Volume, ops []op) error {
	p.rows.reset()
	for i := range ops {
		if o := &ops[i]; o.count > 0 && (o.kind == opData || o.kind == opImage) {
			p.rows.add(o.first, o.data[:o.count*BlockBytes])
		}
	}
	p.behind += len(p.rows.runs)
	if err := v.write(&p.rows, p.Pace, min(max(p.Depth, 0), Placers)); err != nil {
		return err
	}
	for i := range ops {
		if o := &ops[i]; o.kind == opZero || o.kind == opLost {
			p.behind++
			if err := p.clear(v, o); err != nil {
				return err
			}
		}
	}
	return nil
}

// write puts rows in place, each with its sums, past the page cache, at a pace, so many at once; 0: as many as
// pay. The caller has v.mu.
func (v *Volume) write(r *rows, pace func(int64) error, depth int) error {
	if len(r.runs) == 0 {
		return nil
	}
	file, err := v.pastCache()
	if err != nil {
		return err
	}
	v.dirty = true
	if r.blocks*BlockBytes <= alone {
		return v.writeRuns(file, r, pace, func(i int) int { return i })
	}
	v.allocate(file, r)
	var (
		wg     sync.WaitGroup
		turn   atomic.Int64
		failed atomic.Pointer[error]
	)
	for range cmp.Or(depth, Placers) {
		wg.Go(func() {
			err := v.writeRuns(file, r, pace, func(int) int {
				if failed.Load() != nil {
					return len(r.runs)
				}
				return int(turn.Add(1)) - 1
			})
			if err != nil && !invariant.Planted("journal/replica/place-unheard") {
				failed.CompareAndSwap(nil, &err)
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

// allocate sets space aside for runs that go into holes: file systems write into what is
// allocated several at once, and into holes one after the other, each waiting for the disk.
// Where it fails the write itself does it, or tells why not. To ask the system where holes are costs
// the more the fewer there are, so the row without any that was found last is kept.
func (v *Volume) allocate(file ioengine.File, r *rows) {
	for i := 0; i < len(r.runs); {
		off, n := r.runs[i].first*BlockBytes, r.runs[i].count*BlockBytes
		for i++; i < len(r.runs) && r.runs[i].first*BlockBytes == off+n; i++ { // neighbours at once
			n += r.runs[i].count * BlockBytes
		}
		if off >= v.filled.from && off+n <= v.filled.to {
			continue
		}
		if at, have, err := file.NextData(off); err == nil && at == off && have >= n {
			v.filled = span{off, off + have}
			continue
		}
		if file.Allocate(off, n) != nil {
			return
		}
	}
}

// span is [from, to).
type span struct{ from, to int64 }

// writeRuns writes the runs that next names, one after the other: it is given how many
// were written so far.
func (v *Volume) writeRuns(file ioengine.File, r *rows, pace func(int64) error, next func(done int) int) error {
	b := readBufs.Get().(*readBuf)
	defer readBufs.Put(b)
	for done := 0; ; done++ {
		i := next(done)
		if i >= len(r.runs) {
			return nil
		}
		one := &r.runs[i]
		if pace != nil {
			if err := pace(one.count * BlockBytes); err != nil {
				return err
			}
		}
		parts := r.pieces[one.from:one.to]
		if !written(file, parts) {
			n := 0
			for _, p := range parts {
				n += copy(b.data[n:], p)
			}
			parts = [][]byte{b.data[:n]}
		}
		unlock := v.locks.write(one.first*BlockBytes, one.count*BlockBytes)
		err := v.putIn(waited{file}, parts, b.sums, one.first)
		unlock()
		if err != nil {
			return err
		}
	}
}

// written says whether the parts, of whole blocks, can be written to the file from where they are.
func written(file ioengine.File, parts [][]byte) bool {
	for _, p := range parts {
		if !buf.IsAligned(p, file.Align()) {
			return false
		}
	}
	return len(parts) <= ioengine.MaxParts
}

// waited is a file whose writes are started, and waited for: a goroutine that waits holds no
// thread, and none of the processors that those who take records in need.
type waited struct{ ioengine.File }

// WriteParts is ioengine.File's.
func (w waited) WriteParts(parts [][]byte, off int64) error {
	done := make(chan error, 1)
	w.WriteStart(parts, off, func(err error) { done <- err })
	return <-done
}

// pastCache is the image as promotion writes it: past the page cache, so that what it
// writes waits for no sync, and does not push out what is read.
func (v *Volume) pastCache() (ioengine.File, error) {
	if v.past == nil {
		f, err := v.fs.Open(v.rawName(), ioengine.Direct)
		if err != nil {
			return nil, err
		}
		v.past = f
	}
	return v.past, nil
}

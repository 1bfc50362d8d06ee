package segment

import (
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// writer writes rounds to one segment file: whole pages, each once, in order.
type writer struct {
	file  ioengine.File
	life  uint64
	first Pos // of the segment

	// The round being staged: [begin, end), of which [begin, out) is in the file and
	// the rest in stage.
	begin, out, end Pos
	chain           uint32
	entries         []entry
	stage           []byte // aligned; whole pages
	pad             [pageBytes + commitBytes]byte
}

func newWriter(file ioengine.File, h header, stageBytes int) *writer {
	return &writer{
		file: file, life: h.Life, first: h.First,
		begin: h.First, out: h.First, end: h.First,
		chain: h.Chain,
		stage: buf.Aligned(buf.RoundUp(stageBytes)),
	}
}

// offset is where a place of a segment is in its file.
func offset(first, pos Pos) int64 { return pageBytes + int64(pos-first) }

// append stages one record, writing what does not fit.
func (w *writer) append(h record.Header, rec []byte) error {
	w.entries = append(w.entries, entryOf(w.end, h))
	w.chain = chainNext(w.chain, h)
	return w.put(rec)
}

func entryOf(pos Pos, h record.Header) entry {
	return entry{Pos: pos, Size: uint32(h.Size), Kind: h.Kind, Sum: h.Checksum, Stream: h.Stream, Seq: h.Seq}
}

func (w *writer) put(p []byte) error {
	for len(p) > 0 {
		n := copy(w.stage[w.end-w.out:], p)
		p, w.end = p[n:], w.end+Pos(n)
		if int(w.end-w.out) == len(w.stage) {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// flush writes what is staged; it ends at a page's end.
func (w *writer) flush() error {
	p := w.stage[:w.end-w.out]
	if len(p) == 0 {
		return nil
	}
	if _, err := w.file.WriteAt(p, offset(w.first, w.out)); err != nil {
		return err
	}
	w.out = w.end
	return nil
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

// next begins the next round and returns the entries of the one that ended, valid
// until the next append.
func (w *writer) next() []entry {
	done := w.entries
	w.begin, w.entries = w.end, w.entries[:0]
	return done
}

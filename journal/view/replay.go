package view

import (
	"fmt"
	"io"
)

// replayed is what a map log says.
type replayed struct {
	last   uint64 // number of the last cell that stands in order
	end    int64  // where the next goes
	marked uint64 // number of the last mark
	upTo   uint64 // what is beyond does not count
	high   uint32 // above all slots of entries that stand in order
	part   bool   // behind the end stands a beginning of an entry
}

// cells reads the cells of a map one after another, from behind the header on.
type cells struct {
	file io.ReaderAt
	size int64 // of the file
	buf  []byte
	from int64 // of buf
	err  error
}

// at returns the cell at that place; nil: the file ends before, or cannot be read.
func (c *cells) at(off int64) []byte {
	if c.err != nil || off+entryBytes > c.size {
		return nil
	}
	if off < c.from || off+entryBytes > c.from+int64(len(c.buf)) {
		const window = 256 << 10
		if c.buf == nil {
			c.buf = make([]byte, min(window, c.size-off))
		}
		c.buf = c.buf[:min(window, c.size-off)]
		c.from = off
		if n, err := c.file.ReadAt(c.buf, off); n < len(c.buf) {
			c.buf, c.err = c.buf[:0], err
			return nil
		}
	}
	return c.buf[off-c.from:][:entryBytes]
}

// entry reads the whole entry at that place; sums is memory for it. part: it has a beginning.
func (c *cells) entry(off int64, h *mapHeader, number uint64, sums []uint32) (e mapEntry, part, ok bool) {
	e, ok = parseMapEntry(c.at(off), h.life, h.blocks())
	if !ok || e.number != number {
		return e, false, false
	}
	if e.kind != entryRun {
		return e, true, true
	}
	e.sums = sums[:0]
	for i := uint64(1); i < e.cells(); i++ {
		if e.sums, ok = parseSums(e.sums, c.at(off+int64(i)*entryBytes), h.life, number+i, int(e.count)-len(e.sums)); !ok {
			return e, true, false
		}
	}
	return e, true, true
}

func (h *mapHeader) blocks() uint64 { return uint64((h.size + blockBytes - 1) / blockBytes) }

// walk calls tell with the entries that stand in order, until it returns false.
func (c *cells) walk(h *mapHeader, tell func(e *mapEntry) bool) (last uint64, end int64) {
	sums := make([]uint32, 0, maxRun)
	end = headerBytes
	for {
		e, _, ok := c.entry(end, h, last+1, sums)
		if !ok || !tell(&e) {
			return last, end
		}
		last += e.cells()
		if end += int64(e.cells()) * entryBytes; e.kind == entryMark {
			end = (end + markPage - 1) / markPage * markPage // the file may end before
		}
	}
}

// replay reads the entries and calls apply with those that count. Where the page cache may
// have been lost since they were written, only those count that a mark vouches for: of the
// rest, the data may be missing. ErrCorrupt: an entry is not there that was, for a later
// mark says that it was durable, or, where nothing was lost, for there is something behind it.
func (c *cells) replay(h *mapHeader, trustAll bool, apply func(e *mapEntry)) (r replayed, err error) {
	vouched := uint64(0)
	r.last, r.end = c.walk(h, func(e *mapEntry) bool {
		if e.kind == entryMark {
			vouched, r.marked = e.first, e.number
		}
		if trustAll && e.slot+e.count > r.high && (e.kind == entryBlock || e.kind == entryRun) {
			r.high = e.slot + e.count
		}
		return true
	})
	if r.upTo = vouched; trustAll {
		r.upTo = r.last
	}
	if r.part, err = c.rest(h, r, trustAll); err != nil {
		return r, err
	}
	c.walk(h, func(e *mapEntry) bool {
		if e.number > r.upTo {
			return false
		}
		if e.kind != entryMark {
			apply(e)
		}
		return true
	})
	return r, c.err
}

// rest looks at what stands behind the end.
func (c *cells) rest(h *mapHeader, r replayed, trustAll bool) (part bool, err error) {
	at := r.end
	e, part, ok := c.entry(at, h, r.last+1, nil)
	if part = part && !ok; trustAll && part { // it was being written
		n := r.last + 1
		for left := int(e.count); ; left -= sumsInCell {
			at, n = at+entryBytes, n+1
			if _, ok := parseSums(nil, c.at(at), h.life, n, left); !ok {
				break
			}
		}
	}
	if p := c.at(at); trustAll && p != nil && !isZero(p) {
		return part, fmt.Errorf("entry %d of the map does not read: %w", r.last+1, ErrCorrupt)
	}
	for ; at+entryBytes <= c.size && c.err == nil; at += entryBytes {
		e, ok := parseMapEntry(c.at(at), h.life, h.blocks())
		durable := ok && e.kind == entryMark && e.count != 0 && e.number-uint64(e.count) > r.last
		if durable || ok && trustAll && e.number > r.last+1 {
			return part, fmt.Errorf("entry %d of the map was there, and is not: %w", r.last+1, ErrCorrupt)
		}
	}
	return part, c.err
}

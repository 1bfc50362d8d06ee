package segment

import (
	"errors"
	"fmt"
	"io"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// A header that is damaged can be had again: all that it says stands elsewhere too. The
// first commit of the file, and its trailer, name its life and where it begins; the file's
// name is its number; the neighbours say what it follows and what follows it. The chain
// at its beginning is reckoned back from the first commit, and whoever reads the records
// holds them against it.

// remains is what a file whose header is damaged still says of it.
type remains struct {
	life      uint64
	first     Pos
	chain     uint32 // at first
	end       Pos    // of a segment with a footer; 0: it has none
	endChain  uint32
	unchained bool // the chain is not known: its first round cannot be read
}

// remains reads what stands elsewhere in the file.
func (sc *scanner) remains() (*remains, error) {
	var m *remains
	if sc.size >= 2*pageBytes {
		p, err := sc.bytes(sc.size-trailerBytes, trailerBytes)
		if err != nil {
			return nil, err
		}
		t, err := parseTrailer(p)
		if err == nil && sc.size == offset(t.First, t.End)+int64(footerBytes(t.count)) {
			m = &remains{life: t.Life, first: t.First, end: t.End, endChain: t.Chain, unchained: true}
		}
	}
	c, at, err := sc.firstCommit()
	if err != nil {
		return nil, err
	}
	if at != 0 {
		first := c.End + pageBytes - Pos(at)
		if first != c.Durable || m != nil && (m.life != c.Life || m.first != first) {
			return m, nil // the first round is damaged too: only a footer tells where it begins
		}
		if m == nil {
			m = &remains{life: c.Life, first: first, unchained: true}
		}
	}
	if m == nil {
		return nil, nil
	}
	return m, sc.reckonBack(m)
}

// empty says whether there is nothing in the file behind its header: no round was ever
// written to it, and no other use left anything.
func (sc *scanner) empty() (bool, error) {
	for off := int64(pageBytes); off < sc.size; {
		data, n, err := sc.file.NextData(off)
		if err != nil || n == 0 {
			return err == nil, err
		}
		for at := max(off, data&^(pageBytes-1)); at < data+n; at += pageBytes {
			if p, err := sc.bytes(at, pageBytes); err != nil || !allZero(p) {
				return false, err
			}
		}
		off = data + n
	}
	return true, nil
}

// firstCommit returns the first commit of the file, and where in it the commit ends; 0:
// there is none. The pages of the first round hold nothing of an earlier use.
func (sc *scanner) firstCommit() (c commit, end int64, err error) {
	for off := int64(pageBytes); off < sc.size; {
		data, n, err := sc.file.NextData(off)
		if err != nil || n == 0 {
			return commit{}, 0, err
		}
		for at := data &^ (pageBytes - 1); at < data+n; at += pageBytes {
			p, err := sc.bytes(at, pageBytes)
			if err != nil || len(p) < pageBytes {
				return commit{}, 0, err
			}
			if c, err := parseCommit(p[pageBytes-commitBytes:]); err == nil {
				return c, at + pageBytes, nil
			}
		}
		off = data + n
	}
	return commit{}, 0, nil
}

// reckonBack finds the chain at the beginning: from that after the first round, or after
// all records by the footer.
func (sc *scanner) reckonBack(m *remains) error {
	if m.end == m.first {
		m.chain, m.unchained = m.endChain, false
		return nil
	}
	x := &scanner{file: sc.file, size: sc.size, want: wantHeaders, unchained: true, header: header{Life: m.life, First: m.first}}
	var r round
	err := x.round(&r, m.first, 0)
	entries, chain := r.entries, r.chain
	if torn := (*errTorn)(nil); errors.As(err, &torn) && m.end != 0 {
		var p []byte
		n := sc.size - offset(m.first, m.end)
		if p, err = sc.bytes(sc.size-n, int(n)); err != nil {
			return err
		}
		f, bad := parseFooter(p)
		if bad != nil {
			return nil
		}
		entries, chain = f.Entries, m.endChain
	} else if errors.As(err, &torn) {
		return nil
	}
	if err != nil {
		return err
	}
	of := byTopByte()
	for i := range entries {
		chain = chainBefore(of, chain, entries[len(entries)-1-i].Sum)
	}
	m.chain, m.unchained = chain, false
	return nil
}

// chainBefore is chainNext backwards: the chain before the record with that checksum.
func chainBefore(of *[256]byte, chain, sum uint32) uint32 {
	chain = ^chain
	for range 4 {
		i := of[byte(chain>>24)]
		chain = (chain^castagnoli[i])<<8 | uint32(i)
	}
	return ^(chain ^ sum)
}

// byTopByte finds entries of the table of the checksum by their highest byte, which no two
// share.
func byTopByte() *[256]byte {
	of := new([256]byte)
	for i, v := range castagnoli {
		of[v>>24] = byte(i)
	}
	return of
}

// restore gives the files whose headers are damaged what they must have said, in memory, as
// far as what is left of them and their neighbours tell.
func restore(group record.GroupID, found []surveyed) {
	for i := len(found) - 1; i >= 0; i-- {
		x := &found[i]
		if x.remains == nil || x.remains.unchained || invariant.Planted("journal/segment/header-is-all") {
			continue
		}
		h := header{Group: group, Number: x.number, Life: x.remains.life, First: x.remains.first, Chain: x.remains.chain, Padded: true}
		if x.number > 1 {
			h.Pred = 1 // what was before is gone, and nobody asks for it
			if i > 0 {
				h.Pred = found[i-1].lastLife()
			}
		}
		if i+1 < len(found) && !h.endAt(x.remains, &found[i+1]) {
			continue
		}
		page := make([]byte, pageBytes)
		h.put(page)
		if again, err := parseHeader(page); err != nil || again != h {
			continue
		}
		x.header, x.err, x.restored = h, nil, true
	}
}

// lastLife is the life that the successor of the file names; 0: it is not known.
func (x *surveyed) lastLife() uint64 {
	if x.err == nil {
		_, life := x.header.last()
		return life
	}
	if x.remains != nil {
		return x.remains.life
	}
	return 0
}

// endAt makes h one that next follows, and says whether that can be: a folded segment
// where next names another life.
func (h *header) endAt(m *remains, next *surveyed) bool {
	n := next.header
	if next.err != nil {
		return false
	}
	if n.Number == h.Number+1 {
		return n.Pred == h.Life // else next may be one that the fold stands for
	}
	if m.end == 0 || n.Number <= h.Number {
		return false
	}
	h.Fold = fold{To: n.First, End: m.end, Last: n.Number - 1, FirstLife: h.Life, LastLife: n.Pred, Chain: n.Chain, EndChain: m.endChain}
	return true
}

// scannerOf opens the file of s for reading its records.
func scannerOf(file ioengine.File, s *segment) (*scanner, error) {
	sc, err := openScanner(file)
	if s.restored && sc != nil && errors.Is(err, ErrCorrupt) {
		sc.header, sc.restored, err = s.header, true, nil
	}
	if err == nil && sc.header != s.header {
		err = corrupt("header: it changed")
	}
	return sc, err
}

// Restore writes a segment whose header is damaged anew, with the header that it had, in a
// new file that was verified whole. ErrCorrupt: more of it is damaged; nothing has changed.
func (l *Log) Restore(number uint64) error {
	s, err := l.closed(number)
	if err != nil {
		return err
	}
	defer l.unpin(s)
	file, err := l.openSegment(s, ioengine.ReadOnly)
	if err != nil {
		return err
	}
	defer file.Close() // only read
	return l.Replace(number, func(w io.Writer) error {
		page := buf.Aligned(pageBytes)
		s.header.put(page)
		if _, err := w.Write(page); err != nil {
			return err
		}
		size, err := file.Size()
		if err != nil {
			return err
		}
		size = min(size, offset(s.First, s.end)) // a footer is made anew
		p := buf.Aligned(scanBytes)
		for off := int64(pageBytes); off < size; {
			n := int(min(scanBytes, size-off))
			if err := readFull(file, p[:buf.RoundUp(n)][:n], off); err != nil {
				return fmt.Errorf("at %d: %w", off, err)
			}
			if _, err := w.Write(p[:n]); err != nil {
				return err
			}
			off += int64(n)
		}
		return nil
	})
}

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

// scanner reads a segment file: rounds by their tables, and whole records where asked to.
type scanner struct {
	header
	file ioengine.File
	size int64 // of the file
	want want
	// unchained takes a round whatever chain it follows.
	unchained bool
	restored  bool                  // the header is damaged: whether the file is recycled is not known
	pace      func(bytes int) error // before each read; may be nil

	mem   []byte // aligned; holds file bytes [at, at+n)
	at    int64
	n     int
	from  int64 // where the last bytes asked for began
	last  int64 // and ended
	ahead int   // bytes to read at once
}

// want is how much of the records a scanner reads, beside their headers.
type want uint8

const (
	wantTables  want = iota
	wantControl      // tables of control records alone
	wantHeaders      // nothing
	wantWhole        // all, and verifies it
)

// What lies within nearBytes of what was read last is read in ever larger parts, up to
// scanBytes; what lies further on, by the page: a disk that gives 80 000 pages a second
// and 1 GiB gives 13 KiB in the time of a page.
const (
	nearBytes = 16 << 10
	scanBytes = 1 << 20
)

// openScanner reads the file's header; it borrows the file.
func openScanner(file ioengine.File) (*scanner, error) {
	size, err := file.Size()
	if err != nil {
		return nil, err
	}
	s := &scanner{file: file, size: size}
	p, err := s.bytes(0, pageBytes)
	if err != nil {
		return nil, err
	}
	s.header, err = parseHeader(p)
	return s, err
}

// bytes returns n bytes of the file, valid until the next call; fewer at its end.
func (s *scanner) bytes(off int64, n int) ([]byte, error) {
	n = int(min(int64(n), s.size-off))
	if n <= 0 {
		return nil, nil
	}
	if off < s.at || off+int64(n) > s.at+int64(s.n) {
		if err := s.fill(off, n); err != nil {
			return nil, err
		}
	}
	s.from, s.last = off, off+int64(n)
	from := int(off - s.at)
	return s.mem[from:min(from+n, s.n)], nil
}

func (s *scanner) fill(off int64, n int) error {
	from := s.from // what is asked for may begin with what was: a record with its header
	if invariant.Planted("journal/segment/record-by-record") {
		from = s.last
	}
	if off >= from && off-s.last < nearBytes {
		s.ahead = min(max(2*s.ahead, pageBytes), scanBytes)
	} else {
		s.ahead = pageBytes
	}
	at := off &^ (pageBytes - 1)
	held := s.held(at)
	s.at, s.n = at, 0
	part := buf.RoundUp(max(int(off-at)+n, len(held)+s.ahead))
	part = int(min(int64(part), (s.size-at+pageBytes-1)&^(pageBytes-1)))
	if part > len(s.mem) && part < scanBytes {
		s.mem = buf.Aligned(part)
	} else if part > len(s.mem) {
		s.mem = buf.Row(part, 1)[0]
	}
	got := copy(s.mem, held)
	if s.pace != nil {
		if err := s.pace(part - got); err != nil {
			return err
		}
	}
	more, err := s.file.ReadAt(s.mem[got:part], at+int64(got))
	got += more
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if err == nil && int64(got) < int64(n)+off-s.at {
		err = fmt.Errorf("file of %d bytes ends at %d: %w", s.size, s.at+int64(got), io.ErrUnexpectedEOF)
	}
	if err == nil {
		s.n = got
	}
	return err
}

// held returns what is held of the file from at on, where that ends with a page: the rest is read behind it.
// A record that goes on behind what was read ahead is so not read twice.
func (s *scanner) held(at int64) []byte {
	if at < s.at || at >= s.at+int64(s.n) || s.n%pageBytes != 0 || invariant.Planted("journal/segment/read-twice") {
		return nil
	}
	return s.mem[at-s.at : s.n]
}

// round is one round of a segment.
type round struct {
	begin, end Pos
	chain      uint32 // at its end
	entries    []entry
	records    []record.Record // those whose tables were wanted
	places     []Pos           // theirs
	tables     []byte          // what records borrow, mostly
}

// errTorn says that no whole round follows; it wraps what is amiss.
type errTorn struct {
	at  Pos
	why error
}

func (e *errTorn) Error() string { return fmt.Sprintf("at %s: %v", e.at, e.why) }
func (e *errTorn) Unwrap() error { return e.why }

// round reads the round that begins at begin, after records of the given chain,
// into r, whose memory it reuses. Its error is an *errTorn, ErrVersion, or of the disk.
func (s *scanner) round(r *round, begin Pos, chain uint32) error {
	*r = round{begin: begin, chain: chain, entries: r.entries[:0], records: r.records[:0], places: r.places[:0], tables: r.tables[:0]}
	for pos := begin; ; {
		p, err := s.bytes(offset(s.First, pos), record.HeaderBytes)
		if err != nil {
			return err
		}
		h, err := record.ParseHeader(p)
		if errors.Is(err, record.ErrMagic) || errors.Is(err, record.ErrShort) {
			next, err := s.padded(r, pos)
			if err != nil {
				return err
			}
			if next == pos {
				return s.commit(r, pos)
			}
			pos = next
			continue
		}
		if err == nil {
			err = s.record(r, pos, h)
		}
		if err != nil {
			return s.amiss(pos, err)
		}
		pos += Pos(h.Size)
	}
}

// padded returns where a round goes on whose records end at pos: behind zeros, at the next
// sector, or at a later one up to the end of the page; pos itself when they end the round. Of the
// zeros one word may be damaged; a commit, whatever is damaged of it, has more that are not zero.
func (s *scanner) padded(r *round, pos Pos) (Pos, error) {
	if len(r.entries) == 0 || invariant.Planted("journal/segment/pad-is-end") {
		return pos, nil
	}
	to := roundUp(pos, pageBytes)
	p, err := s.bytes(offset(s.First, pos), int(to-pos)+record.HeaderBytes)
	if err != nil {
		return pos, err
	}
	for next := roundUp(pos, sectorBytes); next <= to; next += sectorBytes {
		n := int(next - pos)
		if n >= len(p) || !nearlyZero(p[:n]) {
			break
		}
		if _, err := record.ParseHeader(p[n:]); err == nil && n > 0 {
			return next, nil
		}
	}
	return pos, nil
}

// nearlyZero says whether at most one word of 8 bytes is not zero.
func nearlyZero(p []byte) bool {
	other := 0
	for ; len(p) > 0; p = p[min(8, len(p)):] {
		if !allZero(p[:min(8, len(p))]) {
			other++
		}
	}
	return other <= 1 && (other == 0 || !invariant.Planted("journal/segment/pad-rots"))
}

// amiss makes what a parser said the end of the whole rounds. The disk's errors stay
// themselves, and so does a record of a version or kind that is unknown here: its
// checksum is right, so it is no torn one.
func (s *scanner) amiss(at Pos, err error) error {
	if errors.Is(err, record.ErrVersion) || errors.Is(err, record.ErrKind) {
		return fmt.Errorf("at %s: %w: %w", at, ErrVersion, err)
	}
	for _, ours := range []error{ErrCorrupt, record.ErrCorrupt, record.ErrShort, record.ErrMagic} {
		if errors.Is(err, ours) {
			return &errTorn{at, err}
		}
	}
	return fmt.Errorf("at %s: %w", at, err)
}

// record adds the record at pos, whose header is h.
func (s *scanner) record(r *round, pos Pos, h record.Header) error {
	if err := s.contents(r, pos, h); err != nil {
		return err
	}
	r.entries = append(r.entries, entryOf(pos, h))
	r.chain = chainNext(r.chain, h)
	return nil
}

// contents reads what is wanted of a record beside its header.
func (s *scanner) contents(r *round, pos Pos, h record.Header) error {
	switch {
	case s.want == wantWhole:
		_, err := s.whole(entryOf(pos, h))
		return err
	case s.want == wantHeaders || s.want == wantControl && !isControl(h.Kind):
		return nil
	}
	p, err := s.bytes(offset(s.First, pos), h.TablesEnd())
	if err != nil {
		return err
	}
	begin := len(r.tables)
	r.tables = append(r.tables, p...)
	rec, err := record.ParseTables(h, r.tables[begin:len(r.tables):len(r.tables)])
	if err != nil {
		return err
	}
	r.records, r.places = append(r.records, rec), append(r.places, pos)
	return nil
}

// isControl says whether records of the kind carry no writes.
func isControl(k record.Kind) bool { return k != record.KindData && k != record.KindFolded }

// commit ends the round whose records end at pos.
func (s *scanner) commit(r *round, pos Pos) error {
	r.end = commitEnd(pos)
	p, err := s.bytes(offset(s.First, pos), int(r.end-pos))
	if err != nil {
		return s.amiss(pos, err)
	}
	if len(p) < int(r.end-pos) {
		return &errTorn{pos, corrupt("the file ends")}
	}
	pad := len(p) - commitBytes
	c, err := parseCommit(p[pad:])
	if errors.Is(err, ErrVersion) && le.Uint64(p[pad+atCommitLife:]) == s.Life {
		return fmt.Errorf("at %s: %w", pos, err)
	}
	if err != nil {
		return &errTorn{pos, err}
	}
	want := commit{Life: s.Life, Durable: r.begin, Records: pos, End: r.end, Count: uint32(len(r.entries)), Chain: r.chain}
	if s.unchained {
		want.Chain = c.Chain
		r.chain = c.Chain
	}
	if c != want || !allZero(p[:pad]) {
		return &errTorn{pos, corrupt("the commit is not that of this round")}
	}
	return nil
}

// whole returns one record with its payload verified, valid until the next call.
// An error of the data is an *errTorn.
func (s *scanner) whole(e entry) (record.Record, error) {
	p, err := s.bytes(offset(s.First, e.Pos), int(e.Size))
	if err != nil {
		return record.Record{}, err
	}
	r, err := record.Parse(p)
	if err == nil {
		err = r.VerifyPayload()
	}
	if err == nil && entryOf(e.Pos, r.Header) != e {
		err = corrupt("another record")
	}
	if err != nil {
		return record.Record{}, s.amiss(e.Pos, err)
	}
	return r, nil
}

// chainAt returns the chain at pos, if that is known to be where a round of this life ends
// or the segment begins.
func (s *scanner) chainAt(pos Pos) (chain uint32, ok bool, err error) {
	if pos == s.First {
		return s.Chain, true, nil
	}
	if pos < s.First+pageBytes || pos%pageBytes != 0 || offset(s.First, pos) > s.size {
		return 0, false, nil
	}
	p, err := s.bytes(offset(s.First, pos)-commitBytes, commitBytes)
	if err != nil {
		return 0, false, err
	}
	c, err := parseCommit(p)
	if err != nil || c.Life != s.Life || c.End != pos {
		return 0, false, nil // whoever reads on from record to record learns more
	}
	return c.Chain, true, nil
}

// following looks for the first commit in [from, to) of this life whose round begins at
// least at. It is found without reading on from record to record, since commits stand at the ends of pages; a
// guest cannot write one, since it cannot know the segment's life.
func (s *scanner) following(from, to, least Pos) (commit, bool, error) {
	limit := min(s.size, offset(s.First, to))
	for off := offset(s.First, from); off < limit; {
		data, n, err := s.file.NextData(off)
		if err != nil || n == 0 {
			return commit{}, false, err
		}
		for at := data &^ (pageBytes - 1); at < min(data+n, limit); at += pageBytes {
			p, err := s.bytes(at, pageBytes)
			if err != nil {
				return commit{}, false, err
			}
			if len(p) < pageBytes {
				break
			}
			c, err := parseCommit(p[pageBytes-commitBytes:])
			if err == nil && c.Life == s.Life && c.Durable >= least && offset(s.First, c.End) == at+pageBytes {
				return c, true, nil
			}
		}
		off = data + n
	}
	return commit{}, false, nil
}

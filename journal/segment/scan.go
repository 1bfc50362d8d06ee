package segment

import (
	"errors"
	"fmt"
	"io"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// scanner reads a segment file front to back: rounds by their tables, and whole
// records where asked to.
type scanner struct {
	header
	file ioengine.File
	size int64 // of the file

	mem []byte // aligned; holds file bytes [at, at+n)
	at  int64
	n   int
}

// scanBytes is read at once: many small records, or the tables of a large one.
const scanBytes = 256 << 10

// openScanner reads the file's header; it borrows the file.
func openScanner(file ioengine.File) (*scanner, error) {
	size, err := file.Size()
	if err != nil {
		return nil, err
	}
	s := &scanner{file: file, size: size, mem: buf.Aligned(buf.RoundUp(int(min(size, scanBytes))))}
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
	from := int(off - s.at)
	return s.mem[from:min(from+n, s.n)], nil
}

func (s *scanner) fill(off int64, n int) error {
	s.at = off &^ (pageBytes - 1)
	if need := buf.RoundUp(int(off-s.at) + n); need > len(s.mem) {
		s.mem = buf.Aligned(need)
	}
	var err error
	s.n, err = s.file.ReadAt(s.mem, s.at)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if err == nil && int64(s.n) < int64(n)+off-s.at {
		err = fmt.Errorf("file of %d bytes ends at %d: %w", s.size, s.at+int64(s.n), io.ErrUnexpectedEOF)
	}
	return err
}

// round is one round of a segment.
type round struct {
	begin, end Pos
	chain      uint32 // at its end
	entries    []entry
	records    []record.Record // tables only
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
// into r, whose memory it reuses. The payload is not looked at. Its error is an
// *errTorn, ErrVersion, or of the disk.
func (s *scanner) round(r *round, begin Pos, chain uint32) error {
	*r = round{begin: begin, chain: chain, entries: r.entries[:0], records: r.records[:0], tables: r.tables[:0]}
	for pos := begin; ; {
		p, err := s.bytes(offset(s.First, pos), record.HeaderBytes)
		if err != nil {
			return err
		}
		h, err := record.ParseHeader(p)
		if errors.Is(err, record.ErrMagic) || errors.Is(err, record.ErrShort) {
			return s.commit(r, pos)
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

// amiss makes what a parser said the end of the whole rounds. The disk's errors stay
// themselves, and so does a record of a version or kind that is unknown here: its
// checksum is right, so it is no torn one.
func (s *scanner) amiss(at Pos, err error) error {
	if errors.Is(err, record.ErrVersion) || errors.Is(err, record.ErrKind) {
		return fmt.Errorf("at %s: %w: %w", at, ErrVersion, err)
	}
	for _, ours := range []error{ErrCorrupt, record.ErrCorrupt, record.ErrShort} {
		if errors.Is(err, ours) {
			return &errTorn{at, err}
		}
	}
	return fmt.Errorf("at %s: %w", at, err)
}

// record adds the record at pos, whose header is h.
func (s *scanner) record(r *round, pos Pos, h record.Header) error {
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
	r.records = append(r.records, rec)
	r.entries = append(r.entries, entryOf(pos, h))
	r.chain = chainNext(r.chain, h)
	return nil
}

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
	if err != nil && !errors.Is(err, ErrVersion) {
		return &errTorn{pos, err}
	}
	if err != nil {
		return fmt.Errorf("at %s: %w", pos, err)
	}
	want := commit{Life: s.Life, Durable: r.begin, Records: pos, End: r.end, Count: uint32(len(r.entries)), Chain: r.chain}
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

// vouches looks for a commit after from which says that the log was durable beyond
// it: then what is amiss at from is no torn tail. It is found without reading on
// from record to record, since commits stand at the ends of pages; a guest cannot
// write one, since it cannot know the segment's life.
func (s *scanner) vouches(from Pos) (bool, error) {
	for off := offset(s.First, from); off < s.size; {
		data, n, err := s.file.NextData(off)
		if err != nil || n == 0 {
			return false, err
		}
		for at := data &^ (pageBytes - 1); at < data+n; at += pageBytes {
			p, err := s.bytes(at, pageBytes)
			if err != nil {
				return false, err
			}
			if len(p) < pageBytes {
				break
			}
			c, err := parseCommit(p[pageBytes-commitBytes:])
			if err == nil && c.Life == s.Life && c.Durable > from && offset(s.First, c.End) == at+pageBytes {
				return true, nil
			}
		}
		off = data + n
	}
	return false, nil
}

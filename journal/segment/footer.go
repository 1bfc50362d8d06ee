package segment

import (
	"fmt"
	"hash/crc32"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// entry is a record in the footer's table.
type entry struct {
	Pos    Pos
	Size   uint32
	Kind   record.Kind
	Sum    uint32 // the record header's checksum
	Stream record.StreamID
	Seq    record.Seq
}

const (
	entryBytes = 40

	atEntryPos    = 0
	atEntrySize   = 8
	atEntryKind   = 12
	atEntryZero   = 13
	atEntryStream = 16
	atEntrySeq    = 24
	atEntrySum    = 32
	atEntryZero2  = 36
)

// footer is what a closed and verified segment ends in: the table of its records,
// zeros, and a trailer that fills the end of the file's last page.
type footer struct {
	Life       uint64
	First, End Pos
	Chain      uint32 // of all records up to End
	Entries    []entry
}

const (
	footerMagic  = 0x31464648 // "HFF1"
	trailerBytes = 64

	atTrailerLife  = 8
	atTrailerFirst = 16
	atTrailerEnd   = 24
	atTrailerCount = 32
	atTrailerChain = 36
	atTableCRC     = 40
	atTrailerZero  = 44
	atTrailerCRC   = 60
)

var _ [trailerBytes]byte = [atTrailerCRC + 4]byte{}

// footerBytes is the size of a footer of n entries.
func footerBytes(n int) int {
	return (n*entryBytes + trailerBytes + pageBytes - 1) / pageBytes * pageBytes
}

// put writes the footer into p, of footerBytes.
func (f footer) put(p []byte) {
	clear(p)
	for i, e := range f.Entries {
		q := p[i*entryBytes:]
		le.PutUint64(q[atEntryPos:], uint64(e.Pos))
		le.PutUint32(q[atEntrySize:], e.Size)
		q[atEntryKind] = byte(e.Kind)
		le.PutUint64(q[atEntryStream:], uint64(e.Stream))
		le.PutUint64(q[atEntrySeq:], uint64(e.Seq))
		le.PutUint32(q[atEntrySum:], e.Sum)
	}
	table, t := p[:len(f.Entries)*entryBytes], p[len(p)-trailerBytes:]
	le.PutUint32(t[atMagic:], footerMagic)
	le.PutUint16(t[atVersion:], version)
	le.PutUint64(t[atTrailerLife:], f.Life)
	le.PutUint64(t[atTrailerFirst:], uint64(f.First))
	le.PutUint64(t[atTrailerEnd:], uint64(f.End))
	le.PutUint32(t[atTrailerCount:], uint32(len(f.Entries)))
	le.PutUint32(t[atTrailerChain:], f.Chain)
	le.PutUint32(t[atTableCRC:], crc32.Checksum(table, castagnoli))
	le.PutUint32(t[atTrailerCRC:], crc32.Checksum(t[:atTrailerCRC], castagnoli))
}

// trailer is what the last page says before its table is read.
type trailer struct {
	footer   // without entries
	count    int
	tableCRC uint32
}

// parseTrailer takes the last trailerBytes of a file.
func parseTrailer(t []byte) (trailer, error) {
	if len(t) != trailerBytes {
		return trailer{}, corrupt("footer is cut short")
	}
	if err := checkFrame(t, footerMagic, atTrailerCRC, version); err != nil {
		return trailer{}, fmt.Errorf("footer: %w", err)
	}
	x := trailer{
		footer: footer{
			Life:  le.Uint64(t[atTrailerLife:]),
			First: Pos(le.Uint64(t[atTrailerFirst:])),
			End:   Pos(le.Uint64(t[atTrailerEnd:])),
			Chain: le.Uint32(t[atTrailerChain:]),
		},
		count:    int(le.Uint32(t[atTrailerCount:])),
		tableCRC: le.Uint32(t[atTableCRC:]),
	}
	switch {
	case !allZero(t[atTrailerZero:atTrailerCRC]):
		return trailer{}, corrupt("footer: reserved bytes in use")
	case x.Life == 0 || x.First < Start || x.End < x.First || x.End > maxPos ||
		x.First%pageBytes != 0 || x.End%pageBytes != 0 || int64(x.count) > int64(x.End-x.First)/record.HeaderBytes:
		return trailer{}, corrupt("footer: a field without sense")
	}
	return x, nil
}

// parseFooter takes a whole footer, as long as its trailer says.
func parseFooter(p []byte) (footer, error) {
	if len(p) < trailerBytes {
		return footer{}, corrupt("footer is cut short")
	}
	x, err := parseTrailer(p[len(p)-trailerBytes:])
	if err != nil {
		return footer{}, err
	}
	if len(p) != footerBytes(x.count) {
		return footer{}, corrupt("footer: length")
	}
	tableEnd := x.count * entryBytes
	if crc32.Checksum(p[:tableEnd], castagnoli) != x.tableCRC {
		return footer{}, corrupt("footer: checksum of the table")
	}
	if !allZero(p[tableEnd : len(p)-trailerBytes]) {
		return footer{}, corrupt("footer: padding in use")
	}
	f, at := x.footer, x.First
	for ; x.count > len(f.Entries); p = p[entryBytes:] {
		e := entry{
			Pos:    Pos(le.Uint64(p[atEntryPos:])),
			Size:   le.Uint32(p[atEntrySize:]),
			Kind:   record.Kind(p[atEntryKind]),
			Stream: record.StreamID(le.Uint64(p[atEntryStream:])),
			Seq:    record.Seq(le.Uint64(p[atEntrySeq:])),
			Sum:    le.Uint32(p[atEntrySum:]),
		}
		if e.Pos < at || e.Size < record.HeaderBytes || e.Pos+Pos(e.Size) > f.End ||
			!allZero(p[atEntryZero:atEntryStream]) || !allZero(p[atEntryZero2:entryBytes]) {
			return footer{}, corrupt("footer: an entry without sense")
		}
		at = e.Pos + Pos(e.Size)
		f.Entries = append(f.Entries, e)
	}
	return f, nil
}

package retain

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"time"
)

// Book is what a store knows of time, and keeps in one file: its clock, and for each
// group when its checkpoints were listed.
type Book struct {
	Clock  Clock
	Groups []Entry // ordered by group
}

// Entry is a group's part of a Book. The lineage is that of the history it dates.
type Entry struct {
	Group, Lineage uint64
	Ages           Ages
}

// ErrBook says that a file is not what was written.
var ErrBook = errors.New("corrupt file of ages")

// The file; see FORMAT.md.
const (
	bookMagic   = 0x31414648 // "HFA1"
	bookVersion = 1
	bookBytes   = 52 // of its header

	atBookMagic   = 0
	atBookVersion = 4
	atBookPassed  = 8
	atBookBoot    = 16
	atBookMono    = 32
	atBookWall    = 40
	atBookGroups  = 48

	maxGroups = 1 << 16
	maxMarks  = 1 << 20
	maxPassed = 100 * 365 * day
)

var _ [bookBytes]byte = [atBookGroups + 4]byte{}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// AppendTo appends the file.
func (b *Book) AppendTo(dst []byte) []byte {
	start := len(dst)
	dst = le.AppendUint32(dst, bookMagic)
	dst = le.AppendUint32(dst, bookVersion)
	dst = le.AppendUint64(dst, uint64(b.Clock.Passed))
	dst = append(dst, b.Clock.Last.Boot[:]...)
	dst = le.AppendUint64(dst, uint64(b.Clock.Last.Mono))
	dst = le.AppendUint64(dst, uint64(b.Clock.Last.Wall))
	dst = le.AppendUint32(dst, uint32(len(b.Groups)))
	for i := range b.Groups {
		e := &b.Groups[i]
		dst = le.AppendUint64(dst, e.Group)
		dst = le.AppendUint64(dst, e.Lineage)
		dst = le.AppendUint32(dst, uint32(len(e.Ages.marks)))
		var last Mark
		for _, m := range e.Ages.marks {
			dst = binary.AppendUvarint(dst, uint64(m.At-last.At))
			dst = binary.AppendUvarint(dst, m.Number-last.Number)
			last = m
		}
	}
	return le.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

// ParseBook takes what AppendTo wrote. ErrBook: it is not that; ErrVersion: a newer
// release wrote it.
func ParseBook(p []byte) (*Book, error) {
	if len(p) < bookBytes+4 || le.Uint32(p[atBookMagic:]) != bookMagic {
		return nil, fmt.Errorf("%d bytes: %w", len(p), ErrBook)
	}
	body := p[:len(p)-4]
	if crc32.Checksum(body, castagnoli) != le.Uint32(p[len(body):]) {
		return nil, fmt.Errorf("checksum: %w", ErrBook)
	}
	if v := le.Uint32(p[atBookVersion:]); v != bookVersion {
		return nil, fmt.Errorf("ages of version %d: %w", v, ErrVersion)
	}
	b := &Book{Clock: Clock{Passed: time.Duration(le.Uint64(p[atBookPassed:])),
		Last: Instant{Mono: time.Duration(le.Uint64(p[atBookMono:])), Wall: int64(le.Uint64(p[atBookWall:]))}}}
	copy(b.Clock.Last.Boot[:], p[atBookBoot:])
	d := bookReader{p: body[bookBytes:]}
	groups := le.Uint32(p[atBookGroups:])
	d.ok(groups <= maxGroups && b.Clock.Passed >= 0 && b.Clock.Passed <= maxPassed)
	for i := uint32(0); i < groups && !d.bad; i++ {
		e := Entry{Group: d.u64(), Lineage: d.u64()}
		d.ok(i == 0 || e.Group > b.Groups[i-1].Group)
		e.Ages.marks = d.marks(b.Clock.Passed)
		e.Ages.thinned = len(e.Ages.marks)
		b.Groups = append(b.Groups, e)
	}
	if d.bad || len(d.p) > 0 {
		return nil, fmt.Errorf("a field without sense: %w", ErrBook)
	}
	return b, nil
}

// Of returns a group's ages, if they are those of this history.
func (b *Book) Of(group, lineage uint64) Ages {
	for i := range b.Groups {
		if e := &b.Groups[i]; e.Group == group && e.Lineage == lineage {
			return Ages{marks: slices.Clone(e.Ages.marks), thinned: e.Ages.thinned}
		}
	}
	return Ages{}
}

// bookReader takes fields off p; after one that is not there, bad is set.
type bookReader struct {
	p   []byte
	bad bool
}

func (d *bookReader) ok(ok bool) { d.bad = d.bad || !ok }

func (d *bookReader) take(n int) []byte {
	if len(d.p) < n {
		d.bad, d.p = true, nil
		return make([]byte, n)
	}
	q := d.p[:n]
	d.p = d.p[n:]
	return q
}

func (d *bookReader) u64() uint64 { return le.Uint64(d.take(8)) }

// uvarint takes one in its only encoding.
func (d *bookReader) uvarint() uint64 {
	v, n := binary.Uvarint(d.p)
	if n <= 0 || n > 1 && d.p[n-1] == 0 {
		d.bad, d.p = true, nil
		return 0
	}
	d.p = d.p[n:]
	return v
}

func (d *bookReader) marks(passed time.Duration) (ms []Mark) {
	n := le.Uint32(d.take(4))
	d.ok(n <= maxMarks && int(n) <= len(d.p)/2)
	var last Mark
	for i := uint32(0); i < n && !d.bad; i++ {
		at, number := d.uvarint(), d.uvarint()
		m := Mark{last.At + time.Duration(at), last.Number + number}
		d.ok(m.At >= last.At && m.At <= passed && m.Number > last.Number)
		ms = append(ms, m)
		last = m
	}
	return ms
}

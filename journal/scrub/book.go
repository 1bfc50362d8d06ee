package scrub

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"time"
)

// Never is when something was read that never was.
const Never time.Duration = -1

// Entry is when a unit was read last, by the store's clock.
type Entry struct {
	At    time.Duration // and was whole; Never: it was not
	Tried time.Duration // whatever came of it
}

// Group is what is known of a group as a whole.
type Group struct {
	// Upto is the highest checkpoint all of whose log was verified, in this history.
	Upto    uint64
	Lineage uint64
	// Full is when all of the group had been read within one go, the last time; Never: it
	// was not.
	Full time.Duration
}

// Book is what a store remembers of its reading. The zero Book knows nothing.
type Book struct {
	Units  map[ID]Entry
	Groups map[uint64]Group
}

// ErrBook says that a file is not what was written; ErrVersion that a newer release wrote it.
var (
	ErrBook    = errors.New("corrupt file of what was read back")
	ErrVersion = errors.New("written by a newer release")
)

// Get returns what is known of a unit: what lies in the future is not.
func (b *Book) Get(id ID, now time.Duration) (Entry, bool) {
	e, ok := b.Units[id]
	if !ok || e.At > now || e.Tried > now {
		return Entry{At: Never}, false
	}
	return e, true
}

// Read notes that a unit was read and is whole.
func (b *Book) Read(id ID, now time.Duration) { b.put(id, Entry{now, now}) }

// Tried notes that a unit was read, or could not be, and is not whole.
func (b *Book) Tried(id ID, now time.Duration) { b.put(id, Entry{Never, now}) }

func (b *Book) put(id ID, e Entry) {
	if b.Units == nil {
		b.Units = make(map[ID]Entry)
	}
	b.Units[id] = e
}

// Keep forgets all units but those given.
func (b *Book) Keep(units []Unit) {
	have := make(map[ID]bool, len(units))
	for _, u := range units {
		have[u.ID] = true
	}
	maps.DeleteFunc(b.Units, func(id ID, _ Entry) bool { return !have[id] })
}

// SetGroup notes what is known of a group.
func (b *Book) SetGroup(id uint64, g Group) {
	if b.Groups == nil {
		b.Groups = make(map[uint64]Group)
	}
	b.Groups[id] = g
}

// The file; see FORMAT.md.
const (
	bookMagic   = 0x31524648 // "HFR1"
	bookVersion = 1
	bookBytes   = 4 + 4 + 4 + 4
	groupBytes  = 4 * 8
	unitBytes   = 8 + 8 + 8 + 8 + 8 + 8

	maxUnits = 1 << 22
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var le = binary.LittleEndian

// AppendTo appends the file.
func (b *Book) AppendTo(dst []byte) []byte {
	start := len(dst)
	for _, v := range []uint32{bookMagic, bookVersion, uint32(len(b.Groups)), uint32(len(b.Units))} {
		dst = le.AppendUint32(dst, v)
	}
	for _, id := range slices.Sorted(maps.Keys(b.Groups)) {
		g := b.Groups[id]
		for _, v := range []uint64{id, g.Lineage, g.Upto, uint64(g.Full)} {
			dst = le.AppendUint64(dst, v)
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(b.Units), compareID) {
		e := b.Units[id]
		for _, v := range []uint64{id.Group, uint64(id.Kind), id.Number, id.Life, uint64(e.At), uint64(e.Tried)} {
			dst = le.AppendUint64(dst, v)
		}
	}
	return le.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

func compareID(a, b ID) int {
	return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Number, b.Number), cmp.Compare(a.Life, b.Life))
}

// ParseBook reads a file that AppendTo made. ErrBook, ErrVersion.
func ParseBook(p []byte) (*Book, error) {
	if len(p) < bookBytes+4 || le.Uint32(p) != bookMagic {
		return nil, fmt.Errorf("%d bytes: %w", len(p), ErrBook)
	}
	body := p[:len(p)-4]
	if crc32.Checksum(body, castagnoli) != le.Uint32(p[len(body):]) {
		return nil, fmt.Errorf("checksum: %w", ErrBook)
	}
	if v := le.Uint32(p[4:]); v != bookVersion {
		return nil, fmt.Errorf("version %d: %w", v, ErrVersion)
	}
	groups, units := uint64(le.Uint32(p[8:])), uint64(le.Uint32(p[12:]))
	if units > maxUnits || uint64(len(body)) != bookBytes+groups*groupBytes+units*unitBytes {
		return nil, fmt.Errorf("%d groups, %d units: %w", groups, units, ErrBook)
	}
	b := &Book{Units: make(map[ID]Entry), Groups: make(map[uint64]Group)}
	at := body[bookBytes:]
	next := func() (v uint64) {
		v, at = le.Uint64(at), at[8:]
		return v
	}
	last := uint64(0)
	for i := range groups {
		id := next()
		b.Groups[id] = Group{Lineage: next(), Upto: next(), Full: time.Duration(next())}
		if i > 0 && id <= last || b.Groups[id].Full < Never {
			return nil, fmt.Errorf("group %x: %w", id, ErrBook)
		}
		last = id
	}
	var before ID
	for i := range units {
		group, kind, number, life := next(), next(), next(), next()
		id := ID{Group: group, Kind: Kind(kind), Number: number, Life: life}
		e := Entry{time.Duration(next()), time.Duration(next())}
		if kind < uint64(Segment) || kind > uint64(Replica) || e.At < Never || e.Tried < 0 || i > 0 && compareID(before, id) >= 0 {
			return nil, fmt.Errorf("unit %d: %w", i, ErrBook)
		}
		b.Units[id] = e
		before = id
	}
	return b, nil
}

package view

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// The map log: FORMAT.md has the words.
const (
	mapMagic   = 0x584d4648 // "HFMX"
	mapVersion = 1

	headerBytes = 4096
	atMagic     = 0
	atVersion   = 4
	atBlock     = 8
	atVolume    = 12
	atGroup     = 16
	atView      = 24
	atSize      = 32
	atLife      = 40
	atBoot      = 48
	atRest      = 64
	atHeaderCRC = headerBytes - 4

	entryBytes  = 32
	atKind      = 0
	atEntryZero = 1
	atCount     = 4
	atFirst     = 8
	atNumber    = 16
	atEntryLife = 24
	atEntryCRC  = 28

	// An entry behind a mark begins a page of its own: no durable byte is written again.
	markPage = 4096
)

var (
	_ [entryBytes]byte  = [atEntryCRC + 4]byte{}
	_ [headerBytes]byte = [atHeaderCRC + 4]byte{}
)

// ErrCorrupt says that what was kept of a view's writes is not what it was.
var ErrCorrupt = errors.New("corrupt scratch")

// ErrFormat says that scratch was written by a newer release.
var ErrFormat = errors.New("scratch of an unknown version")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// mapHeader says whose map a file is.
type mapHeader struct {
	group  record.GroupID
	view   uint64
	volume record.VolumeID
	size   int64    // of the volume
	life   uint32   // of the file; each that takes another's place has the next
	boot   [16]byte // of the machine, when it was made
}

func (h mapHeader) appendTo(dst []byte) []byte {
	at := len(dst)
	dst = append(dst, make([]byte, headerBytes)...)
	p := dst[at:]
	le := binary.LittleEndian
	le.PutUint32(p[atMagic:], mapMagic)
	p[atVersion] = mapVersion
	le.PutUint32(p[atBlock:], blockBytes)
	le.PutUint32(p[atVolume:], uint32(h.volume))
	le.PutUint64(p[atGroup:], uint64(h.group))
	le.PutUint64(p[atView:], h.view)
	le.PutUint64(p[atSize:], uint64(h.size))
	le.PutUint32(p[atLife:], h.life)
	copy(p[atBoot:], h.boot[:])
	le.PutUint32(p[atHeaderCRC:], crc32.Checksum(p[:atHeaderCRC], castagnoli))
	return dst
}

// parseMapHeader reads a header. ErrFormat: a newer release wrote it.
func parseMapHeader(p []byte) (h mapHeader, err error) {
	le := binary.LittleEndian
	if len(p) < headerBytes || le.Uint32(p[atMagic:]) != mapMagic || crc32.Checksum(p[:atHeaderCRC], castagnoli) != le.Uint32(p[atHeaderCRC:]) {
		return h, fmt.Errorf("header of the map: %w", ErrCorrupt)
	}
	if p[atVersion] != mapVersion {
		return h, fmt.Errorf("map of version %d, want %d: %w", p[atVersion], mapVersion, ErrFormat)
	}
	h = mapHeader{group: record.GroupID(le.Uint64(p[atGroup:])), view: le.Uint64(p[atView:]), volume: record.VolumeID(le.Uint32(p[atVolume:])),
		size: int64(le.Uint64(p[atSize:])), life: le.Uint32(p[atLife:]), boot: [16]byte(p[atBoot:])}
	if le.Uint32(p[atBlock:]) != blockBytes || !isZero(p[atVersion+1:atBlock]) || !isZero(p[atLife+4:atBoot]) || !isZero(p[atRest:atHeaderCRC]) ||
		h.life == 0 || h.size <= 0 || h.size > record.VolumeLimit {
		return h, fmt.Errorf("header of the map: %w", ErrCorrupt)
	}
	return h, nil
}

// mapEntry is one change of the map, or a mark.
type mapEntry struct {
	kind   entryKind
	count  uint32 // blocks; of a mark, how many numbers before it the last durable mark stands, 0: unknown
	first  uint64 // block; of a mark, the number up to which the entries' data was synced before
	number uint64 // rises by one, from 1
	life   uint32 // the file's
}

type entryKind uint8

const (
	entryData entryKind = iota + 1
	entryZeros
	entryMark
)

func (e mapEntry) appendTo(dst []byte) []byte {
	var p [entryBytes]byte
	le := binary.LittleEndian
	p[atKind] = byte(e.kind)
	le.PutUint32(p[atCount:], e.count)
	le.PutUint64(p[atFirst:], e.first)
	le.PutUint64(p[atNumber:], e.number)
	le.PutUint32(p[atEntryLife:], e.life)
	le.PutUint32(p[atEntryCRC:], crc32.Checksum(p[:atEntryCRC], castagnoli))
	return append(dst, p[:]...)
}

// parseMapEntry reads an entry of the file of that life; false: there is none.
func parseMapEntry(p []byte, life uint32, blocks uint64) (e mapEntry, ok bool) {
	le := binary.LittleEndian
	if len(p) < entryBytes || crc32.Checksum(p[:atEntryCRC], castagnoli) != le.Uint32(p[atEntryCRC:]) || !isZero(p[atEntryZero:atCount]) {
		return e, false
	}
	e = mapEntry{kind: entryKind(p[atKind]), count: le.Uint32(p[atCount:]), first: le.Uint64(p[atFirst:]), number: le.Uint64(p[atNumber:]), life: le.Uint32(p[atEntryLife:])}
	switch e.kind {
	case entryData, entryZeros:
		ok = e.count > 0 && e.first < blocks && uint64(e.count) <= blocks-e.first
	case entryMark:
		ok = e.first < e.number && uint64(e.count) < e.number
	}
	return e, ok && e.life == life && e.number > 0
}

func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// replayed is what a map log says.
type replayed struct {
	entries []mapEntry // all that count, in order, without marks
	last    uint64     // number of the last entry or mark
	end     int64      // where the next goes
}

// replayMap reads the entries of a map, which p holds from behind the header on. Where
// the page cache may have been lost since they were written, only those count that a
// mark vouches for: of the rest, the data may be missing. ErrCorrupt: a later mark
// says that an entry was durable that is not there.
func replayMap(p []byte, h mapHeader, trustAll bool) (r replayed, err error) {
	count := uint64((h.size + blockBytes - 1) / blockBytes)
	vouched, at := uint64(0), 0
	for {
		e, ok := parseMapEntry(p[min(at, len(p)):], h.life, count)
		if !ok || e.number != r.last+1 {
			break
		}
		r.last, at = e.number, at+entryBytes
		if e.kind == entryMark {
			vouched = e.first
			at = (at + markPage - 1) / markPage * markPage // the file may end before
			continue
		}
		r.entries = append(r.entries, e)
	}
	r.end = headerBytes + int64(at)
	for rest := at; rest+entryBytes <= len(p); rest += entryBytes {
		e, ok := parseMapEntry(p[rest:], h.life, count)
		if ok && e.kind == entryMark && e.count != 0 && e.number-uint64(e.count) > r.last {
			return r, fmt.Errorf("entry %d of the map was durable: %w", r.last+1, ErrCorrupt)
		}
	}
	if !trustAll {
		for n := len(r.entries); n > 0 && r.entries[n-1].number > vouched; n-- {
			r.entries = r.entries[:n-1]
		}
	}
	return r, nil
}

package view

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// The map log and the head of the data file: FORMAT.md has the words.
const (
	mapMagic  = 0x584d4648 // "HFMX"
	dataMagic = 0x44534648 // "HFSD"
	version   = 3          // 2 has no entryBase

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

	headBytes  = 512 // of the data file, twice
	atMarked   = 48
	atHeadRest = 56
	atHeadCRC  = headBytes - 4
	dataStart  = 4096 // of the first slot

	entryBytes  = 32
	atKind      = 0
	atSums      = 1 // how many sums
	atEntryZero = 1
	atCount     = 4 // or the sum of one block
	atFirst     = 8
	atNumber    = 16
	atSlot      = 24
	atEntryCRC  = 28

	sumsInCell = (atEntryCRC - atCount) / 4
	// maxRun is the most blocks that one entry is about.
	maxRun = 4096

	// An entry behind a mark begins a page of its own: no durable byte is written again.
	markPage = 4096
)

var (
	_ [entryBytes]byte  = [atEntryCRC + 4]byte{}
	_ [headerBytes]byte = [atHeaderCRC + 4]byte{}
	_ [headBytes]byte   = [atHeadCRC + 4]byte{}
)

// ErrCorrupt says that what was kept of a view's writes is not what it was.
var ErrCorrupt = errors.New("corrupt scratch")

// ErrFormat says that scratch was written by another release.
var ErrFormat = errors.New("scratch of an unknown version")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// mapHeader says whose map a file is.
type mapHeader struct {
	version uint8
	group   record.GroupID
	view    uint64
	volume  record.VolumeID
	size    int64    // of the volume
	life    uint32   // of the file; each that takes another's place has the next
	boot    [16]byte // of the machine, when it was made
}

// identify begins a header: what it is, and whose.
func (h mapHeader) identify(p []byte, magic uint32) {
	le := binary.LittleEndian
	le.PutUint32(p[atMagic:], magic)
	p[atVersion] = h.version
	le.PutUint32(p[atBlock:], blockBytes)
	le.PutUint32(p[atVolume:], uint32(h.volume))
	le.PutUint64(p[atGroup:], uint64(h.group))
	le.PutUint64(p[atView:], h.view)
	le.PutUint64(p[atSize:], uint64(h.size))
	le.PutUint32(p[atLife:], h.life)
}

// parseIdentity reads the same. ErrFormat: another release wrote it.
func parseIdentity(p []byte, magic uint32, what string) (h mapHeader, err error) {
	le := binary.LittleEndian
	sum := len(p) - 4
	if le.Uint32(p[atMagic:]) != magic || crc32.Checksum(p[:sum], castagnoli) != le.Uint32(p[sum:]) {
		return h, fmt.Errorf("%s: %w", what, ErrCorrupt)
	}
	switch v := p[atVersion]; {
	case v < 2:
		return h, fmt.Errorf("%s of version %d, of an older release that kept no checksums: close the view, or open it with that release: %w", what, v, ErrFormat)
	case v > version:
		return h, fmt.Errorf("%s of version %d, want %d: %w", what, v, version, ErrFormat)
	}
	h = mapHeader{version: p[atVersion], group: record.GroupID(le.Uint64(p[atGroup:])), view: le.Uint64(p[atView:]), volume: record.VolumeID(le.Uint32(p[atVolume:])),
		size: int64(le.Uint64(p[atSize:])), life: le.Uint32(p[atLife:])}
	if le.Uint32(p[atBlock:]) != blockBytes || !isZero(p[atVersion+1:atBlock]) || !isZero(p[atLife+4:atBoot]) || h.size <= 0 || h.size > record.VolumeLimit {
		return h, fmt.Errorf("%s: %w", what, ErrCorrupt)
	}
	return h, nil
}

func (h mapHeader) appendTo(dst []byte) []byte {
	at := len(dst)
	dst = append(dst, make([]byte, headerBytes)...)
	p := dst[at:]
	h.identify(p, mapMagic)
	copy(p[atBoot:], h.boot[:])
	binary.LittleEndian.PutUint32(p[atHeaderCRC:], crc32.Checksum(p[:atHeaderCRC], castagnoli))
	return dst
}

// parseMapHeader reads a header. ErrFormat: another release wrote it.
func parseMapHeader(p []byte) (h mapHeader, err error) {
	if len(p) < headerBytes {
		return h, fmt.Errorf("header of the map: %w", ErrCorrupt)
	}
	if h, err = parseIdentity(p[:headerBytes], mapMagic, "header of the map"); err != nil {
		return h, err
	}
	h.boot = [16]byte(p[atBoot:])
	if h.life == 0 || !isZero(p[atRest:atHeaderCRC]) {
		return h, fmt.Errorf("header of the map: %w", ErrCorrupt)
	}
	return h, nil
}

// appendHead appends a head of the data file: the map is of that life, or has been (0: there
// was none), and its mark of that number was durable.
func (h mapHeader) appendHead(dst []byte, marked uint64) []byte {
	at := len(dst)
	dst = append(dst, make([]byte, headBytes)...)
	p := dst[at:]
	h.identify(p, dataMagic)
	binary.LittleEndian.PutUint64(p[atMarked:], marked)
	binary.LittleEndian.PutUint32(p[atHeadCRC:], crc32.Checksum(p[:atHeadCRC], castagnoli))
	return dst
}

// parseHead reads a head.
func parseHead(p []byte) (h mapHeader, marked uint64, err error) {
	if len(p) < headBytes {
		return h, 0, fmt.Errorf("head of the data: %w", ErrCorrupt)
	}
	if h, err = parseIdentity(p[:headBytes], dataMagic, "head of the data"); err == nil && !isZero(p[atHeadRest:atHeadCRC]) {
		err = fmt.Errorf("head of the data: %w", ErrCorrupt)
	}
	return h, binary.LittleEndian.Uint64(p[atMarked:]), err
}

// mapEntry is one change of the map, or a mark. It takes one cell, and one more for each
// six blocks of a run.
type mapEntry struct {
	kind   entryKind
	count  uint32   // blocks; of a mark, how many numbers before it the last durable mark stands, 0: unknown
	first  uint64   // block; of a mark, the number up to which the entries' data was synced before
	number uint64   // of its first cell; rises by one with each cell, from 1
	slot   uint32   // of the first block; the others' follow
	sums   []uint32 // of each block
}

type entryKind uint8

const (
	entryBlock entryKind = iota + 1 // one, in the file
	entryZeros
	entryMark
	entryRun  // blocks in slots that follow each other
	entrySums // belongs to a run
	entryBase // the view's own no more: what lies beneath holds the same
)

// cells returns how many the entry takes.
func (e *mapEntry) cells() uint64 {
	if e.kind != entryRun {
		return 1
	}
	return 1 + uint64(e.count+sumsInCell-1)/sumsInCell
}

// cellSum is the checksum of a cell: over what it says, its number and the life of the file.
func cellSum(p []byte, life uint32, number uint64) uint32 {
	var own [12]byte
	binary.LittleEndian.PutUint32(own[:], life)
	binary.LittleEndian.PutUint64(own[4:], number)
	return crc32.Update(crc32.Checksum(own[:], castagnoli), castagnoli, p[:atEntryCRC])
}

func (e *mapEntry) appendTo(dst []byte, life uint32) []byte {
	var p [entryBytes]byte
	le := binary.LittleEndian
	p[atKind] = byte(e.kind)
	le.PutUint32(p[atCount:], e.count)
	if e.kind == entryBlock {
		le.PutUint32(p[atCount:], e.sums[0])
	}
	le.PutUint64(p[atFirst:], e.first)
	le.PutUint64(p[atNumber:], e.number)
	le.PutUint32(p[atSlot:], e.slot)
	le.PutUint32(p[atEntryCRC:], cellSum(p[:], life, e.number))
	dst = append(dst, p[:]...)
	if e.kind != entryRun {
		return dst
	}
	for i := 0; i < len(e.sums); i += sumsInCell {
		p = [entryBytes]byte{atKind: byte(entrySums)}
		n := min(sumsInCell, len(e.sums)-i)
		p[atSums] = byte(n)
		for k, sum := range e.sums[i : i+n] {
			le.PutUint32(p[atCount+4*k:], sum)
		}
		le.PutUint32(p[atEntryCRC:], cellSum(p[:], life, e.number+1+uint64(i/sumsInCell)))
		dst = append(dst, p[:]...)
	}
	return dst
}

// parseMapEntry reads the first cell of an entry of the file of that life; false: there is
// none. blocks is how many the volume has.
func parseMapEntry(p []byte, life uint32, blocks uint64) (e mapEntry, ok bool) {
	le := binary.LittleEndian
	if len(p) < entryBytes {
		return e, false
	}
	e = mapEntry{kind: entryKind(p[atKind]), count: le.Uint32(p[atCount:]), first: le.Uint64(p[atFirst:]), number: le.Uint64(p[atNumber:]), slot: le.Uint32(p[atSlot:])}
	if e.number == 0 || !isZero(p[atEntryZero:atCount]) || cellSum(p, life, e.number) != le.Uint32(p[atEntryCRC:]) {
		return e, false
	}
	if e.kind == entryBlock {
		e.sums, e.count = []uint32{e.count}, 1
	}
	switch e.kind {
	case entryMark:
		return e, e.first < e.number && uint64(e.count) < e.number && e.slot == 0
	case entryZeros, entryBase:
		ok = e.slot == 0
	case entryRun:
		ok = e.count <= maxRun
		fallthrough
	case entryBlock:
		ok = (ok || e.kind == entryBlock) && uint64(e.slot)+uint64(e.count) <= maxSlots
	}
	return e, ok && e.count > 0 && e.first < blocks && uint64(e.count) <= blocks-e.first
}

// parseSums reads a cell that belongs to a run, of which want sums are left.
func parseSums(dst []uint32, p []byte, life uint32, number uint64, want int) ([]uint32, bool) {
	le := binary.LittleEndian
	want = min(want, sumsInCell)
	if len(p) < entryBytes || entryKind(p[atKind]) != entrySums || int(p[atSums]) != want || !isZero(p[atSums+1:atCount]) ||
		!isZero(p[atCount+4*want:atEntryCRC]) || cellSum(p, life, number) != le.Uint32(p[atEntryCRC:]) {
		return dst, false
	}
	for i := range want {
		dst = append(dst, le.Uint32(p[atCount+4*i:]))
	}
	return dst, true
}

func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

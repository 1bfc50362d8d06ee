package spill

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine/crc32c"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// entry says whose record stands in a file of the spill, and which one. FORMAT.md has its bytes.
type entry struct {
	stream record.StreamID
	seq    record.Seq
	owner  uint64 // drawn by the process that wrote it, never 0
	life   uint64 // of the window
	length uint32 // of the record, in bytes
	crc    uint32 // CRC32C of the record
}

const (
	entryMagic   = 0x50534648 // "HFSP"
	entryVersion = 1
	entryBytes   = 64 // of the header; what follows begins at a multiple of it too

	atVersion     = 4
	atStream      = 8
	atSeq         = 16
	atOwner       = 24
	atLife        = 32
	atLength      = 40
	atRecordCRC   = 44
	atEntryZeros  = 48
	atEntryHeader = 60 // CRC32C of what is before it
)

var _ [entryBytes]byte = [atEntryHeader + 4]byte{}

// maxRecord is the longest record that is read back, in bytes: longer than any that is sealed.
const maxRecord = 16 << 20

// ErrDamaged says that what was read back is not what was written there.
var ErrDamaged = errors.New("it is damaged")

// space is how many bytes a record of n bytes takes, its header included.
func space(n int) int { return (entryBytes + n + entryBytes - 1) &^ (entryBytes - 1) }

// put writes the header of e and the record into p, which has space for them; it sets length and checksum.
func (e entry) put(p, sealed []byte) {
	clear(p[:entryBytes])
	binary.LittleEndian.PutUint32(p, entryMagic)
	binary.LittleEndian.PutUint32(p[atVersion:], entryVersion)
	binary.LittleEndian.PutUint64(p[atStream:], uint64(e.stream))
	binary.LittleEndian.PutUint64(p[atSeq:], uint64(e.seq))
	binary.LittleEndian.PutUint64(p[atOwner:], e.owner)
	binary.LittleEndian.PutUint64(p[atLife:], e.life)
	binary.LittleEndian.PutUint32(p[atLength:], uint32(len(sealed)))
	binary.LittleEndian.PutUint32(p[atRecordCRC:], crc32c.Checksum(sealed))
	binary.LittleEndian.PutUint32(p[atEntryHeader:], crc32c.Checksum(p[:atEntryHeader]))
	n := entryBytes + copy(p[entryBytes:], sealed)
	clear(p[n:space(len(sealed))])
}

// parseEntry reads a header and the record behind it, which is a part of p. Errors are of ErrDamaged.
func parseEntry(p []byte) (e entry, sealed []byte, err error) {
	damaged := func(what string) (entry, []byte, error) {
		return entry{}, nil, fmt.Errorf("%w: %s", ErrDamaged, what)
	}
	switch {
	case len(p) < entryBytes:
		return damaged("it is cut short")
	case binary.LittleEndian.Uint32(p) != entryMagic:
		return damaged("no record begins there")
	case crc32c.Checksum(p[:atEntryHeader]) != binary.LittleEndian.Uint32(p[atEntryHeader:]):
		return damaged("the checksum of a header is wrong")
	case binary.LittleEndian.Uint32(p[atVersion:]) != entryVersion:
		return damaged("a header is of another version")
	}
	for _, b := range p[atEntryZeros:atEntryHeader] {
		if b != 0 {
			return damaged("a header has something where nothing belongs")
		}
	}
	e = entry{
		stream: record.StreamID(binary.LittleEndian.Uint64(p[atStream:])),
		seq:    record.Seq(binary.LittleEndian.Uint64(p[atSeq:])),
		owner:  binary.LittleEndian.Uint64(p[atOwner:]),
		life:   binary.LittleEndian.Uint64(p[atLife:]),
		length: binary.LittleEndian.Uint32(p[atLength:]),
		crc:    binary.LittleEndian.Uint32(p[atRecordCRC:]),
	}
	if e.length == 0 || e.length > maxRecord || space(int(e.length)) > len(p) {
		return damaged("a record is cut short")
	}
	sealed = p[entryBytes:][:e.length:e.length]
	if crc32c.Checksum(sealed) != e.crc && !invariant.Planted("spill/bytes-unchecked") {
		return damaged("the checksum of a record is wrong")
	}
	return e, sealed, nil
}

// same says whether e is the record that was looked for, by all but its checksum.
func (e entry) same(want entry) bool {
	e.crc, want.crc = 0, 0
	return e == want || invariant.Planted("spill/any-record")
}

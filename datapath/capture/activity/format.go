package activity

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// The file of a log; FORMAT.md of package capture has the layout.
const (
	magic   = 0x3156_4954_4341_4648 // "HFACTIV1"
	version = 1

	// RegionBytes is what one bit of the log covers.
	RegionBytes = 16 << 20
	// BlockBytes is what one bit of the marks covers.
	BlockBytes = 4096

	sectorBytes = 512
	pageBytes   = 4096
	sectorWords = 63               // of bits
	sectorBits  = sectorWords * 64 // regions, or blocks
	atSectorCRC = sectorWords*8 + 4

	atMagic   = 0
	atVersion = 8
	atSector  = 12
	atBoot    = 16
	atGroup   = 32
	atVolume  = 40
	atBlock   = 44
	atBytes   = 48
	atState   = 56
	atRegion  = 60
	atMtime   = 64
	atMade    = 72
	atZero    = 80
	atCRC     = sectorBytes - 4

	stateClean = 1
	stateOpen  = 2
)

var _ [sectorBytes]byte = [atSectorCRC + 4]byte{}

// What is wrong with a file.
var (
	ErrCorrupt = errors.New("corrupt")
	ErrVersion = errors.New("unknown version")
	errOther   = errors.New("of another disk, or another size of it")
)

// Identity is whose log it is, and in which boot.
type Identity struct {
	Boot   [16]byte
	Group  uint64
	Volume uint32
	Bytes  int64
}

func (id Identity) regions() int { return int((id.Bytes + RegionBytes - 1) / RegionBytes) }
func (id Identity) blocks() int64 {
	return (id.Bytes + BlockBytes - 1) / BlockBytes
}

// Words is how many words the marks of the disk take.
func (id Identity) Words() int { return int((id.blocks() + 63) / 64) }

func sectorsOf(bits int64) int { return int((bits + sectorBits - 1) / sectorBits) }

// part is where one of the two sets of sectors stands in the file.
type part struct {
	at      int64 // in bytes
	first   int   // number of its first sector, in the sums
	sectors int
	bits    int64
}

func (p part) bytes() int64 {
	return (int64(p.sectors)*sectorBytes + pageBytes - 1) / pageBytes * pageBytes
}

// parts are where log and marks stand.
func (id Identity) parts() (log, marks part) {
	log = part{at: pageBytes, sectors: sectorsOf(int64(id.regions())), bits: int64(id.regions())}
	marks = part{at: pageBytes + log.bytes(), first: log.sectors, sectors: sectorsOf(id.blocks()), bits: id.blocks()}
	return log, marks
}

// header is the first sector.
type header struct {
	Identity
	clean bool
	mtime uint64 // of the disk at the clean close, ns; 0 for one without
	made  uint64 // random, of this file: in all its sums
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (h header) encode() []byte {
	p, le := make([]byte, sectorBytes), binary.LittleEndian
	le.PutUint64(p[atMagic:], magic)
	le.PutUint32(p[atVersion:], version)
	le.PutUint32(p[atSector:], sectorBytes)
	copy(p[atBoot:], h.Boot[:])
	le.PutUint64(p[atGroup:], h.Group)
	le.PutUint32(p[atVolume:], h.Volume)
	le.PutUint32(p[atBlock:], BlockBytes)
	le.PutUint64(p[atBytes:], uint64(h.Bytes))
	le.PutUint32(p[atState:], stateOpen)
	if h.clean {
		le.PutUint32(p[atState:], stateClean)
	}
	le.PutUint32(p[atRegion:], RegionBytes)
	le.PutUint64(p[atMtime:], h.mtime)
	le.PutUint64(p[atMade:], h.made)
	le.PutUint32(p[atCRC:], crc32.Checksum(p[:atCRC], castagnoli))
	return p
}

// parseHeader reads a header; it is held against id but for the boot. Its disk may be smaller than id's.
func parseHeader(p []byte, id Identity) (h header, err error) {
	le := binary.LittleEndian
	if len(p) != sectorBytes || le.Uint64(p[atMagic:]) != magic {
		return h, fmt.Errorf("no activity log: %w", ErrCorrupt)
	}
	if v := le.Uint32(p[atVersion:]); v != version {
		return h, fmt.Errorf("activity log of version %d: %w", v, ErrVersion)
	}
	if le.Uint32(p[atCRC:]) != crc32.Checksum(p[:atCRC], castagnoli) {
		return h, fmt.Errorf("header checksum: %w", ErrCorrupt)
	}
	h = header{
		Identity: Identity{Group: le.Uint64(p[atGroup:]), Volume: le.Uint32(p[atVolume:]), Bytes: int64(le.Uint64(p[atBytes:]))},
		clean:    le.Uint32(p[atState:]) == stateClean, mtime: le.Uint64(p[atMtime:]), made: le.Uint64(p[atMade:]),
	}
	copy(h.Boot[:], p[atBoot:])
	if h.Group != id.Group || h.Volume != id.Volume || h.Bytes <= 0 || h.Bytes > id.Bytes {
		return h, errOther
	}
	if h.made == 0 || string(h.encode()) != string(p) { // sizes, state, reserved bytes
		return h, fmt.Errorf("header: %w", ErrCorrupt)
	}
	return h, nil
}

// sector is one of bits: which of its file stands in the sum, so that one out of place does not verify.
func (h header) sector(p []byte, number int, words []uint64) {
	clear(p[:sectorBytes])
	for i, w := range words {
		binary.LittleEndian.PutUint64(p[i*8:], w)
	}
	binary.LittleEndian.PutUint32(p[atSectorCRC:], h.sum(p, number))
}

func (h header) sum(p []byte, number int) uint32 {
	var k [16]byte
	binary.LittleEndian.PutUint64(k[:], h.made)
	binary.LittleEndian.PutUint64(k[8:], uint64(number)+1)
	return crc32.Update(crc32.Checksum(k[:], castagnoli), castagnoli, p[:atSectorCRC])
}

// page is page i of a part, that holds the words.
func (h header) page(p []byte, pt part, i int, words []uint64) {
	clear(p[:pageBytes])
	for s := i * pageBytes / sectorBytes; s < min((i+1)*pageBytes/sectorBytes, pt.sectors); s++ {
		h.sector(p[s*sectorBytes%pageBytes:], pt.first+s, words[s*sectorWords:min((s+1)*sectorWords, len(words))])
	}
}

// decodePart sets the bits of p in words. Of a sector that does not verify it sets all; it returns how many there are.
func (h header) decodePart(pt part, p []byte, words []uint64) (damaged int) {
	for s := range pt.sectors {
		q, from := p[s*sectorBytes:(s+1)*sectorBytes], s*sectorWords
		good := binary.LittleEndian.Uint32(q[atSectorCRC:]) == h.sum(q, pt.first+s)
		if !good {
			damaged++
		}
		for i := from; i < min(from+sectorWords, len(words)); i++ {
			w := ^uint64(0)
			if good {
				w = binary.LittleEndian.Uint64(q[(i-from)*8:])
			}
			if over := int64(i+1)*64 - pt.bits; over > 0 {
				w &= ^uint64(0) >> over
			}
			words[i] |= w
		}
	}
	return damaged
}

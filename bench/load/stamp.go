package load

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// SectorBytes is the unit of stamps and of the oracle.
const SectorBytes = 512

// A stamp, at the head of each written sector, little-endian:
//
//	0 magic u64   8 write u64   16 sector u64   24 volume u32   28 CRC32C of the 28 bytes before u32
const (
	stampMagic  = 0x7473_646c_6f48_f1f0
	stampBytes  = 32
	atWrite     = 8
	atSector    = 16
	atVolume    = 24
	atStampCRC  = 28
	corpusSteps = corpusBytes / SectorBytes
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// corpusAt is where in the corpus a sector of a write stands: the sectors of one
// write follow each other, and writes begin at a page.
func corpusAt(write uint64, index int) int {
	first := write * 2654435761 % (corpusSteps / (pageBytes / SectorBytes)) * (pageBytes / SectorBytes)
	return int((first+uint64(index))%corpusSteps) * SectorBytes
}

// fill writes the payload of a write into p, a whole number of sectors.
func fill(p, corpus []byte, volume int, write uint64, sector int64) {
	for i := 0; i*SectorBytes < len(p); i++ {
		s := p[i*SectorBytes : (i+1)*SectorBytes]
		at := corpusAt(write, i)
		copy(s, corpus[at:at+SectorBytes])
		putStamp(s, volume, write, sector+int64(i))
	}
}

func putStamp(s []byte, volume int, write uint64, sector int64) {
	le := binary.LittleEndian
	le.PutUint64(s, stampMagic)
	le.PutUint64(s[atWrite:], write)
	le.PutUint64(s[atSector:], uint64(sector))
	le.PutUint32(s[atVolume:], uint32(volume))
	le.PutUint32(s[atStampCRC:], crc32.Checksum(s[:atStampCRC], castagnoli))
}

var zeroSector [SectorBytes]byte

var errNoStamp = errors.New("neither zero nor stamped")

// readStamp returns the write that a sector came from, 0 for a sector of zeros. It
// checks the stamp, not the bytes behind it.
func readStamp(s []byte, volume int, sector int64) (uint64, error) {
	le := binary.LittleEndian
	if le.Uint64(s) != stampMagic {
		if bytes.Equal(s, zeroSector[:]) {
			return 0, nil
		}
		return 0, errNoStamp
	}
	if crc32.Checksum(s[:atStampCRC], castagnoli) != le.Uint32(s[atStampCRC:]) {
		return 0, errors.New("torn stamp")
	}
	if v, at := int(le.Uint32(s[atVolume:])), int64(le.Uint64(s[atSector:])); (v != volume || at != sector) && !invariant.Planted("load/out-of-place") {
		return 0, fmt.Errorf("out of place: it was written to volume %d, sector %d", v, at)
	}
	return le.Uint64(s[atWrite:]), nil
}

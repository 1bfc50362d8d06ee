package replica

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/holdfast-dr/holdfast/ioengine/crc32c"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// The sums file: a header of one page, then a u32 for each block. FORMAT.md.
const (
	headerBytes = 4096
	sumBytes    = 4
	magic       = 0x31534648 // "HFS1"
	version     = 1

	atMagic   = 0
	atVersion = 4
	atBlock   = 8
	atVolume  = 12
	atGroup   = 16
	atZero    = 24
	atCRC     = headerBytes - 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendHeader appends the sums file's header.
func appendHeader(dst []byte, p Place) []byte {
	at := len(dst)
	dst = append(dst, make([]byte, headerBytes)...)
	h := dst[at:]
	binary.LittleEndian.PutUint32(h[atMagic:], magic)
	binary.LittleEndian.PutUint32(h[atVersion:], version)
	binary.LittleEndian.PutUint32(h[atBlock:], BlockBytes)
	binary.LittleEndian.PutUint32(h[atVolume:], uint32(p.Volume))
	binary.LittleEndian.PutUint64(h[atGroup:], uint64(p.Group))
	binary.LittleEndian.PutUint32(h[atCRC:], crc32.Checksum(h[:atCRC], castagnoli))
	return dst
}

// parseHeader checks that h is the header of the place's sums.
func parseHeader(h []byte, p Place) error {
	if len(h) < headerBytes || binary.LittleEndian.Uint32(h[atMagic:]) != magic {
		return fmt.Errorf("not a file of sums: %w", ErrCorrupt)
	}
	if crc32.Checksum(h[:atCRC], castagnoli) != binary.LittleEndian.Uint32(h[atCRC:]) {
		return fmt.Errorf("header of the sums: %w", ErrCorrupt)
	}
	if v := binary.LittleEndian.Uint32(h[atVersion:]); v != version {
		return fmt.Errorf("sums of version %d, want %d: unknown version", v, version)
	}
	if binary.LittleEndian.Uint32(h[atBlock:]) != BlockBytes || !allZero(h[atZero:atCRC]) {
		return fmt.Errorf("header of the sums: %w", ErrCorrupt)
	}
	have := Place{Volume: p.Volume, Group: p.Group}
	if uint32(have.Volume) != binary.LittleEndian.Uint32(h[atVolume:]) || uint64(have.Group) != binary.LittleEndian.Uint64(h[atGroup:]) {
		return fmt.Errorf("sums of another volume: %w", ErrCorrupt)
	}
	return nil
}

func sumAt(block int64) int64 { return headerBytes + block*sumBytes }

func putSum(p []byte, i int, sum uint32) { binary.LittleEndian.PutUint32(p[i*sumBytes:], sum) }

func getSum(p []byte, i int) uint32 { return binary.LittleEndian.Uint32(p[i*sumBytes:]) }

// sumOf is the checksum of a block at its place. Zero stands for a block of zeros,
// whatever its place, and for nothing else.
func sumOf(p Place, block int64, data []byte) uint32 {
	if allZero(data) {
		return 0
	}
	var key [20]byte
	binary.LittleEndian.PutUint64(key[0:], uint64(p.Group))
	binary.LittleEndian.PutUint32(key[8:], uint32(p.Volume))
	binary.LittleEndian.PutUint64(key[12:], uint64(block))
	if invariant.Planted("journal/replica/no-place") {
		key = [20]byte{}
	}
	sum := crc32c.Update(crc32.Checksum(key[:], castagnoli), data)
	if sum == 0 {
		sum = 1
	}
	return sum
}

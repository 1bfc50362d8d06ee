package vhostuser

// The configuration that a driver reads, as virtio 1.2 has it in section 5.2.4.
const (
	configBytes = 60

	atCapacity      = 0  // u64, sectors
	atSegments      = 12 // u32
	atBlockSize     = 20 // u32
	atPhysical      = 24 // u8: a physical block is 2^n logical ones
	atMinIO         = 26 // u16, logical blocks
	atOptIO         = 28 // u32
	atQueues        = 34 // u16
	atDiscard       = 36 // u32, sectors; then segments, and their alignment
	atDiscardRanges = 40
	atDiscardAlign  = 44
	atZeroes        = 48 // u32, sectors; then segments
	atZeroesRanges  = 52
	atZeroesUnmap   = 56 // u8
)

// physicalBytes is the disk's own block: drivers that know keep to whole ones.
const (
	physicalBytes    = 4096
	physicalExponent = 3
)

// configuration is what a driver of a disk of that size is told.
func configuration(size int64) []byte {
	p := make([]byte, configBytes)
	le.PutUint64(p[atCapacity:], uint64(size/sectorBytes))
	le.PutUint32(p[atSegments:], segmentsMax)
	le.PutUint32(p[atBlockSize:], sectorBytes)
	p[atPhysical] = physicalExponent
	le.PutUint16(p[atMinIO:], physicalBytes/sectorBytes)
	le.PutUint32(p[atOptIO:], 0)
	le.PutUint16(p[atQueues:], MaxQueues)
	le.PutUint32(p[atDiscard:], maxZeroSectors)
	le.PutUint32(p[atDiscardRanges:], maxRanges)
	le.PutUint32(p[atDiscardAlign:], physicalBytes/sectorBytes)
	le.PutUint32(p[atZeroes:], maxZeroSectors)
	le.PutUint32(p[atZeroesRanges:], maxRanges)
	p[atZeroesUnmap] = 1
	return p
}

package stripe

// The geometry of local parity. A protected file is cut into zones of up to zoneBlocks
// blocks; within a zone of s stripes, block j stands in stripe j mod s as shard j / s. So
// neighbours stand in different stripes, and a torn region of up to 2*s blocks (16 MiB of
// a whole zone) is within what two parity blocks a stripe bring back.

// Local is the geometry of local parity.
var local = Geometry{K: 32, M: 2}

// zoneBlocks is what one pass encodes: its parity is held in memory.
const zoneBlocks = 4096

func blocksOf(length int64) int { return int((length + BlockBytes - 1) / BlockBytes) }

// zone is a part of a protected file.
type zone struct {
	first   int // block
	blocks  int
	stripe  int // the number of its first stripe
	stripes int
}

// zonesOf cuts a file of so many bytes.
func zonesOf(g Geometry, length int64) (zs []zone) {
	stripe := 0
	for first, blocks := 0, blocksOf(length); first < blocks; first += zoneBlocks {
		z := zone{first: first, blocks: min(zoneBlocks, blocks-first), stripe: stripe}
		z.stripes = (z.blocks + g.K - 1) / g.K
		stripe += z.stripes
		zs = append(zs, z)
	}
	return zs
}

func localStripes(g Geometry, length int64) int {
	blocks := blocksOf(length)
	rest := blocks % zoneBlocks
	return blocks/zoneBlocks*((zoneBlocks+g.K-1)/g.K) + (rest+g.K-1)/g.K
}

// at returns the stripe, within the zone, and the shard of the zone's block j.
func (z zone) at(j int) (stripe, shard int) { return j % z.stripes, j / z.stripes }

// block is the inverse of at; it is at or beyond z.blocks where the shard is not in use
// and counts as zeros.
func (z zone) block(stripe, shard int) int { return shard*z.stripes + stripe }

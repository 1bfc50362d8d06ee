package stripe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/klauspost/reedsolomon"

	"github.com/holdfast-dr/holdfast/ioengine/crc32c"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// BlockBytes is the unit of coding: one checksum each.
const BlockBytes = 64 << 10

// The errors of this package, for errors.Is.
var (
	// ErrLost says that more is missing than parity can bring back.
	ErrLost = errors.New("more is lost than parity can bring back")
	// ErrCorrupt says that a file of this package is not what was written.
	ErrCorrupt = errors.New("corrupt parity data")
	// ErrVersion says that a newer release wrote the file.
	ErrVersion = errors.New("unknown version of a parity format")
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// Geometry is how many data blocks stand in a stripe, and how many parity blocks.
type Geometry struct{ K, M int }

// Limits of a geometry.
const (
	maxK = 64
	maxM = 16
)

func (g Geometry) String() string { return fmt.Sprintf("%d+%d", g.K, g.M) }

// Validate says what is wrong with the geometry.
func (g Geometry) Validate() error {
	if g.K < 1 || g.K > maxK || g.M < 1 || g.M > maxM {
		return fmt.Errorf("parity of %s: k is 1 to %d, m is 1 to %d", g, maxK, maxM)
	}
	return nil
}

// width is how many blocks stand in a stripe.
func (g Geometry) width() int { return g.K + g.M }

// Identity says which file a block belongs to: no two files ever share one.
type Identity struct{ Group, Number, Life uint64 }

// sum is the checksum of a block in its place.
func (id Identity) sum(stripe, shard int, block []byte) uint32 {
	var place [40]byte
	le.PutUint64(place[0:], id.Group)
	le.PutUint64(place[8:], id.Number)
	le.PutUint64(place[16:], id.Life)
	le.PutUint64(place[24:], uint64(stripe))
	le.PutUint64(place[32:], uint64(shard))
	if invariant.Planted("journal/stripe/placeless-sum") {
		clear(place[:])
	}
	return crc32c.Update(crc32.Checksum(place[:], castagnoli), block)
}

// code computes parity and what is missing. It may be used concurrently.
type code struct {
	Geometry
	rs reedsolomon.Encoder
}

func newCode(g Geometry) (*code, error) {
	if err := g.Validate(); err != nil {
		return nil, err
	}
	// One goroutine: parity is computed beside live traffic and is far from the bottleneck.
	rs, err := reedsolomon.New(g.K, g.M, reedsolomon.WithMaxGoroutines(1))
	if err != nil {
		return nil, fmt.Errorf("parity of %s: %w", g, err)
	}
	return &code{g, rs}, nil
}

// encode fills the last m of the blocks from the first k.
func (c *code) encode(blocks [][]byte) error { return c.rs.Encode(blocks) }

// mend completes a stripe. Blocks that do not have the sum of their place count as
// missing, like those of length 0; missing ones that want asks for (nil: all) are computed
// into their capacity where that suffices, and verified. ErrLost: too few are left; then
// no block is touched. It returns which were missing.
func (c *code) mend(id Identity, stripe int, blocks [][]byte, sums []uint32, want []bool) (missing []int, err error) {
	for i, b := range blocks {
		if len(b) == BlockBytes && (id.sum(stripe, i, b) == sums[i] || invariant.Planted("journal/stripe/guess-erasures")) {
			continue
		}
		missing = append(missing, i)
	}
	if len(missing) == 0 {
		return nil, nil
	}
	if len(missing) > c.M {
		return missing, fmt.Errorf("stripe %d: %d of %d blocks are missing or damaged: %w", stripe, len(missing), c.width(), ErrLost)
	}
	required := make([]bool, c.width())
	for _, i := range missing {
		blocks[i] = blocks[i][:0]
		required[i] = want == nil || want[i]
	}
	if err := c.rs.ReconstructSome(blocks, required); err != nil {
		return missing, fmt.Errorf("stripe %d: %w", stripe, err)
	}
	for _, i := range missing {
		if !required[i] || invariant.Planted("journal/stripe/trust-the-code") {
			continue
		}
		if id.sum(stripe, i, blocks[i]) != sums[i] {
			for _, i := range missing {
				blocks[i] = blocks[i][:0]
			}
			return missing, fmt.Errorf("stripe %d: block %d does not come out as it was written: %w", stripe, i, ErrLost)
		}
	}
	return missing, nil
}

// Pace is called with every count of bytes read or written, by several stores' work at once;
// it may wait, and an error of it ends the work. Nil: no pace.
type Pace func(bytes int) error

func (p Pace) spend(n int) error {
	if p == nil {
		return nil
	}
	if err := p(n); err != nil {
		return fmt.Errorf("%w: %w", errPace, err)
	}
	return nil
}

// errPace says that whoever paces the work ended it: no store is at fault.
var errPace = errors.New("ended")

package delta

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/bits"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// The bytes of a volume that a sum stands for.
const (
	BlockBytes  = 4 << 10
	LeafBytes   = 64 << 10
	RegionBytes = 256 * LeafBytes
)

const (
	leafBlocks   = LeafBytes / BlockBytes
	regionBlocks = RegionBytes / BlockBytes
)

// Level is what a sum stands for.
type Level uint8

// The levels.
const (
	Block Level = iota + 1
	Leaf
	Node
)

func (l Level) String() string { return [...]string{"level 0", "block", "leaf", "node"}[min(l, 3)] }

// Bytes is how much of a volume one sum of the level stands for; 0: there is no such level.
func (l Level) Bytes() int64 {
	switch l {
	case Block:
		return BlockBytes
	case Leaf:
		return LeafBytes
	case Node:
		return RegionBytes
	}
	return 0
}

// SumBytes is how much of a sum travels.
func (l Level) SumBytes() int {
	if l == Block {
		return 16
	}
	return sha256.Size
}

// Most is how many sums one question may ask for: 16 KiB of them, and none of two regions.
func (l Level) Most() int {
	return int(min(16<<10/int64(l.SumBytes()), RegionBytes/l.Bytes()))
}

// Ask is a question: the sums of Count pieces of a volume, from the piece of number First on.
type Ask struct {
	Volume record.VolumeID
	Level  Level
	First  int64
	Count  int
}

// Check holds a question to what may be asked at all; whether the volume has it is not known here.
func (a Ask) Check() error {
	n := a.Level.Bytes()
	if n == 0 || a.Volume == 0 || a.First < 0 || a.Count <= 0 || a.Count > a.Level.Most() ||
		a.First > record.VolumeLimit/n || (a.First+int64(a.Count)-1)*n/RegionBytes != a.First*n/RegionBytes {
		return fmt.Errorf("sums of volume %d: %d of %s %d", a.Volume, a.Count, a.Level, a.First)
	}
	return nil
}

// AnswerBytes is how long the answer is.
func (a Ask) AnswerBytes() int { return a.Count * a.Level.SumBytes() }

// Region is the number of the region that it is of.
func (a Ask) Region() int64 { return a.First * a.Level.Bytes() / RegionBytes }

// Sum is one of SHA-256; all zeros stand for one that is not known.
type Sum [sha256.Size]byte

// The sums of what holds nothing but zeros.
var (
	zeroBlock = Sum(sha256.Sum256(make([]byte, BlockBytes)))
	zeroLeaf  = Sum(sha256.Sum256(bytes.Repeat(zeroBlock[:], leafBlocks)))
	zeroNode  = Sum(sha256.Sum256(bytes.Repeat(zeroLeaf[:], regionBlocks/leafBlocks)))
)

var zeros [BlockBytes]byte

// Region holds the sums of one region's blocks, as far as they are known.
type Region struct {
	blocks int    // that the region has
	known  Blocks // of them
	sums   []Sum  // nil: all that are known are zeros
}

// NewRegion returns the region of that number of a volume of size bytes, with nothing known;
// nil where the volume has none.
func NewRegion(number, size int64) *Region {
	at := number * RegionBytes
	if number < 0 || at >= size {
		return nil
	}
	return &Region{blocks: int((min(size-at, RegionBytes) + BlockBytes - 1) / BlockBytes)}
}

// Blocks is how many there are.
func (r *Region) Blocks() int { return r.blocks }

// Put tells what stands in a block: BlockBytes, less at a volume's end, nil for zeros.
func (r *Region) Put(block int, p []byte) {
	r.known.Add(block, block+1)
	whole := p
	if len(p) < BlockBytes {
		whole = append(append(make([]byte, 0, BlockBytes), p...), zeros[len(p):]...)
	}
	if p == nil || bytes.Equal(whole, zeros[:]) {
		if r.sums != nil {
			r.sums[block] = zeroBlock
		}
		return
	}
	if r.sums == nil {
		r.sums = make([]Sum, r.blocks)
		for i := range r.sums {
			r.sums[i] = zeroBlock
		}
	}
	r.sums[block] = sha256.Sum256(whole)
}

// sum is that of a block; zeros when it is not known.
func (r *Region) sum(block int) Sum {
	switch {
	case !r.known.Has(block):
		return Sum{}
	case r.sums == nil:
		return zeroBlock
	}
	return r.sums[block]
}

// leafRange is where a leaf's blocks begin and end.
func (r *Region) leafRange(leaf int) (from, to int) {
	return leaf * leafBlocks, min((leaf+1)*leafBlocks, r.blocks)
}

func (r *Region) leaves() int { return (r.blocks + leafBlocks - 1) / leafBlocks }

func (r *Region) leaf(leaf int) Sum {
	from, to := r.leafRange(leaf)
	if r.known.Count(from, to) < to-from {
		return Sum{}
	}
	if r.sums == nil && to-from == leafBlocks {
		return zeroLeaf
	}
	all := make([]byte, 0, leafBlocks*sha256.Size)
	for b := from; b < to; b++ {
		s := r.sum(b)
		all = append(all, s[:]...)
	}
	return sha256.Sum256(all)
}

func (r *Region) node() Sum {
	if r.known.Count(0, r.blocks) < r.blocks {
		return Sum{}
	}
	if r.sums == nil && r.blocks == regionBlocks {
		return zeroNode
	}
	all := make([]byte, 0, regionBlocks/leafBlocks*sha256.Size)
	for l := range r.leaves() {
		s := r.leaf(l)
		all = append(all, s[:]...)
	}
	return sha256.Sum256(all)
}

// at is the sum of a piece of the region, counted from its beginning; zeros for what it has not.
func (r *Region) at(level Level, piece int) Sum {
	switch {
	case level == Node:
		return r.node()
	case level == Leaf && piece < r.leaves():
		return r.leaf(piece)
	case level == Block && piece < r.blocks:
		return r.sum(piece)
	}
	return Sum{}
}

// inRegion is a question's first piece, counted from its region's beginning.
func (a Ask) inRegion() int { return int(a.First % (RegionBytes / a.Level.Bytes())) }

// Append answers the question, which is of this region; nil knows nothing.
func (r *Region) Append(dst []byte, a Ask) []byte {
	for i := range a.Count {
		var s Sum
		if r != nil {
			s = r.at(a.Level, a.inRegion()+i)
		}
		dst = append(dst, s[:a.Level.SumBytes()]...)
	}
	return dst
}

// same says whether the answer for one piece is our sum, which must be known.
func (r *Region) same(level Level, piece int, sum []byte) bool {
	ours := r.at(level, piece)
	if invariant.Planted("delta/unknown-is-same") && bytes.Equal(sum, zeros[:len(sum)]) {
		return true
	}
	return ours != (Sum{}) && bytes.Equal(ours[:len(sum)], sum)
}

// Blocks are some of a region's.
type Blocks [regionBlocks / 64]uint64

// Add takes [from, to) in.
func (s *Blocks) Add(from, to int) {
	for b := from; b < to; {
		if b%64 == 0 && to-b >= 64 {
			s[b/64] = ^uint64(0)
			b += 64
			continue
		}
		s[b/64] |= 1 << (b % 64)
		b++
	}
}

// Has says whether a block is in; none is in nil.
func (s *Blocks) Has(block int) bool { return s != nil && s[block/64]&(1<<(block%64)) != 0 }

// Count is how many of [from, to) are in.
func (s *Blocks) Count(from, to int) (n int) {
	for b := from; b < to; {
		if b%64 == 0 && to-b >= 64 {
			n += bits.OnesCount64(s[b/64])
			b += 64
			continue
		}
		if s.Has(b) {
			n++
		}
		b++
	}
	return n
}

package replica

import (
	"errors"
	"fmt"
	"io"

	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Copies is a file system that keeps several copies of a file, and can be asked for each: which
// of them is right only who knows the checksum can tell.
type Copies interface {
	Copies(name string) int
	ReadCopy(name string, number int, p []byte, off int64) (int, error)
}

// Repair writes the damaged blocks of found again as another copy of the files has them, where
// one matches its sum, makes that durable, and returns how many they were. Nothing else may write
// there meanwhile but through the Volume; without other copies it does nothing. What is
// damaged still, Verify tells.
func (v *Volume) Repair(found []Damage) (blocks int, err error) {
	fs, ok := v.fs.(Copies)
	if !ok || invariant.Planted("journal/no-copies") {
		return 0, nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.failed != nil {
		return 0, v.failed
	}
	data, sum := buf.Aligned(BlockBytes), buf.Aligned(BlockBytes)
	for _, f := range found {
		for block := f.Off / BlockBytes; block*BlockBytes < f.Off+f.Len && block < v.blocks(); block++ {
			repaired, err := v.repair(fs, block, data, sum)
			if err != nil {
				return blocks, errors.Join(err, v.syncLocked())
			}
			if repaired {
				blocks++
			}
		}
	}
	return blocks, v.syncLocked()
}

// repair writes one block again, unless it is whole by now or no copy is.
func (v *Volume) repair(fs Copies, block int64, data, sum []byte) (bool, error) {
	defer v.locks.write(block*BlockBytes, BlockBytes)()
	err := v.readBlocks(data, sum, block)
	if err == nil {
		return false, nil
	}
	if v.isOwed(block, data) {
		return false, nil // it is written again from elsewhere
	}
	// A block and its sum of one copy first: of two copies each may have lost one of them to zeros.
	n, m := fs.Copies(v.rawName()), fs.Copies(v.sumsName())
	for pass := range 2 {
		for i := range n {
			for j := range m {
				if (pass == 0) != (i == j) || !v.copied(fs, block, i, j, data, sum[:sumBytes]) {
					continue
				}
				if pass == 1 && allZero(data) {
					continue
				}
				if err := v.put(data, sum, block); err != nil {
					return false, fmt.Errorf("%s: block %d: %w", v.place, block, err)
				}
				return true, nil
			}
		}
	}
	return false, nil
}

// copied reads the block of one copy of the image and its sum of one of the sums, and says
// whether they match.
func (v *Volume) copied(fs Copies, block int64, image, sums int, data, sum []byte) bool {
	full := func(name string, number int, p []byte, off int64) bool {
		n, err := fs.ReadCopy(name, number, p, off)
		return n == len(p) && (err == nil || errors.Is(err, io.EOF))
	}
	return full(v.rawName(), image, data, block*BlockBytes) && full(v.sumsName(), sums, sum, sumAt(block)) &&
		sumOf(v.place, block, data) == getSum(sum, 0)
}

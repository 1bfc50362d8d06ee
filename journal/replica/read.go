package replica

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// readBuf is what one read works in.
type readBuf struct{ data, sums []byte }

var readBufs = sync.Pool{New: func() any {
	return &readBuf{data: buf.Aligned(chunkBytes), sums: buf.Aligned(chunkBytes / BlockBytes * sumBytes)}
}}

// ReadAt fills p with the bytes at off. A block that does not verify is ErrCorrupt,
// and p is then worth nothing.
func (v *Volume) ReadAt(p []byte, off int64) error {
	if err := v.inside(off, int64(len(p))); err != nil {
		return err
	}
	b := readBufs.Get().(*readBuf)
	defer readBufs.Put(b)
	for len(p) > 0 {
		first, skip := off/BlockBytes, int(off%BlockBytes)
		n := min(len(p), len(b.data)-skip)
		blocks := (skip + n + BlockBytes - 1) / BlockBytes
		data := b.data[:blocks*BlockBytes]
		err := v.readLocked(data, b.sums, first)
		if err != nil {
			return fmt.Errorf("%s: %w", v.place, err)
		}
		copy(p[:n], data[skip:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// readLocked is readBlocks while nobody writes there.
func (v *Volume) readLocked(data, sums []byte, first int64) error {
	one, two := v.locks.stripes(first*BlockBytes, int64(len(data)))
	one.RLock()
	defer one.RUnlock()
	if two != nil {
		two.RLock()
		defer two.RUnlock()
	}
	return v.readBlocks(data, sums, first)
}

// readBlocks reads and verifies whole blocks.
func (v *Volume) readBlocks(data, sums []byte, first int64) error {
	if err := readFull(v.raw, data, first*BlockBytes); err != nil {
		return err
	}
	return v.verifyBlocks(data, sums, first)
}

// verifyBlocks verifies blocks that were read.
func (v *Volume) verifyBlocks(data, sums []byte, first int64) error {
	sums = sums[:len(data)/BlockBytes*sumBytes]
	v.warm(first)
	if err := readFull(v.sums, sums, sumAt(first)); err != nil {
		return err
	}
	for i := range len(data) / BlockBytes {
		block := data[i*BlockBytes : (i+1)*BlockBytes]
		want := getSum(sums, i)
		ok := want == 0 && bytes.Equal(block, zeros[:]) || want != 0 && sumOf(v.place, first+int64(i), block) == want
		if !ok && v.isOwed(first+int64(i), block) {
			continue
		}
		if !ok && !invariant.Planted("journal/replica/trust") {
			return fmt.Errorf("block %d: %w", first+int64(i), ErrCorrupt)
		}
	}
	return nil
}

// warmBytes is how much of the sums is read when the first of it is asked for: those of
// 64 MiB of the volume.
const warmBytes = 64 << 10

// warm brings the sums around a block's into the page cache, once: reads that follow at
// random then cost one access to the disk and not two. What does not read there may be
// another's: the reader finds out about its own.
func (v *Volume) warm(block int64) {
	chunk := sumAt(block) / warmBytes
	if chunk/64 >= int64(len(v.warmed)) {
		return // it has grown since
	}
	word, bit := &v.warmed[chunk/64], uint64(1)<<(chunk%64)
	if word.Load()&bit != 0 || word.Or(bit)&bit != 0 {
		return
	}
	b := readBufs.Get().(*readBuf)
	defer readBufs.Put(b)
	_, _ = v.sums.ReadAt(b.data[:warmBytes], chunk*warmBytes)
}

// isOwed puts into block what it should hold, if that is known to be owed to its place.
func (v *Volume) isOwed(number int64, block []byte) bool {
	m := v.owed.Load()
	if m == nil {
		return false
	}
	data, ok := (*m)[number]
	copy(block, data)
	return ok
}

// readFull reads all of p; a file that ends before is corrupt.
func readFull(f io.ReaderAt, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF {
		return fmt.Errorf("ends at %d: %w", off+int64(n), ErrCorrupt)
	}
	return err
}

// Extents tells what stands in [off, off+n), in order and without gaps, until emit
// returns false. A hole was never written or given back, and its sums say the same.
func (v *Volume) Extents(off, n int64, emit func(n int64, hole bool) bool) error {
	b := readBufs.Get().(*readBuf)
	defer readBufs.Put(b)
	for end := off + n; off < end; {
		at, length, err := v.raw.NextData(off)
		if err != nil {
			return fmt.Errorf("%s: %w", v.place, err)
		}
		if length == 0 || at > end {
			at = end
		}
		for off < at { // a hole, if the sums agree
			k := min(at-off, int64(len(b.data)/sumBytes*BlockBytes)-off%BlockBytes)
			blocks := (off%BlockBytes + k + BlockBytes - 1) / BlockBytes
			sums := b.data[:blocks*sumBytes]
			if err := readFull(v.sums, sums, sumAt(off/BlockBytes)); err != nil {
				return fmt.Errorf("%s: %w", v.place, err)
			}
			if !emit(k, allZero(sums)) {
				return nil
			}
			off += k
		}
		if k := min(at+length, end) - off; k > 0 {
			if !emit(k, false) {
				return nil
			}
			off += k
		}
	}
	return nil
}

// Allocated returns how many bytes of the files are backed by space.
func (v *Volume) Allocated() (sum int64, err error) {
	for at := int64(0); ; {
		off, n, err := v.raw.NextData(at)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", v.place, err)
		}
		if n == 0 {
			break
		}
		at, sum = off+n, sum+n
	}
	return sum + sumAt(v.blocks()), nil
}

func allZero(p []byte) bool {
	for len(p) > 0 {
		k := min(len(p), len(zeros))
		if !bytes.Equal(p[:k], zeros[:k]) {
			return false
		}
		p = p[k:]
	}
	return true
}

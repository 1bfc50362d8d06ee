package replica

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Verify reads what stands in [off, off+n) from the device, past the page cache where
// that can be, and holds every block against its sum; what is a hole by both costs next
// to nothing. It returns the blocks that are damaged, in order, those next to each other
// as one; the error is another than that. It calls pace, when not nil, with the bytes of
// each read before it, and ends with its error. It may be called beside anything else.
func (v *Volume) Verify(off, n int64, pace func(bytes int) error) (found []Damage, err error) {
	if err := v.inside(off, n); err != nil {
		return nil, err
	}
	x := &verifier{v: v, pace: pace, data: buf.Aligned(chunkBytes), sums: buf.Aligned(2 * BlockBytes)}
	defer func() { err = errors.Join(err, x.close()) }()
	if x.raw, err = v.fs.Open(v.rawName(), ioengine.ReadOnly|ioengine.Direct); err != nil {
		return nil, err
	}
	if x.sumFile, err = v.fs.Open(v.sumsName(), ioengine.ReadOnly|ioengine.Direct); err != nil {
		return nil, err
	}
	at, end := off-off%BlockBytes, min(off+n+BlockBytes-1, v.blocks()*BlockBytes)
	err = v.Extents(at, end-at, func(k int64, hole bool) bool {
		for stop := at + k; at < stop && !hole; {
			m := min(stop-at, chunkBytes)
			if err = x.chunk(at/BlockBytes, (at+m+BlockBytes-1)/BlockBytes); err != nil {
				return false
			}
			at += m
		}
		if hole {
			at += k
		}
		return true
	})
	return x.found, errors.Join(err, x.err)
}

// verifier is one Verify.
type verifier struct {
	v            *Volume
	pace         func(int) error
	raw, sumFile ioengine.File
	data, sums   []byte
	found        []Damage
	err          error
}

func (x *verifier) close() (err error) {
	for _, f := range []ioengine.File{x.raw, x.sumFile} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// chunk verifies blocks [first, end), at most chunkBytes of them.
func (x *verifier) chunk(first, end int64) error {
	v := x.v
	n := min(end, v.blocks()) - first
	if n <= 0 {
		return nil
	}
	data := x.data[:n*BlockBytes]
	if x.pace != nil {
		if err := x.pace(len(data)); err != nil {
			x.err = err
			return err
		}
	}
	defer v.locks.read(first*BlockBytes, int64(len(data)))()
	whole := x.read(first, data)
	if whole == nil && x.verify(first, data) < 0 {
		return nil
	}
	for i := range n { // each by itself: what cannot be read is no other block's fault
		one := data[i*BlockBytes:][:BlockBytes]
		err := x.read(first+i, one)
		if err == nil && x.verify(first+i, one) >= 0 {
			err = fmt.Errorf("%s: block %d: %w", v.place, first+i, ErrCorrupt)
		}
		if err != nil && !v.isOwed(first+i, one) && !invariant.Planted("journal/replica/verify-nothing") {
			x.add(Damage{(first + i) * BlockBytes, BlockBytes, err})
		}
	}
	return nil
}

// read fills data with blocks from first on, and x.sums so that verify finds their sums.
func (x *verifier) read(first int64, data []byte) error {
	if err := readFull(x.raw, data, first*BlockBytes); err != nil {
		return err
	}
	from := sumAt(first) &^ (BlockBytes - 1)
	n, err := x.sumFile.ReadAt(x.sums, from)
	if err != nil && err != io.EOF {
		return err
	}
	if int64(n) < sumAt(first+int64(len(data)/BlockBytes))-from {
		return fmt.Errorf("the sums end at %d: %w", from+int64(n), ErrCorrupt)
	}
	return nil
}

// verify returns the first of the blocks that does not match its sum; -1: none.
func (x *verifier) verify(first int64, data []byte) int {
	sums := x.sums[sumAt(first)%BlockBytes:]
	for i := range len(data) / BlockBytes {
		block, want := data[i*BlockBytes:][:BlockBytes], getSum(sums, i)
		if want == 0 && bytes.Equal(block, zeros[:]) || want != 0 && sumOf(x.v.place, first+int64(i), block) == want {
			continue
		}
		return i
	}
	return -1
}

func (x *verifier) add(d Damage) {
	if n := len(x.found); n > 0 && x.found[n-1].Off+x.found[n-1].Len == d.Off && errors.Is(d.Err, ErrCorrupt) == errors.Is(x.found[n-1].Err, ErrCorrupt) {
		x.found[n-1].Len += d.Len
		return
	}
	x.found = append(x.found, d)
}

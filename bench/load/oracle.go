package load

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Image is one volume at a checkpoint.
type Image struct {
	Reader io.ReaderAt
	Size   int64 // bytes
}

// Verdict is what Check found in images that are a prefix.
type Verdict struct {
	Included int   // operations whose effect is there
	Answered int   // operations that had been answered when the check began
	Bytes    int64 // bytes read and compared
}

// Check says whether the images together are the state after a prefix of the
// history's order; see the package comment for the rule. With whole, the prefix must
// hold every operation answered so far: it is asked of a checkpoint made after the
// workload stopped. The error names the first place that contradicts.
func Check(h *History, corpus []byte, images []Image, whole bool) (Verdict, error) {
	ops := h.Ops()
	v := Verdict{}
	for _, op := range ops {
		if op.Done != 0 {
			v.Answered++
		}
	}
	seen := make([][]uint64, len(images))
	for i, image := range images {
		var err error
		if seen[i], err = scan(image, i, ops, corpus); err != nil {
			return v, err
		}
		v.Bytes += image.Size
	}
	included, err := judge(ops, seen, whole)
	v.Included = included
	return v, err
}

const scanBytes = 1 << 20

// scan reads an image and returns the write that each sector came from.
func scan(image Image, volume int, ops []Op, corpus []byte) ([]uint64, error) {
	seen := make([]uint64, image.Size/SectorBytes)
	buf := make([]byte, scanBytes)
	for at := int64(0); at < image.Size; at += scanBytes {
		p := buf[:min(scanBytes, image.Size-at)]
		if n, err := image.Reader.ReadAt(p, at); err != nil && !(errors.Is(err, io.EOF) && n == len(p)) {
			return nil, fmt.Errorf("volume %d: read %d bytes at %d: %w", volume, len(p), at, err)
		}
		for i := 0; i < len(p); i += SectorBytes {
			sector := (at + int64(i)) / SectorBytes
			write, err := readSector(p[i:i+SectorBytes], volume, sector, ops, corpus)
			if err != nil {
				return nil, fmt.Errorf("volume %d, sector %d: %w", volume, sector, err)
			}
			seen[sector] = write
		}
	}
	return seen, nil
}

// readSector returns the write a sector came from, all its bytes compared.
func readSector(s []byte, volume int, sector int64, ops []Op, corpus []byte) (uint64, error) {
	write, err := readStamp(s, volume, sector)
	if err != nil || write == 0 {
		return 0, err
	}
	if write > uint64(len(ops)) {
		return 0, fmt.Errorf("it holds write %d, which was never issued", write)
	}
	op := ops[write-1]
	index := sector - op.Sector
	if op.Kind != OpWrite || op.Volume != volume || index < 0 || index >= op.Sectors {
		return 0, fmt.Errorf("it holds write %d, which was not to this place", write)
	}
	at := corpusAt(write, int(index))
	if !bytes.Equal(s[stampBytes:], corpus[at+stampBytes:at+SectorBytes]) {
		return 0, fmt.Errorf("it holds the stamp of write %d over other bytes", write)
	}
	return write, nil
}

// judge applies the rule to what each sector holds (0: zero). It is pure. It returns
// how many operations are included.
func judge(ops []Op, seen [][]uint64, whole bool) (int, error) {
	reach, must := uint64(0), make([]bool, len(ops))
	for _, sectors := range seen {
		for _, write := range sectors {
			if write != 0 {
				must[write-1] = true
				reach = max(reach, ops[write-1].Issued)
			}
		}
	}
	if whole {
		reach = ^uint64(0)
	}
	zeros := indexZeros(ops)
	for {
		before := reach
		for i := range ops {
			op := &ops[i]
			if op.Done != 0 && op.Done < reach && !invariant.Planted("load/answered-unheeded") {
				must[i] = true
			}
			if !must[i] || op.Kind == OpTrim {
				continue
			}
			if err := holds(op, ops, seen[op.Volume], zeros, &reach); err != nil {
				return 0, err
			}
		}
		if reach == before {
			break
		}
	}
	n := 0
	for _, m := range must {
		if m {
			n++
		}
	}
	return n, nil
}

// holds says whether each sector of an included operation holds it, or what may have
// come after it. A zero sector that only a later zeroing explains moves reach to it.
func holds(op *Op, ops []Op, sectors []uint64, zeros zeroIndex, reach *uint64) error {
	end := op.Sector + op.Sectors
	if invariant.Planted("load/half-write") {
		end = op.Sector + (op.Sectors+1)/2
	}
	for s := op.Sector; s < end; s++ {
		switch write := sectors[s]; {
		case write == op.Number || (write == 0 && op.Kind == OpZero):
		case write != 0:
			if other := &ops[write-1]; other.Done != 0 && other.Done < op.Issued && !invariant.Planted("load/old-sector") {
				return fmt.Errorf("volume %d, sector %d: %s %d is in the prefix, and write %d, answered before it was issued, stands there", op.Volume, s, op.Kind, op.Number, write)
			}
		default:
			z := zeros.explains(op, s, ops)
			if z == nil {
				return fmt.Errorf("volume %d, sector %d: %s %d is in the prefix, and zeros stand there that no zeroing explains", op.Volume, s, op.Kind, op.Number)
			}
			if z.Kind == OpZero {
				*reach = max(*reach, z.Issued)
			}
		}
	}
	return nil
}

// zeroIndex finds the zeroings over a sector: their numbers, by volume and region of
// the disk, in the order they were issued.
type zeroIndex map[[2]int64][]uint64

const regionSectors = 4096

func indexZeros(ops []Op) zeroIndex {
	x := zeroIndex{}
	for _, op := range ops {
		if op.Kind == OpWrite {
			continue
		}
		for r := op.Sector / regionSectors; r <= (op.Sector+op.Sectors-1)/regionSectors; r++ {
			k := [2]int64{int64(op.Volume), r}
			x[k] = append(x[k], op.Number)
		}
	}
	return x
}

// explains returns the first zeroing of the sector that was not over before op began.
func (x zeroIndex) explains(op *Op, sector int64, ops []Op) *Op {
	for _, n := range x[[2]int64{int64(op.Volume), sector / regionSectors}] {
		z := &ops[n-1]
		if sector >= z.Sector && sector < z.Sector+z.Sectors && !(z.Done != 0 && z.Done < op.Issued) {
			return z
		}
	}
	return nil
}

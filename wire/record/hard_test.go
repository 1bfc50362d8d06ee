package record

import (
	"bytes"
	"fmt"
	"testing"
)

// Blocks that do not shrink go raw whichever way they are copied, as pieces or whole, in small
// records and in large ones; and what shrinks behind them is compressed again.
func TestHardBlocks(t *testing.T) {
	for _, size := range []int{64 << 10, 1 << 20} {
		for _, piece := range []int{512, 4096, 32768} {
			for _, storeOnly := range []bool{false, true} {
				name := fmt.Sprintf("%d in pieces of %d, StoreOnly %v", size, piece, storeOnly)
				c := NewCompressor()
				c.StoreOnly = storeOnly
				seal := func(data []byte) (r Record, raw int) { // how many blocks are raw
					batch := NewBatch(Limits{Raw: size})
					for off := 0; off < size; off += piece {
						if !batch.Add(Piece{Volume: 1, Off: int64(off), Len: int64(piece), Ticket: Ticket(off + 1), Data: data[off : off+piece]}) {
							t.Fatalf("%s: refused", name)
						}
					}
					r = mustParse(t, batch.Seal([]byte("x"), testID, testTime, c)[1:])
					all := make([]byte, size)
					for i := range r.Extents {
						e := r.Extent(i)
						if e.Kind == ExtentZero {
							continue
						}
						p, err := r.OpenBlock(nil, e.Block)
						if err != nil {
							t.Fatalf("%s: block %d: %v", name, e.Block, err)
						}
						copy(all[e.Off:], p[e.BlockOff:][:e.Len])
					}
					if !bytes.Equal(all, data) {
						t.Fatalf("%s: other data came out", name)
					}
					for i := range r.Blocks {
						if r.Block(i).Codec == CodecRaw {
							raw++
						}
					}
					return r, raw
				}
				if r, raw := seal(randomData(size, 3)); raw != r.Blocks || c.hard == storeOnly {
					t.Errorf("%s: %d of %d random blocks are raw, hard: %v", name, raw, r.Blocks, c.hard)
				}
				if r, raw := seal(dbData(size, 3)); (raw == r.Blocks) != storeOnly {
					t.Errorf("%s: %d of %d compressible blocks are raw", name, raw, r.Blocks)
				}
			}
		}
	}
}

// The probe says the same of a block whole and in parts.
func TestDenseParts(t *testing.T) {
	said := map[bool]int{}
	for seed := range uint64(40) {
		whole := randomData(LineBytes-int(seed), seed)
		if seed%2 == 1 {
			copy(whole[100:], dbData(int(seed)*800, seed))
		}
		for _, n := range []int{300, 512, 4096, 8192, len(whole)} {
			var parts [][]byte
			for p := whole; len(p) > 0; p = p[min(n, len(p)):] {
				parts = append(parts, p[:min(n, len(p))])
			}
			got := denseParts(parts, len(whole))
			if got != dense(whole) {
				t.Errorf("seed %d: in parts of %d bytes %v, whole %v", seed, n, got, dense(whole))
			}
			said[got]++
		}
	}
	if said[true] == 0 || said[false] == 0 {
		t.Errorf("it said one thing only: %v", said)
	}
}

// In a long row of dense blocks one in three is probed, in a short one each is: no more than two
// blocks that shrink go raw behind it.
func TestDenseRowEnds(t *testing.T) {
	random, db := randomData(LineBytes, 8), dbData(LineBytes, 8)
	most := 0
	for _, row := range []int{1, 2, 5, 15, 40, 41, 42, 43} {
		c := NewCompressor()
		codec := func(data []byte) Codec {
			b := NewBatch(Limits{})
			b.Add(Piece{Volume: 1, Len: LineBytes, Ticket: 1, Data: data})
			return mustParse(t, b.Seal(nil, testID, testTime, c)).Block(0).Codec
		}
		for i := range row {
			if codec(random) != CodecRaw {
				t.Errorf("random block %d of %d was compressed", i, row)
			}
		}
		late := 0
		for codec(db) == CodecRaw && late < 10 {
			late++
		}
		if late > 2 || row < probeAll && late > 0 {
			t.Errorf("behind %d dense blocks %d that shrink went raw", row, late)
		}
		if most = max(most, late); codec(db) != CodecLZ4 {
			t.Errorf("behind %d dense blocks the second that shrinks is raw", row)
		}
	}
	if most == 0 {
		t.Error("each block of a long row is probed")
	}
}

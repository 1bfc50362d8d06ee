package capture

import (
	"testing"

	"pgregory.net/rapid"
)

// newBitmap is a bitmap in plain memory.
func newBitmap(blocks int64) *bitmap {
	sum, words := bitmapBytes(blocks)
	return &bitmap{sum: make([]uint64, sum/8), words: make([]uint64, words/8), blocks: blocks}
}

// TestBitmap holds it against a map, near the lines where words and summaries end.
func TestBitmap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		blocks := rapid.SampledFrom([]int64{1, 63, 64, 65, sumBlocks - 1, sumBlocks, 3*sumBlocks + 17}).Draw(t, "blocks")
		b, other := newBitmap(blocks), newBitmap(blocks)
		want := map[int64]bool{}
		edge := rapid.OneOf(rapid.Int64Range(0, blocks), rapid.SampledFrom([]int64{0, 63, 64, 65, sumBlocks - 1, sumBlocks, sumBlocks + 1, blocks}))
		for range rapid.IntRange(1, 20).Draw(t, "ops") {
			from, to := min(edge.Draw(t, "from"), blocks), min(edge.Draw(t, "to"), blocks)
			if from >= to {
				continue
			}
			if to-from > 200 {
				to = from + 200
			}
			changed := int64(0)
			set := rapid.Bool().Draw(t, "set")
			for i := from; i < to; i++ {
				if want[i] != set {
					changed++
				}
				if want[i] = set; !set {
					delete(want, i)
				}
			}
			got := int64(0)
			if set {
				got = b.set(from, to)
			} else {
				got = b.clear(from, to)
			}
			if got != changed {
				t.Fatalf("[%d, %d) to %v changed %d bits, want %d", from, to, set, got, changed)
			}
			if set && !b.all(from, to) {
				t.Fatalf("[%d, %d) is not all set", from, to)
			}
		}
		if got := b.count(); got != int64(len(want)) {
			t.Fatalf("count %d, want %d", got, len(want))
		}
		at, found := int64(0), 0
		for {
			start, end, ok := b.run(at, blocks)
			if !ok {
				break
			}
			if start < at || end <= start || end > blocks || (end < blocks && want[end]) {
				t.Fatalf("run [%d, %d) from %d", start, end, at)
			}
			for i := start; i < end; i++ {
				if !want[i] {
					t.Fatalf("bit %d in a run is not set", i)
				}
				found++
			}
			at = end
		}
		if found != len(want) {
			t.Fatalf("runs hold %d bits, want %d", found, len(want))
		}
		if added := b.orInto(other); added != int64(len(want)) || other.count() != added || b.orInto(other) != 0 {
			t.Fatalf("or added %d, want %d", added, len(want))
		}
		if b.reset(); b.count() != 0 || b.seek(0, blocks, 0) != blocks {
			t.Fatal("reset left something")
		}
	})
}

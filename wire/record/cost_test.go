package record

import (
	"fmt"
	"testing"
)

// TestAllocations holds sealing, parsing, verifying and opening to no allocation at
// all once buffers stand.
func TestAllocations(t *testing.T) {
	data := dbData(1<<20, 1)
	b, c := NewBatch(Limits{Raw: 1 << 20}), NewCompressor()
	fill(b, data, 4096)
	dst := make([]byte, 0, b.Bound())
	p := b.Seal(nil, testID, testTime, c)
	r := mustParse(t, p)
	raw := make([]byte, LineBytes)
	control := make([]byte, 0, 4096)
	f := func(name string, run func()) {
		t.Helper()
		if n := testing.AllocsPerRun(20, run); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	f("fill", func() { fill(b, data, 4096) })
	f("seal", func() { b.Seal(dst, testID, testTime, c) })
	f("parse", func() { Parse(p) })
	f("parse tables", func() { ParseTables(r.Header, p[:r.TablesEnd()]) })
	f("verify", func() { r.VerifyPayload() })
	f("open", func() { r.OpenBlock(raw, 3) })
	f("open stored", func() { OpenStored(raw, testID, 3, r.Block(3), p[r.Block(3).At:][:r.Block(3).Stored]) })
	f("confirm", func() { AppendConfirm(control, testID, testTime, 9, 12) })
	confirm := AppendConfirm(nil, testID, testTime, 9, 12)
	f("parse confirm", func() { Parse(confirm) })
	walk := int64(0)
	f("walk", func() {
		for i := range r.Extents {
			walk += r.Extent(i).Len + int64(r.Block(r.Extent(i).Block).Raw)
		}
	})
}

const benchBytes = 1 << 20

// benchShapes are records of 1 MiB of data, by what it resembles and the size of the writes.
func benchShapes(b *testing.B, run func(b *testing.B, batch *Batch)) {
	for _, shape := range []struct {
		name string
		data []byte
	}{{"db", dbData(8<<20, 1)}, {"random", randomData(8<<20, 1)}} {
		for _, size := range []int{4096, 32768} {
			b.Run(fmt.Sprintf("data=%s/write=%dK", shape.name, size>>10), func(b *testing.B) {
				batch := NewBatch(Limits{Raw: benchBytes})
				fill(batch, shape.data, size)
				b.SetBytes(benchBytes)
				run(b, batch)
			})
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	c := NewCompressor()
	benchShapes(b, func(b *testing.B, batch *Batch) {
		dst, stored := make([]byte, 0, batch.Bound()), 0
		for b.Loop() {
			stored = len(batch.Seal(dst, testID, testTime, c))
		}
		b.ReportMetric(float64(stored)/benchBytes, "stored/raw")
	})
}

func BenchmarkAdd(b *testing.B) {
	data := dbData(8<<20, 1)
	batch := NewBatch(Limits{Raw: benchBytes})
	b.SetBytes(benchBytes)
	for b.Loop() {
		fill(batch, data, 4096)
	}
}

func BenchmarkParse(b *testing.B) {
	benchShapes(b, func(b *testing.B, batch *Batch) {
		p := batch.Seal(nil, testID, testTime, NewCompressor())
		for b.Loop() {
			if _, err := Parse(p); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkVerifyPayload(b *testing.B) {
	benchShapes(b, func(b *testing.B, batch *Batch) {
		r := mustParse(b, batch.Seal(nil, testID, testTime, NewCompressor()))
		for b.Loop() {
			if err := r.VerifyPayload(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkOpenBlock(b *testing.B) {
	benchShapes(b, func(b *testing.B, batch *Batch) {
		r := mustParse(b, batch.Seal(nil, testID, testTime, NewCompressor()))
		dst := make([]byte, LineBytes)
		b.SetBytes(r.Raw / int64(r.Blocks))
		for i := 0; b.Loop(); i = (i + 1) % r.Blocks {
			if _, err := r.OpenBlock(dst, i); err != nil {
				b.Fatal(err)
			}
		}
	})
}

package stripe

import (
	"fmt"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
)

// What parity costs beside a read of the file: run with -cpu 1, and read ns/op as CPU.
func BenchmarkEncode(b *testing.B) {
	for _, g := range []Geometry{local, {4, 2}, {8, 2}} {
		b.Run(fmt.Sprintf("geometry=%s", g), func(b *testing.B) {
			c, err := newCode(g)
			ok(b, err)
			blocks := make([][]byte, g.width())
			for i := range blocks {
				blocks[i] = noise(i, BlockBytes)
			}
			b.SetBytes(int64(g.K) * BlockBytes)
			n := 0
			for b.Loop() {
				ok(b, c.encode(blocks))
				for i, p := range blocks {
					testID.sum(n, i, p)
				}
				n++
			}
			b.ReportMetric(b.Elapsed().Seconds()/(float64(n)*float64(g.K)*BlockBytes/(1<<30)), "s/GiB")
		})
	}
}

func BenchmarkProtect(b *testing.B) {
	const n = 64 << 20
	fs, dir := ioengine.OS(), b.TempDir()
	name := dir + "/1.seg"
	f, err := fs.Open(name, ioengine.Create)
	ok(b, err)
	_, err = f.WriteAt(noise(1, n), 0)
	ok(b, err)
	ok(b, f.Sync())
	b.SetBytes(n)
	for b.Loop() {
		ok(b, Protect(fs, name, testID, nil))
	}
}

package nbd

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

// go test ./datapath/front/nbd -run '^$' -bench . -benchmem
func BenchmarkClientServer(b *testing.B) {
	const size = 256 << 20
	for _, op := range []string{"read", "write"} {
		for _, c := range []struct{ bytes, depth int }{{4 << 10, 1}, {4 << 10, 32}, {64 << 10, 16}, {1 << 20, 4}} {
			b.Run(fmt.Sprintf("%s/bytes=%d/depth=%d", op, c.bytes, c.depth), func(b *testing.B) {
				e, d := memory("m", size)
				if err := d.Zero(0, size, false, false); err != nil { // all memory there is, first
					b.Fatal(err)
				}
				client := serve(b, e).dial(b, "m")
				b.SetBytes(int64(c.bytes))
				b.ReportAllocs()
				var next atomic.Int64
				var wg sync.WaitGroup
				b.ResetTimer()
				for range c.depth {
					wg.Go(func() {
						p := make([]byte, c.bytes)
						for {
							i := next.Add(1)
							if i > int64(b.N) {
								return
							}
							off := i * int64(c.bytes) * 7 % (size - int64(c.bytes))
							var err error
							if op == "read" {
								_, err = client.ReadAt(p, off)
							} else {
								_, err = client.WriteAt(p, off)
							}
							if err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			})
		}
	}
}

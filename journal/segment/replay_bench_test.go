package segment

import (
	"path"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// go test ./journal/segment -run '^$' -bench Replay
func BenchmarkReplay(b *testing.B) {
	for _, c := range []struct {
		name          string
		bytes, rounds int
		sealed        bool
	}{
		{"record=64K/open", 64 << 10, 1024, false}, {"record=64K/sealed", 64 << 10, 1024, true},
		{"record=4K/open", 4 << 10, 4096, false}, {"record=4K/sealed", 4 << 10, 4096, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			o := Options{Life: testOptions().Life, SegmentBytes: 1 << 40}
			dir := path.Join(b.TempDir(), "log")
			l, err := Open(ioengine.OS(), dir, testGroup, Watermark{}, o, nil)
			if err != nil {
				b.Fatal(err)
			}
			rec := sealed(1, c.bytes, seeded(1))
			for i := range c.rounds {
				_, err := l.Append(rec)
				if err == nil && i%16 == 15 {
					err = l.Commit()
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			if c.sealed {
				if err := l.succeed(true); err != nil {
					b.Fatal(err)
				}
				l.busy.Wait()
			}
			end := l.Durable()
			b.SetBytes(int64(end - Start))
			for b.Loop() {
				n := 0
				err := l.Replay(Start, end, ReplayOptions{}, func(Pos, record.Record) error { n++; return nil })
				if err != nil || n != c.rounds {
					b.Fatalf("%d records: %v", n, err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*c.rounds), "us/record")
			if err := l.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

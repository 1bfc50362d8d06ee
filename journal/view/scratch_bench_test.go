package view

import (
	"math/rand/v2"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// BenchmarkScratch is a view's own data on this machine's file system: 4 KiB and 512
// bytes at random places of 64 MiB that were written before, and 1 MiB in order.
func BenchmarkScratch(b *testing.B) {
	const size = 64 << 20
	v, err := New(Config{Options: Options{Scratch: true}, FS: ioengine.OS(), Dir: b.TempDir(), Versions: index.NewVersions(), Group: 7, Number: 1,
		Disks: []Disk{{Volume: Volume{ID: record.VolumeID(1), Bytes: size}, Replica: &memoryReplica{image: make([]byte, size)}}}})
	must(b, err)
	defer v.Close()
	d, _ := v.Device(1)
	rng := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, 1<<20)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	for off := int64(0); off < size; off += int64(len(p)) {
		must(b, d.WriteAt(p, off))
	}
	for _, c := range []struct {
		name string
		n    int64
		do   func(p []byte, off int64) error
	}{
		{"write-4k", 4 << 10, d.WriteAt},
		{"write-512", 512, d.WriteAt},
		{"write-1m", 1 << 20, d.WriteAt},
		{"read-4k", 4 << 10, d.ReadAt},
		{"read-512", 512, d.ReadAt},
		{"read-1m", 1 << 20, d.ReadAt},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(c.n)
			for b.Loop() {
				must(b, c.do(p[:c.n], rng.Int64N(size/c.n)*c.n))
			}
		})
	}
	b.Run("write-4k-flush", func(b *testing.B) {
		must(b, d.Flush())
		for b.Loop() {
			must(b, d.WriteAt(p[:4096], rng.Int64N(size/4096)*4096))
			must(b, d.Flush())
		}
	})
}

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/crc32c"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// costs are what the parts of the way cost by themselves, in CPU seconds for a GiB, and what the disk takes.
type costs struct {
	Probe, Checksum, Write float64
	Disk                   float64 // bytes/s, 1 MiB at a time, past the page cache
}

// ceiling holds what comes through of random bytes against what the parts allow.
func (b *bench) ceiling() error {
	data, err := b.dataFile(load.Random)
	if err != nil {
		return err
	}
	for i := range b.Pairs {
		var r run
		var bare moved
		var c costs
		foreign, err := b.Pair(i,
			func() (float64, error) { return b.ours(&r, data, "auto") },
			func() (f float64, err error) {
				bare, f, err = bars.Alone[moved](b.Run, "bare", tlsArgs{b.memory, b.bytes / 2})
				return
			},
			func() (f float64, err error) {
				c, f, err = bars.Alone[costs](b.Run, "costs", costsArgs{b.Dir, b.bytes})
				return
			})
		if err != nil {
			return err
		}
		sum := c.Probe + bare.perGiB() + 2*c.Checksum + c.Write
		cpu := float64(runtime.NumCPU()) / sum * gib
		top := min(c.Disk, cpu)
		note := fmt.Sprintf("disk %.0f MB/s, CPU %.0f MB/s: probe %.3f, TLS %.2f, checksums 2 x %.3f, write %.2f CPU-s/GiB; ours %.2f", c.Disk/1e6, cpu/1e6, c.Probe, bare.perGiB(), c.Checksum, c.Write, r.perGiB())
		b.Sample(bars.Sample{Row: "ceiling", Value: r.rate() / top, Ours: r.rate() / 1e6, Peer: top / 1e6, OursUnit: "MB/s", Foreign: foreign, Note: note})
	}
	return nil
}

type costsArgs struct {
	Dir   string
	Bytes int64
}

// costsPart takes the parts one after the other, over memory that no cache holds.
func costsPart(_ context.Context, a costsArgs) (c costs, err error) {
	data := buf.Row(128<<20, 1)[0]
	copy(data, load.Noise(len(data), 1))
	each := func(size int, do func([]byte)) float64 {
		at := bars.OwnCPU()
		const rounds = 8
		for range rounds {
			for off := 0; off+size <= len(data); off += size {
				do(data[off : off+size])
			}
		}
		return (bars.OwnCPU() - at) / (rounds * float64(len(data)) / gib)
	}
	c.Probe = each(record.LineBytes, func(p []byte) { record.Dense(p) })
	c.Checksum = each(record.LineBytes, func(p []byte) { crc32c.Checksum(p) })

	name := filepath.Join(a.Dir, "direct")
	defer os.Remove(name)
	f, err := ioengine.OS().Open(name, ioengine.Create|ioengine.Direct)
	if err != nil {
		return c, err
	}
	defer f.Close()
	if err := f.Allocate(0, a.Bytes); err != nil {
		return c, err
	}
	stop := clock()
	for at := int64(0); at+recordBytes <= a.Bytes; at += recordBytes {
		if _, err := f.WriteAt(data[at%int64(len(data)):][:recordBytes], at); err != nil {
			return c, err
		}
	}
	if err := f.Sync(); err != nil {
		return c, err
	}
	m := stop(a.Bytes)
	c.Disk, c.Write = m.rate(), m.perGiB()
	return c, nil
}

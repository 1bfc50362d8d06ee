package main

import (
	"context"
	"runtime"

	"github.com/pierrec/lz4/v4"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/datapath/pack"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// packArgs say how much is packed.
type packArgs struct{ Bytes int64 }

// pack is held against the library's encoder, as many times as there are cores.
func (b *bench) pack() error {
	return b.contrast("pack", "library", packArgs{b.bytes / 2}, func(ours, library moved, foreign float64) {
		peer := library.rate() * float64(runtime.NumCPU())
		b.Sample(bars.Sample{Row: "pack", Value: ours.rate() / peer, Ours: ours.rate() / 1e6, Peer: peer / 1e6, OursUnit: "MB/s", Foreign: foreign})
	})
}

// packPart seals batches of 1 MiB on all cores, in order.
func packPart(ctx context.Context, a packArgs) (moved, error) {
	data := load.Corpus(load.DB, 1)
	stop := clock()
	var raw int64
	packed(ctx, int((a.Bytes+recordBytes-1)/recordBytes), recordBytes, func(b *record.Batch, i int) {
		at := int64(i) * recordBytes
		from := int(at % int64(len(data)))
		for off := 0; off < recordBytes; off += record.LineBytes {
			b.Add(record.Piece{Volume: 1, Off: at + int64(off), Len: record.LineBytes, Ticket: 1, Data: data[from+off:][:record.LineBytes]})
		}
	}, func(j *pack.Job) { raw += int64(j.Batch.Raw()) })
	return stop(raw), nil
}

// packed has so many records go through the packer, which fill puts together, of so many bytes
// at most. They come to use in order.
func packed(ctx context.Context, count, bytes int, fill func(b *record.Batch, i int), use func(*pack.Job)) {
	free, in, out := make(chan *pack.Job, pack.InFlight()+2), make(chan *pack.Job), make(chan *pack.Job)
	for range cap(free) {
		free <- &pack.Job{Batch: record.NewBatch(record.Limits{Raw: bytes}), Out: make([]byte, 0, 2*bytes)}
	}
	go pack.Run(ctx, in, out)
	go func() {
		defer close(in)
		for i := range count {
			j := <-free
			j.Batch.Reset()
			fill(j.Batch, i)
			j.ID, j.Time = record.Identity{Stream: 1, Epoch: 1, Incarnation: 1, Seq: record.Seq(i + 1)}, 1
			in <- j
		}
	}()
	for j := range out {
		use(j)
		free <- j
	}
}

// libraryPart compresses blocks of as many bytes as ours have, on one core.
func libraryPart(_ context.Context, a packArgs) (moved, error) {
	data, dst := load.Corpus(load.DB, 1), make([]byte, lz4.CompressBlockBound(record.LineBytes))
	var c lz4.Compressor
	stop := clock()
	for at := int64(0); at < a.Bytes; at += record.LineBytes {
		from := int(at % int64(len(data)))
		if _, err := c.CompressBlock(data[from:from+record.LineBytes], dst); err != nil {
			return moved{}, err
		}
	}
	return stop(a.Bytes), nil
}

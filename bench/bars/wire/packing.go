package main

import (
	"context"
	"runtime"
	"time"

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
	a := packArgs{b.bytes / 2}
	for i := range b.pairs {
		var ours, library moved
		foreign, err := b.pair(i,
			func() (f float64, err error) { ours, _, f, err = alone[moved](b, "pack", a); return },
			func() (f float64, err error) { library, _, f, err = alone[moved](b, "library", a); return })
		if err != nil {
			return err
		}
		peer := library.rate() * float64(runtime.NumCPU())
		b.sample(bars.Sample{Row: "pack", Value: ours.rate() / peer, Ours: ours.rate() / 1e6, Peer: peer / 1e6, OursUnit: "MB/s", Foreign: foreign})
	}
	return nil
}

// packPart seals batches of 1 MiB on all cores, in order.
func packPart(ctx context.Context, a packArgs) (moved, error) {
	data := load.Corpus(load.DB, 1)
	free, in, out := make(chan *pack.Job, pack.InFlight()+2), make(chan *pack.Job), make(chan *pack.Job)
	for range cap(free) {
		free <- &pack.Job{Batch: record.NewBatch(record.Limits{Raw: recordBytes}), Out: make([]byte, 0, 2*recordBytes)}
	}
	go pack.Run(ctx, in, out)
	stop := clock()
	go func() {
		defer close(in)
		seq := record.Seq(0)
		for at := int64(0); at < a.Bytes; at += recordBytes {
			j := <-free
			j.Batch.Reset()
			from := int(at % int64(len(data)))
			for off := 0; off < recordBytes; off += record.LineBytes {
				j.Batch.Add(record.Piece{Volume: 1, Off: at + int64(off), Len: record.LineBytes, Ticket: 1, Data: data[from+off:][:record.LineBytes]})
			}
			seq++
			j.ID, j.Time = record.Identity{Stream: 1, Epoch: 1, Incarnation: 1, Seq: seq}, record.Time(time.Now().UnixNano())
			in <- j
		}
	}()
	var raw int64
	for j := range out {
		raw += int64(j.Batch.Raw())
		free <- j
	}
	return stop(raw), nil
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

package main

import (
	"math/rand/v2"

	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// workload is the load under which the lag is measured: writes of 4 to 64 KiB, in steps of
// 4 KiB, of db, anywhere on the disk. The same again each time.
type workload struct {
	rng  *rand.Rand
	data []byte
	disk int64 // bytes
}

const (
	writeStep  = 4 << 10
	writeSteps = 16
	dbPage     = 8 << 10
)

func newWorkload(disk int64) *workload {
	return &workload{rand.New(rand.NewPCG(5, 5)), load.Corpus(load.DB, 2), disk}
}

// next is the next write: where, and its bytes, which are lent until the end.
func (w *workload) next() (off int64, data []byte) {
	n := (1 + w.rng.IntN(writeSteps)) * writeStep
	from := w.rng.IntN((len(w.data)-n)/dbPage) * dbPage
	return w.rng.Int64N((w.disk-int64(n))/writeStep) * writeStep, w.data[from : from+n]
}

// sampleBytes of the guest's say how its writes pack, and batchBytes make a record, about as
// many as come within 20 ms.
const (
	sampleBytes = 16 << 20
	batchBytes  = 256 << 10
)

// packs is how many bytes of records a byte of the workload becomes, as the product packs it.
func packs(disk int64) float64 {
	w, b, c := newWorkload(disk), record.NewBatch(record.Limits{}), record.NewCompressor()
	var raw, stored int
	var sealed []byte
	for seq := record.Seq(1); raw < sampleBytes; seq++ {
		b.Reset()
		for b.Raw() < batchBytes {
			off, data := w.next()
			if !b.Add(record.Piece{Volume: volumeID, Off: off, Len: int64(len(data)), Ticket: 1, Data: data}) {
				panic("BUG: a batch of 256 KiB is full")
			}
		}
		raw += b.Raw()
		sealed = b.Seal(sealed[:0], record.Identity{Stream: streamID, Epoch: 1, Incarnation: 1, Seq: seq}, 1, c)
		stored += len(sealed)
	}
	return float64(stored) / float64(raw)
}

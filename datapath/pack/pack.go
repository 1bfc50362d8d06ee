// Package pack seals batches into records in parallel and keeps their order.
//
// It stands between the one goroutine that fills batches and numbers them, and the
// one that puts records into the window. What it costs is the LZ4 encoder, which is
// nearly all the CPU of the data path, so it uses every
// processor that Go may use.
//
// Jobs and their buffers belong to the caller, which has as many as it wants under
// way: filling, in here (at most InFlight), and waiting for the window. In steady
// state nothing is allocated here.
package pack

import (
	"context"
	"runtime"
	"runtime/pprof"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
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

	// Out is the record. Sealing writes to Out[:0]; it allocates only when that has
	// less room than Batch.Bound().
	Out []byte

	// Done is the caller's: what to free once the record stands in window or spill.
	Done any

	// Took is how long sealing took.
	Took time.Duration

	// Wrong is how many blocks are raw because the encoder, or the machine, made others of them.
	Wrong int

	sealed chan struct{} // capacity 1; kept when a Job is used again
}

// orderPerWorker is how many jobs wait in the row for each worker: the one it seals
// and one that stands ready behind it, so that no worker waits while the first in
// the row is still being sealed.
const orderPerWorker = 2

// InFlight is how many jobs Run holds at most while nobody takes from out: those in
// the row, one on its way in and one on its way out. A caller that has more of them
// keeps all workers busy; one with fewer is never blocked by Run.
func InFlight() int { return orderPerWorker*Workers() + 2 }

// Workers is how many batches Run seals at once.
func Workers() int { return runtime.GOMAXPROCS(0) }

// Run takes every job from in, seals it, and gives it to out in the order of in. It
// returns when in is closed and drained, having closed out.
//
//	in ─┬─► work  (parallel)   ─┐ sealed
//	    └─► order (sequential) ─┴─► out
//
// Run drops no job and does not stop with ctx, which only names its goroutines in
// profiles: to stop, close in and go on taking from out until it is closed.
func Run(ctx context.Context, in <-chan *Job, out chan<- *Job) {
	pprof.Do(ctx, pprof.Labels("stage", "pack"), func(context.Context) { run(in, out) })
}

func run(in <-chan *Job, out chan<- *Job) {
	defer close(out)
	n := Workers()
	var wg sync.WaitGroup
	defer wg.Wait()
	work, order := make(chan *Job, n), make(chan *Job, orderPerWorker*n)
	for range n {
		wg.Go(func() {
			c := record.NewCompressor()
			for j := range work {
				j.seal(c)
				j.sealed <- struct{}{} // capacity 1: never blocks
			}
		})
	}
	wg.Go(func() {
		defer close(work)
		defer close(order)
		for j := range in {
			if j.sealed == nil {
				j.sealed = make(chan struct{}, 1)
			}
			if invariant.Planted("pack/control-overtakes") && j.Batch == nil {
				out <- j
				continue
			}
			order <- j // before work, so that order is the order of in
			if j.Batch == nil {
				j.sealed <- struct{}{}
				continue
			}
			work <- j
		}
	})
	for j := range order {
		if !invariant.Planted("pack/not-awaited") {
			<-j.sealed
		}
		out <- j // given away
	}
}

func (j *Job) seal(c *record.Compressor) {
	began := time.Now()
	c.StoreOnly = j.StoreOnly && !invariant.Planted("pack/store-only-forgotten")
	c.Wrong = 0
	j.Out = j.Batch.Seal(j.Out[:0], j.ID, j.Time, c)
	j.Took, j.Wrong = time.Since(began), c.Wrong
}

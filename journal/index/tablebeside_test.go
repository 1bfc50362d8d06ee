package index

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Lookups beside adds, flushes, merges and drops go on answering, and an old checkpoint
// stays as it was.
func TestTableBeside(t *testing.T) {
	cfg := testTable(faultdisk.New(512))
	cfg.Go = nil
	table, err := OpenTable(cfg)
	must(t, err)
	f := newFeeder(8 << 20)
	add := func(n int) {
		for range n {
			pos, r := f.next(f.random)
			must(t, table.Add(pos, r))
		}
	}
	add(100)
	at := NewVector(Checkpoint{At: []StreamAt{{Stream: 0x123456789abcdef, Seq: f.seq}}})
	want, err := table.Lookup(nil, 1, 0, 8<<20, at)
	must(t, err)
	var done atomic.Bool
	var wg sync.WaitGroup
	for seed := range uint64(3) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 1))
			var dst []Piece
			for !done.Load() {
				got, err := table.Lookup(dst[:0], 1, 0, 8<<20, at)
				if err != nil || !slices.Equal(got, want) {
					t.Errorf("the old checkpoint changed: %v", err)
					return
				}
				off := rng.Int64N(8 << 20)
				now := NewVector(Checkpoint{At: []StreamAt{{Stream: 0x123456789abcdef, Seq: record.Seq(1 + rng.IntN(1000))}}})
				if dst, err = table.Lookup(got[:0], 1, off, 1+rng.Int64N(8<<20-off), now); err != nil {
					t.Error(err)
					return
				}
				table.Memory()
				table.Stats()
				table.Sum(1, 1)
			}
		})
	}
	for range 30 {
		add(20)
		write := table.Freeze(Snapshot{Pos: f.pos, Segment: 1, Life: 1})
		wg.Add(1)
		written := make(chan error, 1)
		go func() {
			defer wg.Done()
			written <- write()
		}()
		add(20) // while it is written
		must(t, <-written)
	}
	done.Store(true)
	wg.Wait()
	must(t, table.Close())
	if _, err := table.Lookup(nil, 1, 0, 1, at); err == nil {
		t.Error("a closed table answers")
	}
}

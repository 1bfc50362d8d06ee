package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
)

// verifier is a guest that writes blocks of 4 KiB at random places of the first part of a disk and reads back what it wrote,
// through whatever becomes of who serves the disk: some of it meanwhile, and all of it at its end. What it writes does not compress.
type verifier struct {
	g     *guest.Guest
	noise []byte
	ctx   context.Context
	end   context.CancelFunc
	all   sync.WaitGroup

	mu      sync.Mutex
	pace    time.Duration // between requests; 0: as soon as there is room
	due     time.Time
	answer  time.Time // the last
	counted seen
	failed  error
}

// seen is what a verifier saw since it was last asked.
type seen struct {
	Writes, Reads, Meetings int
	Gap                     time.Duration // the longest without an answer
	Blocks                  map[int64]bool
}

// verifyDepth is how many requests it has under way.
const verifyDepth = 32

const verifyBlock = 4096

// verify starts one: rate is of its requests a second, three in four writes; 0: as many as find room. It runs until stop.
func (b *bench) verify(socket string, size int64, rate float64) (*verifier, error) {
	g, err := guest.New(guest.Options{Slots: verifyDepth, SlotBytes: verifyBlock})
	if err != nil {
		return nil, err
	}
	v := &verifier{g: g, noise: load.Noise(8<<20, 1), due: time.Now(), answer: time.Now(), counted: seen{Blocks: map[int64]bool{}}}
	if rate > 0 {
		v.pace = time.Duration(float64(time.Second) / rate)
	}
	if _, err := g.Meet(b.Context, socket); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	v.ctx, v.end = context.WithCancel(b.Context)
	stay, leave := context.WithCancel(context.Background())
	var met sync.WaitGroup
	met.Go(func() {
		g.Stay(stay, socket, func(time.Duration) {
			v.mu.Lock()
			defer v.mu.Unlock()
			v.counted.Meetings++
		})
	})
	var workers sync.WaitGroup
	b.seed++
	for w := range int64(verifyDepth) {
		rng := rand.New(rand.NewPCG(b.seed, uint64(w)))
		workers.Go(func() { v.work(rng, w, size/verifyBlock/verifyDepth) })
	}
	v.all.Go(func() {
		workers.Wait()
		leave()
		err := g.Disconnect()
		met.Wait()
		v.fail(errors.Join(err, g.Close()))
	})
	return v, nil
}

// work writes and reads those blocks of which every verifyDepth-th is w's, so that nobody else changes them meanwhile.
func (v *verifier) work(rng *rand.Rand, w, blocks int64) {
	written := map[int64]uint64{}
	var places []int64
	want, got := make([]byte, verifyBlock), make([]byte, verifyBlock)
	verify := func(at int64) {
		v.fill(want, at, written[at])
		if err := v.g.Read(0, got, at*verifyBlock); err != nil {
			v.fail(fmt.Errorf("read block %d: %w", at, err))
		} else if !bytes.Equal(got, want) {
			v.fail(fmt.Errorf("block %d does not hold its %d. write", at, written[at]))
		}
	}
	defer func() {
		for _, at := range places {
			if v.hasFailed() {
				return
			}
			verify(at)
			v.answered(at, true)
		}
	}()
	for count := uint64(1); v.wait(); count++ {
		at := rng.Int64N(blocks)*verifyDepth + w
		read := len(places) > 0 && count%4 == 0
		if read {
			at = places[rng.IntN(len(places))]
			verify(at)
		} else {
			v.fill(want, at, count)
			if err := v.g.Write(0, want, at*verifyBlock); err != nil {
				v.fail(fmt.Errorf("write block %d: %w", at, err))
			}
			if written[at] == 0 {
				places = append(places, at)
			}
			written[at] = count
		}
		v.answered(at, read)
	}
}

// fill makes the bytes that the numbered write puts into a block.
func (v *verifier) fill(p []byte, block int64, write uint64) {
	copy(p, v.noise[(uint64(block)*7919+write*104729)*8%uint64(len(v.noise)-len(p)):])
	binary.LittleEndian.PutUint64(p, uint64(block))
	binary.LittleEndian.PutUint64(p[8:], write)
}

// wait waits until a request is due; it says whether there is to be one.
func (v *verifier) wait() bool {
	v.mu.Lock()
	v.due = v.due.Add(v.pace)
	rest := time.Until(v.due)
	if late := -rest; late > time.Second { // what was missed while nobody served is not made up for
		v.due = v.due.Add(late)
	}
	v.mu.Unlock()
	if v.pace > 0 && rest > 0 {
		t := time.NewTimer(rest)
		defer t.Stop()
		select {
		case <-t.C:
		case <-v.ctx.Done():
		}
	}
	return v.ctx.Err() == nil
}

func (v *verifier) answered(block int64, read bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	v.counted.Gap = max(v.counted.Gap, now.Sub(v.answer))
	v.answer = now
	if read {
		v.counted.Reads++
		return
	}
	v.counted.Writes++
	v.counted.Blocks[block] = true
}

// fail ends it; the first error is kept.
func (v *verifier) fail(err error) {
	if err == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.failed == nil {
		v.failed = err
	}
	v.end()
}

func (v *verifier) hasFailed() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.failed != nil
}

// look returns what it saw since the last look, and how it failed.
func (v *verifier) look() (seen, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.counted
	v.counted = seen{Blocks: map[int64]bool{}}
	return s, v.failed
}

// meetings waits until it has met n servers since the last look.
func (v *verifier) meetings(ctx context.Context, n int) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		v.mu.Lock()
		met, failed := v.counted.Meetings, v.failed
		v.mu.Unlock()
		if failed != nil || met >= n {
			return failed
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the guest met %d servers of %d: %w", met, n, ctx.Err())
		case <-tick.C:
		}
	}
}

// stop ends it, and returns what it saw since the last look, and how it failed: also by a request that nobody answers.
func (v *verifier) stop() (seen, error) {
	v.end()
	ended := make(chan struct{})
	go func() { v.all.Wait(); close(ended) }()
	t := time.NewTimer(deathLimit)
	defer t.Stop()
	select {
	case <-ended:
	case <-t.C:
		v.fail(fmt.Errorf("a request was not answered in %v", deathLimit))
	}
	return v.look()
}

package faultlink

import (
	"math/rand/v2"
	"time"
)

// Faults are what happens to one connection: Up is from the one who dialled, Down
// is to it. The zero value is a good connection.
type Faults struct{ Up, Down Way }

// Way is one direction. Counts are of bytes of the stream, 0 is never.
type Way struct {
	CutAt   int64 // after so many bytes both ends see a reset; those bytes still arrive
	StallAt int64 // after so many nothing arrives any more, and nobody is told
	FlipAt  int64 // the byte of that number, counted from 1, has a bit flipped
	// RepeatAt is the byte whose piece, as it was written, arrives twice.
	RepeatAt int64
	Slice    int // at most so many bytes are handed over at once
	Delay    time.Duration
}

// Random draws faults for a connection of about so many bytes each way: most often
// a cut somewhere, at times a silence, short reads or some delay, a flipped bit, or
// bytes that come twice.
func Random(rng *rand.Rand, bytes int64) Faults {
	way := func() (w Way) {
		if rng.IntN(3) > 0 {
			w.CutAt = 1 + rng.Int64N(bytes)
		}
		if rng.IntN(8) == 0 {
			w.StallAt = 1 + rng.Int64N(bytes)
		}
		if rng.IntN(3) == 0 {
			w.Slice = 1 + rng.IntN(100)
		}
		if rng.IntN(3) == 0 {
			w.Delay = time.Duration(rng.IntN(200)) * time.Millisecond
		}
		if rng.IntN(8) == 0 {
			w.FlipAt = 1 + rng.Int64N(bytes)
		}
		if rng.IntN(8) == 0 {
			w.RepeatAt = 1 + rng.Int64N(bytes)
		}
		return w
	}
	return Faults{way(), way()}
}

// pass says how many of n bytes may pass next, after so many before, and whether
// the way ends there. It flips in p what is to be flipped. p may be nil.
func (w *Way) pass(before int64, p []byte) (n int, cut, stall bool) {
	n = len(p)
	if w.Slice > 0 {
		n = min(n, w.Slice)
	}
	if w.StallAt > 0 && before+int64(n) >= w.StallAt {
		n, stall = int(max(0, w.StallAt-before)), true
	}
	if w.CutAt > 0 && before+int64(n) >= w.CutAt {
		n, cut, stall = int(max(0, w.CutAt-before)), true, false
	}
	if w.FlipAt > before && w.FlipAt <= before+int64(n) {
		p[w.FlipAt-before-1] ^= 0x10
	}
	return n, cut, stall
}

package capture

import (
	"math/bits"
	"sync/atomic"
)

// bitmap is a bit a block over mapped memory, with a summary bit for every 512 words
// (128 MiB of volume), so that what is empty is not walked. A word's summary bit is set
// before the word is, and every store is atomic: a filter killed between two
// stores leaves each bit that it had set to be found. It has no lock of its own.
type bitmap struct {
	sum, words []uint64
	blocks     int64
}

const (
	sumWords  = 512           // words under one summary bit: a page
	sumBlocks = sumWords * 64 // blocks under one summary bit
)

// bitmapBytes is the memory of a bitmap: summary, then words, each in whole pages.
func bitmapBytes(blocks int64) (sum, words int64) {
	n := (blocks + 63) / 64
	return pages((n + sumWords*64 - 1) / (sumWords * 64) * 8), pages(n * 8)
}

// maskOf covers the bits of word w that lie in [from, to).
func maskOf(w, from, to int64) uint64 {
	m := ^uint64(0)
	if lo := from - w*64; lo > 0 {
		m <<= uint(lo)
	}
	if hi := to - w*64; hi < 64 {
		m &= 1<<uint(hi) - 1
	}
	return m
}

// set sets [from, to) and returns how many were not set before.
func (b *bitmap) set(from, to int64) (added int64) {
	if from >= to {
		return 0
	}
	for w := from / 64; w <= (to-1)/64; w++ {
		added += b.or(w, maskOf(w, from, to))
	}
	return added
}

func (b *bitmap) or(w int64, m uint64) int64 {
	old := b.words[w]
	if old&m == m {
		return 0
	}
	s, sm := w/sumWords/64, uint64(1)<<(w/sumWords%64)
	if b.sum[s]&sm == 0 {
		atomic.StoreUint64(&b.sum[s], b.sum[s]|sm)
	}
	atomic.StoreUint64(&b.words[w], old|m)
	return int64(bits.OnesCount64(m &^ old))
}

// clear clears [from, to) and returns how many were set. The summary stays: it may
// say too much.
func (b *bitmap) clear(from, to int64) (removed int64) {
	if from >= to {
		return 0
	}
	for w := from / 64; w <= (to-1)/64; w++ {
		old, m := b.words[w], maskOf(w, from, to)
		if old&m != 0 {
			atomic.StoreUint64(&b.words[w], old&^m)
			removed += int64(bits.OnesCount64(old & m))
		}
	}
	return removed
}

// all says whether every bit of [from, to) is set.
func (b *bitmap) all(from, to int64) bool {
	for w := from / 64; w <= (to-1)/64; w++ {
		if m := maskOf(w, from, to); b.words[w]&m != m {
			return false
		}
	}
	return true
}

// run finds the first run of set bits at or after from and before limit; ok is false when there is none.
func (b *bitmap) run(from, limit int64) (start, end int64, ok bool) {
	limit = min(limit, b.blocks)
	start = b.seek(from, limit, 0)
	if start >= limit {
		return 0, 0, false
	}
	return start, min(b.seek(start, limit, ^uint64(0)), limit), true
}

// seek finds the first bit at or after from that differs from those of skip (all ones or all zeros).
func (b *bitmap) seek(from, limit int64, skip uint64) int64 {
	for from < limit {
		w := from / 64
		if skip == 0 && from%sumBlocks == 0 && b.sum[w/sumWords/64]>>(w/sumWords%64)&1 == 0 {
			from += sumBlocks
			continue
		}
		if d := (b.words[w] ^ skip) >> (from % 64); d != 0 {
			return from + int64(bits.TrailingZeros64(d))
		}
		from = (w + 1) * 64
	}
	return limit
}

// eachPage calls f with the words of every page that may have a bit.
func (b *bitmap) eachPage(f func(first int64, words []uint64)) {
	for s, sum := range b.sum {
		for ; sum != 0; sum &= sum - 1 {
			first := (int64(s)*64 + int64(bits.TrailingZeros64(sum))) * sumWords
			if first < int64(len(b.words)) {
				f(first, b.words[first:min(first+sumWords, int64(len(b.words)))])
			}
		}
	}
}

// orInto adds all bits of b to to and returns how many were new there.
func (b *bitmap) orInto(to *bitmap) (added int64) {
	b.eachPage(func(first int64, words []uint64) {
		for i, w := range words {
			if w != 0 {
				added += to.or(first+int64(i), w)
			}
		}
	})
	return added
}

func (b *bitmap) count() (n int64) {
	b.eachPage(func(_ int64, words []uint64) {
		for _, w := range words {
			n += int64(bits.OnesCount64(w))
		}
	})
	return n
}

// reset clears everything; words before summary, so that a kill between leaves nothing hidden.
func (b *bitmap) reset() {
	b.eachPage(func(_ int64, words []uint64) {
		for i := range words {
			if words[i] != 0 {
				atomic.StoreUint64(&words[i], 0)
			}
		}
	})
	for i := range b.sum {
		atomic.StoreUint64(&b.sum[i], 0)
	}
}

// addTo sets all bits of b in words. Others may change b meanwhile.
func (b *bitmap) addTo(words []uint64) {
	for s := range b.sum {
		for sum := atomic.LoadUint64(&b.sum[s]); sum != 0; sum &= sum - 1 {
			first := (int64(s)*64 + int64(bits.TrailingZeros64(sum))) * sumWords
			for w := first; w < min(first+sumWords, int64(len(words))); w++ {
				words[w] |= atomic.LoadUint64(&b.words[w])
			}
		}
	}
}

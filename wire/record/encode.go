package record

import (
	"math/bits"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// room is where a block lies before or after it is encoded, with some bytes over, so that what
// is read or written several bytes at a time needs no look at where the block ends.
// Places in it are masked: the compiler then knows that they are inside, checks
// nothing, and a mistake of ours is a wrong byte, which tests find, and no access elsewhere.
type room [LineBytes + roomOver]byte

const (
	roomOver = 64
	roomMask = LineBytes - 1
)

func (p *room) u32(at int) uint32      { return le.Uint32(p[at&roomMask:]) }
func (p *room) u64(at int) uint64      { return le.Uint64(p[at&roomMask:]) }
func (p *room) put(at int, v byte)     { p[at&roomMask] = v }
func (p *room) put16(at int, v uint16) { le.PutUint16(p[at&roomMask:], v) }
func (p *room) copy16(at int, s *room, from int) {
	*(*[16]byte)(p[at&roomMask:]) = *(*[16]byte)(s[from&roomMask:])
}

const (
	// hashBytes is how many bytes are looked up together: a match of four only is worth less
	// than the time that its sequence takes, here and in the decoder.
	hashBytes = 5
	hashBits  = 13 // with positions of 16 bits the table takes 16 KiB, a third of the first cache
	hashPrime = 889523592379

	// literalTail is how much of a block's end is in no match, as the format wants it.
	literalTail = 5
	// searchTail is how much of a block's end begins no match: the format wants 12, and with
	// this the first 12 bytes of a match may be compared without a look at the end.
	searchTail = literalTail + minMatch + 8
	// skipBits: after so many places (2 to the power) without a match the next one looked at is
	// one further away, and so on.
	skipBits = 6
	// sequenceOver is how much further than a sequence's own bytes writing one may go.
	sequenceOver = 40
)

// positions are the last places at which bytes of each hash were seen.
type positions [1 << hashBits]uint16

func hashOf(v uint64) int { return int(v << (64 - 8*hashBytes) * hashPrime >> (64 - hashBits)) }

// encode makes an LZ4 block of the first n bytes of src, at the beginning of dst, and returns its
// size. It returns 0 when it would save less than some 40 bytes; then dst holds garbage,
// but nothing beyond n bytes of it was touched. Every decoder of the format takes what it makes.
//
// It is the common greedy search, for blocks of at most 32 KiB: places are 16 bits, and
// what the search knows fits the first cache. So it takes two thirds of the time of the library's.
func (t *positions) encode(dst, src *room, n int) int {
	if n <= searchTail || n > LineBytes {
		return 0
	}
	if !invariant.Planted("record/positions-kept") {
		clear(t[:])
	}
	out, anchor := search(t, dst, src, n)
	if out < 0 {
		return 0
	}
	return dst.literals(out, src, anchor, n)
}

// searchInGo writes all sequences of a block of n bytes but the last, which begins at anchor in src and
// at out in dst. An out of -1 says that the block does not shrink enough. t is empty.
func searchInGo(t *positions, dst, src *room, n int) (out, anchor int) {
	var (
		at   = 1 // place looked at
		from = 0 // the match there, if it is one
		last = n - searchTail
	)
	if invariant.Planted("record/late-match") {
		last = n - minMatch - 4
	}
	for {
		for step := 1 << skipBits; ; step++ {
			if at > last {
				return out, anchor
			}
			v := src.u64(at)
			h := hashOf(v)
			from = int(t[h])
			t[h] = uint16(at)
			if src.u32(from) == uint32(v) {
				break
			}
			at += step >> skipBits
		}
		if limit := min(at-anchor, from); limit > 0 {
			back := src.backwards(at, from, limit)
			at, from = at-back, from-back
		}
		for {
			end := at + minMatch
			if x := src.u64(end) ^ src.u64(from+minMatch); x != 0 {
				end += bits.TrailingZeros64(x) >> 3 // so most end
			} else {
				end = src.forwards(end+8, from+minMatch+8, n)
			}
			if out = dst.sequence(out, src, anchor, at, at-from, end-at, n); out < 0 {
				return -1, 0
			}
			if at, anchor = end, end; at > last {
				return out, anchor
			}
			t[hashOf(src.u64(at-2))] = uint16(at - 2)
			v := src.u64(at)
			h := hashOf(v)
			from = int(t[h])
			t[h] = uint16(at)
			if src.u32(from) != uint32(v) {
				break
			}
		}
		at++
	}
}

// backwards is how many bytes before two places are the same, at most limit and, when limit is
// larger, 7: it is not worth a loop.
func (p *room) backwards(a, b, limit int) int {
	if b >= 8 { // and so is a
		return min(limit, bits.LeadingZeros64(p.u64(a-8)^p.u64(b-8)|1)>>3)
	}
	n := 0
	for n < limit && p[(a-1-n)&roomMask] == p[(b-1-n)&roomMask] {
		n++
	}
	return n
}

// forwards is where the bytes from a on cease to be those from b on, in a block of n.
func (p *room) forwards(a, b, n int) int {
	for a <= n-literalTail-8 {
		if x := p.u64(a) ^ p.u64(b); x != 0 {
			return a + bits.TrailingZeros64(x)>>3
		}
		a, b = a+8, b+8
	}
	for a < n-literalTail && p[a&roomMask] == p[b&roomMask] {
		a, b = a+1, b+1
	}
	return a
}

// sequence writes the literals from anchor to at, and the match of the given length so far back. It
// returns where it ends, or -1 when that would come near n.
func (p *room) sequence(out int, src *room, anchor, at, back, length, n int) int {
	run, more := at-anchor, length-minMatch
	if out+run+sequenceOver+(run+length)>>7 > n && !invariant.Planted("record/no-room") {
		return -1
	}
	token := out
	out++
	if run < longRun {
		p.put(token, byte(run<<4|min(more, longRun)))
		p.copy16(out, src, anchor)
	} else {
		p.put(token, byte(longRun<<4|min(more, longRun)))
		out = p.length(out, run)
		for i := 0; i < run; i += 16 {
			p.copy16(out+i, src, anchor+i)
		}
	}
	out += run
	p.put16(out, uint16(back))
	out += 2
	if more >= longRun {
		out = p.length(out, more)
	}
	return out
}

// length writes what a token's field could not hold of n.
func (p *room) length(out, n int) int {
	for n -= longRun; n >= 255; n -= 255 {
		p.put(out, 255)
		out++
	}
	p.put(out, byte(n))
	return out + 1
}

// literals ends the block with the bytes from anchor to n.
func (p *room) literals(out int, src *room, anchor, n int) int {
	run := n - anchor
	if out+run+run/255+2 >= n && !invariant.Planted("record/keep-grown") {
		return 0
	}
	p.put(out, byte(min(run, longRun)<<4))
	if out++; run >= longRun {
		out = p.length(out, run)
	}
	return out + copy(p[out&roomMask:], src[anchor:n])
}

package record

import "github.com/holdfast-dr/holdfast/ioengine/invariant"

const (
	minMatch = 4  // LZ4's shortest match; a token's length counts from it
	longRun  = 15 // a token's length field that says: more bytes of length follow
	wide     = 16 // short runs are copied by this many bytes at once, where there is room
)

// decodeLZ4 fills dst from the LZ4 block src and says whether src was exactly that:
// well formed, all used, dst full to its last byte.
//
// src is hostile. Every index is checked, by the language or before use, and a match
// reaches back only to bytes that this call has written, so that no earlier content
// of dst can be seen through the result: not by a bad offset, not by a short block.
// Wide copies may write garbage beyond the run, never beyond dst; what follows
// overwrites it, or the call fails.
//
// It is our own because the fast decoders are assembly without bounds checks by the
// language; it is tested against one of those.
func decodeLZ4(dst, src []byte) bool { return decodePrefix(dst, src, len(dst)) }

// decodePrefix is decodeLZ4 that ends, well, once the first want bytes of dst stand; what
// follows them is worth nothing then, and what src holds beyond was not looked at.
func decodePrefix(dst, src []byte, want int) bool {
	d, s := 0, 0
	for s < len(src) {
		if d >= want && want < len(dst) {
			return true
		}
		token := src[s]
		s++

		run, ok := int(token>>4), true
		if run == longRun {
			if run, s, ok = moreLength(src, s, len(dst)); !ok {
				return false
			}
		}
		switch {
		case run <= wide && s+wide <= len(src) && d+wide <= len(dst):
			copyWide(dst[d:], src[s:])
		case run > len(src)-s || run > len(dst)-d:
			return false
		default:
			copy(dst[d:], src[s:s+run])
		}
		d, s = d+run, s+run
		if s == len(src) {
			return d == len(dst) || d >= want && want < len(dst) || invariant.Planted("record/short-lz4") // the last sequence has no match
		}

		if s+2 > len(src) {
			return false
		}
		back := int(le.Uint16(src[s:]))
		s += 2
		if back == 0 || back > d {
			return false
		}
		run = int(token & 15)
		if run == longRun {
			if run, s, ok = moreLength(src, s, len(dst)); !ok {
				return false
			}
		}
		run += minMatch
		switch {
		case run > len(dst)-d:
			return false
		case (back >= wide || invariant.Planted("record/wide-overlap")) && run <= 2*wide && d+2*wide <= len(dst):
			copyWide(dst[d:], dst[d-back:])
			copyWide(dst[d+wide:], dst[d+wide-back:])
		case back >= run:
			copy(dst[d:d+run], dst[d-back:])
		default:
			repeat(dst[:d+run], d, back)
		}
		d += run
	}
	return false // it ended on a match, or was empty
}

// moreLength adds up the bytes of a long length, to at most what limit leaves sensible.
func moreLength(src []byte, s, limit int) (n, next int, ok bool) {
	n = longRun
	for s < len(src) {
		b := src[s]
		s++
		if n += int(b); n > limit {
			return 0, 0, false
		}
		if b != 255 {
			return n, s, true
		}
	}
	return 0, 0, false
}

// copyWide copies 16 bytes; both slices have them.
func copyWide(dst, src []byte) {
	lo, hi := le.Uint64(src), le.Uint64(src[8:])
	le.PutUint64(dst, lo)
	le.PutUint64(dst[8:], hi)
}

// repeat fills p from d on with the back bytes before d, over and over; what is
// copied doubles each time.
func repeat(p []byte, d, back int) {
	from := d - back
	for d < len(p) {
		d += copy(p[d:], p[from:d])
	}
}

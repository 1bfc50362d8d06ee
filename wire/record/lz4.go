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
		if d, s = decodeShort(dst, src, d, s, want); d >= want && want < len(dst) {
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

// decodeShort is the part of decodePrefix that most of a block goes through: sequences with
// few literals and a match of up to 272 bytes, far from the ends of src and dst, so that
// copies of fixed size stay inside. It ends in front of the first that is not such, or not
// well formed, which is the caller's, and once want bytes stand.
func decodeShort(dst, src []byte, d, s, want int) (int, int) {
	for d < want && s < len(src)-(1+wide+3) && d < len(dst)-wide {
		token := src[s]
		run, match := int(token>>4), int(token&15)+minMatch
		if run == longRun {
			break
		}
		*(*[wide]byte)(dst[d:]) = *(*[wide]byte)(src[s+1:])
		from, to := s+1+run, d+run
		back := int(le.Uint16(src[from:]))
		from += 2
		if match == longRun+minMatch {
			more := int(src[from])
			if more == 255 {
				break
			}
			match += more
			from++
		}
		if back == 0 || back > to || to+match > len(dst)-2*wide {
			break
		}
		out := dst[to : to+match+2*wide]
		if at := to - back; back >= wide || invariant.Planted("record/wide-overlap") {
			*(*[wide]byte)(out) = *(*[wide]byte)(dst[at:])
			for n := wide; n < match; n += wide {
				*(*[wide]byte)(out[n:]) = *(*[wide]byte)(dst[at+n:])
			}
		} else {
			if back < 8 { // the first 8 bytes, of bytes that each stand before: from then on they lie 8 apart or more
				for n := range 4 {
					out[n] = dst[at+n]
				}
				at += apart[back].first
				*(*[4]byte)(out[4:]) = *(*[4]byte)(dst[at:])
				at -= apart[back].then
			} else {
				*(*[8]byte)(out) = *(*[8]byte)(dst[at:])
			}
			for n := 8; n < match; n += 8 {
				*(*[8]byte)(out[n:]) = *(*[8]byte)(dst[at+n:])
			}
		}
		d, s = to+match, from
	}
	return d, s
}

// apart says, of a match that begins less than 8 bytes back, how far behind its beginning the
// bytes 4 to 7 are had, and how far before that all that follow are: both a multiple of
// the distance away from where it would be, so that the bytes are the same.
var apart = [8]struct{ first, then int }{1: {1, 8}, {2, 8}, {1, 7}, {4, 8}, {4, 9}, {4, 10}, {4, 11}}

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

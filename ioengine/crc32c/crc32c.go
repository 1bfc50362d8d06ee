// Package crc32c computes CRC-32C (Castagnoli, RFC 3720 appendix B.4), the checksum of every
// format of ours, of large blocks several times faster than the standard library where the
// processor multiplies polynomials 512 bits at a time; elsewhere it is the standard library.
package crc32c

import "hash/crc32"

var table = crc32.MakeTable(crc32.Castagnoli)

// Checksum returns the CRC-32C of p.
func Checksum(p []byte) uint32 { return Update(0, p) }

// Update returns the checksum of the bytes whose checksum is crc and p behind them.
func Update(crc uint32, p []byte) uint32 {
	if len(p) >= foldFrom && canFold {
		n := len(p) &^ (foldBytes - 1)
		crc, p = ^fold(^crc, &p[0], n, &factors), p[n:]
	}
	return crc32.Update(crc, table, p)
}

// Folding takes foldBytes at a time, and pays from foldFrom on.
const (
	foldBytes = 256
	foldFrom  = 1024
)

// The method is that of V. Gopal and others, "Fast CRC Computation for Generic Polynomials Using
// PCLMULQDQ Instruction", Intel 2009: what lies d bits before other bytes may be
// multiplied by x^d, modulo the polynomial, and added to them, and the checksum stays the same. All but
// the last 64 bytes goes that way; their checksum is the message's.

// factors multiply the lower and the upper half of 16 bytes that move by 2048 and by 512 bits.
var factors = [4]uint64{
	power(crc32.Castagnoli, 2048+32), power(crc32.Castagnoli, 2048-32),
	power(crc32.Castagnoli, 512+32), power(crc32.Castagnoli, 512-32),
}

// power returns x^n modulo the polynomial, whose bits and the result's are in reverse order: the
// lowest stands for the highest power. It is shifted by one place, as the product of two
// numbers in reverse order is by the other way.
func power(poly uint32, n int) uint64 {
	r := uint32(1) << 31 // x^0
	for range n {
		carry := r & 1 // x^31
		r >>= 1
		if carry != 0 {
			r ^= poly
		}
	}
	return uint64(r) << 1
}

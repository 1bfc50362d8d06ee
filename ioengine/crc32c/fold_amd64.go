package crc32c

import "golang.org/x/sys/cpu"

// canFold says whether fold runs here. What may be lacking is the processor's or, since it
// keeps the wide registers, the operating system's.
var canFold = cpu.X86.HasAVX512F && cpu.X86.HasAVX512VPCLMULQDQ

// fold takes the n bytes at p, a multiple of 256, into the state of a checksum, which is the
// complement of what Update returns.
//
//go:noescape
func fold(state uint32, p *byte, n int, factors *[4]uint64) uint32

// foldFar is fold that copies what it takes to dst, whose address is a multiple of 64, past
// the caches. Each byte is read once. It ends when all who are told of it afterwards see the copy.
//
//go:noescape
func foldFar(state uint32, dst, p *byte, n int, factors *[4]uint64) uint32

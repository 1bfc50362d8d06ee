//go:build !amd64

package crc32c

const canFold = false

func fold(uint32, *byte, int, *[4]uint64) uint32 { panic("BUG: folding is not known here") }

func foldFar(uint32, *byte, *byte, int, *[4]uint64) uint32 { panic("BUG: folding is not known here") }

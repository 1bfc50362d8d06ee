package crc32c

import "unsafe"

// CopyFar copies src to the beginning of dst and returns the checksum of the bytes whose checksum is
// crc and the copy behind them, whatever becomes of src meanwhile. It is for what is not looked
// at again before the caches have lost it: where it can it takes src through the
// processor once and writes dst past the caches, at two thirds of the time of copying and summing.
// Behind it src is in the caches, dst is not. The two do not overlap.
func CopyFar(crc uint32, dst, src []byte) uint32 {
	dst = dst[:len(src)]
	if !canFold || watched || len(src) < farFrom {
		copy(dst, src)
		return Update(crc, dst)
	}
	head := int(-uintptr(unsafe.Pointer(unsafe.SliceData(dst))) & (farAlign - 1))
	crc = near(crc, dst[:head], src[:head])
	dst, src = dst[head:], src[head:]
	n := len(src) &^ (foldBytes - 1)
	crc = ^foldFar(^crc, &dst[0], &src[0], n, &factors)
	return near(crc, dst[n:], src[n:])
}

const (
	farAlign = 64   // of what is written past the caches
	farFrom  = 1024 // bytes; fewer are not worth it
)

func near(crc uint32, dst, src []byte) uint32 {
	copy(dst, src)
	return Update(crc, dst)
}

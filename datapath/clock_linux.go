package datapath

import (
	"syscall"
	"unsafe"
)

// monotonic is CLOCK_MONOTONIC in ns: the clock of capture times, the same in every
// process of this boot. Go's own is hidden in time.Time.
func monotonic() int64 {
	const clockMonotonic = 1
	var ts syscall.Timespec
	if _, _, e := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&ts)), 0); e != 0 {
		panic("BUG: clock_gettime: " + e.Error())
	}
	return ts.Nano()
}

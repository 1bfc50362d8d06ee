package datapath

import (
	"syscall"
	"time"
	"unsafe"

	"github.com/holdfast-dr/holdfast/journal/retain"
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

// bootClock tells the clocks for the ages of checkpoints; nil where it is not known which
// boot this is.
func bootClock() func() retain.Instant {
	boot := thisBoot()
	if boot == [16]byte{} {
		return nil
	}
	return func() retain.Instant {
		return retain.Instant{Boot: boot, Mono: time.Duration(monotonic()), Wall: time.Now().UnixNano()}
	}
}

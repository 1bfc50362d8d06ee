package capture

import (
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestLargeMemory: it is there whole, where huge pages could be, and another mapping of it shows the same.
func TestLargeMemory(t *testing.T) {
	const n = 2*hugeBytes + 8192
	fd, mem, err := newMemfd("holdfast-test", n)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	defer unmapAll(mem)
	if at := uintptr(unsafe.Pointer(unsafe.SliceData(mem))); at%hugeBytes != 0 {
		t.Errorf("mapped at %#x", at)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Size != n || st.Blocks*512 < n {
		t.Errorf("%d bytes, %d allocated, want %d: %v", st.Size, st.Blocks*512, n, err)
	}
	other, err := mapShared(fd, n, false)
	if err != nil {
		t.Fatal(err)
	}
	defer unmapAll(other)
	for i := 0; i < n; i += 4096 {
		if mem[i] != 0 {
			t.Fatalf("at %d is %d", i, mem[i])
		}
		mem[i] = byte(i >> 12)
		if other[i] != byte(i>>12) {
			t.Fatalf("at %d the other mapping has %d", i, other[i])
		}
	}
}

// A clock that was read while its thread stood still is not taken: it would run ahead of the other processes' from then on.
func TestClockIsNear(t *testing.T) {
	began := time.Now()
	at := time.Duration(0)
	stands := []time.Duration{5 * time.Millisecond, 300, 3 * time.Millisecond, 200, 90 * time.Millisecond}
	c := nearest(len(stands), func() (r clockReading) {
		r = clockReading{before: began.Add(at), mono: int64(time.Hour + at + stands[0]), took: stands[0]}
		at, stands = at+stands[0], stands[1:]
		return r
	})
	if ahead := time.Duration(c.base) - time.Hour - c.at.Sub(began); ahead > 200 {
		t.Errorf("the clock is %v ahead", ahead)
	}
	var before, after unix.Timespec
	c = newMonoClock()
	errBefore := unix.ClockGettime(unix.CLOCK_MONOTONIC, &before)
	now := c.now()
	errAfter := unix.ClockGettime(unix.CLOCK_MONOTONIC, &after)
	const slack = int64(time.Millisecond)
	if errBefore != nil || errAfter != nil || now < before.Nano()-slack || now > after.Nano()+slack {
		t.Errorf("it says %d between %d and %d (%v, %v)", now, before.Nano(), after.Nano(), errBefore, errAfter)
	}
}

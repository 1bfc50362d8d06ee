package capture

import (
	"testing"
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

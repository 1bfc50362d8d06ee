package capture

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// ErrCorrupt says that shared memory or a marks file does not hold what it must.
var ErrCorrupt = errors.New("corrupt")

// ErrVersion says that the other side, or a file, is of a version this one does not know.
var ErrVersion = errors.New("unknown version")

// word is the eight bytes at off of mapped memory, for atomic use by both sides.
func word(mem []byte, off int64) *atomic.Uint64 {
	if off%8 != 0 {
		panic(fmt.Sprintf("BUG: word at %d", off))
	}
	return (*atomic.Uint64)(unsafe.Pointer(&mem[off : off+8][0]))
}

// hugeBytes is the size of a huge page, at whose multiples large mappings begin.
const hugeBytes = 2 << 20

// mapFD maps n bytes of fd. A large one may stand in huge pages, if the memory of the file does:
// direct I/O then looks up one page instead of hundreds, and a copy misses few translations.
func mapFD(fd int, n int64, writable bool) ([]byte, error) {
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	at, err := unix.MmapPtr(fd, 0, hugePlace(n), uintptr(n), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", n, err)
	}
	mem := unsafe.Slice((*byte)(at), n)
	if n >= hugeBytes {
		_ = unix.Madvise(mem, unix.MADV_HUGEPAGE) // a kernel without them gives small ones
	}
	return mem, nil
}

// hugePlace is where n bytes could be mapped at a multiple of hugeBytes, nil for anywhere. It is a wish:
// somebody else may have the place by then.
func hugePlace(n int64) unsafe.Pointer {
	if n < hugeBytes {
		return nil
	}
	at, err := unix.MmapPtr(-1, 0, nil, uintptr(n+hugeBytes), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil
	}
	place := unsafe.Add(at, -uintptr(at)&(hugeBytes-1))
	_ = unix.MunmapPtr(at, uintptr(n+hugeBytes))
	return place
}

// unmapAll unmaps what is not nil; a mapping that cannot be unmapped is ours to keep.
func unmapAll(mems ...[]byte) {
	for _, m := range mems {
		if m != nil {
			_ = unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(m)), uintptr(len(m)))
		}
	}
}

// newMemfd makes a memory file of n bytes, backed as far as the machine has memory,
// and maps it for writing. It can neither shrink nor grow: no mapping of it can fault.
func newMemfd(name string, n int64) (fd int, mem []byte, err error) {
	fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, nil, fmt.Errorf("memfd %s: %w", name, err)
	}
	if err = unix.Ftruncate(fd, n); err == nil {
		mem, err = mapFD(fd, n, true)
	}
	if err == nil {
		// Only memory that comes by a mapping comes in huge pages; what does not come so is allocated next, or
		// the error told.
		_ = unix.Madvise(mem, unix.MADV_POPULATE_WRITE)
		err = unix.Fallocate(fd, 0, 0, n)
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW)
	}
	if err != nil {
		unmapAll(mem)
		unix.Close(fd)
		return -1, nil, fmt.Errorf("memfd %s of %d bytes: %w", name, n, err)
	}
	return fd, mem, nil
}

// sealWrites lets nobody else map fd for writing; present mappings stay as they are.
func sealWrites(fd int) error {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_FUTURE_WRITE|unix.F_SEAL_SEAL)
	return err
}

// mapShared maps a memory file that the filter passed, once it can no longer shrink under us.
func mapShared(fd int, n int64, writable bool) ([]byte, error) {
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, fmt.Errorf("seals: %w", err)
	}
	if seals&unix.F_SEAL_SHRINK == 0 {
		return nil, fmt.Errorf("memory that may shrink: %w", ErrCorrupt)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Size != n {
		return nil, fmt.Errorf("memory of %d bytes, want %d: %w", st.Size, n, ErrCorrupt)
	}
	return mapFD(fd, n, writable)
}

// bootID names this boot of the machine.
type bootID [16]byte

// HOLDFAST_BOOT_ID_FILE names another file that tells it, for tests that pretend a crash of the host.
func thisBoot() (bootID, error) {
	var id bootID
	name := cmp.Or(os.Getenv("HOLDFAST_BOOT_ID_FILE"), "/proc/sys/kernel/random/boot_id")
	text, err := os.ReadFile(name)
	if err != nil {
		return id, err
	}
	digits := strings.ReplaceAll(strings.TrimSpace(string(text)), "-", "")
	raw, err := hex.DecodeString(digits)
	if err != nil || copy(id[:], raw) != len(id) {
		return id, fmt.Errorf("boot id %q: %w", text, ErrCorrupt)
	}
	return id, nil
}

// BootID names this boot of the host.
func BootID() (string, error) {
	id, err := thisBoot()
	return hex.EncodeToString(id[:]), err
}

// monoClock tells CLOCK_MONOTONIC, which all processes of the host share, by the
// runtime's own reading of it: no system call.
type monoClock struct {
	at   time.Time
	base int64
}

// newMonoClock has a clock that is as near to CLOCK_MONOTONIC as reading that takes.
func newMonoClock() monoClock {
	return nearest(clockTries, func() (r clockReading) {
		var ts unix.Timespec
		r.before = time.Now()
		_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // the clock always exists
		r.took, r.mono = time.Since(r.before), ts.Nano()
		return r
	})
}

// clockTries is how often the two clocks are read, a microsecond each.
const clockTries = 16

// clockReading has CLOCK_MONOTONIC as it was within took after before.
type clockReading struct {
	before time.Time
	mono   int64
	took   time.Duration
}

// nearest makes a clock of the reading that took least. Of one alone it would run ahead of the others' by as long as its thread stood still
// between the two clocks, for all its life: holds would be over before they began, or answers go out under one that held.
func nearest(tries int, read func() clockReading) monoClock {
	best := read()
	for range tries - 1 {
		if r := read(); r.took < best.took && !invariant.Planted("capture/clock-read-once") {
			best = r
		}
	}
	return monoClock{at: best.before, base: best.mono}
}

func (c monoClock) now() int64 { return c.base + int64(time.Since(c.at)) }

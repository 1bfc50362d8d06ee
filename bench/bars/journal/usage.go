package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/holdfast-dr/holdfast/bench/bars"
)

// usage is what this process has used so far.
type usage struct {
	at      time.Time
	cpu     float64 // seconds
	written int64   // bytes handed to disks
}

func now() usage {
	return usage{time.Now(), bars.OwnCPU(), field("/proc/self/io", "write_bytes")}
}

// threadCPU is the CPU that this thread has used, in seconds. It is the thread's own clock:
// what getrusage says of a thread is as of its last tick or switch, which come while it
// appends and not while it makes a record, so that nearly half of the making went uncounted.
func threadCPU() (float64, error) {
	const clockThreadCPU = 3
	var t syscall.Timespec
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockThreadCPU, uintptr(unsafe.Pointer(&t)), 0); errno != 0 {
		return 0, fmt.Errorf("the thread's clock: %w", errno)
	}
	return float64(t.Sec) + float64(t.Nsec)/1e9, nil
}

// field reads a number from a file of "name: value" lines; sizes in kB become bytes.
func field(file, name string) int64 {
	p, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(p)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			w := strings.Fields(rest)
			v, _ := strconv.ParseInt(w[0], 10, 64)
			if len(w) > 1 && w[1] == "kB" {
				v <<= 10
			}
			return v
		}
	}
	return 0
}

// memory watches this process' resident memory from now on.
type memory struct{ base int64 }

func watchMemory() memory {
	_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) // the peak begins anew
	return memory{field("/proc/self/status", "VmRSS")}
}

// peak is how much more than at the beginning was ever resident.
func (m memory) peak() int64 { return field("/proc/self/status", "VmHWM") - m.base }

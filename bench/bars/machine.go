package bars

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ForeignLimit is how many cores others may use before a round is repeated.
const ForeignLimit = 0.25

// Moment is when a measurement began, and what the machine and this process had used by then.
type Moment struct {
	At        time.Time
	busy, own float64 // CPU seconds
}

// Look begins a measurement.
func Look() Moment { return Moment{time.Now(), machineBusy(), OwnCPU()} }

// Foreign is how many cores others have used since, where the parts, processes of their own
// that have ended, used so many CPU seconds. What the host took counts as others' use.
func (m Moment) Foreign(parts float64) float64 {
	return max(0, (machineBusy()-m.busy-(OwnCPU()-m.own)-parts)/time.Since(m.At).Seconds())
}

// CPUOf is what a process that has ended used, in seconds.
func CPUOf(cmd *exec.Cmd) float64 {
	return (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
}

// CPUOfProcess is what a process that runs has used so far, its children left out, in seconds.
func CPUOfProcess(pid int) (float64, error) {
	cpu, _, err := processStat(strconv.Itoa(pid))
	return cpu, err
}

// KernelCPU is what the kernel's own threads have used so far, in seconds: what it writes back of
// a side's page cache while nothing else runs is the side's.
func KernelCPU() (sum float64) {
	const threads = "2" // the parent of them all
	names, _ := filepath.Glob("/proc/[0-9]*")
	for _, name := range names {
		if cpu, parent, err := processStat(filepath.Base(name)); err == nil && parent == threads {
			sum += cpu
		}
	}
	return sum
}

// processStat is the CPU seconds of a process that runs, and its parent's number.
func processStat(pid string) (cpu float64, parent string, err error) {
	p, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0, "", err
	}
	const parentAt, user, system = 1, 11, 12 // behind the name, which stands in brackets and may hold anything
	fields := strings.Fields(string(p[bytes.LastIndexByte(p, ')')+1:]))
	if len(fields) <= system {
		return 0, "", fmt.Errorf("process %s: stat of %d fields", pid, len(fields))
	}
	u, err := strconv.ParseFloat(fields[user], 64)
	if err != nil {
		return 0, "", err
	}
	s, err := strconv.ParseFloat(fields[system], 64)
	return (u + s) / ticks, fields[parentAt], err
}

// ticks of /proc are a hundredth of a second.
const ticks = 100

// OwnCPU is what this process has used so far, in seconds.
func OwnCPU() float64 {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r) // cannot fail
	return float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9
}

// machineBusy is how many CPU seconds the machine has spent so far; 0 if it does not say.
func machineBusy() float64 {
	p, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	return busyOf(string(p))
}

// busyOf reads /proc/stat: the CPU seconds of all cores, those that the host took included,
// idle ones and those of waiting for disks left out. A guest's are in the user's already.
func busyOf(stat string) (sum float64) {
	const idle, ioWait, steal = 4, 5, 8 // fields of the first line, behind its name
	line, _, _ := strings.Cut(stat, "\n")
	for i, w := range strings.Fields(line) {
		if v, err := strconv.ParseFloat(w, 64); err == nil && i != idle && i != ioWait && i <= steal {
			sum += v
		}
	}
	return sum / ticks
}

// DropCaches empties the page cache, so that reads come from the disk. It takes root.
func DropCaches() error {
	syscall.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

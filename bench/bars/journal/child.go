package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// children are the measurements that run in processes of their own.
var children = map[string]func(args []byte) (any, error){
	"append":  child(appendChild),
	"badger":  child(badgerChild),
	"history": child(historyChild),
	"read":    child(readChild),
	"raw":     child(rawChild),
	"reopen":  child(reopenChild),
	"open":    child(openChild),
	"promote": child(promoteChild),
}

func child[A, R any](f func(A) (R, error)) func([]byte) (any, error) {
	return func(p []byte) (any, error) {
		var a A
		if err := json.Unmarshal(p, &a); err != nil {
			return nil, err
		}
		return f(a)
	}
}

func runChild(name string, in io.Reader, out io.Writer) error {
	f := children[name]
	if f == nil {
		return errors.New("no such measurement")
	}
	p, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	r, err := f(p)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(r)
}

// in runs a measurement in a process of its own. The result says how many cores others
// used meanwhile.
func in[R any](b *bench, name string, args any) (r R, foreign float64, err error) {
	p, err := json.Marshal(args)
	if err != nil {
		return r, 0, err
	}
	self, err := os.Executable()
	if err != nil {
		return r, 0, err
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(b.ctx, self, "-child", name)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(p), &out, os.Stderr
	foreign, err = b.beside(cmd)
	if err != nil {
		return r, foreign, fmt.Errorf("%s: %w", name, err)
	}
	return r, foreign, json.Unmarshal(out.Bytes(), &r)
}

// foreignLimit is how many cores others may use before a round is repeated.
const foreignLimit = 0.25

// beside runs the command and returns how many cores others used meanwhile.
func (b *bench) beside(cmd *exec.Cmd) (float64, error) {
	busy, from := machineBusy(), time.Now()
	var self0, self1 syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &self0)
	err := cmd.Run()
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &self1)
	took := time.Since(from).Seconds()
	own := seconds(self1.Utime) + seconds(self1.Stime) - seconds(self0.Utime) - seconds(self0.Stime)
	if s := cmd.ProcessState; s != nil {
		own += (s.UserTime() + s.SystemTime()).Seconds()
	}
	return max(0, (machineBusy()-busy-own)/took), err
}

func seconds(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }

// machineBusy is how many CPU seconds the machine has spent so far, waiting left out.
func machineBusy() float64 {
	p, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(p), "\n")
	var ticks float64
	for i, w := range strings.Fields(line) {
		if v, err := strconv.ParseFloat(w, 64); err == nil && i != 4 && i != 5 && i <= 8 { // user nice system, not idle iowait, irq softirq steal
			ticks += v
		}
	}
	return ticks / 100
}

// usage is what this process has used so far.
type usage struct {
	at      time.Time
	cpu     float64 // seconds
	written int64   // bytes handed to disks
}

func now() usage {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return usage{time.Now(), seconds(r.Utime) + seconds(r.Stime), field("/proc/self/io", "write_bytes")}
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

// dropCaches empties the page cache, so that reads come from the disk.
func dropCaches() error {
	syscall.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

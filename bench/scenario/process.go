package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// process is a process that cannot be mistaken for another: its number, and when it
// started, in ticks since the boot. PID 0 is none.
type process struct {
	PID   int    `json:"pid,omitempty"`
	Start uint64 `json:"start,omitempty"`
}

// bootID names this boot of the machine: start times of another mean nothing.
func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(id))
}

// identify notes who pid is now.
func identify(pid int) (process, error) {
	start, _, err := procStat(pid)
	if err != nil {
		return process{}, err
	}
	return process{PID: pid, Start: start}, nil
}

// alive says whether that very process runs; one that has ended and is not yet
// reaped does not.
func (p process) alive(boot string) bool {
	if p.PID <= 0 || boot != bootID() {
		return false
	}
	start, state, err := procStat(p.PID)
	if err != nil || state == 'Z' || state == 'X' {
		return false
	}
	return start == p.Start || invariant.Planted("scenario/number-alone")
}

// procStat reads a process's start time and state.
func procStat(pid int) (start uint64, state byte, err error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, err
	}
	return parseStat(text)
}

// parseStat reads the text of /proc/PID/stat: the name stands in brackets and may
// hold anything, so fields are counted from the last closing one. The state is field
// 3, the start time field 22.
func parseStat(text []byte) (start uint64, state byte, err error) {
	end := bytes.LastIndexByte(text, ')')
	if end < 0 {
		return 0, 0, errors.New("stat: no name")
	}
	fields := bytes.Fields(text[end+1:])
	if len(fields) < 20 || len(fields[0]) != 1 {
		return 0, 0, errors.New("stat: too short")
	}
	start, err = strconv.ParseUint(string(fields[19]), 10, 64)
	return start, fields[0][0], err
}

// end asks the process to stop, and kills it when it has not after grace. It is no
// error if it is gone already.
func (p process) end(ctx context.Context, boot string, grace time.Duration) error {
	if !p.alive(boot) {
		return nil
	}
	// FindProcess holds on to the process itself (a pidfd), so that from the second
	// look on the number cannot come to mean another.
	proc, err := os.FindProcess(p.PID)
	if err != nil {
		return err
	}
	defer proc.Release()
	if !p.alive(boot) {
		return nil
	}
	for _, step := range []struct {
		signal os.Signal
		wait   time.Duration
	}{{syscall.SIGTERM, grace}, {syscall.SIGKILL, killWait}} {
		if err := proc.Signal(step.signal); errors.Is(err, os.ErrProcessDone) {
			return nil
		} else if err != nil {
			return fmt.Errorf("process %d: %w", p.PID, err)
		}
		if p.gone(ctx, boot, step.wait) {
			return nil
		}
	}
	return fmt.Errorf("process %d does not end", p.PID)
}

// killWait is how long a killed process may take to go: it may be inside the disk.
const killWait = 10 * time.Second

// gone waits until the process has ended, at most for wait.
func (p process) gone(ctx context.Context, boot string, wait time.Duration) bool {
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for {
		if !p.alive(boot) {
			return true
		}
		select {
		case <-look.C:
		case <-deadline.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

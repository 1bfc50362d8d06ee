package main

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
	"unsafe"
)

// meter shows progress on stderr: one line that is written anew on a terminal, a line
// a second elsewhere.
type meter struct {
	w        io.Writer
	terminal bool
	now      func() time.Time

	stage string
	began time.Time // of the stage
	first int64     // done when it began
	shown time.Time
	open  bool // a line stands on the terminal
}

func newMeter(w io.Writer) *meter { return &meter{w: w, terminal: isTerminal(w), now: time.Now} }

// isTerminal asks the kernel whether w is one.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	var t syscall.Termios
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), syscall.TCGETS, uintptr(unsafe.Pointer(&t)))
	return errno == 0
}

// Between two lines: on a terminal, and elsewhere.
const (
	redrawEvery = 100 * time.Millisecond
	lineEvery   = time.Second
)

// show says how far a stage is, in bytes; total is 0 while it is not known.
func (m *meter) show(stage string, done, total int64) {
	now := m.now()
	if stage != m.stage {
		m.stage, m.began, m.first, m.shown = stage, now, done, time.Time{}
	}
	every := lineEvery
	if m.terminal {
		every = redrawEvery
	}
	if now.Sub(m.shown) < every && !(total > 0 && done == total) {
		return
	}
	m.shown = now
	m.line(progressLine(stage, done, total, done-m.first, now.Sub(m.began)))
}

// progressLine writes percent, rate and time left, as far as they are known.
func progressLine(stage string, done, total, moved int64, in time.Duration) string {
	if total <= 0 {
		return stage
	}
	line := fmt.Sprintf("%s: %3.0f%% of %s", stage, 100*float64(min(done, total))/float64(total), bytesText(total))
	if in < 100*time.Millisecond || moved <= 0 {
		return line
	}
	rate := float64(moved) / in.Seconds()
	line += fmt.Sprintf(", %s/s", bytesText(int64(rate)))
	if left := total - done; left > 0 {
		line += fmt.Sprintf(", %s left", (time.Duration(float64(left)/rate*float64(time.Second)) + time.Second).Truncate(time.Second))
	}
	return line
}

func (m *meter) line(text string) {
	if m.terminal {
		fmt.Fprintf(m.w, "\r\x1b[K%s", text)
		m.open = true
		return
	}
	fmt.Fprintln(m.w, text)
}

// done ends the line that is being written anew.
func (m *meter) done() {
	if m.open {
		fmt.Fprintln(m.w)
		m.open = false
	}
}

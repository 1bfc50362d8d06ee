package main

import (
	"fmt"
	"io"
	"time"
)

// meter shows progress on stderr: one line that is written anew on a terminal, a line
// a second elsewhere.
type meter struct {
	w        io.Writer
	terminal bool
	columns  func() int // of the terminal
	now      func() time.Time

	stage string
	began time.Time // of the stage
	first int64     // done when it began
	shown time.Time
	open  bool // a line stands on the terminal
}

func newMeter(w io.Writer) *meter {
	return &meter{w: w, terminal: isTerminal(w), columns: func() int { n, _ := terminalSize(w); return n }, now: time.Now}
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
		line += ", " + timeLeft(float64(left)/rate)
	}
	return line
}

// timeLeft writes a number of seconds, rounded up.
func timeLeft(seconds float64) string {
	n := int64(seconds) + 1
	if n < 120 {
		return fmt.Sprintf("%d s left", n)
	}
	return fmt.Sprintf("%d min left", (n+59)/60)
}

func (m *meter) line(text string) {
	if m.terminal {
		fmt.Fprintf(m.w, "\r\x1b[K%s", cut(text, m.columns()))
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

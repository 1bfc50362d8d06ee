package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// screen shows how replication goes: a block of lines that is written anew on a
// terminal, a line each time elsewhere.
type screen struct {
	w              io.Writer
	terminal       bool
	size           func() (columns, lines int) // of the terminal
	source, target *api.Client
	group          string

	began, last time.Time
	before      reading
	lines       int // that stand on the terminal
}

// reading is what was seen at one moment.
type reading struct {
	source, target *holdfastv1.Group // nil: no answer
	guest          load.Stats
}

func newScreen(w io.Writer, source, target *api.Client, group string) *screen {
	now := time.Now()
	return &screen{w: w, terminal: isTerminal(w), size: func() (int, int) { return terminalSize(w) }, source: source, target: target, group: group, began: now, last: now}
}

// show asks both VRAs and shows what they say beside what the guest did.
func (s *screen) show(ctx context.Context, of time.Duration, guest load.Stats) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	ask := func(c *api.Client) *holdfastv1.Group {
		res, err := c.Status.Get(ctx, &holdfastv1.StatusServiceGetRequest{Group: s.group})
		if err != nil || len(res.GetGroups()) == 0 {
			return nil
		}
		return res.GetGroups()[0]
	}
	now := reading{source: ask(s.source), target: ask(s.target), guest: guest}
	at := time.Now()
	items := describe(now, s.before, at.Sub(s.last))
	head := fmt.Sprintf("%3.0f of %.0f s", at.Sub(s.began).Seconds(), of.Seconds())
	s.before, s.last = now, at
	s.draw(head, items)
}

// draw writes the block, or a line where there is no terminal or it is too small for
// the block: what is written anew must not scroll or wrap.
func (s *screen) draw(head string, items []item) {
	columns, lines := 0, 0
	if s.terminal {
		columns, lines = s.size()
	}
	if !s.terminal || lines > 0 && lines <= len(items)+1 {
		line := head
		for _, item := range items {
			line += "  " + item.name + " " + item.value
		}
		fmt.Fprintln(s.w, cut(line, columns))
		s.lines = 0
		return
	}
	var b strings.Builder
	if s.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", s.lines)
	}
	fmt.Fprintf(&b, "\x1b[K%s\n", cut("  "+head, columns))
	for _, item := range items {
		fmt.Fprintf(&b, "\x1b[K%s\n", cut(fmt.Sprintf("  %-12s %s", item.name, item.value), columns))
	}
	s.lines = 1 + len(items)
	io.WriteString(s.w, b.String())
}

// done leaves what stands on the terminal.
func (s *screen) done() { s.lines = 0 }

type item struct{ name, value string }

// describe makes the items of the screen; what is not known is a hyphen. passed is
// the time since the reading before.
func describe(now, before reading, passed time.Duration) []item {
	src, seconds := now.source, max(passed.Seconds(), 0.001)
	state, lag, wire, ratio, window := "no answer", "-", "-", "-", "-"
	if src != nil {
		state = src.GetState()
		if src.GetReason() != "" && state != api.StateProtected {
			state += " (" + src.GetReason() + ")"
		}
		if src.LagSeconds != nil {
			lag = fmt.Sprintf("%.2f s", src.GetLagSeconds())
		}
		if before.source != nil && src.GetWireBytesTotal() >= before.source.GetWireBytesTotal() {
			wire = fmt.Sprintf("%.1f", float64(src.GetWireBytesTotal()-before.source.GetWireBytesTotal())*8/1e6/seconds)
		}
		if n := src.GetConnections(); n > 1 {
			wire += fmt.Sprintf(" over %d connections", n)
		}
		if stored := src.GetPackStoredBytesTotal(); stored > 0 {
			ratio = fmt.Sprintf("%.2f:1", float64(src.GetPackRawBytesTotal())/float64(stored))
		}
		if c := src.GetCodec(); c != "" {
			ratio = strings.TrimPrefix(ratio, "-") + " " + c
		}
		window = fmt.Sprintf("%s of %s", bytesText(src.GetWindowBytes()), bytesText(src.GetWindowLimit()))
		if src.GetSpillLimit() > 0 {
			window += fmt.Sprintf(", on disk %s of %s", bytesText(src.GetSpillBytes()), bytesText(src.GetSpillLimit()))
		}
	}
	checkpoints := "-"
	if now.target != nil && now.target.Checkpoints != nil {
		checkpoints = fmt.Sprint(now.target.GetCheckpoints())
	}
	return []item{
		{"state", state},
		{"lag", lag},
		{"checkpoints", checkpoints},
		{"guest MB/s", fmt.Sprintf("%.1f", float64(now.guest.Bytes-before.guest.Bytes)/1e6/seconds)},
		{"wire Mb/s", wire},
		{"compression", ratio},
		{"window", window},
	}
}

package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

func TestDescribe(t *testing.T) {
	f := func(now, before reading, want string) {
		t.Helper()
		var got []string
		for _, i := range describe(now, before, 2*time.Second) {
			got = append(got, i.value)
		}
		if text := strings.Join(got, " | "); text != want {
			t.Errorf("%s\nwant %s", text, want)
		}
	}
	lag, three := 0.256, int64(3)
	source := func(wire int64) *holdfastv1.Group {
		return &holdfastv1.Group{
			State: api.StateProtected, LagSeconds: &lag, WireBytesTotal: wire, PackRawBytesTotal: 300, PackStoredBytesTotal: 200,
			WindowBytes: 1 << 20, WindowLimit: 64 << 20,
		}
	}
	target := &holdfastv1.Group{Checkpoints: &three}
	f(reading{source(3e6), target, load.Stats{Bytes: 5e6}}, reading{source(1e6), target, load.Stats{Bytes: 1e6}},
		"protected | 0.26 s | 3 | 2.0 | 8.0 | 1.50:1 | 1 MiB of 64 MiB")
	// What is not known is not zero: no answer, and counters that began anew.
	f(reading{guest: load.Stats{Bytes: 4e6}}, reading{}, "no answer | - | - | 2.0 | - | - | -")
	f(reading{source: source(1e6)}, reading{source: source(3e6)}, "protected | 0.26 s | - | 0.0 | - | 1.50:1 | 1 MiB of 64 MiB")
	f(reading{source: &holdfastv1.Group{State: api.StateDisconnected, Reason: "the link is down"}}, reading{},
		"disconnected (the link is down) | - | - | 0.0 | - | - | 0 B of 0 B")
}

// TestScreenFitsTheTerminal: no line wraps, and one that is too low gets a line each time.
func TestScreenFitsTheTerminal(t *testing.T) {
	items := []item{{"state", "a state with a long reason"}, {"lag", "0.1 s"}}
	f := func(columns, lines int, want string) {
		t.Helper()
		var b bytes.Buffer
		s := &screen{w: &b, terminal: true, size: func() (int, int) { return columns, lines }}
		s.draw("1 of 60 s", items)
		s.draw("2 of 60 s", items)
		if got := strings.ReplaceAll(b.String(), "\x1b[K", ""); got != want {
			t.Errorf("%d by %d: %q, want %q", columns, lines, got, want)
		}
	}
	f(20, 24, "  1 of 60 s\n  state        a st\n  lag          0.1 \n\x1b[3A  2 of 60 s\n  state        a st\n  lag          0.1 \n")
	f(20, 3, "1 of 60 s  state a \n2 of 60 s  state a \n")
	f(0, 0, "  1 of 60 s\n  state        a state with a long reason\n  lag          0.1 s\n\x1b[3A  2 of 60 s\n  state        a state with a long reason\n  lag          0.1 s\n")
}

// TestScreenWithoutTerminal: a line each time, even when nobody answers.
func TestScreenWithoutTerminal(t *testing.T) {
	var b bytes.Buffer
	none := api.DialUnix(t.TempDir() + "/none")
	defer none.Close()
	s := newScreen(&b, none, none, "lab")
	s.show(t.Context(), time.Minute, load.Stats{})
	s.show(t.Context(), time.Minute, load.Stats{})
	s.done()
	if got := b.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "of 60 s  state no answer  lag -") {
		t.Errorf("%q", got)
	}
}

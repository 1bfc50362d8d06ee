package kvm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 1, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}`

// hangUp at the end of an answer ends the connection after it.
const hangUp = "\x04"

// monitorThat listens as QEMU does and answers each line with what say returns; it hangs up at "".
func monitorThat(t *testing.T, greets string, say func(line string) string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "qmp"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, greets)
			for s := bufio.NewScanner(c); s.Scan(); {
				answer := say(s.Text())
				if answer == "" {
					break
				}
				answer, last := strings.CutSuffix(answer, hangUp)
				if fmt.Fprintln(c, answer); last {
					break
				}
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done; os.RemoveAll(dir) })
	return filepath.Join(dir, "qmp")
}

// idIn is the id that a command carries.
func idIn(line string) string {
	_, id, _ := strings.Cut(line, `"id":`)
	return strings.TrimSuffix(id, "}")
}

func fine(line string) string { return `{"return": {}, "id": ` + idIn(line) + `}` }

func TestMonitor(t *testing.T) {
	socket := monitorThat(t, greeting, func(line string) string {
		switch {
		case strings.Contains(line, "refuse"):
			return `{"id": ` + idIn(line) + `, "error": {"class": "GenericError", "desc": "not so"}}`
		case strings.Contains(line, "wrong"):
			return `{"return": [1], "id": ` + idIn(line) + `}`
		case strings.Contains(line, "end"):
			return ""
		case strings.Contains(line, "nonsense"):
			return "nonsense"
		case strings.Contains(line, "long"):
			return `{"return": "` + strings.Repeat("x", maxAnswer+1) + `"}`
		}
		// Events, and an answer to what somebody asked before.
		return `{"timestamp": {}, "event": "STOP", "data": {}}` + "\n" + `{"return": {}, "id": 0}` + "\n" + fine(line)
	})
	for _, last := range []string{"end", "nonsense", "long"} {
		m, err := Dial(t.Context(), socket)
		if err != nil {
			t.Fatal(err)
		}
		if m.Version != [2]int{7, 2} || m.PID != os.Getpid() {
			t.Errorf("%+v", m)
		}
		do := func(what string, into any) error { return m.Do(t.Context(), Command{Execute: what}, into) }
		if err := do("good", nil); err != nil {
			t.Error(err)
		}
		var refused *Refused
		if err := do("refuse", nil); !errors.As(err, &refused) || err.Error() != "QEMU refuses refuse: not so" {
			t.Error(err)
		}
		var text string
		if err := do("wrong", &text); err == nil || !strings.Contains(err.Error(), "not understood") {
			t.Error(err)
		}
		for range 2 { // once lost, it stays lost
			if err := do(last, nil); err == nil || !strings.Contains(err.Error(), last+": the monitor does not answer any more") {
				t.Error(err)
			}
		}
		m.Close()
	}
}

func TestMonitorEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	socket := monitorThat(t, greeting, func(line string) string {
		if strings.Contains(line, "hang") {
			cancel()
			return " " // no answer
		}
		return fine(line)
	})
	m, err := Dial(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Do(ctx, Command{Execute: "hang"}, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := Dial(t.Context(), socket+"x"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if _, err := Dial(t.Context(), monitorThat(t, `{"id": 7}`, fine)); err == nil || !strings.Contains(err.Error(), "no QMP socket") {
		t.Error(err)
	}
	if _, err := Dial(t.Context(), monitorThat(t, `SSH-2.0`, fine)); err == nil {
		t.Error("anything is taken for a monitor")
	}
}

// TestEnded: only QEMU itself says that a guest is off; who loses its monitor knows nothing.
func TestEnded(t *testing.T) {
	const down = `{"timestamp": {}, "event": "SHUTDOWN", "data": {"guest": true}}` + "\n"
	for _, c := range []struct {
		name, power, quit, status string // what follows the answer, and what is answered
		lost                      bool
	}{
		{name: "it hangs up", lost: true},
		{name: "it hangs up once it was told", power: hangUp, lost: true},
		{name: "it is shut down", status: `{"return": {"status": "shutdown"}, "id": 3}`},
		{name: "it says so and hangs up", power: "\n" + down + hangUp},
		{name: "it says so when it is asked, and hangs up", status: down + hangUp},
		{name: "it answers quit", quit: hangUp},
		{name: "it refuses", status: `{"error": {"desc": "no"}, "id": 3}`, lost: true},
	} {
		asked := 0
		socket := monitorThat(t, greeting, func(line string) string {
			switch {
			case strings.Contains(line, "system_powerdown"):
				return fine(line) + c.power
			case strings.Contains(line, "quit"):
				return fine(line) + c.quit
			case strings.Contains(line, "query-status"):
				if asked++; asked > 4 {
					t.Errorf("%s: asked %d times", c.name, asked)
					return ""
				}
				return c.status
			}
			return fine(line)
		})
		m, err := Dial(t.Context(), socket)
		if err != nil {
			t.Fatal(err)
		}
		what := "system_powerdown"
		if c.quit != "" {
			what = "quit"
		}
		if err := m.Do(t.Context(), Command{Execute: what}, nil); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if err := Ended(t.Context(), m); errors.Is(err, ErrLost) != c.lost || (err == nil) == c.lost {
			t.Errorf("%s: %v, want it lost: %v", c.name, err, c.lost)
		}
		m.Close()
	}
}

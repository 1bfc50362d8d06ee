package systemd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/systemd/manager"
)

func environment(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func TestWords(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "s"), "@holdfast-test-" + filepath.Base(t.TempDir()) + strconv.FormatInt(time.Now().UnixNano(), 36)} {
		m := manager.ListenAt(t, name)
		n, err := New(environment("NOTIFY_SOCKET", name), 1, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		n.Ready("two groups\nSTOPPING=1")
		if got := m.Next(); got != "READY=1\nSTATUS=two groups STOPPING=1" {
			t.Errorf("ready: %q", got)
		}
		before := monotonic()
		n.Reloading()
		first, rest, _ := strings.Cut(m.Next(), "\nMONOTONIC_USEC=")
		us, err := strconv.ParseInt(rest, 10, 64)
		if at := time.Duration(us+1) * time.Microsecond; first != "RELOADING=1" || err != nil || at < before || at > monotonic()+time.Microsecond || before == 0 {
			t.Errorf("reloading: %q at %v, %v", first, at, err)
		}
		n.Stopping()
		if got := m.Next(); got != "STOPPING=1" {
			t.Errorf("stopping: %q", got)
		}
	}
}

// TestWatch: the manager hears while the daemon gets on, and nothing while it does not.
func TestWatch(t *testing.T) {
	name := filepath.Join(t.TempDir(), "s")
	m := manager.ListenAt(t, name)
	var said bytes.Buffer
	n, err := New(environment("NOTIFY_SOCKET", name, "WATCHDOG_USEC", "4000", "WATCHDOG_PID", "7"), 7, slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil || n.watchdog != 4*time.Millisecond {
		t.Fatal(n, err)
	}
	ctx, stop := context.WithCancel(t.Context())
	answers := make(chan error)
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.Watch(ctx, func(ctx context.Context) error {
			select {
			case err := <-answers:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	m.Nothing() // it has not answered
	answers <- nil
	if got := m.Next(); got != "WATCHDOG=1" {
		t.Errorf("%q", got)
	}
	answers <- errors.New("a loop stands")
	answers <- errors.New("a loop stands") // the first one was taken in by now
	m.Nothing()
	answers <- nil
	if got := m.Next(); got != "WATCHDOG=1" {
		t.Errorf("%q", got)
	}
	stop()
	<-done
	if c := strings.Count(said.String(), "a loop stands"); c != 2 {
		t.Errorf("logged %q", said.String())
	}
}

func TestNobodyListens(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	f := func(watch time.Duration, want string, pairs ...string) *Notifier {
		t.Helper()
		n, err := New(environment(pairs...), 7, quiet)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) || err == nil && n.watchdog != watch {
			t.Errorf("%q: %+v, %v", pairs, n, err)
		}
		return n
	}
	n := f(0, "")
	n.Ready("")
	n.Reloading()
	n.Stopping()
	never := func(context.Context) error { t.Error("asked whether it is alive"); return nil }
	n.Watch(t.Context(), never)
	(*Notifier)(nil).Ready("")
	(*Notifier)(nil).Watch(t.Context(), never)
	f(0, "", "WATCHDOG_USEC", "5") // no socket, nobody hears
	f(0, "", "NOTIFY_SOCKET", "/s", "WATCHDOG_USEC", "5000", "WATCHDOG_PID", "8")
	f(5*time.Millisecond, "", "NOTIFY_SOCKET", "/s", "WATCHDOG_USEC", "5000")
	f(0, "absolute path", "NOTIFY_SOCKET", "s")
	for _, us := range []string{"x", "0", "-1", "99999999999999", "1s"} {
		f(0, "WATCHDOG_USEC="+us, "NOTIFY_SOCKET", "/s", "WATCHDOG_USEC", us)
	}
	var said bytes.Buffer
	n, err := New(environment("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none")), 7, slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	n.Stopping()
	if !strings.Contains(said.String(), "level=WARN") || !strings.Contains(said.String(), "what=\"STOPPING=1\"") {
		t.Errorf("logged %q", said.String())
	}
	if n, err := FromEnvironment(quiet); n == nil {
		t.Error(err)
	}
}

// TestEarlyAndLateReloads: a SIGHUP before Reload, or after it, does not end the process, and is not lost.
func TestEarlyAndLateReloads(t *testing.T) {
	HoldReloads()
	for range 2 {
		if err := syscall.Kill(syscall.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		for len(early) == 0 { // until it is delivered
			runtime.Gosched()
		}
		ctx, stop := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Second, stop)
		reads := 0
		(*Notifier)(nil).Reload(ctx, "", func() ([]string, error) { reads++; stop(); return nil, nil }, slog.New(slog.DiscardHandler))
		if reads != 1 {
			t.Errorf("%d reads", reads)
		}
	}
}

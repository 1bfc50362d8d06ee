package main

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/control/systemd/manager"
)

// TestReloadTakesSizes: a disk that was made larger is served so after SIGHUP, to who connects then; one that became
// smaller is not.
func TestReloadTakesSizes(t *testing.T) {
	h, m := newHost(t), manager.Listen(t)
	t.Setenv("NOTIFY_SOCKET", m.Socket)
	h.start()
	m.Await("READY=1\nSTATUS=serves")
	reload := func(bytes, want int64) {
		t.Helper()
		if err := os.Truncate(h.disk, bytes); err != nil {
			t.Fatal(err)
		}
		if err := h.filter.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		m.Await("RELOADING=1\n")
		m.Await("READY=1\nSTATUS=serves")
		c := h.dial()
		defer c.Close()
		if c.Size() != want {
			t.Errorf("a disk of %d bytes is served with %d, want %d", bytes, c.Size(), want)
		}
		if _, err := c.WriteAt(make([]byte, 4096), diskBytes-4096); err != nil {
			t.Error(err)
		}
	}
	c := h.dial()
	defer c.Close()
	const more = diskBytes + 1<<20
	reload(more, more)
	if _, err := c.WriteAt(make([]byte, 512), diskBytes); err == nil {
		t.Error("who was connected before writes behind the end that it knows")
	}
	reload(more+1, more)
	reload(more-4096, more)
	reload(more, more)
	h.kill()
	for _, want := range []string{"size of vol1", "no multiple of", "does not shrink"} {
		if !strings.Contains(h.log.String(), want) {
			t.Errorf("it does not say %q", want)
		}
	}
}

// TestUnderSystemd: a filter tells that it serves, reads its file again, refuses what only a restart
// takes in, and tells that it ends.
func TestUnderSystemd(t *testing.T) {
	h, m := newHost(t), manager.Listen(t)
	t.Setenv("NOTIFY_SOCKET", m.Socket)
	h.start()
	m.Await("READY=1\nSTATUS=serves")
	c := h.dial()
	if _, err := c.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(h.config)
	if err != nil {
		t.Fatal(err)
	}
	reload := func(with string) (status string) {
		t.Helper()
		if err := os.WriteFile(h.config, []byte(with), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := h.filter.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		m.Await("RELOADING=1\n")
		return m.Await("READY=1\nSTATUS=")
	}
	if got := reload(string(text) + "log_level: debug\n"); got != "READY=1\nSTATUS=serves" {
		t.Errorf("%q", got)
	}
	if got := reload(strings.Replace(string(text), "pool: 1MiB", "pool: 2MiB", 1)); !strings.HasSuffix(got, "only a restart takes these in: pool") {
		t.Errorf("%q", got)
	}
	if got := reload("nonsense: 1\n"); !strings.Contains(got, "refused") || !strings.Contains(got, "nonsense") {
		t.Errorf("%q", got)
	}
	if err := h.filter.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	m.Await("STOPPING=1")
	if err := h.filter.Wait(); err != nil {
		t.Error(err)
	}
	c.Close()
	if !strings.Contains(h.log.String(), "changed=[log_level]") {
		t.Error("it does not log what changed")
	}
	h.filter = nil
}

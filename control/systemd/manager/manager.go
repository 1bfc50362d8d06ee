// Package manager is the service manager's end of the socket that daemons speak to, for tests.
package manager

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Manager hears what a process says.
type Manager struct {
	Socket string // what NOTIFY_SOCKET is to be
	t      *testing.T
	c      *net.UnixConn
}

// Listen makes one at a new path, until the test ends.
func Listen(t *testing.T) Manager { return ListenAt(t, filepath.Join(t.TempDir(), "s")) }

// ListenAt makes one at a path, or at an abstract name that begins with @.
func ListenAt(t *testing.T, name string) Manager {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return Manager{name, t, c}
}

// Next returns what comes next, within a minute.
func (m Manager) Next() string {
	m.t.Helper()
	said, err := m.read(time.Minute)
	if err != nil {
		m.t.Fatal("the manager hears nothing: ", err)
	}
	return said
}

// Await returns what comes next that begins so, and passes over that the process is well.
func (m Manager) Await(begins string) string {
	m.t.Helper()
	for {
		switch said := m.Next(); {
		case strings.HasPrefix(said, begins):
			return said
		case said != "WATCHDOG=1":
			m.t.Fatalf("the manager hears %q, and waits for %q", said, begins)
		}
	}
}

// Nothing holds that nothing has come.
func (m Manager) Nothing() {
	m.t.Helper()
	if said, err := m.read(time.Millisecond); err == nil {
		m.t.Errorf("the manager hears %q", said)
	}
}

func (m Manager) read(within time.Duration) (string, error) {
	if err := m.c.SetReadDeadline(time.Now().Add(within)); err != nil {
		return "", err
	}
	p := make([]byte, 4<<10)
	n, err := m.c.Read(p)
	return string(p[:n]), err
}

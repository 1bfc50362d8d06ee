//go:build e2e

package scenario_test

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/bench/drive"
)

// qemuDisk is a disk of a view as QEMU's own block layer has it, which waits for a
// server that went away.
type qemuDisk struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Reader
}

func openQEMU(t *testing.T, uri, export string) *qemuDisk {
	t.Helper()
	_, socket, ok := strings.Cut(uri, "?socket=")
	if !ok {
		t.Fatalf("no socket in %s", uri)
	}
	c := exec.CommandContext(t.Context(), "stdbuf", "-oL", "qemu-io", "--image-opts",
		fmt.Sprintf("driver=nbd,server.type=unix,server.path=%s,export=%s,reconnect-delay=60,open-timeout=60", socket, export))
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = c.Stdout
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); c.Wait() })
	return &qemuDisk{t, in, bufio.NewReader(out)}
}

// do gives a command and reads what it says up to the line that ends with until.
func (q *qemuDisk) do(command, until string) {
	q.t.Helper()
	if _, err := fmt.Fprintln(q.in, command); err != nil {
		q.t.Fatal(err)
	}
	var said strings.Builder
	for {
		line, err := q.out.ReadString('\n')
		said.WriteString(line)
		if err != nil || strings.Contains(line, "failed") || strings.Contains(line, "error") {
			q.t.Fatalf("%s: %v: %s", command, err, said.String())
		}
		if strings.Contains(line, until) {
			return
		}
	}
}

// A view is served at the same place after the target was killed, and after it was
// stopped: QEMU waits, goes on, and reads its own writes. One that is closed is gone.
func TestViewsSurviveTheTarget(t *testing.T) {
	l := up(t, "", nil, "--volumes", "1", "--size", "64MiB")
	l.protected()
	c := l.checkpoint("before")
	var v drive.View
	l.must(l.JSON(t.Context(), &v, "view", "open", "--checkpoint", c.ID, "--name", "kept", "--limit", "32MiB"))
	gone := l.open(c.ID)
	q := openQEMU(t, v.Volumes[0].NBD, v.Volumes[0].Name)
	q.do("write -f -P 0x41 4096 65536", "wrote 65536")
	q.do("write -P 0x42 1048576 4096", "wrote 4096") // answered, and not flushed
	l.must(l.Close(t.Context(), gone))

	l.kill("vra-target")
	q.do("read -P 0x41 4096 65536", "read 65536")
	q.do("read -P 0x42 1048576 4096", "read 4096")
	q.do("write -P 0x43 2097152 4096", "wrote 4096")

	pid, err := l.PID(t.Context(), "vra-target")
	l.must(err)
	t.Log("stop vra-target")
	l.must(syscall.Kill(pid, syscall.SIGTERM))
	q.do("read -P 0x43 2097152 4096", "read 4096")
	q.do("read -P 0x41 4096 65536", "read 65536")

	var views []struct {
		drive.View
		Name  string `json:"name"`
		State string `json:"state"`
	}
	l.protected()
	l.must(l.JSON(t.Context(), &views, "view", "list"))
	if len(views) != 1 || views[0].ID != v.ID || views[0].Name != "kept" || views[0].State != "good" || views[0].Volumes[0] != v.Volumes[0] {
		t.Errorf("views %+v, want %+v", views, v)
	}
	l.must(l.Close(t.Context(), v))
}

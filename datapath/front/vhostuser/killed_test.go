package vhostuser

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/holdfast-dr/holdfast/datapath/front/memdisk"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
)

const childSocket = "HOLDFAST_TEST_SOCKET"

// TestServerThatIsKilled is the server of TestKilledServerIsSucceeded: it answers what lies
// below 1 MiB, tells of every request, and never returns.
func TestServerThatIsKilled(t *testing.T) {
	socket := os.Getenv(childSocket)
	if socket == "" {
		return // there is nothing to test here by itself
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	d := memdisk.New(64 * mib)
	d.Before = func(op string, off, _ int64) error {
		if op == "write" {
			os.Stdout.WriteString("write\n")
			if off >= mib {
				select {}
			}
		}
		return nil
	}
	os.Stdout.WriteString("ready\n")
	t.Fatal((&Server{Device: d}).Serve(context.Background(), l))
}

// TestKilledServerIsSucceeded kills a server that has answered some requests and has others
// under way, again and again: the guest waits, and every request is answered once.
func TestKilledServerIsSucceeded(t *testing.T) {
	g := newGuest(t, guest.Options{Queues: 2, Slots: 8})
	d := memdisk.NewSpy(64 * mib)
	var calls []*guest.Call
	for round := range 3 {
		socket := filepath.Join(t.TempDir(), "s")
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestServerThatIsKilled$")
		child.Env = append(os.Environ(), childSocket+"="+socket)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		told := func(n int) {
			t.Helper()
			for range n {
				if !lines.Scan() {
					t.Fatal("the server ended: ", lines.Err())
				}
			}
		}
		told(1)
		connect(t, g, socket)
		told(len(calls)) // what its predecessor had begun, it begins again
		for i := range 10 {
			if err := g.Write(i%2, noise(4096, 1), int64(i)*4096); err != nil {
				t.Fatal(err)
			}
		}
		told(10)
		for i := range 4 {
			c, err := g.BeginWrite(i%2, noise(4096, uint64(100+4*round+i)), mib+int64(4*round+i)*4096)
			if err != nil {
				t.Fatal(err)
			}
			calls = append(calls, c)
		}
		told(4)
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		child.Wait()
	}
	connect(t, g, serve(t, d))
	for i, c := range calls {
		if err := c.Wait(); err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
	p := make([]byte, 4096)
	for i := range calls {
		if err := g.Read(0, p, mib+int64(i)*4096); err != nil || !bytes.Equal(p, noise(4096, uint64(100+i))) {
			t.Errorf("block %d: %v", i, err)
		}
	}
	if err := exercise(g, 1, 8*mib, 7); err != nil {
		t.Error(err)
	}
}

package kvm

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdfast-dr/holdfast/control/hypervisor"
)

// relay stands before who serves a disk, and sees who comes, once he says something, and who leaves by himself.
type relay struct {
	to         string // socket
	came, left atomic.Int32
}

// serve listens until end, which leaves everyone alone.
func (r *relay) serve(t *testing.T, socket string) (end func()) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { r.pass(ctx, c) })
		}
	})
	return func() { cancel(); l.Close(); all.Wait() }
}

func (r *relay) pass(ctx context.Context, c net.Conn) {
	defer c.Close()
	to, err := net.Dial("unix", r.to)
	if err != nil {
		return
	}
	defer to.Close()
	defer context.AfterFunc(ctx, func() { c.Close(); to.Close() })()
	go func() { _, _ = io.Copy(c, to) }()
	first := make([]byte, 1)
	if _, err := c.Read(first); err != nil {
		return
	}
	r.came.Add(1)
	if _, err := to.Write(first); err != nil {
		return
	}
	if _, _ = io.Copy(to, c); ctx.Err() == nil {
		r.left.Add(1)
	}
}

// TestLeavesSeen has a silent machine lose whoever serves its disk, and move onto a file once somebody serves there again: he sees it come back, and leave. Before that it
// does not begin to move: QEMU would wait, and its guest with it.
func TestLeavesSeen(t *testing.T) {
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	behind := served(t)
	at, _, err := exportOf(behind)
	must(err)
	dir, err := os.MkdirTemp("", "hf")
	must(err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket, file := filepath.Join(dir, "nbd"), filepath.Join(dir, "disk")
	must(os.WriteFile(file, make([]byte, 1<<20), 0o600))
	disk := &relay{to: at}
	l, err := NewLocal(t.TempDir(), DefaultQEMU)
	must(err)
	m := hypervisor.Machine{Name: "web1", MemoryBytes: 32 << 20, CPUs: 1, Firmware: hypervisor.BIOS, Networks: []hypervisor.Network{},
		Disks: []hypervisor.Disk{{Volume: "data", NBD: "nbd+unix:///data?socket=" + socket}}}
	to := hypervisor.Disk{Volume: "data", File: file, Bytes: 1 << 20}
	end := disk.serve(t, socket)
	must(l.Define(ctx, m))
	t.Cleanup(func() { l.Stop(context.Background(), "web1", hypervisor.ByForce) })
	must(l.Start(ctx, "web1"))
	until(t, "the guest says HELLO", func() bool { p, _ := l.Serial(ctx, "web1", 0); return string(p) == "HELLO\n" })
	end()
	came, left := disk.came.Load(), disk.left.Load()
	if came == 0 || left != 0 {
		t.Fatalf("%d came and %d left", came, left)
	}
	if err := l.SetDisk(ctx, "web1", to); err == nil || !strings.Contains(err.Error(), "nobody serves it") {
		t.Errorf("where QEMU would wait: %v", err)
	}
	end = disk.serve(t, socket)
	defer end()
	must(l.SetDisk(ctx, "web1", to))
	if disk.came.Load() == came {
		t.Error("it left, and was not seen")
	}
	until(t, "it is seen to leave", func() bool { return disk.left.Load() == disk.came.Load()-came })
}

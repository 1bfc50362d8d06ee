package kvm

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/hypervisor"
)

// TestStartsAnew: a machine whose disk nobody serves over vhost-user, whether or not somebody listens there, hangs while it starts. It is given up, is known not to run, and starts over NBD.
func TestStartsAnew(t *testing.T) {
	l, err := NewLocal(t.TempDir(), DefaultQEMU)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("plain QEMU", func(t *testing.T) { startsAnew(t, l) })
	t.Run("libvirt", func(t *testing.T) { startsAnew(t, aLibvirt(t)) })
}

func startsAnew(t *testing.T, h hypervisor.Hypervisor) {
	disk := served(t)
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	mute := filepath.Join(dir, "mute")
	listening(t, mute)
	ctx := t.Context()
	none := filepath.Join(dir, "none")
	for _, at := range []string{mute, none} {
		m := hypervisor.Machine{Name: "web1", MemoryBytes: 32 << 20, CPUs: 1, Firmware: hypervisor.BIOS, VhostUser: true, Disks: []hypervisor.Disk{{Volume: "data", VhostUser: at}}, Networks: []hypervisor.Network{}}
		t.Cleanup(func() { h.Stop(context.Background(), "web1", hypervisor.ByForce) })
		if err := h.Define(ctx, m); err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(ctx, 3*time.Second)
		err := h.Start(short, "web1")
		cancel()
		if err == nil {
			t.Errorf("%s: it started", at)
		} else if strings.HasSuffix(err.Error(), "nobody serves disk data at "+at+" (is vra up?)") != (at == none) {
			t.Errorf("%s: it says %v", at, err)
		}
		t.Logf("%s: %v", at, err)
		asked, cancel := context.WithTimeout(ctx, 10*time.Second)
		state, err := h.State(asked, "web1") // which is asked before its power is cut
		cancel()
		if err != nil || state == hypervisor.Running {
			t.Errorf("%s: it is %q: %v", at, state, err)
		}
		if err := h.Stop(ctx, "web1", hypervisor.ByForce); err != nil {
			t.Fatal(err)
		}
		m.VhostUser, m.Disks = false, []hypervisor.Disk{disk}
		if err := h.Define(ctx, m); err != nil {
			t.Fatal(err)
		}
		if err := h.Start(ctx, "web1"); err != nil {
			t.Fatal(err)
		}
		until(t, "the guest says HELLO", func() bool { p, _ := h.Serial(ctx, "web1", 0); return string(p) == "HELLO\n" })
		if err := h.Stop(ctx, "web1", hypervisor.ByForce); err != nil {
			t.Fatal(err)
		}
		if err := h.Undefine(ctx, "web1"); err != nil {
			t.Fatal(err)
		}
	}
}

package capture

import (
	"context"
	"net"
	"testing"

	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
	"github.com/holdfast-dr/holdfast/datapath/internal/testsocket"
)

// TestUsesAreTold: the VRA sees how many connections use each volume, over NBD and vhost-user, and of a filter of an older release that it does not tell.
func TestUsesAreTold(t *testing.T) {
	r := newRig(t, 512, mib, 4*mib, 2).open()
	tap := r.openTap()
	want := func(what string, first, second int) {
		t.Helper()
		within(t, what, func() bool {
			got := tap.Uses()
			return len(got) == 2 && got[1] == first && got[2] == second
		})
	}
	want("nobody", 0, 0)
	server := &nbd.Server{}
	if err := server.Add(nbd.Export{Name: "vol1", Device: r.vol(0)}); err != nil {
		t.Fatal(err)
	}
	socket, end := testsocket.Serve(t, func(ctx context.Context, l *net.UnixListener) error { return server.Serve(ctx, l) })
	defer end()
	client, err := nbd.Dial(t.Context(), nbd.URI{Network: "unix", Address: socket, Export: "vol1"}.String())
	if err != nil {
		t.Fatal(err)
	}
	want("one over NBD", 1, 0)
	shared, over := testsocket.Serve(t, (&vhostuser.Server{Device: r.vol(1)}).Serve)
	defer over()
	g, err := guest.New(guest.Options{Queues: 1, Slots: 8, SlotBytes: 1 << 16})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := g.Connect(shared); err != nil {
		t.Fatal(err)
	}
	want("one over vhost-user", 1, 1)
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	want("NBD's has left", 0, 1)
	if err := g.Disconnect(); err != nil {
		t.Fatal(err)
	}
	want("both have left", 0, 0)
	r.vol(0).useWord.Store(0)
	if got := tap.Uses(); len(got) != 1 {
		t.Errorf("a filter that does not tell: %v", got)
	}
}

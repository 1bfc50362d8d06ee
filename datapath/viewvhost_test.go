package datapath

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
	vhost "github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
)

// TestViewOverVhostUser has a machine use a live failover's disk by memory that it shares, over a restart of the target and until it has moved onto the
// disk; what it writes is what NBD shows. A view that takes no writes has no such device.
func TestViewOverVhostUser(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start()
	w.awaitState(api.StateProtected)
	w.put("vol1", 0, 1<<20)
	w.checkpoint("first")
	ctx, image := t.Context(), w.image("vol1")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	get := w.commits()
	volume := get().View.Volumes[0]
	seen, err := Handlers(Identity{}, nil, w.tg).Views.List(ctx, &holdfastv1.ViewsServiceListRequest{})
	if err != nil || len(seen.Views) != 1 || seen.Views[0].Clients != 0 {
		t.Fatalf("%v, %v", seen, err)
	}
	w.tg.views.mu.Lock()
	for _, v := range w.tg.views.mu.served {
		for _, d := range v.disks {
			if _, is := d.Device.(front.Laned); is {
				t.Error("a view looks at what it reads in the memory of its guest, which may go away")
			}
		}
	}
	w.tg.views.mu.Unlock()
	vm, err := vhost.New(vhost.Options{Queues: 1, Slots: 4, SlotBytes: 1 << 20})
	must(err)
	defer func() { must(errors.Join(vm.Disconnect(), vm.Close())) }()
	must(vm.Connect(volume.VhostUser))
	if n, err := vm.Capacity(); err != nil || n != w.size {
		t.Errorf("it has %d bytes, want %d: %v", n, w.size, err)
	}
	// same compares what the machine reads with what it should.
	same := func(when string) {
		t.Helper()
		p := make([]byte, 1<<20)
		for off := 0; off < len(image); off += len(p) {
			part := p[:min(len(p), len(image)-off)]
			if err := vm.Read(0, part, int64(off)); err != nil || !bytes.Equal(part, image[off:off+len(part)]) {
				t.Fatalf("%s: at %d it reads something else: %v", when, off, err)
			}
		}
	}
	write := func(off int, text string) {
		t.Helper()
		sector := make([]byte, 4096)
		must(vm.Read(0, sector, int64(off)))
		copy(sector, text)
		must(vm.Write(0, sector, int64(off)))
		copy(image[off:], sector)
	}
	same("at first")
	write(8192, "by shared memory")
	must(vm.Flush(0))
	onView(t, get(), func(c *nbd.Client) {
		if got := readView(t, c); firstDiff(got, image) >= 0 {
			t.Errorf("over NBD it differs at %d", firstDiff(got, image))
		}
	})

	w.stopTarget()
	_ = vm.Gone()
	w.startTarget()
	must(vm.Connect(volume.VhostUser))
	same("after a restart")
	write(1<<20, "after a restart")

	recovery := Handlers(Identity{}, nil, w.tg).Recovery
	get = func() *holdfastv1.Failover {
		res, err := recovery.Get(ctx, &holdfastv1.RecoveryServiceGetRequest{})
		must(err)
		return res.Failover
	}
	w.await("the disk holds all", func() bool { return get().OnDisksAlone })
	w.await("it is counted", func() bool { return get().View.Clients == 1 })
	write(2<<20, "passed on")
	must(vm.Flush(0))
	disk, err := os.ReadFile(get().Disks[0].Path)
	if err != nil || firstDiff(disk[:len(image)], image) >= 0 {
		t.Errorf("the disk differs at %d: %v", firstDiff(disk[:len(image)], image), err)
	}
	letGo := func() error {
		_, err := recovery.LetGo(context.Background(), &holdfastv1.RecoveryServiceLetGoRequest{})
		return err
	}
	if err := letGo(); api.AsFailure(err) == nil || api.AsFailure(err).Code != api.Unavailable {
		t.Errorf("let go of a disk that a machine is connected to: %v", err)
	}
	same("while it passes")

	// After a restart QEMU comes back within a second or so: until then nobody is connected, and the machine uses the view all the same.
	w.stopTarget()
	_ = vm.Gone()
	w.startTarget()
	recovery = Handlers(Identity{}, nil, w.tg).Recovery
	w.await("the disk holds all again", func() bool { return get().OnDisksAlone })
	served := func(d time.Duration) {
		vs := w.tg.views
		vs.mu.Lock()
		defer vs.mu.Unlock()
		for _, v := range vs.mu.served {
			now := v.began.Add(d)
			vs.mu.now = func() time.Time { return now }
		}
	}
	served(returnWait - 1)
	if err := letGo(); api.AsFailure(err) == nil || api.AsFailure(err).Code != api.Unavailable || !strings.Contains(err.Error(), "on its way back") {
		t.Errorf("let go of a disk whose machine has not come back yet: %v", err)
	}
	must(vm.Connect(volume.VhostUser))
	same("after another restart")
	must(vm.Disconnect())
	served(returnWait)
	w.await("nobody is connected any more", func() bool { return letGo() == nil })
	if err := vm.Connect(volume.VhostUser); err == nil {
		t.Error("the view is served beside the machine")
	}
}

// TestVhostSocketTaken: a vhost-user socket that somebody else has is left out, and said so; the view's other sockets are served, and that one once
// it is free.
func TestVhostSocketTaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.volumes = []string{"vol1", "vol2"} })
	w.start()
	w.awaitState(api.StateProtected)
	w.checkpoint("first")
	ctx := t.Context()
	if _, err := Handlers(Identity{}, nil, w.tg).Views.Open(ctx, &holdfastv1.ViewsServiceOpenRequest{Checkpoint: api.Latest}); err != nil {
		t.Fatal(err)
	}
	volumes := func() []*holdfastv1.ViewVolume {
		t.Helper()
		seen, err := Handlers(Identity{}, nil, w.tg).Views.List(ctx, &holdfastv1.ViewsServiceListRequest{})
		if err != nil || len(seen.Views) != 1 || len(seen.Views[0].Volumes) != 2 {
			t.Fatalf("%v, %v", seen, err)
		}
		return seen.Views[0].Volumes
	}
	reach := func(socket string) error {
		c, err := vhost.New(vhost.Options{Queues: 1, Slots: 4, SlotBytes: 1 << 20})
		if err != nil {
			return err
		}
		err = c.Connect(socket)
		if err == nil {
			err = c.Disconnect()
		}
		return errors.Join(err, c.Close())
	}
	was := volumes()
	w.stopTarget()
	taken := listenAt(t, was[0].VhostUser) // whoever answers there keeps it
	w.startTarget()
	now := volumes()
	if now[0].VhostUser != "" || now[0].Nbd != was[0].Nbd || now[1].VhostUser != was[1].VhostUser {
		t.Errorf("with a socket taken it is served at %v", now)
	}
	if err := reach(now[1].VhostUser); err != nil {
		t.Errorf("the other volume: %v", err)
	}
	c, err := nbd.Dial(ctx, now[0].Nbd)
	if err != nil {
		t.Fatalf("over NBD: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := taken.Close(); err != nil {
		t.Error(err)
	}
	w.await("the socket", func() bool { return volumes()[0].VhostUser == was[0].VhostUser })
	if err := reach(was[0].VhostUser); err != nil {
		t.Errorf("once it is free: %v", err)
	}
}

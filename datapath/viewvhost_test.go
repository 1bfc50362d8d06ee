package datapath

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
	vhost "github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/journal/index"
)

// TestOpenTellsSockets: what opens a view says where each volume is served, over vhost-user too where it takes writes.
func TestOpenTellsSockets(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(*world) {})
	w.start()
	w.awaitState(api.StateProtected)
	w.checkpoint("first")
	views := Handlers(Identity{}, nil, w.tg).Views
	for _, readOnly := range []bool{false, true} {
		res, err := views.Open(t.Context(), &holdfastv1.ViewsServiceOpenRequest{Checkpoint: api.Latest, ReadOnly: readOnly})
		if err != nil {
			t.Fatal(err)
		}
		v := res.View.Volumes[0]
		if v.Nbd == "" || (v.VhostUser == "") != readOnly {
			t.Errorf("read-only %v: it is served at %q and %q", readOnly, v.Nbd, v.VhostUser)
		}
		if _, err := os.Stat(v.VhostUser); !readOnly && err != nil {
			t.Error(err)
		}
	}
}

// TestViewOverVhostUser has a machine use a live failover's disk by memory that it shares, over a restart of the target and when it has moved onto the
// disk; what it writes is what NBD shows. A view that takes no writes has no such device.
func TestViewOverVhostUser(t *testing.T) {
	t.Parallel()
	w, get := committedWorld(t, nil)
	ctx, image := t.Context(), w.image("vol1")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	volume := get().View.Volumes[0]
	seen, err := Handlers(Identity{}, nil, w.tg).Views.List(ctx, &holdfastv1.ViewsServiceListRequest{})
	if err != nil || len(seen.Views) != 1 || seen.Views[0].Clients != 0 {
		t.Fatalf("%v, %v", seen, err)
	}
	if !(*viewLane)(nil).Looks() {
		t.Error("a view looks at what it reads in the memory of its guest, which may go away")
	}
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
	served(returnWait)
	onView(t, get(), func(*nbd.Client) {
		if err := letGo(); api.AsFailure(err) == nil || api.AsFailure(err).Code != api.Unavailable || !strings.Contains(err.Error(), "over NBD") {
			t.Errorf("let go of a disk that somebody is connected to over NBD: %v", err)
		}
	})
	used, err := ioengine.Use(get().Disks[0].Path)
	must(err)
	w.await("somebody else has the disk", func() bool {
		err := letGo()
		return api.AsFailure(err) != nil && api.AsFailure(err).Code == api.Precondition && strings.Contains(err.Error(), "open")
	})
	must(used.Close())
	if v := get().View; v == nil || v.Clients == 0 {
		t.Fatal("it lost its session to somebody who has the disk")
	}
	same("when it was not let go")
	w.await("nobody is connected over NBD any more", func() bool { return letGo() == nil })

	// It goes on with the disk, at once and after restarts, and is the only one who has it.
	f := get()
	if f.State != api.FailoverOnDisks || f.View != nil || len(f.Disks) != 1 {
		t.Fatalf("let go: %v", f)
	}
	path := f.Disks[0].Path
	onDisk := func(when string) {
		t.Helper()
		same(when)
		must(vm.Flush(0))
		if disk, err := os.ReadFile(path); err != nil || firstDiff(disk[:len(image)], image) >= 0 {
			t.Errorf("%s: the disk differs at %d: %v", when, firstDiff(disk[:len(image)], image), err)
		}
		if err := ioengine.InUse(path); !errors.Is(err, ioengine.ErrLocked) {
			t.Errorf("%s: a machine has it, and who opens it is told %v", when, err)
		}
	}
	write(3<<20, "on the disk itself")
	onDisk("moved")
	if c, err := nbd.Dial(ctx, volume.Nbd); err == nil {
		c.Close()
		t.Error("the view is served beside the machine")
	}
	if err := letGo(); err != nil {
		t.Errorf("let go again: %v", err)
	}
	w.stopTarget()
	_ = vm.Gone()
	w.startTarget()
	recovery = Handlers(Identity{}, nil, w.tg).Recovery
	remove := func() error {
		_, err := Handlers(Identity{}, nil, w.tg).Groups.Remove(ctx, &holdfastv1.GroupsServiceRemoveRequest{Group: "shop"})
		return err
	}
	served(returnWait - 1)
	vs, group := w.tg.views, w.tg.groups()[0]
	for _, when := range []string{"a machine is on its way back", "nothing is served yet"} {
		if err := remove(); api.AsFailure(err) == nil || api.AsFailure(err).Code != api.Unavailable || !strings.Contains(err.Error(), "on its way back") {
			t.Errorf("removed while %s: %v", when, err)
		}
		vs.unserve(group.Failover().Failover.View)
	}
	vs.serveKept()
	must(vm.Connect(volume.VhostUser))
	write(3<<20+4096, "after a restart on the disk itself")
	onDisk("after a restart")
	served(returnWait)
	if err := remove(); api.AsFailure(err) == nil || api.AsFailure(err).Code != api.Precondition {
		t.Errorf("removed under a machine: %v", err)
	}

	// Once it is off the disk is whoever's opens it, and nobody else's.
	must(vm.Disconnect())
	w.await("the disk is let go", func() (free bool) {
		used, err = ioengine.Use(path)
		return err == nil
	})
	if err := vm.Connect(volume.VhostUser); err == nil {
		t.Error("somebody has the disk, and it is served")
	}
	must(used.Close())
	must(vm.Connect(volume.VhostUser))
	onDisk("once it is free")

	// One that comes while the group is removed keeps it, or comes too late.
	var came error
	comesAt := func(question int) {
		must(vm.Disconnect())
		w.await("it is off", func() bool { n, _ := vs.onPlain(group); return n == 0 })
		vs.mu.Lock()
		defer vs.mu.Unlock()
		now, asked := vs.mu.now(), 0
		vs.mu.now = func() time.Time { // asked once those who are connected are counted
			if asked++; asked == question {
				came = vm.Connect(volume.VhostUser)
			}
			return now
		}
	}
	comesAt(1)
	if err := remove(); api.AsFailure(err) == nil || api.AsFailure(err).Code != api.Precondition || came != nil {
		t.Fatalf("removed under a machine that has come meanwhile, %v: %v", came, err)
	}
	onDisk("when it was not removed")
	comesAt(2)
	if err := remove(); err != nil || came == nil {
		t.Errorf("a machine comes to what is removed: %v; removed: %v", came, err)
	}
	if err := vm.Connect(volume.VhostUser); err == nil {
		t.Error("the disk of a group that was removed is served")
	}
}

// TestPassesUnderReads has a machine read with more requests under way than its queue has workers, while somebody waits again and again for the calls on its
// view to have ended: all are answered.
func TestPassesUnderReads(t *testing.T) {
	t.Parallel()
	w, get := committedWorld(t, func(w *world) { w.catalogue = func() (index.Map, error) { return new(index.Memory), nil } })
	socket := get().View.Volumes[0].VhostUser
	w.await("the disk holds all", func() bool { return get().OnDisksAlone })
	vm, err := vhost.New(vhost.Options{Queues: 1, Slots: 64, SlotBytes: 4096})
	if err == nil {
		err = vm.Connect(socket)
	}
	if err != nil {
		t.Fatal(err)
	}
	vs := w.tg.views
	vs.mu.Lock()
	served := slices.Collect(maps.Values(vs.mu.served))
	vs.mu.Unlock()
	var wg sync.WaitGroup
	var stop atomic.Bool
	for _, v := range served {
		wg.Go(func() {
			for !stop.Load() {
				v.view.Pass(nil) // all its disks are beneath it
			}
		})
	}
	m, err := vm.Run(vhost.Load{Bytes: 4096, Depth: 64, Size: w.size, Duration: 300 * time.Millisecond})
	if err != nil || m.Errors > 0 || m.Requests < 64 || len(served) != 1 {
		t.Errorf("%d views; %+v, %v", len(served), m, err)
	}
	stop.Store(true)
	wg.Wait()
	if err := errors.Join(vm.Disconnect(), vm.Close()); err != nil {
		t.Error(err)
	}
}

// step is what is found when the target is killed in the middle of a move.
type step struct {
	name  string
	dir   string
	least [4]uint64 // what each of those who write knew to be written
	most  [4]uint64 // and had begun to write, at most
}

// TestMovesOntoPlainDisks has four write over vhost-user while the view that they are on ends, and they go on with the disk: nothing is lost, or comes back. Whoever
// succeeds a target that is killed at any step of that serves the view or the disk, as it had stated, and either holds all that was answered.
func TestMovesOntoPlainDisks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.catalogue = func() (index.Map, error) { return new(index.Memory), nil } })
	w.start()
	w.awaitState(api.StateProtected)
	w.checkpoint("first")
	get := w.commits()
	socket := get().View.Volumes[0].VhostUser
	w.await("the disk holds all", func() bool { return get().OnDisksAlone })
	vm, err := vhost.New(vhost.Options{Queues: 2, Slots: 8, SlotBytes: 64 << 10})
	if err == nil {
		err = vm.Connect(socket)
	}
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var stop atomic.Bool
	var began, ended [4]atomic.Uint64
	for i := range began {
		wg.Go(func() {
			p := make([]byte, 4096)
			for n := uint64(1); !stop.Load(); n++ {
				began[i].Store(n)
				binary.LittleEndian.PutUint64(p, n)
				if err := vm.Write(i%2, p, int64(i)<<20); err != nil {
					t.Errorf("%d: write %d: %v", i, n, err)
					return
				}
				ended[i].Store(n)
			}
		})
	}
	writes := func(at int) uint64 { return ended[at].Load() }
	await := func(n uint64) {
		t.Helper()
		was := [4]uint64{writes(0), writes(1), writes(2), writes(3)}
		w.await("they write on", func() bool {
			return writes(0) >= was[0]+n && writes(1) >= was[1]+n && writes(2) >= was[2]+n && writes(3) >= was[3]+n
		})
	}
	await(20)
	var steps []step
	disk := get().Disks[0].Path
	kill := func(name string) {
		if err := ioengine.InUse(disk); name != "before" && !errors.Is(err, ioengine.ErrLocked) {
			t.Errorf("%s: somebody else could have the disk: %v", name, err)
		}
		s := step{name: name, dir: filepath.Join(w.dir, "killed-"+name)}
		for i := range ended {
			s.least[i] = ended[i].Load()
		}
		if err := os.CopyFS(s.dir, os.DirFS(w.store)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for i := range began {
			s.most[i] = began[i].Load()
		}
		steps = append(steps, s)
	}
	vs := w.tg.views
	vs.mu.Lock()
	vs.mu.moving = kill
	for _, v := range vs.mu.served {
		now := v.began.Add(returnWait)
		vs.mu.now = func() time.Time { return now }
	}
	vs.mu.Unlock()
	recovery := Handlers(Identity{}, nil, w.tg).Recovery
	if _, err := recovery.MoveOn(t.Context(), &holdfastv1.RecoveryServiceMoveOnRequest{}); err != nil {
		t.Fatal(err)
	}
	kill("before")
	if _, err := recovery.LetGo(t.Context(), &holdfastv1.RecoveryServiceLetGoRequest{}); err != nil {
		t.Fatal(err)
	}
	await(20)
	stop.Store(true)
	wg.Wait()
	kill("after")
	if err := errors.Join(vm.Disconnect(), vm.Close()); err != nil {
		t.Error(err)
	}
	found := make(map[string][4]uint64)
	for _, s := range steps {
		want := api.FailoverOnDisks
		if s.name == "before" || s.name == "held" {
			want = api.FailoverMoving
		}
		found[s.name] = w.succeeds(s, want)
	}
	if len(steps) != 5 || found["held"] != found["stated"] {
		t.Errorf("%d steps; while it was held the disk came from %d to %d", len(steps), found["held"], found["stated"])
	}
}

// succeeds opens what a killed target left, holds what it serves against what was answered, and returns that.
func (w *world) succeeds(s step, want string) (found [4]uint64) {
	t := w.t
	t.Helper()
	tg, err := OpenTarget(TargetConfig{FS: w.fs, Store: s.dir, RunDir: w.dir + "/r-" + s.name, DataDir: w.dir + "/tdata", ListenControl: "127.0.0.1:0", ListenData: "127.0.0.1:0",
		Credentials: w.tg.cfg.Credentials, OpenCatalogue: w.catalogue, Log: w.log.With("killed", s.name)})
	if err != nil {
		t.Fatal(err)
	}
	defer tg.Close()
	res, err := Handlers(Identity{}, nil, tg).Recovery.Get(t.Context(), &holdfastv1.RecoveryServiceGetRequest{})
	if err != nil || res.Failover.State != want {
		t.Fatalf("%s: it is %v, %v; want %s", s.name, res.GetFailover().GetState(), err, want)
	}
	f := tg.groups()[0].Failover()
	vm, err := vhost.New(vhost.Options{Queues: 1, Slots: 4, SlotBytes: 64 << 10})
	if err == nil {
		err = vm.Connect(diskSocket(tg.views.socket(f.Failover.View), volumeID(0)))
	}
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	p := make([]byte, 4096)
	for i := range s.least {
		if err := vm.Read(0, p, int64(i)<<20); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
		if found[i] = binary.LittleEndian.Uint64(p); found[i] < s.least[i] || found[i] > s.most[i] {
			t.Errorf("%s: %d has write %d, and %d were answered, %d begun", s.name, i, found[i], s.least[i], s.most[i])
		}
	}
	if err := ioengine.InUse(res.Failover.Disks[0].Path); (err != nil) != (want == api.FailoverOnDisks) {
		t.Errorf("%s: the disk is used: %v", s.name, err)
	}
	if err := errors.Join(vm.Disconnect(), vm.Close()); err != nil {
		t.Error(err)
	}
	return found
}

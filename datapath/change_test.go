package datapath

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/datapath/roster"
	"github.com/holdfast-dr/holdfast/ioengine"
)

func (w *world) groups() api.GroupsHandler { return Handlers(Identity{}, w.s, nil).Groups }

func (w *world) members() *holdfastv1.GroupMembers {
	w.t.Helper()
	res, err := w.groups().GetMembers(w.t.Context(), &holdfastv1.GroupsServiceGetMembersRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	return res.Members
}

func (w *world) phase(volume string) string {
	w.t.Helper()
	for _, v := range w.members().Volumes {
		if v.Name == volume {
			return v.Phase
		}
	}
	return ""
}

// TestPausedGroup pauses a group under its guest, over a restart, and resumes it: only what
// changed is sent again.
func TestPausedGroup(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start()
	ctx := t.Context()
	w.awaitState(api.StateProtected)
	// The marks of the first synchronisation go within seconds of its end.
	w.await("a few checkpoints", func() bool { return w.tg.group("").State().Count >= 5 })
	w.verify("before")
	if _, err := w.groups().Pause(ctx, &holdfastv1.GroupsServicePauseRequest{}); err != nil {
		t.Fatal(err)
	}
	w.awaitState(api.StatePaused)
	_, err := Handlers(Identity{}, w.s, nil).Checkpoints.Create(ctx, &holdfastv1.CheckpointsServiceCreateRequest{Tag: "x"})
	if f := api.AsFailure(err); f == nil || f.Code != api.Precondition {
		t.Errorf("a checkpoint of a paused group: %v", err)
	}
	target := func() *holdfastv1.Group {
		res, err := Handlers(Identity{}, nil, w.tg).Status.Get(ctx, &holdfastv1.StatusServiceGetRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return res.Groups[0]
	}
	w.await("the target to see that nothing comes", func() bool { return target().State == api.StateDisconnected })
	w.put(w.volumes[0], 1<<20, 256<<10)
	count := *target().Checkpoints
	w.killSource()
	w.startSource()
	w.await("a pause that outlives the process", func() bool { return w.status().State == api.StatePaused && w.members().Paused })
	g := w.write(1<<20, time.Millisecond)
	w.await("writes", func() bool { return g.count() > 200 })
	g.endPrompt()
	if s, n := w.status(), *target().Checkpoints; s.State != api.StatePaused || n != count {
		t.Errorf("%v, %d checkpoints, %d before", s, n, count)
	}
	if _, err := w.groups().Resume(ctx, &holdfastv1.GroupsServiceResumeRequest{}); err != nil {
		t.Fatal(err)
	}
	w.awaitState(api.StateProtected)
	if n := w.s.flows[0].count.syncRead.Load(); n == 0 || n > 3<<20 {
		t.Errorf("%d bytes were read again, at most 1.25 MiB and what shares blocks with it changed", n)
	}
	w.verify("after")
}

// TestSentAgain has a volume sent again as a whole, over a kill before it was marked.
func TestSentAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.volumes = []string{"vol1", "vol2"} })
	w.start()
	w.awaitState(api.StateProtected)
	if _, err := w.groups().Sync(t.Context(), &holdfastv1.GroupsServiceSyncRequest{Volumes: []string{"none"}}); api.AsFailure(err) == nil || api.AsFailure(err).Code != api.NotFound {
		t.Errorf("a volume that is not there: %v", err)
	}
	before := w.s.flows[0].count.syncRead.Load()
	if _, err := w.groups().Sync(t.Context(), &holdfastv1.GroupsServiceSyncRequest{Volumes: []string{"vol2"}}); err != nil {
		t.Fatal(err)
	}
	all := func() bool { return w.s.flows[0].count.syncRead.Load() >= before+uint64(w.size) }
	w.await("all of it to be read", all)
	w.awaitState(api.StateProtected)
	w.verify("once")

	// Asked for, and killed before anything was marked.
	w.killSource()
	name := filepath.Join(w.dir, "data", fmt.Sprintf("group-%016x", testGroup))
	p, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	r, err := roster.Parse(p)
	if err == nil {
		err = r.SendAgain()
	}
	if err := errors.Join(err, os.WriteFile(name, r.Encode(), 0o600)); err != nil {
		t.Fatal(err)
	}
	w.startSource()
	before = uint64(w.size) // both this time
	w.await("all of both to be read", all)
	w.await("nothing to be asked any more", func() bool { m := w.members(); return !m.Volumes[0].SyncAsked && !m.Volumes[1].SyncAsked })
	w.awaitState(api.StateProtected)
	w.verify("twice")
}

// late is a second filter of the world's group, with one volume.
type late struct {
	*part
	f *capture.Filter
}

func (w *world) startLate(id int, name string) *late {
	w.t.Helper()
	cfg := capture.FilterConfig{
		RunDir: w.dir + "/run", Group: testGroup, PoolBytes: w.pool, PoolSocket: w.dir + "/pool-" + name, FS: ioengine.OS(), Log: w.log.With("part", name),
		Volumes: []capture.FilterVolume{{ID: volumeID(id), Name: name, Path: filepath.Join(w.dir, name+".img")}},
	}
	f, err := capture.OpenFilter(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	return &late{run(func(ctx context.Context) error { return errors.Join(f.Run(ctx), f.Close()) }), f}
}

func readAll(t *testing.T, d front.Device) []byte {
	t.Helper()
	p := make([]byte, d.Size())
	if err := d.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestVolumeJoinsAndLeaves adds a volume to a group under load, with the source killed in each
// phase. Checkpoints go on, and hold it once it is whole; after it was removed they do not.
func TestVolumeJoinsAndLeaves(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start()
	ctx := t.Context()
	w.awaitState(api.StateProtected)
	image := w.image(w.volumes[0])
	if err := os.WriteFile(filepath.Join(w.dir, "new.img"), image, 0o600); err != nil { // content of its own place
		t.Fatal(err)
	}
	add := func(id uint32, name, socket string) error {
		_, err := w.groups().AddVolume(ctx, &holdfastv1.GroupsServiceAddVolumeRequest{Id: id, Name: name, PoolSocket: socket})
		return err
	}
	for _, err := range []error{add(0, "new", "/x"), add(9, "", "/x"), add(9, "new", "x"), add(9, "vol1", "/x"), add(uint32(volumeID(0)), "new", "/x")} {
		if f := api.AsFailure(err); f == nil || f.Code != api.InvalidArgument {
			t.Errorf("a volume that cannot be: %v", err)
		}
	}
	g := w.write(w.size, 2*time.Millisecond)
	defer g.end()
	if err := add(uint32(volumeID(1)), "new", w.dir+"/pool-new"); err != nil {
		t.Fatal(err)
	}
	if w.checkpoint("adding"); w.phase("new") != "adding" || w.status().State == api.StateError {
		t.Errorf("without its filter the volume is %s, the group %v", w.phase("new"), w.status())
	}
	w.killSource()
	w.startSource()
	w.awaitState(api.StateProtected, api.StateBehind)
	n := w.startLate(1, "new")
	defer func() { n.end(t) }()
	h := &guest{t: t, stop: make(chan struct{})}
	h.wg.Go(func() { h.run(n.f.Device("new"), rand.New(rand.NewPCG(3, 5)), w.size, slower*2*time.Millisecond) })
	defer h.end()
	w.await("it to be begun with", func() bool { return w.phase("new") != "adding" })
	w.killSource()
	w.startSource()
	w.await("it to have joined", func() bool { return w.phase("new") == "member" })
	w.checkpoint("joined")
	w.killSource()
	w.startSource()
	w.awaitState(api.StateProtected, api.StateBehind)
	g.endPrompt()
	h.end()
	both := map[string][]byte{"vol1": w.image("vol1"), "new": readAll(t, n.f.Device("new"))}
	id := w.checkpoint("both")
	w.compare(id, both)
	w.compareHeld("adding", "vol1")
	w.compareHeld("joined", "vol1 new")

	remove := func(name string) error {
		_, err := w.groups().RemoveVolume(ctx, &holdfastv1.GroupsServiceRemoveVolumeRequest{Name: name})
		return err
	}
	h2 := &guest{t: t, stop: make(chan struct{})} // it goes on
	h2.wg.Go(func() { h2.run(n.f.Device("new"), rand.New(rand.NewPCG(4, 5)), w.size, slower*2*time.Millisecond) })
	defer h2.end()
	if err := remove("new"); err != nil {
		t.Fatal(err)
	}
	w.verify("without")
	if f := api.AsFailure(remove("new")); f == nil || f.Code != api.NotFound {
		t.Errorf("removed twice: %v", f)
	}
	if f := api.AsFailure(remove("vol1")); f == nil || f.Code != api.Precondition {
		t.Errorf("the last one: %v", f)
	}
	if f := api.AsFailure(add(uint32(volumeID(1)), "again", "/x")); f == nil || f.Code != api.InvalidArgument || !strings.Contains(f.Message, "new") {
		t.Errorf("its id again: %v", f)
	}
	w.compare(id, both) // what holds it stays
	h2.end()
	n.end(t)
	n.part = nil
	w.killSource()
	w.startSource()
	w.awaitState(api.StateProtected)
	w.verify("its filter is gone")
	w.compare(id, both)
}

// compareHeld says which volumes the checkpoint of that tag holds.
func (w *world) compareHeld(tag, want string) {
	w.t.Helper()
	h := Handlers(Identity{}, nil, w.tg)
	res, err := h.Checkpoints.List(context.Background(), &holdfastv1.CheckpointsServiceListRequest{Tag: tag})
	if err != nil || len(res.Checkpoints) != 1 {
		w.t.Fatal(res, err)
	}
	v, err := h.Views.Open(context.Background(), &holdfastv1.ViewsServiceOpenRequest{Checkpoint: res.Checkpoints[0].Id})
	if err != nil {
		w.t.Fatal(err)
	}
	names := []string{}
	for _, v := range v.View.Volumes {
		names = append(names, v.Name)
	}
	if got := strings.Join(names, " "); got != want {
		w.t.Errorf("checkpoint %s holds %q, want %q", tag, got, want)
	}
	if _, err := h.Views.Close(context.Background(), &holdfastv1.ViewsServiceCloseRequest{Id: v.View.Id}); err != nil {
		w.t.Fatal(err)
	}
}

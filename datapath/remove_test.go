package datapath

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// TestRemovedAtTargetAlone removes a group under its source, which sends as it can: it is told so and stays away, and its guest
// goes on.
func TestRemovedAtTargetAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start()
	w.awaitState(api.StateProtected)
	g := w.write(1<<20, 0)
	w.await("writes", func() bool { return g.count() > 200 })
	for _, keep := range []bool{true, false} { // the second time it is told what came of the first
		res, err := Handlers(Identity{}, nil, w.tg).Groups.Remove(t.Context(), &holdfastv1.GroupsServiceRemoveRequest{Group: "shop", KeepReplica: keep})
		if err != nil || len(res.Disks) != len(w.volumes) || res.Left != "" {
			t.Fatalf("%v, %v", res, err)
		}
	}
	w.await("the source to say why", func() bool { return strings.Contains(w.status().Reason, "was removed here") })
	before := g.count()
	w.await("the guest to go on", func() bool { return g.count() > before+100 })
	g.endPrompt()
	if n := len(w.tg.store.Groups()); n != 0 {
		t.Errorf("the target has %d groups", n)
	}
}

// TestRemovedGroup ends the protection of a group under its guest, which feels nothing: the disks stay at the target as they
// were at its newest checkpoint, and neither a restart nor the source brings the group back.
func TestRemovedGroup(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start()
	ctx := t.Context()
	w.awaitState(api.StateProtected)
	target := func() api.GroupsHandler { return Handlers(Identity{}, nil, w.tg).Groups }
	refused := func(what string, err error, code api.Code) {
		t.Helper()
		if f := api.AsFailure(err); f == nil || f.Code != code {
			t.Errorf("%s: %v", what, err)
		}
	}
	remove := func(r *holdfastv1.GroupsServiceRemoveRequest) (*holdfastv1.GroupsServiceRemoveResponse, error) {
		return target().Remove(ctx, r)
	}
	w.put(w.volumes[0], 1<<20, 256<<10)
	want := w.image(w.volumes[0])
	at := w.checkpoint("last")

	_, err := remove(&holdfastv1.GroupsServiceRemoveRequest{})
	refused("no name", err, api.InvalidArgument)
	_, err = remove(&holdfastv1.GroupsServiceRemoveRequest{Group: "none"})
	refused("no such group", err, api.NotFound)
	_, err = remove(&holdfastv1.GroupsServiceRemoveRequest{Group: "shop", Checkpoint: at})
	refused("a checkpoint of nothing", err, api.InvalidArgument)
	_, err = remove(&holdfastv1.GroupsServiceRemoveRequest{Group: "shop", Checkpoint: "latest", KeepReplica: true})
	refused("no number", err, api.InvalidArgument)
	_, err = remove(&holdfastv1.GroupsServiceRemoveRequest{Group: "shop", Checkpoint: "999999", KeepReplica: true})
	refused("no such checkpoint", err, api.NotFound)
	_, err = w.groups().Remove(ctx, &holdfastv1.GroupsServiceRemoveRequest{Group: "shop"})
	refused("the source has no history", err, api.Precondition)
	_, err = w.groups().Unprotect(ctx, &holdfastv1.GroupsServiceUnprotectRequest{})
	refused("no name", err, api.InvalidArgument)
	views := Handlers(Identity{}, nil, w.tg).Views
	v, err := views.Open(ctx, &holdfastv1.ViewsServiceOpenRequest{Checkpoint: at})
	if err != nil {
		t.Fatal(err)
	}
	_, err = remove(&holdfastv1.GroupsServiceRemoveRequest{Group: "shop", DryRun: true})
	refused("a view is open", err, api.Precondition)
	if _, err := views.Close(ctx, &holdfastv1.ViewsServiceCloseRequest{Id: v.View.Id}); err != nil {
		t.Fatal(err)
	}
	w.awaitState(api.StateProtected)

	g := w.write(1<<20, time.Millisecond)
	if _, err := w.groups().Unprotect(ctx, &holdfastv1.GroupsServiceUnprotectRequest{Group: "shop"}); err != nil {
		t.Fatal(err)
	}
	res, err := remove(&holdfastv1.GroupsServiceRemoveRequest{Group: "shop", KeepReplica: true, Checkpoint: at})
	if err != nil {
		t.Fatal(err)
	}
	kept, err := os.ReadFile(res.Disks[0].Path)
	if err != nil || !bytes.Equal(kept, want) || res.Checkpoint != at || len(res.Disks) != len(w.volumes) {
		t.Errorf("%v: the disk that is kept is not the one of checkpoint %s: %v", res, at, err)
	}
	removed := func() {
		t.Helper()
		w.awaitState(api.StateRemoved)
		_, err := Handlers(Identity{}, w.s, nil).Checkpoints.Create(ctx, &holdfastv1.CheckpointsServiceCreateRequest{Tag: "x"})
		refused("a checkpoint", err, api.Precondition)
		_, err = w.groups().Pause(ctx, &holdfastv1.GroupsServicePauseRequest{})
		refused("a pause", err, api.Precondition)
		if _, err := w.groups().Unprotect(ctx, &holdfastv1.GroupsServiceUnprotectRequest{Group: "shop"}); err != nil {
			t.Errorf("again: %v", err)
		}
		if again, err := remove(&holdfastv1.GroupsServiceRemoveRequest{Group: "shop"}); err != nil || again.Checkpoint != at {
			t.Errorf("again: %v, %v", again, err)
		}
		if n := len(w.tg.store.Groups()); n != 0 {
			t.Errorf("the target has %d groups", n)
		}
		before := g.count()
		w.await("the guest to go on", func() bool { return g.count() > before+100 })
		if s := w.s.flows[0].tap.Stats(); s.GuestWrites != 0 && s.Slots != s.Free {
			t.Logf("slots are still taken: %+v", s)
		}
	}
	removed()
	w.killSource()
	w.startSource()
	removed()
	w.killSource()
	w.stopTarget()
	w.startTarget()
	w.startSource()
	removed()
	g.endPrompt()
	id, _ := strconv.ParseUint(at, 10, 64)
	if all := w.tg.store.Removed(); len(all) != 1 || all[0].Checkpoint != id || all[0].Left != nil {
		t.Errorf("%+v", all)
	}
}

package datapath

import (
	"context"
	"errors"
	"strconv"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Remove ends a target's group for good. It goes on when its caller does not wait any more: asked again, it says what came of it.
func (h groupsHandler) Remove(_ context.Context, r *holdfastv1.GroupsServiceRemoveRequest) (*holdfastv1.GroupsServiceRemoveResponse, error) {
	if r.Group == "" {
		return nil, api.Errorf(api.InvalidArgument, "name it", "which group is to be removed is not said")
	}
	o := journal.RemoveOptions{Keep: r.KeepReplica, Try: r.DryRun}
	if r.Checkpoint != "" {
		n, err := strconv.ParseUint(r.Checkpoint, 10, 64)
		if err != nil || n == 0 {
			return nil, api.Errorf(api.InvalidArgument, "see the checkpoints with checkpoint list", "%q is not the id of a checkpoint", r.Checkpoint)
		}
		if !r.KeepReplica {
			return nil, api.Errorf(api.InvalidArgument, "ask to keep the replica, or name no checkpoint", "a checkpoint is named, and no disk is to be kept")
		}
		o.Checkpoint = n
	}
	id, err := h.removable(r.Group)
	if err != nil {
		return nil, err
	}
	if g, ok := h.target.store.Group(id); ok {
		if err := h.runsOn(g); err != nil {
			return nil, err
		}
		if !invariant.Planted("datapath/removes-at-once") {
			o.Refuse = func() error { return h.runsOn(g) }
		}
	}
	gone, err := h.target.store.RemoveGroup(id, o, nil)
	switch {
	case errors.Is(err, journal.ErrInUse):
		return nil, api.Errorf(api.Precondition, endFirst(h.failoverOf(id)), "%v", err)
	case errors.Is(err, journal.ErrNotFound):
		return nil, api.Errorf(api.NotFound, "see the checkpoints with checkpoint list", "%v", err)
	case errors.Is(err, journal.ErrCorrupt):
		return nil, api.Errorf(api.Precondition, "name another checkpoint, or export its disks first and keep none", "%v", err)
	case err != nil:
		return nil, err
	}
	h.target.views.serveKept() // and no disks of this group any more
	res := &holdfastv1.GroupsServiceRemoveResponse{Group: r.Group}
	if gone.Checkpoint != 0 {
		res.Checkpoint = strconv.FormatUint(gone.Checkpoint, 10)
	}
	for _, d := range gone.Disks {
		res.Disks = append(res.Disks, &holdfastv1.KeptDisk{Name: d.Name, Id: uint32(d.ID), Bytes: d.Bytes, Path: d.File})
	}
	if gone.Left != nil {
		res.Left = gone.Left.Error()
	}
	return res, nil
}

// failoverOf is how the last failover of a group stands.
func (h groupsHandler) failoverOf(id record.GroupID) failover.State {
	if g, ok := h.target.store.Group(id); ok {
		return g.Failover().State
	}
	return failover.None
}

// endFirst says what there is to do about who stands on a group that is to be removed. A failover that was committed is not rolled back.
func endFirst(s failover.State) string {
	if s == failover.Committed || s == failover.Settled || s == failover.Passing || s == failover.Moving {
		return "its failover was committed, and machines stand on it: move them onto plain disks with failover plain, or protect the group the other way round with reverse"
	}
	return "end that first: a view with view close, a live failover with failover rollback"
}

// runsOn refuses while machines run on the disks of a group that has let them go, by what is served here; or may, as one that was connected before a restart is on its
// way back.
func (h groupsHandler) runsOn(g *journal.Group) error {
	name := g.Info().Name
	switch n, waits := h.target.views.onPlain(g); {
	case n > 0 && !invariant.Planted("datapath/removes-under-machine"):
		return api.Errorf(api.Precondition, "shut the machines down first; they open the disks by themselves then", "%d disks of group %s are served to machines over vhost-user", n, name)
	case waits && !invariant.Planted("datapath/removes-after-restart"):
		return api.Errorf(api.Unavailable, "ask again in a moment",
			"the disks of group %s are served for less than %s, and a machine that was connected before may be on its way back", name, returnWait)
	}
	return nil
}

// removable finds a group of that name, or of that id, by which one is told that has a new one's name, or the last one of that
// name that was removed.
func (h *handler) removable(name string) (id record.GroupID, err error) {
	g, err := h.targetGroup(name)
	if err == nil {
		return g.Info().ID, nil
	}
	if h.target == nil {
		return 0, err
	}
	for _, g := range h.target.groups() {
		if g.Info().ID.String() == name {
			return g.Info().ID, nil
		}
	}
	var last journal.Removed
	for _, r := range h.target.store.Removed() {
		if r.Name == name && r.At.After(last.At) {
			last = r
		}
	}
	if last.ID == 0 {
		return 0, err
	}
	return last.ID, nil
}

package datapath

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath/roster"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// sourceGroup finds a group of this source.
func (h *handler) sourceGroup(name string) (*flow, error) {
	if h.source == nil {
		return nil, api.Errorf(api.Precondition, "ask the source", "this VRA is the target: what is replicated is said at the source")
	}
	if f := h.source.flow(name); f != nil {
		return f, nil
	}
	return nil, noGroup(name)
}

// changed changes what is asked of a group, and tells how it is then.
func (h *handler) changed(ctx context.Context, group string, do func(*roster.Roster) error) (*holdfastv1.GroupMembers, error) {
	f, err := h.sourceGroup(group)
	if err != nil {
		return nil, err
	}
	switch err := f.change(do); {
	case errors.Is(err, roster.ErrNoVolume):
		return nil, api.Errorf(api.NotFound, "see holdfast group volume list", "%v", err)
	case errors.Is(err, roster.ErrTaken):
		return nil, api.Errorf(api.InvalidArgument, "choose another", "%v", err)
	case errors.Is(err, roster.ErrRemoved):
		return nil, api.Errorf(api.Precondition, "protect its disks as a group with another id", "%v", err)
	case errors.Is(err, roster.ErrLast):
		return nil, api.Errorf(api.Precondition, "add another volume first", "%v", err)
	case err != nil:
		return nil, err
	}
	return f.membersMessage(ctx), nil
}

// GetMembers tells what is replicated of a group.
func (h groupsHandler) GetMembers(ctx context.Context, r *holdfastv1.GroupsServiceGetMembersRequest) (*holdfastv1.GroupsServiceGetMembersResponse, error) {
	f, err := h.sourceGroup(r.Group)
	if err != nil {
		return nil, err
	}
	return &holdfastv1.GroupsServiceGetMembersResponse{Members: f.membersMessage(ctx)}, nil
}

// Pause has nothing of a group sent.
func (h groupsHandler) Pause(ctx context.Context, r *holdfastv1.GroupsServicePauseRequest) (*holdfastv1.GroupsServicePauseResponse, error) {
	m, err := h.changed(ctx, r.Group, func(r *roster.Roster) error { r.Paused = true; return nil })
	return &holdfastv1.GroupsServicePauseResponse{Members: m}, err
}

// Resume ends a pause.
func (h groupsHandler) Resume(ctx context.Context, r *holdfastv1.GroupsServiceResumeRequest) (*holdfastv1.GroupsServiceResumeResponse, error) {
	if r.Preseeded {
		if err := h.preseeded(ctx, r.Group); err != nil {
			return nil, err
		}
	}
	m, err := h.changed(ctx, r.Group, func(r *roster.Roster) error { r.Paused = false; return nil })
	return &holdfastv1.GroupsServiceResumeResponse{Members: m}, err
}

// Sync has volumes sent again as a whole.
func (h groupsHandler) Sync(ctx context.Context, r *holdfastv1.GroupsServiceSyncRequest) (*holdfastv1.GroupsServiceSyncResponse, error) {
	m, err := h.changed(ctx, r.Group, func(ro *roster.Roster) error { return ro.SendAgain(r.Volumes...) })
	return &holdfastv1.GroupsServiceSyncResponse{Members: m}, err
}

// The longest name of a volume, and path of a socket, in bytes: what a filter and the kernel take.
const (
	maxVolumeName = 255
	maxSocketPath = 107
)

// AddVolume adds a volume to a group that runs.
func (h groupsHandler) AddVolume(ctx context.Context, r *holdfastv1.GroupsServiceAddVolumeRequest) (*holdfastv1.GroupsServiceAddVolumeResponse, error) {
	switch {
	case r.Name == "" || len(r.Name) > maxVolumeName || api.CheckTag(r.Name) != nil:
		return nil, api.Errorf(api.InvalidArgument, "choose another", "name %q of a volume: want 1 to %d bytes that can be printed", r.Name, maxVolumeName)
	case r.Id == 0:
		return nil, api.Errorf(api.InvalidArgument, "choose one that no volume of the group ever had", "the volume's id is missing or 0")
	case !filepath.IsAbs(r.PoolSocket) || len(r.PoolSocket) > maxSocketPath:
		return nil, api.Errorf(api.InvalidArgument, "give the pool_socket of its filter's file", "pool socket %q: want an absolute path of at most %d bytes", r.PoolSocket, maxSocketPath)
	}
	m, err := h.changed(ctx, r.Group, func(ro *roster.Roster) error { return ro.Add(record.VolumeID(r.Id), r.Name, r.PoolSocket) })
	return &holdfastv1.GroupsServiceAddVolumeResponse{Members: m}, err
}

// RemoveVolume takes a volume out of a group that runs.
func (h groupsHandler) RemoveVolume(ctx context.Context, r *holdfastv1.GroupsServiceRemoveVolumeRequest) (*holdfastv1.GroupsServiceRemoveVolumeResponse, error) {
	m, err := h.changed(ctx, r.Group, func(ro *roster.Roster) error { _, err := ro.Remove(r.Name); return err })
	return &holdfastv1.GroupsServiceRemoveVolumeResponse{Members: m}, err
}

// Unprotect has nothing of a group captured any more, for good.
func (h groupsHandler) Unprotect(ctx context.Context, r *holdfastv1.GroupsServiceUnprotectRequest) (*holdfastv1.GroupsServiceUnprotectResponse, error) {
	if r.Group == "" {
		return nil, api.Errorf(api.InvalidArgument, "name it", "which group is to be removed is not said")
	}
	m, err := h.changed(ctx, r.Group, func(ro *roster.Roster) error { ro.GiveUp(time.Now().UnixNano()); return nil })
	return &holdfastv1.GroupsServiceUnprotectResponse{Members: m}, err
}

// resting says why the group makes no checkpoint, where that was asked for; nil: it does.
func (f *flow) resting() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.mu.roster.Removed != 0:
		return api.Errorf(api.Precondition, "protect its disks as a group with another id", "the group is removed: no checkpoint is made")
	case f.mu.roster.Paused:
		return api.Errorf(api.Precondition, "resume it with holdfast group resume", "the group is paused: no checkpoint is made")
	}
	return nil
}

// membersMessage is what is asked of the group, and how far that is.
func (f *flow) membersMessage(ctx context.Context) *holdfastv1.GroupMembers {
	lacks := f.freshLacks(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	m := &holdfastv1.GroupMembers{Group: f.cfg.Name, Paused: f.mu.roster.Paused,
		Id: f.cfg.ID.String(), Stream: f.cfg.Stream.String(), Lineage: fmt.Sprintf("%016x", f.cfg.Lineage)}
	for _, v := range f.mu.roster.Wanted() {
		g := &holdfastv1.GroupVolume{
			Name: v.Name, Id: uint32(v.ID), Phase: string(v.Phase), PoolSocket: v.Socket, SyncAsked: slices.Contains(f.mu.roster.Again, v.ID),
		}
		for _, s := range f.mu.volumes {
			if s.ID == v.ID {
				g.Bytes = s.Bytes
			}
		}
		if n, ok := lacks.dirty[v.ID]; ok && lacks.known {
			g.DirtyBytes = &n
		}
		m.Volumes = append(m.Volumes, g)
	}
	return m
}

package main

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// theMembers are the site's, made when they are first asked for.
func (s *site) theMembers() *holdfastv1.GroupMembers {
	if s.members == nil {
		dirty := int64(4096)
		s.members = &holdfastv1.GroupMembers{Group: "lab", Volumes: []*holdfastv1.GroupVolume{
			{Name: "data", Id: 1, Phase: "member", PoolSocket: "/run/pool", Bytes: 1 << 30, DirtyBytes: &dirty},
			{Name: "log", Id: 2, Phase: "adding"},
		}}
	}
	return s.members
}

func (s retentionOf) GetMembers(context.Context, *holdfastv1.GroupsServiceGetMembersRequest) (*holdfastv1.GroupsServiceGetMembersResponse, error) {
	for _, v := range s.theMembers().Volumes {
		if v.Name == "new" {
			v.Phase = "member" // when it is asked for the second time
		}
	}
	return &holdfastv1.GroupsServiceGetMembersResponse{Members: s.theMembers()}, nil
}

func (s retentionOf) Pause(context.Context, *holdfastv1.GroupsServicePauseRequest) (*holdfastv1.GroupsServicePauseResponse, error) {
	s.theMembers().Paused = true
	return &holdfastv1.GroupsServicePauseResponse{Members: s.theMembers()}, nil
}

func (s retentionOf) Resume(_ context.Context, r *holdfastv1.GroupsServiceResumeRequest) (*holdfastv1.GroupsServiceResumeResponse, error) {
	s.resumed = r
	s.theMembers().Paused = false
	return &holdfastv1.GroupsServiceResumeResponse{Members: s.theMembers()}, nil
}

func (s retentionOf) Sync(_ context.Context, r *holdfastv1.GroupsServiceSyncRequest) (*holdfastv1.GroupsServiceSyncResponse, error) {
	for _, v := range s.theMembers().Volumes {
		v.SyncAsked = slices.Contains(r.Volumes, v.Name)
	}
	return &holdfastv1.GroupsServiceSyncResponse{Members: s.theMembers()}, nil
}

func (s retentionOf) Adopt(_ context.Context, r *holdfastv1.GroupsServiceAdoptRequest) (*holdfastv1.GroupsServiceAdoptResponse, error) {
	if r.Reason != "the host was installed anew" {
		return nil, api.Errorf(api.Precondition, "see holdfast status", "nothing to adopt")
	}
	return &holdfastv1.GroupsServiceAdoptResponse{Members: s.theMembers()}, nil
}

// AddVolume adds it once, however often the tests ask.
func (s retentionOf) AddVolume(_ context.Context, r *holdfastv1.GroupsServiceAddVolumeRequest) (*holdfastv1.GroupsServiceAddVolumeResponse, error) {
	m := s.theMembers()
	if len(m.Volumes) == 2 {
		m.Volumes = append(m.Volumes, &holdfastv1.GroupVolume{Name: r.Name, Id: r.Id, Phase: "adding", PoolSocket: r.PoolSocket})
	}
	return &holdfastv1.GroupsServiceAddVolumeResponse{Members: m}, nil
}

func (s retentionOf) RemoveVolume(_ context.Context, r *holdfastv1.GroupsServiceRemoveVolumeRequest) (*holdfastv1.GroupsServiceRemoveVolumeResponse, error) {
	if r.Name == "none" {
		return nil, api.Errorf(api.NotFound, "see holdfast group volume list", "none: no such volume")
	}
	m := s.theMembers()
	m.Volumes = m.Volumes[:2]
	return &holdfastv1.GroupsServiceRemoveVolumeResponse{Members: m}, nil
}

// A checkpoint whose freeze failed is made, and standard error says why it is not what was asked for.
func TestFreezeFailed(t *testing.T) {
	source, target := twoSites()
	code, out, errs := holdfast(t, contextFile(t, source, target), "checkpoint", "create", "--tag", "x", "--freeze", "-o", "json")
	if code != 0 || !source.created.GetFreeze() || !strings.Contains(out, `"consistency": "crash-freeze-failed"`) || !strings.Contains(errs, "the before-command: exit status 3") {
		t.Errorf("exit %d\n%s\n%s", code, out, errs)
	}
}

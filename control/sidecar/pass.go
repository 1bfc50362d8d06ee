package sidecar

import (
	"context"

	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// pass asks the vra what we are asked, key and all, and explains what went wrong.
func pass[Request, Response any](ctx context.Context, v *vra, r *Request, call func(context.Context, *Request) (*Response, error)) (*Response, error) {
	asking := ctx
	if wait := callerOf(ctx).wait; wait > 0 {
		var cancel context.CancelFunc
		asking, cancel = context.WithTimeout(ctx, wait)
		defer cancel()
	}
	res, err := call(asking, r)
	if err != nil {
		return nil, v.explain(ctx, err)
	}
	return res, nil
}

// The services that the vra answers.
type (
	checkpointsOf struct{ v *vra }
	viewsOf       struct{ v *vra }
	storesOf      struct{ v *vra }
	shapingOf     struct{ v *vra }
	groupsOf      struct{ v *vra }
	recoveryOf    struct{ v *vra }
	linksOf       struct{ v *vra }
)

func (s checkpointsOf) List(ctx context.Context, r *holdfastv1.CheckpointsServiceListRequest) (*holdfastv1.CheckpointsServiceListResponse, error) {
	return pass(ctx, s.v, r, s.v.Checkpoints.List)
}

func (s checkpointsOf) Get(ctx context.Context, r *holdfastv1.CheckpointsServiceGetRequest) (*holdfastv1.CheckpointsServiceGetResponse, error) {
	return pass(ctx, s.v, r, s.v.Checkpoints.Get)
}

func (s checkpointsOf) Tag(ctx context.Context, r *holdfastv1.CheckpointsServiceTagRequest) (*holdfastv1.CheckpointsServiceTagResponse, error) {
	return pass(ctx, s.v, r, s.v.Checkpoints.Tag)
}

func (s checkpointsOf) Pin(ctx context.Context, r *holdfastv1.CheckpointsServicePinRequest) (*holdfastv1.CheckpointsServicePinResponse, error) {
	return pass(ctx, s.v, r, s.v.Checkpoints.Pin)
}

func (s checkpointsOf) Unpin(ctx context.Context, r *holdfastv1.CheckpointsServiceUnpinRequest) (*holdfastv1.CheckpointsServiceUnpinResponse, error) {
	return pass(ctx, s.v, r, s.v.Checkpoints.Unpin)
}

func (s checkpointsOf) Create(ctx context.Context, r *holdfastv1.CheckpointsServiceCreateRequest) (*holdfastv1.CheckpointsServiceCreateResponse, error) {
	return pass(ctx, s.v, r, s.v.Checkpoints.Create)
}

func (s checkpointsOf) LeadCut(ctx context.Context, r *holdfastv1.CheckpointsServiceLeadCutRequest) (*holdfastv1.CheckpointsServiceLeadCutResponse, error) {
	return pass(ctx, s.v, r, s.v.Checkpoints.LeadCut)
}

func (s viewsOf) Open(ctx context.Context, r *holdfastv1.ViewsServiceOpenRequest) (*holdfastv1.ViewsServiceOpenResponse, error) {
	return pass(ctx, s.v, r, s.v.Views.Open)
}

func (s viewsOf) List(ctx context.Context, r *holdfastv1.ViewsServiceListRequest) (*holdfastv1.ViewsServiceListResponse, error) {
	return pass(ctx, s.v, r, s.v.Views.List)
}

func (s viewsOf) Close(ctx context.Context, r *holdfastv1.ViewsServiceCloseRequest) (*holdfastv1.ViewsServiceCloseResponse, error) {
	return pass(ctx, s.v, r, s.v.Views.Close)
}

func (s storesOf) List(ctx context.Context, r *holdfastv1.StoresServiceListRequest) (*holdfastv1.StoresServiceListResponse, error) {
	return pass(ctx, s.v, r, s.v.Stores.List)
}

func (s storesOf) Add(ctx context.Context, r *holdfastv1.StoresServiceAddRequest) (*holdfastv1.StoresServiceAddResponse, error) {
	return pass(ctx, s.v, r, s.v.Stores.Add)
}

func (s storesOf) Retire(ctx context.Context, r *holdfastv1.StoresServiceRetireRequest) (*holdfastv1.StoresServiceRetireResponse, error) {
	return pass(ctx, s.v, r, s.v.Stores.Retire)
}

func (s shapingOf) Get(ctx context.Context, r *holdfastv1.ShapingServiceGetRequest) (*holdfastv1.ShapingServiceGetResponse, error) {
	return pass(ctx, s.v, r, s.v.Shaping.Get)
}

func (s shapingOf) Set(ctx context.Context, r *holdfastv1.ShapingServiceSetRequest) (*holdfastv1.ShapingServiceSetResponse, error) {
	return pass(ctx, s.v, r, s.v.Shaping.Set)
}

func (s groupsOf) GetRetention(ctx context.Context, r *holdfastv1.GroupsServiceGetRetentionRequest) (*holdfastv1.GroupsServiceGetRetentionResponse, error) {
	return pass(ctx, s.v, r, s.v.Groups.GetRetention)
}

func (s groupsOf) SetRetention(ctx context.Context, r *holdfastv1.GroupsServiceSetRetentionRequest) (*holdfastv1.GroupsServiceSetRetentionResponse, error) {
	return pass(ctx, s.v, r, s.v.Groups.SetRetention)
}

func (s groupsOf) Verify(ctx context.Context, r *holdfastv1.GroupsServiceVerifyRequest) (*holdfastv1.GroupsServiceVerifyResponse, error) {
	return pass(ctx, s.v, r, s.v.Groups.Verify)
}

func (s groupsOf) GetMembers(ctx context.Context, r *holdfastv1.GroupsServiceGetMembersRequest) (*holdfastv1.GroupsServiceGetMembersResponse, error) {
	return pass(ctx, s.v, r, s.v.Groups.GetMembers)
}

func (s groupsOf) Pause(ctx context.Context, r *holdfastv1.GroupsServicePauseRequest) (*holdfastv1.GroupsServicePauseResponse, error) {
	return pass(ctx, s.v, r, s.v.Groups.Pause)
}

func (s groupsOf) Resume(ctx context.Context, r *holdfastv1.GroupsServiceResumeRequest) (*holdfastv1.GroupsServiceResumeResponse, error) {
	return pass(ctx, s.v, r, s.v.Groups.Resume)
}

func (s groupsOf) Sync(ctx context.Context, r *holdfastv1.GroupsServiceSyncRequest) (*holdfastv1.GroupsServiceSyncResponse, error) {
	return pass(ctx, s.v, r, s.v.Groups.Sync)
}

func (s groupsOf) Adopt(ctx context.Context, r *holdfastv1.GroupsServiceAdoptRequest) (*holdfastv1.GroupsServiceAdoptResponse, error) {
	return pass(ctx, s.v, r, s.v.Groups.Adopt)
}

func (s groupsOf) AddVolume(ctx context.Context, r *holdfastv1.GroupsServiceAddVolumeRequest) (*holdfastv1.GroupsServiceAddVolumeResponse, error) {
	return pass(ctx, s.v, r, s.v.Groups.AddVolume)
}

func (s groupsOf) RemoveVolume(ctx context.Context, r *holdfastv1.GroupsServiceRemoveVolumeRequest) (*holdfastv1.GroupsServiceRemoveVolumeResponse, error) {
	return pass(ctx, s.v, r, s.v.Groups.RemoveVolume)
}

func (s groupsOf) Unprotect(ctx context.Context, r *holdfastv1.GroupsServiceUnprotectRequest) (*holdfastv1.GroupsServiceUnprotectResponse, error) {
	return pass(ctx, s.v, r, s.v.Groups.Unprotect)
}

func (s groupsOf) Remove(ctx context.Context, r *holdfastv1.GroupsServiceRemoveRequest) (*holdfastv1.GroupsServiceRemoveResponse, error) {
	return pass(ctx, s.v, r, s.v.Groups.Remove)
}

func (s recoveryOf) Begin(ctx context.Context, r *holdfastv1.RecoveryServiceBeginRequest) (*holdfastv1.RecoveryServiceBeginResponse, error) {
	return pass(ctx, s.v, r, s.v.Recovery.Begin)
}

func (s recoveryOf) Get(ctx context.Context, r *holdfastv1.RecoveryServiceGetRequest) (*holdfastv1.RecoveryServiceGetResponse, error) {
	return pass(ctx, s.v, r, s.v.Recovery.Get)
}

func (s recoveryOf) Commit(ctx context.Context, r *holdfastv1.RecoveryServiceCommitRequest) (*holdfastv1.RecoveryServiceCommitResponse, error) {
	return pass(ctx, s.v, r, s.v.Recovery.Commit)
}

func (s recoveryOf) Adopt(ctx context.Context, r *holdfastv1.RecoveryServiceAdoptRequest) (*holdfastv1.RecoveryServiceAdoptResponse, error) {
	return pass(ctx, s.v, r, s.v.Recovery.Adopt)
}

func (s recoveryOf) HandOver(ctx context.Context, r *holdfastv1.RecoveryServiceHandOverRequest) (*holdfastv1.RecoveryServiceHandOverResponse, error) {
	return pass(ctx, s.v, r, s.v.Recovery.HandOver)
}

func (s recoveryOf) MoveOn(ctx context.Context, r *holdfastv1.RecoveryServiceMoveOnRequest) (*holdfastv1.RecoveryServiceMoveOnResponse, error) {
	return pass(ctx, s.v, r, s.v.Recovery.MoveOn)
}

func (s recoveryOf) LetGo(ctx context.Context, r *holdfastv1.RecoveryServiceLetGoRequest) (*holdfastv1.RecoveryServiceLetGoResponse, error) {
	return pass(ctx, s.v, r, s.v.Recovery.LetGo)
}

func (s recoveryOf) Rollback(ctx context.Context, r *holdfastv1.RecoveryServiceRollbackRequest) (*holdfastv1.RecoveryServiceRollbackResponse, error) {
	return pass(ctx, s.v, r, s.v.Recovery.Rollback)
}

func (s linksOf) Test(ctx context.Context, r *holdfastv1.LinksServiceTestRequest, tell func(*holdfastv1.LinksServiceTestResponse) error) error {
	return s.v.explain(ctx, s.v.Links.Test(ctx, r, tell))
}

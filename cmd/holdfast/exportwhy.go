package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// whyWait is how long the target may take to say why its view ended.
const whyWait = 5 * time.Second

// why asks the target what became of the view that an export read by, and of its
// checkpoint, and says that instead of err where it explains it. What the client of a
// view sees is a connection that ends or a read that fails, whatever the reason.
func why(ctx context.Context, client *api.Client, group string, v *holdfastv1.View, err error) error {
	if err == nil || ctx.Err() != nil || ours(err) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, whyWait)
	defer cancel()
	views, verr := api.All(ctx, &holdfastv1.ViewsServiceListRequest{Group: group}, client.Views.List)
	if verr != nil {
		return fmt.Errorf("%w; the target cannot be asked why: %w", err, explain(api.RoleTarget, verr))
	}
	var now *holdfastv1.View
	for _, m := range views.GetViews() {
		if m.GetId() == v.GetId() {
			now = m
		}
	}
	id := v.GetCheckpoint()
	switch {
	case now == nil:
		return fmt.Errorf("view %s of the export was closed by someone else meanwhile: export again (%w)", v.GetId(), err)
	case now.GetState() == api.ViewClosed:
		return fmt.Errorf("the view of the export gave way because %s: make room on the target's disk or, where it is the group's limit, set a higher one (holdfast group retention set %s --limit SIZE), or unpin checkpoints (holdfast checkpoint list --pinned), and export again; holdfast view open --live opens one that does not give way (%w)",
			orUnknown(now.GetReason()), group, err)
	}
	c, cerr := client.Checkpoints.Get(ctx, &holdfastv1.CheckpointsServiceGetRequest{Group: group, Id: id})
	switch f := api.AsFailure(cerr); {
	case f != nil && f.Code == api.NotFound:
		return fmt.Errorf("checkpoint %s is not there any more: take one of holdfast checkpoint list (%w)", id, err)
	case f == nil && c.GetCheckpoint().GetState() == api.CheckpointBad:
		return fmt.Errorf("checkpoint %s is bad: %s; see holdfast checkpoint show %s, and take another one (%w)", id, orUnknown(c.GetCheckpoint().GetReason()), id, err)
	case now.GetReason() != "":
		return fmt.Errorf("view %s is %s: %s (%w)", v.GetId(), now.GetState(), now.GetReason(), err)
	}
	return err
}

func orUnknown(reason string) string {
	if reason == "" {
		return "of a reason that the target does not say"
	}
	return reason
}

// ours says whether err is of the folder that images are written to.
func ours(err error) bool {
	_, ok := errors.AsType[*fs.PathError](err)
	return ok
}

// folderError says what to do about a folder for images that cannot be made.
func folderError(path string, err error) error {
	next := "name another folder, or make it yourself"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		next = "make " + filepath.Dir(path) + " first, or name another folder"
	case errors.Is(err, fs.ErrPermission):
		next = "name a folder that you may write to"
	}
	return fmt.Errorf("--out: the folder cannot be made: %w: %s", err, next)
}

package datapath

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/journal/retain"
	"github.com/holdfast-dr/holdfast/journal/view"
)

// viewsHandler implements api.ViewsHandler.
type viewsHandler struct{ *handler }

// maxViewName is the longest label of a view, in bytes.
const maxViewName = 63

// Open opens a view.
func (h viewsHandler) Open(_ context.Context, r *holdfastv1.ViewsServiceOpenRequest) (*holdfastv1.ViewsServiceOpenResponse, error) {
	g, err := h.targetGroup(r.Group)
	if err != nil {
		return nil, err
	}
	if len(r.Name) > maxViewName {
		return nil, api.Errorf(api.InvalidArgument, "take a shorter one", "the name of a view has at most %d bytes", maxViewName)
	}
	if r.ScratchLimit != 0 && r.ScratchLimit < api.MinScratchLimit {
		return nil, api.Errorf(api.InvalidArgument, "give at least 1 MiB, or 0 for no limit", "scratch of at most %s is too little", retain.FormatSize(r.ScratchLimit))
	}
	if r.Passing && r.Live {
		return nil, api.Errorf(api.InvalidArgument, "choose one", "a view cannot be both passing and live")
	}
	number, err := numberOf(g, r.Checkpoint)
	if err != nil {
		return nil, err
	}
	v, err := h.target.views.show(g, number, journal.ViewOptions{
		Options: view.Options{Scratch: !r.ReadOnly, ScratchLimit: r.ScratchLimit}, Live: r.Live, Passing: r.Passing, Name: r.Name, Opened: time.Now(),
	})
	switch {
	case errors.Is(err, journal.ErrNotFound):
		return nil, api.Errorf(api.NotFound, "see checkpoint list", "no checkpoint %d", number)
	case errors.Is(err, journal.ErrInUse):
		return nil, api.Errorf(api.Precondition, "use the failover's view", "a live failover of the group was committed, and no other view of it is opened: %v", err)
	case errors.Is(err, errTooMany):
		return nil, api.Errorf(api.Exhausted, "close one", "%v", err)
	case errors.Is(err, journal.ErrCorrupt):
		return nil, api.Errorf(api.DataLoss, "take another checkpoint", "%v", err)
	case errors.Is(err, view.ErrNoSpace), errors.Is(err, syscall.ENOSPC):
		return nil, api.Errorf(api.Exhausted, "make room in the store", "%v", err)
	case err != nil:
		return nil, err
	}
	return &holdfastv1.ViewsServiceOpenResponse{View: v.message()}, nil
}

func numberOf(g *journal.Group, checkpoint string) (uint64, error) {
	if checkpoint == api.Latest {
		c, err := g.Latest()
		if errors.Is(err, journal.ErrNotFound) {
			return 0, api.Errorf(api.NotFound, "wait until status shows one", "there is no checkpoint yet")
		}
		return c.Number, err
	}
	n, err := strconv.ParseUint(checkpoint, 10, 64)
	if err != nil || n == 0 {
		return 0, api.Errorf(api.NotFound, "see checkpoint list", "no checkpoint %q", checkpoint)
	}
	return n, nil
}

func (v *viewStatus) message() *holdfastv1.View {
	m := &holdfastv1.View{
		Id: viewID(v.Number), Group: v.group, Checkpoint: strconv.FormatUint(v.Checkpoint, 10), Opened: api.Timestamp(v.Options.Opened),
		Name: v.Options.Name, ReadOnly: !v.Options.Scratch, Live: v.Options.Live,
		ScratchBytes: v.ScratchBytes, ScratchLimit: v.Options.ScratchLimit, Clients: int32(v.clients), State: string(v.State), Reason: v.Reason,
	}
	if v.Checkpoint == 0 {
		m.Checkpoint = "" // not known
	}
	if v.socket == "" {
		return m // nobody can reach them
	}
	for _, d := range v.View.Volumes() {
		volume := &holdfastv1.ViewVolume{Name: d.Name, Bytes: d.Bytes, Nbd: v.uri(d.Name)}
		if v.vhost[d.ID] {
			volume.VhostUser = diskSocket(v.socket, d.ID)
		}
		m.Volumes = append(m.Volumes, volume)
	}
	return m
}

// List tells the open views, and those that gave way.
func (h viewsHandler) List(_ context.Context, r *holdfastv1.ViewsServiceListRequest) (*holdfastv1.ViewsServiceListResponse, error) {
	res := &holdfastv1.ViewsServiceListResponse{}
	if h.target == nil {
		return res, nil
	}
	for _, v := range h.target.views.list(r.Group) {
		res.Views = append(res.Views, v.message())
	}
	// A longer number is a later one.
	res.Views, res.NextPageToken = api.Page(res.Views, r.PageSize, r.PageToken, func(v *holdfastv1.View) string { return fmt.Sprintf("%03d%s", len(v.Id), v.Id) })
	return res, nil
}

// Close ends a view.
func (h viewsHandler) Close(_ context.Context, r *holdfastv1.ViewsServiceCloseRequest) (*holdfastv1.ViewsServiceCloseResponse, error) {
	err := errNoView
	if h.target != nil {
		err = h.target.views.close(r.Id)
	}
	if errors.Is(err, journal.ErrInUse) {
		return nil, api.Errorf(api.Precondition, "roll the failover back, or commit it", "view %s is what the machines of a live failover run on", r.Id)
	}
	if errors.Is(err, errNoView) || errors.Is(err, journal.ErrNoView) {
		return nil, api.Errorf(api.NotFound, "see view list", "no view %q", r.Id)
	}
	if err != nil {
		return nil, err
	}
	return &holdfastv1.ViewsServiceCloseResponse{}, nil
}

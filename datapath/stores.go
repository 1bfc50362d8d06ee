package datapath

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/journal/stripe"
)

// storesHandler implements api.StoresHandler.
type storesHandler struct{ *handler }

func (h storesHandler) List(_ context.Context, r *holdfastv1.StoresServiceListRequest) (*holdfastv1.StoresServiceListResponse, error) {
	if h.target == nil {
		return nil, api.Errorf(api.Precondition, "ask the VRA of the other site", "this VRA is no target")
	}
	p := h.target.protection
	res := &holdfastv1.StoresServiceListResponse{Parity: p.text}
	if p.set == nil {
		res.Stores = []*holdfastv1.Store{{Folder: h.target.cfg.Store, State: api.StoreIn}}
		return res, nil
	}
	st := p.set.State()
	spare := int32(st.Spare)
	res.Spare, res.Files, res.Thin = &spare, int64(st.Files), int64(st.Thin)
	res.Doing, res.DoneFiles, res.TodoFiles = st.Mending.Doing, int64(st.Mending.Done), int64(st.Mending.Todo)
	res.Reason = text(st.Err)
	for _, s := range st.Stores {
		res.Stores = append(res.Stores, &holdfastv1.Store{Folder: s.Dir, State: s.State, Reason: text(s.Err), Files: int64(s.Files), ReadErrors: s.Errors})
	}
	for _, dir := range st.Strays {
		res.Stores = append(res.Stores, &holdfastv1.Store{Folder: dir, State: api.StoreStray, Reason: "it is configured and not of the set: add it"})
	}
	res.Stores, res.NextPageToken = api.Page(res.Stores, r.PageSize, r.PageToken, func(s *holdfastv1.Store) string { return s.Folder })
	return res, nil
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// set returns the set of stores, or why there is none.
func (h storesHandler) set(folder string) (*stripe.Set, error) {
	switch {
	case h.target == nil:
		return nil, api.Errorf(api.Precondition, "ask the VRA of the other site", "this VRA is no target")
	case h.target.protection.set == nil:
		return nil, api.Errorf(api.Precondition, "name target.stores and target.parity in its configuration", "this target keeps its journal in one folder")
	case !filepath.IsAbs(folder):
		return nil, api.Errorf(api.InvalidArgument, "name a folder on the VRA's machine", "%q is no absolute path", folder)
	}
	return h.target.protection.set, nil
}

func (h storesHandler) Add(_ context.Context, r *holdfastv1.StoresServiceAddRequest) (*holdfastv1.StoresServiceAddResponse, error) {
	set, err := h.set(r.GetFolder())
	if err != nil {
		return nil, err
	}
	if err := set.Add(r.GetFolder()); err != nil {
		return nil, storeError(err)
	}
	return &holdfastv1.StoresServiceAddResponse{}, nil
}

func (h storesHandler) Retire(_ context.Context, r *holdfastv1.StoresServiceRetireRequest) (*holdfastv1.StoresServiceRetireResponse, error) {
	set, err := h.set(r.GetFolder())
	if err != nil {
		return nil, err
	}
	if err := set.Retire(r.GetFolder()); err != nil {
		return nil, storeError(err)
	}
	return &holdfastv1.StoresServiceRetireResponse{}, nil
}

func storeError(err error) error {
	switch {
	case errors.Is(err, stripe.ErrStore):
		return api.Errorf(api.NotFound, "see them with store list; a new one must be an empty folder", "%v", err)
	case errors.Is(err, fs.ErrNotExist):
		return api.Errorf(api.NotFound, "make the folder, on a disk of its own", "%v", err)
	}
	return api.Errorf(api.Precondition, "see store list", "%v", err)
}

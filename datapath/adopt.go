package datapath

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath/group"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// errNotForeign says that there is nothing to adopt.
var errNotForeign = errors.New("what stands at the target was sent by this VRA, as far as it was asked: there is nothing to adopt")

// adopt goes on with a group that another VRA has sent, or this one before it lost its data
// directory: since nobody knows what changed meanwhile, all of it is compared with what the target
// holds. All is marked before the target's incarnation counts as ours, which is what lets a life
// begin: whoever comes after a crash between the two begins with the marks, or is refused as before.
func (f *flow) adopt(ctx context.Context, reason string) error {
	f.mu.Lock()
	foreign, fatal := f.mu.foreign, f.mu.fatal
	f.mu.Unlock()
	if fatal != nil {
		return fatal
	}
	if foreign == 0 {
		return errNotForeign
	}
	for _, v := range f.sent() {
		if invariant.Planted("datapath/adopts-unmarked") {
			break
		}
		if err := f.markAll(ctx, v.ID); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.foreign != foreign {
		return errNotForeign // the target says something else by now
	}
	f.marksNew = true // what is kept says that it is known what changed: it is kept again once a life has begun
	if err := os.Remove(f.keptName); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := syncFolderOf(f.keptName); err != nil {
		return err
	}
	d := f.mu.drawn.adopting(foreign)
	if err := f.incarnations.put(d); err != nil {
		return fmt.Errorf("keep the incarnation: %w", err)
	}
	f.mu.drawn, f.mu.foreign = d, 0
	f.log.Warn("adopted: all of the group is compared with what the target holds", "incarnation", foreign, "reason", reason)
	f.stepLocked(group.Adopted{})
	return nil
}

// maxAdoptReason is the longest reason of an adoption, in bytes.
const maxAdoptReason = 256

// Adopt goes on with what another VRA has sent.
func (h groupsHandler) Adopt(ctx context.Context, r *holdfastv1.GroupsServiceAdoptRequest) (*holdfastv1.GroupsServiceAdoptResponse, error) {
	if r.Reason == "" || len(r.Reason) > maxAdoptReason || api.CheckTag(r.Reason) != nil {
		return nil, api.Errorf(api.InvalidArgument, "say why the VRA that sent the group is gone for good", "the reason of an adoption is missing, longer than %d bytes or not printable", maxAdoptReason)
	}
	f, err := h.sourceGroup(r.Group)
	if err != nil {
		return nil, err
	}
	switch err := f.adopt(ctx, r.Reason); {
	case errors.Is(err, errNotForeign):
		return nil, api.Errorf(api.Precondition, "see holdfast status", "%v", err)
	case err != nil:
		return nil, api.Errorf(api.Unavailable, "see that the filters of the group run, and try again", "%v", err)
	}
	return &holdfastv1.GroupsServiceAdoptResponse{Members: f.membersMessage(ctx)}, nil
}

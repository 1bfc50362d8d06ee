package datapath

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/journal"
)

// A disk that was carried to the target before its group is protected: the target makes the group of it (RecoveryHandler.Adopt,
// as for old disks after a failover), where it stands and as it is, and the source goes on from there. It compares all of its
// disks with what the target holds, and sends what differs. To read the disk into one of the store's own would need the space
// of a second copy and write all of it; whoever wants to keep the copy as it was carried makes one.

// errSent says that the group is none that begins.
var errSent = errors.New("the group was sent from here before, or is not paused")

// preseeded counts what stands at the target before anything was sent as ours, and has all of it compared.
func (h groupsHandler) preseeded(ctx context.Context, group string) error {
	f, err := h.sourceGroup(group)
	if err != nil {
		return err
	}
	switch err := f.preseeded(ctx); {
	case errors.Is(err, errSent):
		return api.Errorf(api.Precondition, "protect its disks as a group with another id, whose file says paused", "%v", err)
	case err != nil:
		return api.Errorf(api.Unavailable, "see that the filters of the group run, and try again", "%v", err)
	}
	return nil
}

func (f *flow) preseeded(ctx context.Context) error {
	begins := func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.mu.fatal != nil {
			return f.mu.fatal
		}
		if !f.mu.roster.Paused || f.mu.ledger != (ledger{}) {
			return errSent
		}
		return nil
	}
	if err := begins(); err != nil {
		return err
	}
	for _, v := range f.sent() { // whoever had the disks before may have left them unmarked
		if err := f.markAll(ctx, v.ID); err != nil {
			return err
		}
	}
	if err := begins(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.mu.drawn.adopting(journal.AdoptedIncarnation)
	if err := f.incarnations.put(d); err != nil {
		return fmt.Errorf("keep the incarnation: %w", err)
	}
	f.mu.drawn = d
	f.log.Info("the group begins with disks that the target has already: they are compared")
	return nil
}

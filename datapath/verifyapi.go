package datapath

import (
	"context"

	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// Verify tells how the reading back of a group stands, and begins one.
func (h groupsHandler) Verify(_ context.Context, r *holdfastv1.GroupsServiceVerifyRequest) (*holdfastv1.GroupsServiceVerifyResponse, error) {
	g, err := h.targetGroup(r.Group)
	if err != nil {
		return nil, err
	}
	if r.Start {
		if err := g.Verify(); err != nil {
			return nil, err
		}
	}
	v, st := g.Verification(), g.State()
	_, repairs := h.target.store.ScrubStats()
	m := &holdfastv1.GroupsServiceVerifyResponse{
		Running: v.Asked, TotalBytes: v.Total, LeftBytes: v.Left, BytesPerSecond: v.Rate, OldestSeconds: v.Oldest.Seconds(),
		UnreadBytes: v.Unread, Damaged: int64(v.Damaged), BadCheckpoints: int64(st.Bad), Repairs: repairs,
	}
	if v.Known {
		last := v.Last.Seconds()
		m.LastFullSeconds = &last
	}
	if st.Damage != nil {
		m.Damage = st.Damage.Error()
	}
	return m, nil
}

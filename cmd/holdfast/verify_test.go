package main

import (
	"context"
	"testing"

	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// Verify implements api.GroupsHandler.
func (retentionOf) Verify(context.Context, *holdfastv1.GroupsServiceVerifyRequest) (*holdfastv1.GroupsServiceVerifyResponse, error) {
	return &holdfastv1.GroupsServiceVerifyResponse{Running: true, TotalBytes: 200, LeftBytes: 100, BytesPerSecond: 50, Damaged: 2, BadCheckpoints: 3, Damage: "log"}, nil
}

// TestVerification: what is not known is null, and how long it takes follows from the rate.
func TestVerification(t *testing.T) {
	res, _ := retentionOf{}.Verify(t.Context(), nil)
	v := newVerification(res)
	if v.LeftFor == nil || *v.LeftFor != 2 || v.LastFull != nil || v.Damage == nil || v.Damaged != 2 || v.Bad != 3 {
		t.Errorf("%+v", v)
	}
	if v := newVerification(&holdfastv1.GroupsServiceVerifyResponse{Running: true}); v.LeftFor != nil || v.Damage != nil {
		t.Errorf("%+v", v)
	}
}

package main

import (
	"context"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// Adopt reads half at a time.
func (s recoveryOf) Adopt(_ context.Context, r *holdfastv1.RecoveryServiceAdoptRequest) (*holdfastv1.RecoveryServiceAdoptResponse, error) {
	if r.Id != "00000000000000a1" || r.Stream != "00000000000000a2" || r.Lineage != "00000000000000a3" || len(r.Disks) != 1 || r.Disks[0].Bytes != 1<<30 {
		return nil, api.Errorf(api.InvalidArgument, "name it", "asked to adopt %v", r)
	}
	s.adoptions = append(s.adoptions, r.Disks[0].Path)
	return &holdfastv1.RecoveryServiceAdoptResponse{Adopted: len(s.adoptions) == 2, ReadBytes: 1 << 29, Bytes: 1 << 30}, nil
}

// TestPreseedCommand: what cannot be begun with is refused before the target is asked; then it is asked until it has read all, and
// the source goes on from there.
func TestPreseedCommand(t *testing.T) {
	source, target := twoSites()
	target.failover = &holdfastv1.Failover{}
	m := source.theMembers()
	m.Id, m.Stream, m.Lineage = "00000000000000a1", "00000000000000a2", "00000000000000a3"
	both := contextFile(t, source, target)
	f := func(want int, message string, args ...string) {
		t.Helper()
		code, _, errs := holdfast(t, both, append([]string{"group", "preseed", "lab"}, args...)...)
		if code != want || !strings.Contains(errs, message) {
			t.Errorf("%v: exit %d, %s; want %d with %q", args, code, errs, want, message)
		}
	}
	f(2, "--disk is missing")
	f(2, "absolute path", "--disk", "data=data.raw")
	f(2, "once", "--disk", "data=/a", "--disk", "data=/b")
	f(exitFailed, "is not paused", "--disk", "data=/a")
	m.Paused = true
	f(2, "not all of these volumes", "--disk", "data=/a", "--disk", "none=/b")
	f(exitFailed, "start its vra-filter", "--disk", "log=/a")
	m.Id = ""
	f(exitFailed, "older release", "--disk", "data=/a")
	if m.Id = "00000000000000a1"; len(target.adoptions) > 0 || source.resumed != nil {
		t.Fatalf("%v are adopted, and it is resumed: %v", target.adoptions, source.resumed)
	}
	f(0, "read 50%", "--disk", "data=/a")
	if len(target.adoptions) != 2 || !source.resumed.GetPreseeded() || source.resumed.Group != "lab" || source.resumed.IdempotencyKey == "" {
		t.Errorf("%v are adopted, and it is resumed: %v", target.adoptions, source.resumed)
	}
}

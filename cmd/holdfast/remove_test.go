package main

import (
	"context"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

func (s retentionOf) Unprotect(_ context.Context, r *holdfastv1.GroupsServiceUnprotectRequest) (*holdfastv1.GroupsServiceUnprotectResponse, error) {
	s.removals = append(s.removals, "unprotect "+r.Group)
	if r.Group == "taken-out" {
		return nil, api.Errorf(api.NotFound, "see the groups with status", "no group %q here", r.Group)
	}
	return &holdfastv1.GroupsServiceUnprotectResponse{Members: s.theMembers()}, nil
}

func (s retentionOf) Remove(_ context.Context, r *holdfastv1.GroupsServiceRemoveRequest) (*holdfastv1.GroupsServiceRemoveResponse, error) {
	what := "remove " + r.Group
	if r.DryRun {
		what = "try " + r.Group
	}
	s.removals = append(s.removals, what)
	switch {
	case r.Group == "viewed":
		return nil, api.Errorf(api.Precondition, "close its views", "view v1 is open")
	case r.DryRun:
		return &holdfastv1.GroupsServiceRemoveResponse{Group: r.Group}, nil
	case r.Group == "stuck":
		return &holdfastv1.GroupsServiceRemoveResponse{Group: r.Group, Left: "input/output error"}, nil
	}
	res := &holdfastv1.GroupsServiceRemoveResponse{Group: r.Group}
	if r.KeepReplica {
		res.Checkpoint = "7"
		if r.Checkpoint != "" {
			res.Checkpoint = r.Checkpoint
		}
		res.Disks = []*holdfastv1.KeptDisk{{Name: "data", Id: 1, Bytes: 1 << 30, Path: "/store/kept/1/00000001.raw"}}
	}
	return res, nil
}

// A group is removed at both sites, the target first asked whether it may be; and what is left or refused is told.
func TestGroupRemove(t *testing.T) {
	f := func(want int, says, asked string, args ...string) {
		t.Helper()
		source, target := twoSites()
		code, out, errs := holdfast(t, contextFile(t, source, target), append([]string{"group", "remove"}, args...)...)
		got := strings.Join(append(append([]string{}, target.removals...), source.removals...), ", ")
		if code != want || !strings.Contains(out+errs, says) || got != asked {
			t.Errorf("%q: exit %d, asked %q, want %q\n%s%s", args, code, got, asked, out, errs)
		}
	}
	f(2, "say so with --yes", "", "lab")
	f(2, "give --keep-replica too", "", "lab", "--yes", "--checkpoint", "7")
	f(2, "want source or target", "", "lab", "--yes", "--only", "both")
	f(2, "leave --only source away", "", "lab", "--yes", "--only", "source", "--keep-replica")
	f(2, "is no id", "", "lab", "--yes", "--keep-replica", "--checkpoint", "0")
	f(0, "nothing stands in the way", "try lab", "lab", "--dry-run")
	f(0, "lab is not protected any more\n", "try lab, remove lab, unprotect lab", "lab", "--yes")
	f(0, "these are its disks at checkpoint 7", "try lab, remove lab, unprotect lab", "lab", "--yes", "--keep-replica", "--checkpoint", "latest")
	f(0, "is not protected", "try taken-out, remove taken-out, unprotect taken-out", "taken-out", "--yes")
	f(1, "view v1 is open", "try viewed", "viewed", "--yes")
	f(1, "not all of it is done: input/output error", "try stuck, remove stuck, unprotect stuck", "stuck", "--yes")
	f(0, "is not protected", "unprotect lab", "lab", "--yes", "--only", "source")
	f(0, "is not protected", "try lab, remove lab", "lab", "--yes", "--only", "target")
}

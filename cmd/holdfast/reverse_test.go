package main

import (
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// TestReverseRefused: machines that are on plain disks, or have begun to move there, are not protected the other way round.
func TestReverseRefused(t *testing.T) {
	source, target := twoSites()
	target.failover = &holdfastv1.Failover{Id: "f1", Group: "lab", State: api.FailoverPassing, Checkpoint: "2",
		Disks: []*holdfastv1.Disk{{Volume: "data", Id: 1, Bytes: 1 << 20, Path: "/store/data.raw"}}}
	both := contextFile(t, source, target)
	f := func(want int, message string) {
		t.Helper()
		code, _, errs := holdfast(t, both, "reverse", "--to", "192.0.2.1:4007", "--dry-run")
		if code != want || !strings.Contains(errs, message) {
			t.Errorf("exit %d, %s; want %d with %q", code, errs, want, message)
		}
	}
	f(0, "")
	target.failover.State = api.FailoverMoving // whoever told the target so, from whatever folder
	f(exitFailed, "finish that, with holdfast failover resume")
	target.failover.State = api.FailoverOnDisks
	f(exitFailed, "as a new group")
}

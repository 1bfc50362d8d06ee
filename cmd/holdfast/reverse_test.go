package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/recovery"
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
	folder := filepath.Join(filepath.Dir(both), "recovery", "r7")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	p := &recovery.Plan{ID: "r7", Kind: recovery.Plain, Group: "lab", Machines: []recovery.Machine{{Machine: hypervisor.Machine{Name: "web1"}}},
		Onto: &recovery.Onto{Failover: "f1", Job: "r1"}}
	up := p.Up()
	var events []byte
	for i, e := range []recovery.Entry{{Plan: p}, {Began: &up[0]}, {Event: recovery.Did, Step: &up[0]}, {Began: &up[1]}} {
		line, err := json.Marshal(e)
		if err == nil {
			events = append(append(events, line...), '\n')
			err = os.WriteFile(filepath.Join(folder, "events"), events, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if i < 3 {
			f(0, "")
		}
	}
	f(exitFailed, "finish that first, with holdfast failover resume r7")
	target.failover.State = api.FailoverOnDisks
	f(exitFailed, "as a new group")
}

package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/failover"
	"github.com/holdfast-dr/holdfast/control/recovery"
)

// TestReverseRefused: machines of which one has begun to move onto plain disks are not protected the other way round; those that are there come back.
func TestReverseRefused(t *testing.T) {
	source, target := twoSites()
	target.failover = &holdfastv1.Failover{Id: "f1", Group: "lab", State: api.FailoverPassing, Checkpoint: "2",
		Disks: []*holdfastv1.Disk{{Volume: "data", Id: 1, Bytes: 1<<20 - 512, Path: filepath.Join(t.TempDir(), "data.raw")}}}
	disk := target.failover.Disks[0].Path
	both := contextFile(t, source, target)
	f := func(want int, message string) {
		t.Helper()
		code, _, errs := holdfast(t, both, "reverse", "--to", "127.0.0.1:1,127.0.0.1:2", "--dry-run")
		if code != want || !strings.Contains(errs, message) {
			t.Errorf("exit %d, %s; want %d with %q", code, errs, want, message)
		}
	}
	f(0, "Nobody listens at 127.0.0.1:2 now")
	if code, _, errs := holdfast(t, contextFile(t, nil, target), "reverse", "--to", "127.0.0.1:1", "--dry-run"); code != exitFailed || !strings.Contains(errs, "the old source: the vra does not answer") {
		t.Errorf("the old source does not answer: exit %d, %s", code, errs)
	}
	target.failover.State = api.FailoverMoving // whoever told the target so, from whatever folder
	f(exitFailed, "finish that, with holdfast failover resume")
	target.failover.State = api.FailoverOnDisks
	f(exitFailed, "on the host of the machines")
	size := func(bytes int64) {
		t.Helper()
		if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, bytes)); err != nil {
			t.Fatal(err)
		}
	}
	size(1<<20 + 512)
	f(exitFailed, "has grown to 1049088 bytes")
	size(1 << 20) // whole blocks
	f(0, "")
	if _, out, _ := holdfast(t, both, "reverse", "--to", "127.0.0.1:1", "--dry-run"); strings.Contains(out, "attach") {
		t.Errorf("machines of no job are attached:\n%s", out)
	}
	folder := filepath.Join(filepath.Dir(both), "recovery")
	jobIn(t, folder, "r1", recovery.Live, "2", "")
	entries, _, err := failover.Read(folder, "r1")
	if err != nil {
		t.Fatal(err)
	}
	target.failover.Id = entries[0].Plan.Key
	f(exitFailed, "no failover that was committed")
	target.failover.Id = "another"
	f(0, "")
	if err := os.WriteFile(filepath.Join(folder, "r1", "events"), []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f(exitFailed, "which machines are on the disks is not known")
}

package main

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// A list ends where it is told to, and says how to go on.
func TestListPages(t *testing.T) {
	source, target := twoSites()
	target.checkpoints = append(target.checkpoints, &holdfastv1.Checkpoint{Id: "3", State: api.CheckpointBad, Reason: "block 7", Pinned: true})
	both := contextFile(t, source, target)
	code, out, errs := holdfast(t, both, "checkpoint", "list", "--limit", "2", "--utc")
	if code != 0 || strings.Count(out, "\n") != 3 || !strings.Contains(errs, "add --after 2") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	code, out, errs = holdfast(t, both, "checkpoint", "list", "--limit", "2", "--after", "2")
	if code != 0 || strings.Count(out, "\n") != 2 || errs != "" || !strings.Contains(out, "3   -     -    -    pinned  bad    -            -       block 7") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	began := time.Now()
	code, _, errs = holdfast(t, both, "checkpoint", "list", "--newest", "--from", "24h", "--to", "2030-01-02", "--tag", "mine", "--pinned", "--tagged", "--state", "bad")
	r := target.listed
	ago := began.Sub(api.Time(r.GetFrom()))
	if code != 0 || !r.NewestFirst || r.Tag != "mine" || !r.Pinned || !r.Tagged || r.State != "bad" || ago > 24*time.Hour || ago < 24*time.Hour-time.Minute ||
		!api.Time(r.GetTo()).Equal(time.Date(2030, 1, 2, 0, 0, 0, 0, time.Local)) {
		t.Errorf("exit %d, %s, asked for %v", code, errs, r)
	}
}

// Who waits for a checkpoint that turns out bad is told so, and at once.
func TestCreateTellsOfABadOne(t *testing.T) {
	source, target := twoSites()
	source.hang = true
	source.asked = func() { // it is listed as bad when it was asked for
		target.mu.Lock()
		defer target.mu.Unlock()
		target.checkpoints = append(target.checkpoints, &holdfastv1.Checkpoint{Id: "9", Tag: "mine", State: api.CheckpointBad, Reason: "log at 0x10 is damaged"})
	}
	both := contextFile(t, source, target)
	code, _, errs := holdfast(t, both, "checkpoint", "create", "--tag", "mine", "--wait", "30s")
	if code != exitFailed || !strings.Contains(errs, "checkpoint 9 is bad: log at 0x10 is damaged") {
		t.Errorf("exit %d: %s", code, errs)
	}
	source.mu.Lock()
	source.hang, source.asked = false, nil // the source calls it listed
	source.mu.Unlock()
	code, _, errs = holdfast(t, both, "checkpoint", "create", "--tag", "other")
	if code != exitFailed || !strings.Contains(errs, "checkpoint 9 is bad") {
		t.Errorf("exit %d: %s", code, errs)
	}
}

func TestTimeOf(t *testing.T) {
	now := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	zone := time.FixedZone("there", 3600)
	f := func(text, want string) {
		t.Helper()
		at, err := timeOf(text, now, zone)
		have := at.UTC().Format(time.RFC3339)
		if err != nil {
			have = "error"
		} else if at.IsZero() {
			have = ""
		}
		if have != want {
			t.Errorf("%q is %s, want %s", text, have, want)
		}
	}
	f("", "")
	f("90s", "2026-01-02T11:58:30Z")
	f("24h", "2026-01-01T12:00:00Z")
	f("2026-01-01T10:00:00Z", "2026-01-01T10:00:00Z")
	f("2026-01-01 10:00", "2026-01-01T09:00:00Z")
	f("2026-01-01", "2025-12-31T23:00:00Z")
	f("-1h", "error")
	f("yesterday", "error")
	f("2026-13-01", "error")
}

package sidecar

import (
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
)

func TestLimits(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLimits(10, 3, func() time.Time { return now })
	f := func(who string, stream bool, want why) func() {
		t.Helper()
		end, got := l.begin(who, stream)
		if got != want {
			t.Errorf("%s is refused for %q, want %q", who, got, want)
		}
		return end
	}
	for range 10 * burstSeconds {
		if end := f("ann", false, ""); end != nil {
			end()
		}
	}
	f("ann", false, tooFast)
	if end := f("bob", false, ""); end != nil {
		end()
	}
	now = now.Add(100 * time.Millisecond)
	if end := f("ann", false, ""); end != nil {
		end()
		end() // once is enough
	}
	f("ann", false, tooFast)
	now = now.Add(time.Hour)
	var ends []func()
	for range 3 {
		ends = append(ends, f("ann", false, ""))
	}
	f("ann", false, tooMany)
	for range maxStreams {
		ends = append(ends, f("ann", true, ""))
	}
	f("ann", true, tooStreams)
	for _, end := range ends {
		if end != nil {
			end()
		}
	}
	f("ann", true, "")
	for i := range maxCallers {
		if end, _ := l.begin(fmt.Sprint("caller ", i), false); end != nil {
			end()
		}
	}
	f("one more", false, tooCallers)
	now = now.Add(2 * callerLife)
	f("one more", false, "")
	if len(l.mu.callers) > 3 {
		t.Errorf("%d callers are remembered", len(l.mu.callers))
	}
}

// TestLimitsHold: over the wire, with words; other callers are not held up.
func TestLimitsHold(t *testing.T) {
	w := open(t, func(c *config.Sidecar) { c.Limits.Rate = 1 })
	c := w.client(api.RoleOperator)
	for range burstSeconds {
		if _, err := c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{})
	failure(t, "too fast", err, api.Exhausted, "west/operator/ann is over its limit of rate", "call again in a second")
	if _, err := c.Checkpoints.List(t.Context(), &holdfastv1.CheckpointsServiceListRequest{}); err != nil {
		t.Errorf("the port of checkpoints is held up by that of commands: %v", err)
	}
	if _, err := w.client(api.RoleMonitor).Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{}); err != nil {
		t.Errorf("another caller is held up: %v", err)
	}
}

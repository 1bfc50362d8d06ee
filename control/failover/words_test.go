package failover

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/recovery"
)

// TestInWords: a report names limits and jobs, and no keys.
func TestInWords(t *testing.T) {
	folder := inMemory(t)
	other := begin(t, folder, testPlan(recovery.Live))
	defer other.Close()
	j := begin(t, folder, testPlan(recovery.Live))
	defer j.Close()
	c := carrier{job: j}
	step := recovery.Step{Do: recovery.Begin, Limit: 90 * time.Second}
	late, cancel := context.WithDeadline(t.Context(), time.Unix(1, 0))
	defer cancel()
	f := func(ctx context.Context, err error, want string) {
		t.Helper()
		if got := c.inWords(ctx, step, err); got == nil || got.Error() != want {
			t.Errorf("%v: %v, want %s", err, got, want)
		}
	}
	f(late, fmt.Errorf("%w: it has not come", late.Err()), "not within 1m30s: it has not come")
	f(t.Context(), fmt.Errorf("libvirt: %w", context.DeadlineExceeded), "libvirt: it did not answer in time")
	f(t.Context(), context.Canceled, "interrupted")
	f(t.Context(), fmt.Errorf("journal: group 00a1: failover: %s at checkpoint 7 is recovering: another failover of the group is under way", other.Plan.Key),
		"failover: job r1 at checkpoint 7 is recovering: another failover of the group is under way; see: holdfast failover report r1")
	f(t.Context(), errors.New("failover: journal: group 1: x: journal: group 1: gone"), "failover: x: gone")
	f(t.Context(), fmt.Errorf("it is %s", j.Plan.Key), "it is job r2")
	if err := c.inWords(t.Context(), step, nil); err != nil {
		t.Error(err)
	}
}

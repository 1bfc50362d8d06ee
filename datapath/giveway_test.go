package datapath

import (
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/capture"
)

func TestMissed(t *testing.T) {
	var m missed
	now := time.Unix(1, 0)
	f := func(after time.Duration, guest, captured uint64, want float64) {
		t.Helper()
		now = now.Add(after)
		if got := m.step(now, capture.Stats{GuestBytes: guest, CapturedBytes: captured}); got != want {
			t.Errorf("%d bytes, of them %d captured: %v a second, want %v", guest, captured, got, want)
		}
	}
	f(0, 1e9, 5e8, 0) // what was before is not known to be of now
	f(syncLook/2, 2e9, 5e8, 0)
	f(syncLook/2, 2e9, 5e8, 1e10)
	f(syncLook/2, 9e9, 5e8, 1e10) // not yet
	f(syncLook/2, 2e9, 5e8, 0)
	f(time.Second, 3e9, 15e8, 0) // all was captured
	f(time.Second, 4e9, 16e8, 9e8)
	f(time.Second, 1e6, 0, 0) // another filter's
	f(time.Second, 3e6, 1e6, 1e6)
	f(time.Second, 3e6, 5e6, 0) // nonsense
}

// TestGivesWay: a resync that gains nothing waits, but never for long.
func TestGivesWay(t *testing.T) {
	f := func(rate float64, workers int, ago time.Duration, want bool) {
		t.Helper()
		if got := givesWay(rate, workers, ago); got != want {
			t.Errorf("%v a second, %d workers, %v: %v", rate, workers, ago, got)
		}
	}
	f(0, 1, 0, false)
	f(syncFutile, 1, 0, false)
	f(syncFutile+1, 1, 0, true)
	f(syncFutile+1, 2, 0, false)
	f(9*syncFutile, 8, syncAnyway-1, true)
	f(9*syncFutile, 8, syncAnyway, false)
}

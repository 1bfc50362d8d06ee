package capture

import (
	"testing"
	"time"
)

// TestOverrun: the sooner slots run out again, the longer captures rest; and they always begin again.
func TestOverrun(t *testing.T) {
	var o overrun
	now := int64(1e9)
	f := func(after time.Duration, out bool, until time.Duration) {
		t.Helper()
		now += int64(after)
		if out {
			o.ranOut(now)
		}
		if got := time.Duration(o.until - now); until > 0 && got != until || o.rests(now) != (until > 0) {
			t.Errorf("rests for %v, %v; want %v", got, o.rests(now), until)
		}
	}
	f(0, false, 0)
	f(0, true, overrunFirst)
	f(overrunFirst/2, true, overrunFirst/2) // others that were under way
	f(overrunFirst/2, false, 0)
	f(time.Millisecond, true, 2*overrunFirst)
	f(3*overrunFirst, true, 4*overrunFirst)
	for range 10 {
		now = o.until
		o.ranOut(now)
	}
	f(0, false, overrunMost)
	f(overrunMost+overrunCalm-1, true, overrunMost)
	f(overrunMost+overrunCalm, true, overrunFirst)
}

package deliver

import (
	"testing"
	"time"
)

// TestLacksAreToldAgain: at once when there is something new, and now and then until the
// target has it.
func TestLacksAreToldAgain(t *testing.T) {
	now := time.Unix(1e6, 0)
	f := func(lacks bool, found uint64, after time.Duration, want bool) {
		t.Helper()
		if got := (told{found: 3, at: now}).due(lacks, found, now.Add(after)); got != want {
			t.Errorf("lacks %v, %d found, %s after it was told: %v", lacks, found, after, got)
		}
	}
	f(true, 3, lacksEvery, false)
	f(true, 3, lacksAgain, true)
	f(true, 4, lacksEvery/2, false)
	f(true, 4, lacksEvery, true)
	f(false, 4, lacksAgain, false)
	if !(told{}).due(true, 1, now) || (told{}).due(false, 1, now) {
		t.Error("what was never told")
	}
}

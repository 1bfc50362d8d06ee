package pulse

import (
	"testing"
	"time"
)

// TestStands: a loop stands when it neither rests nor gets on, and only then.
func TestStands(t *testing.T) {
	var now time.Time
	now = now.Add(time.Hour)
	w, a, b := NewWatch(time.Second), new(Pulse), new(Pulse)
	both := map[*Pulse]string{a: "a", b: "b"}
	f := func(after time.Duration, named map[*Pulse]string, want string) {
		t.Helper()
		now = now.Add(after)
		if got := w.Stands(now, named); got != want {
			t.Errorf("%q stands, want %q", got, want)
		}
	}
	b.Rest()
	f(0, both, "")
	f(999*time.Millisecond, both, "")
	f(time.Millisecond, both, "a")
	a.Step()
	f(0, both, "")
	f(time.Minute, map[*Pulse]string{b: "b"}, "") // at rest for long
	f(0, both, "")                                // a is new again
	f(999*time.Millisecond, both, "")
	a.Rest()
	b.Turn()
	f(time.Millisecond, both, "")
	f(time.Second, both, "b")
	b.Rest()
	b.Turn()
	f(0, both, "")
}

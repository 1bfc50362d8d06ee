package group

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestSharedCuts: a group of several source VRAs cuts when it is told to, and only where a cut of its own would stand.
func TestSharedCuts(t *testing.T) {
	now := time.Unix(1e6, 0)
	m := New(5*time.Second, 1, now)
	m.Share()
	f := func(want, cannot string, events ...Event) {
		t.Helper()
		if got := fmt.Sprint(script(m, &now, events...)); got != want {
			t.Errorf("did %s, want %s", got, want)
		}
		if why := m.CanCut(); (cannot == "") != (why == "") || !strings.Contains(why, cannot) {
			t.Errorf("cannot cut: %q, want %q", why, cannot)
		}
	}
	f("[OpenStream]", "resync", SessionUp{})
	f("[Begin Resume Walk]", "resync", Stood{}, Begun{1})
	f("[Take Place]", "resync", Walked{Life: 1}, Taken{Life: 1, Kind: Close, Lost: 1, Before: 1})
	f("[]", "", Tick{Sense{Lost: 1}}, Placed{Life: 1, Kind: Close})
	f("[]", "", after(time.Minute)) // it never cuts by itself
	f("[Place]", "not in the stream", Shared{Number: 7, Wall: 1, Lost: 1})
	f("[Void]", "not in the stream", Shared{Number: 8, Wall: 1, Lost: 1})
	f("[]", "", Placed{Life: 1, Kind: Cut, Number: 7})
	f("[Void Take]", "resync", Shared{Number: 9, Wall: 1, Lost: 2}) // lost between: what is next is a resync
	f("[Place]", "resync", Taken{Life: 1, Kind: Open, Lost: 2})
	f("[Walk]", "resync", Placed{Life: 1, Kind: Open})
	f("[Take Place]", "resync", Walked{Life: 1}, Taken{Life: 1, Kind: Close, Lost: 2, Before: 2})
	f("[]", "", Placed{Life: 1, Kind: Close})
	f("[]", "target", SessionDown{Reason: "cut"}, Tick{Sense{Lost: 2}})
}

// TestSharedWishes: who waits for a checkpoint is served by the cut that is led for them, and again if that is void.
func TestSharedWishes(t *testing.T) {
	now := time.Unix(1e6, 0)
	m := New(5*time.Second, 1, now)
	m.Share()
	script(m, &now, SessionUp{}, Stood{}, Begun{1}, Walked{Life: 1}, Taken{Life: 1, Kind: Close, Lost: 1, Before: 1}, Tick{Sense{Lost: 1}}, Placed{Life: 1, Kind: Close})
	wants := func(tag string) {
		t.Helper()
		if got, any := m.Wanted(); any != (tag != "") || got != tag {
			t.Errorf("%q is wanted (%v), want %q", got, any, tag)
		}
	}
	cut := func(number uint64, tag string, mine bool) {
		t.Helper()
		if did := script(m, &now, Shared{Number: number, Wall: 1, Tag: tag, Mine: mine, Lost: 1}); len(did) != 1 || did[0] != "Place" {
			t.Fatalf("cut %d did %v", number, did)
		}
	}
	script(m, &now, CutAsked{Ask: 3, Tag: "now"})
	wants("now")
	cut(7, "", false) // another's
	wants("now")
	script(m, &now, Placed{Life: 1, Kind: Cut, Number: 7})
	cut(8, "now", true)
	wants("")
	script(m, &now, SharedVoid{8}) // before it stands in the stream
	wants("")
	script(m, &now, Placed{Life: 1, Kind: Cut, Number: 8})
	wants("now")
	cut(9, "now", true)
	script(m, &now, Placed{Life: 1, Kind: Cut, Number: 9}, SharedVoid{9}, SharedVoid{9})
	wants("now")
	cut(10, "now", true)
	if did := fmt.Sprint(script(m, &now, Placed{Life: 1, Kind: Cut, Number: 10}, Listed{10})); did != "[Answer]" {
		t.Errorf("did %s", did)
	}
	wants("")
	if s := m.Status(); s.State != Protected {
		t.Errorf("%+v", s)
	}
	script(m, &now, Tick{Sense{Lost: 1, NoCut: "the VRA b is not connected"}})
	if s := m.Status(); s.State != Behind || !strings.Contains(s.Reason, "VRA b") {
		t.Errorf("without checkpoints it is %+v", s)
	}
}

package api

import (
	"strings"
	"testing"
)

// TestNewTag: a checkpoint gets no tag by which it could not be named; one that has such a tag shows it.
func TestNewTag(t *testing.T) {
	f := func(tag, old, fresh string) {
		t.Helper()
		for what, err := range map[string]error{old: CheckTag(tag), fresh: CheckNewTag(tag)} {
			if (err == nil) != (what == "") || err != nil && !strings.Contains(err.Error(), what) {
				t.Errorf("%q: %v, want %q", tag, err, what)
			}
		}
	}
	f("before-upgrade", "", "")
	f("2026-01", "", "")
	f("latest 2", "", "")
	f("latest", "", "names the newest")
	f("20260131", "", "")
	f("-x", "", "reads as an option")
	f(" a", "no space", "no space")
}

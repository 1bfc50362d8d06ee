package main

import (
	"slices"
	"testing"
)

// TestTagged: folders that a tag changes are vetted with it, and no others.
func TestTagged(t *testing.T) {
	f := func(tag string, want ...string) {
		t.Helper()
		if got, err := tagged(t.Context(), "../..", tag); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v; want %q", tag, got, err, want)
		}
	}
	f("planted", "./ioengine/invariant", "./wire/record")
	f("invariants", "./ioengine/invariant")
	f("e2e", "./bench/scenario")
	if got, err := tagged(t.Context(), "../..", "no-such-tag"); err == nil {
		t.Errorf("a tag that nothing has: %q", got)
	}
}

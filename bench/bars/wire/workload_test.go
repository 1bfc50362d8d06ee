package main

import (
	"bytes"
	"testing"
	"time"
)

// The writes are those that the bar names, the same each time, and pack as db does.
func TestWorkload(t *testing.T) {
	const disk = 256 << 20
	a, b := newWorkload(disk), newWorkload(disk)
	sizes := map[int]bool{}
	for range 1000 {
		off, p := a.next()
		again, q := b.next()
		if off != again || !bytes.Equal(p, q) {
			t.Fatal("the second time it writes something else")
		}
		if off < 0 || off%writeStep != 0 || off+int64(len(p)) > disk {
			t.Fatalf("it writes %d bytes at %d", len(p), off)
		}
		sizes[len(p)] = true
	}
	if len(sizes) != 16 || !sizes[4<<10] || !sizes[64<<10] {
		t.Errorf("it writes in sizes %v", sizes)
	}
	if got := packs(disk); got < 1/2.3 || got > 1/2.0 {
		t.Errorf("a byte becomes %.3f bytes of records", got)
	}
}

// Without a flag each row is measured for as long as it is defined; with one, it says so.
func TestLength(t *testing.T) {
	f := func(flag, defined, want time.Duration, wantNote string) {
		t.Helper()
		got, note := (&bench{length: flag}).lasts(defined)
		if got != want || note != wantNote {
			t.Errorf("-length %s where %s is defined: %s %q, want %s %q", flag, defined, got, note, want, wantNote)
		}
	}
	f(0, time.Minute, time.Minute, "1m0s")
	f(0, 5*time.Minute, 5*time.Minute, "5m0s")
	f(20*time.Second, time.Minute, 20*time.Second, "20s, shortened")
	f(time.Minute, time.Minute, time.Minute, "1m0s")
	f(2*time.Minute, time.Minute, 2*time.Minute, "2m0s")
}

package memdisk

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/holdfast-dr/holdfast/datapath/front"
)

func store(t *testing.T, d *Disk, p []byte, off int64, commit bool) {
	t.Helper()
	w, err := d.BeginWrite(off, len(p))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range w.Buffers() {
		p = p[copy(b, p):]
	}
	if len(p) != 0 {
		t.Fatalf("%d bytes do not fit", len(p))
	}
	if !commit {
		w.Abort()
	} else if err := w.Commit(false); err != nil {
		t.Fatal(err)
	}
}

// TestAgainstArray carries out seeded operations here and on an array of bytes.
func TestAgainstArray(t *testing.T) {
	const size = 1<<20 + 512
	d, want := New(size), make([]byte, size)
	rng := rand.New(rand.NewPCG(3, 0))
	for range 600 {
		n := 1 + rng.Int64N(200_000)
		off := rng.Int64N(size - n + 1)
		switch rng.IntN(5) {
		case 0:
			if err := d.Zero(off, n, rng.IntN(2) == 0, false); err != nil {
				t.Fatal(err)
			}
			clear(want[off:][:n])
		case 1:
			if err := d.Trim(off, n, false); err != nil {
				t.Fatal(err)
			}
			clear(want[off:][:n])
		default:
			p, commit := bytes.Repeat([]byte{byte(rng.Uint32())}, int(n)), rng.IntN(4) > 0
			store(t, d, p, off, commit)
			if commit {
				copy(want[off:], p)
			}
		}
		got := make([]byte, n)
		if err := d.ReadAt(got, off); err != nil || !bytes.Equal(got, want[off:][:n]) {
			t.Fatalf("%d bytes at %d: other bytes (%v)", n, off, err)
		}
	}
	got := make([]byte, size)
	if err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("other bytes in the end (%v)", err)
	}
}

func TestExtents(t *testing.T) {
	d := New(4 * pageBytes)
	f := func(off, n int64, want ...string) {
		t.Helper()
		var got []string
		err := d.Extents(off, n, func(n int64, hole bool) bool {
			got = append(got, fmt.Sprint(n, hole))
			return true
		})
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%d bytes at %d: %q (%v), want %q", n, off, got, err, want)
		}
	}
	f(0, 4*pageBytes, "262144 true")
	store(t, d, []byte{1}, 2*pageBytes-1, true)
	f(100, 3*pageBytes, "65436 true", "65536 false", "65636 true")
	for _, err := range []error{d.Zero(pageBytes, pageBytes, true, false), d.Zero(3*pageBytes, 1, false, false)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	f(0, 4*pageBytes, "196608 true", "65536 false")
}

func TestSealedAndBefore(t *testing.T) {
	d := New(pageBytes)
	boom := errors.New("boom")
	d.Before = func(op string, _, _ int64) error {
		if op == "flush" {
			return nil
		}
		return boom
	}
	ops := func() []error {
		_, err := d.BeginWrite(0, 1)
		return []error{err, d.Zero(0, 1, true, false), d.Trim(0, 1, false)}
	}
	for _, err := range append(ops(), d.ReadAt(make([]byte, 1), 0)) {
		if !errors.Is(err, boom) {
			t.Errorf("got %v", err)
		}
	}
	d.Sealed = true
	for _, err := range ops() {
		if !errors.Is(err, front.ErrReadOnly) {
			t.Errorf("got %v", err)
		}
	}
	if err := d.Flush(); err != nil || !d.ReadOnly() {
		t.Errorf("flush: %v", err)
	}
}

//go:build !race

package nbd

import (
	"fmt"
	"testing"
)

// TestNothingIsAllocated counts for client and server together.
func TestNothingIsAllocated(t *testing.T) { both(t, nothingIsAllocated) }

func nothingIsAllocated(t *testing.T) {
	e, d := memory("", 4<<20)
	if err := d.Zero(0, d.Size(), false, false); err != nil {
		t.Fatal(err)
	}
	c := serve(t, e).dial(t, "")
	f := func(name string, op func() error) {
		t.Helper()
		if err := op(); err != nil { // and everything is warm
			t.Fatal(err)
		}
		// Whole ones only: a collection in between empties the pools.
		if n := testing.AllocsPerRun(300, func() {
			if err := op(); err != nil {
				t.Fatal(err)
			}
		}); n >= 1 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
	sizes := []int{512, 4096, 64 << 10, 1 << 20}
	if byLanes {
		sizes = sizes[:3] // longer ones go by the lane, and that of the tests allocates
	}
	for _, n := range sizes {
		p := make([]byte, n)
		f(fmt.Sprint("write of ", n), func() error { _, err := c.WriteAt(p, 512); return err })
		f(fmt.Sprint("read of ", n), func() error { _, err := c.ReadAt(p, 512); return err })
	}
	f("flush", c.Flush)
	f("zeroes", func() error { return c.WriteZeroes(0, 4096, false) })
	emit := func(int64, bool) bool { return true }
	f("block status", func() error { return c.BlockStatus(0, c.Size(), emit) })
}

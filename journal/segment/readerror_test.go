package segment

import (
	"slices"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// Each read of a Replay and of a Verify fails once, or comes back short: they say so, or
// did without it; they never end early as if that were all, and never take the
// disk's error for damage of what they could read.
func TestReadErrorsAreSaid(t *testing.T) {
	disk := faultdisk.New(512)
	o := testOptions()
	o.SegmentBytes = 200 << 10
	ok(t, disk.Mkdir("store"))
	l, err := Open(disk, testDir, testGroup, Watermark{}, o, nil)
	ok(t, err)
	var recs []placed
	for len(l.Segments()) < 3 {
		more, _ := mixed(t, l, 9)
		recs = append(recs, more...)
	}
	want := between(recs, 0, maxPos, every)
	for _, short := range []bool{false, true} {
		said := 0
		for at := 1; ; at += sample {
			seen := 0
			disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, At: at, Err: syscall.EIO, Short: short, Only: func(string) bool { seen++; return true }})
			got, err := replayed(l, Start, l.Durable(), ReplayOptions{})
			disk.Heal()
			if seen < at {
				break
			}
			if err != nil {
				said++
			} else if !slices.EqualFunc(got, want, samePlaced) {
				t.Fatalf("operation %d of a replay fails: %d records of %d, and no error", at, len(got), len(want))
			}
		}
		if said == 0 {
			t.Error("the test has lost its reach")
		}
		for at := 1; ; at += sample {
			seen := 0
			disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, At: at, Err: syscall.EIO, Short: short, Only: func(string) bool { seen++; return true }})
			damage, err := l.Verify(1, nil)
			disk.Heal()
			if seen < at {
				break
			}
			if err == nil || len(damage) > 0 { // it is read again by itself, and then is well
				t.Fatalf("operation %d of a verification fails: damage %v, %v", at, damage, err)
			}
			if _, err := l.Verify(1, nil); err != nil {
				t.Fatalf("operation %d of a verification fails, and then it does not: %v", at, err)
			}
		}
	}
}

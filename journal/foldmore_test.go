package journal

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/retain"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Which row of segments is folded, if any.
func TestChooseRow(t *testing.T) {
	f := func(what, segs string, from, to int) {
		t.Helper()
		var list []foldable
		for _, s := range strings.Fields(segs) { // each a letter of 10 bytes
			one := foldable{bytes: 10, ready: true}
			switch s {
			case "-": // no cut in it
			case "k":
				one.cuts = 1
			case "l":
				one.cuts, one.lost = 1, 1
			case "L":
				one.cuts, one.lost = 10, 9
			case "t":
				one.cuts, one.lost, one.tried = 1, 1, 1
			case "x":
				one.cuts, one.lost, one.ready = 1, 1, false
			case "B":
				one.bytes, one.cuts, one.lost = 1000, 2, 1
			}
			list = append(list, one)
		}
		if a, b := chooseRow(list, 40); a != from || b != to {
			t.Errorf("%s: of %q [%d, %d), want [%d, %d)", what, segs, a, b, from, to)
		}
	}
	f("nothing there", "", 0, 0)
	f("nothing is gone", "k k - k", 0, 0)
	f("half of it is", "k l k l k", 1, 4)
	f("less than half", "l k", 0, 1)
	f("what has no cut is taken with it", "k l - l k", 1, 4)
	f("no more than fits", "L L L L L L", 0, 4)
	f("a large one by itself", "k B L", 1, 2)
	f("one that is not ready divides", "k x l l", 2, 4)
	f("tried in vain", "t t k", 0, 0)
	f("more is gone since", "t l l k", 0, 3)
	for _, c := range []struct {
		before, left int64
		want         bool
	}{{0, 0, false}, {800, 800, false}, {800, 701, false}, {800, 700, true}, {800, 0, true}, {800, 900, false}} {
		if worthFold(c.before, c.left) != c.want {
			t.Errorf("%+v", c)
		}
	}
}

// What is pinned, what a view stands at, the newest, and what is beyond the promotion
// limit stay, whatever is asked for; and no view of what went is opened.
func TestThinSparesWhatIsInUse(t *testing.T) {
	s := story(3, 12)
	w, err := openSmall(faultdisk.New(512))
	ok(t, err)
	defer w.store.Close()
	ok(t, w.feed(s, 3))
	_, err = w.group.Pin(3, "kept")
	ok(t, err)
	v, err := w.group.OpenView(6, ViewOptions{})
	ok(t, err)
	thin := func(from, to uint64, want int) {
		t.Helper()
		n, err := w.group.thin([]retain.Pair{{From: from, To: to}})
		if err != nil || n != want {
			t.Errorf("between %d and %d: %d went, %v; want %d", from, to, n, err, want)
		}
	}
	thin(1, 5, 2) // 3 is pinned
	thin(5, 8, 0) // a view stands at 6
	ok(t, v.Close())
	thin(5, 8, 2)
	thin(8, 12, 0) // its source does not know yet that 12 is listed
	thin(8, 11, 2)
	want := []uint64{1, 3, 5, 8, 11, 12}
	ok(t, w.shows(s, want...))
	ok(t, w.foldAll())
	ok(t, w.shows(s, want...))
	for _, n := range []uint64{2, 7} {
		if _, err := w.group.OpenView(n, ViewOptions{}); !errors.Is(err, ErrNotFound) {
			t.Errorf("checkpoint %d opens: %v", n, err)
		}
	}
	_, err = w.group.Unpin(3)
	ok(t, err)
	ok(t, w.shows(s, 1, 5, 8, 11, 12))
}

// Views read right bytes while the log is folded under them, and nothing is called damaged.
func TestViewsBesideFolds(t *testing.T) {
	s := story(3, 24)
	w, err := openSmall(faultdisk.New(512))
	ok(t, err)
	defer w.store.Close()
	ok(t, w.feed(s, 3))
	ok(t, w.settled())
	ok(t, w.flushed())
	var stop atomic.Bool
	var reading sync.WaitGroup
	for _, n := range []uint64{1, 8, 16, 24} {
		v, err := w.group.OpenView(n, ViewOptions{})
		ok(t, err)
		defer v.Close()
		for vol, image := range s.images[n] {
			d, _ := v.Device(vol)
			reading.Go(func() {
				rng := seeded(int(n))
				for !stop.Load() {
					off := rng.Int64N(volumeBytes)
					p := make([]byte, 1+rng.Int64N(volumeBytes-off))
					if err := d.ReadAt(p, off); err != nil {
						t.Errorf("checkpoint %d: %v", n, err)
						return
					}
					if string(p) != string(image[off:off+int64(len(p))]) {
						t.Errorf("checkpoint %d, volume %d at %d: wrong bytes", n, vol, off)
						return
					}
				}
			})
		}
	}
	for _, keep := range [][]uint64{{1, 3, 5, 7, 8, 10, 12, 14, 16, 18, 20, 23}, {1, 5, 8, 12, 16, 20, 23}, {1, 8, 16, 23}} {
		ok(t, w.keepOnly(keep...))
		ok(t, w.foldAll())
	}
	stop.Store(true)
	reading.Wait()
	if st := w.group.State(); st.Err != nil || len(w.group.damages) > 0 {
		t.Errorf("state %+v, damage %v", st, w.group.damages)
	}
	if w.group.Retention().Freed == 0 {
		t.Error("nothing was folded")
	}
}

// History is thinned and folded as the policy says, by itself.
func TestThinningByPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &clocks{began: time.Now(), boot: 1}
		cfg := smallSegments(faultdisk.New(512))
		cfg.Clock, cfg.IndexMemory = c.now, 8<<10 // so that it is written now and then
		cfg.Retention = retain.Policy{History: 24 * time.Hour, WarnPercent: 75,
			Tiers: []retain.Tier{{For: time.Hour}, {Every: time.Hour, For: 24 * time.Hour}}}
		w, err := openWith(cfg)
		ok(t, err)
		s := newSource(1)
		s.open(true)
		s.write(6)
		s.close()
		for range 48 {
			ok(t, w.step(s, 10))
			synctest.Wait()
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		numbers, err := w.check(s)
		ok(t, err)
		if len(numbers) < 10 || len(numbers) > 20 {
			t.Errorf("%d are left: %v", len(numbers), numbers)
		}
		r := w.group.Retention()
		if r.Thinned < 28 || r.Freed == 0 || r.Folded <= r.Freed || r.Err != nil {
			t.Errorf("%+v", r)
		}
		ok(t, w.store.Close())
		w, err = openWith(cfg)
		ok(t, err)
		ok(t, w.shows(s, numbers...))
		ok(t, w.store.Close())
	})
}

// Nobody sends records as the target's own.
func TestFoldedStreamIsRefused(t *testing.T) {
	w, err := openTarget(faultdisk.New(512))
	ok(t, err)
	defer w.store.Close()
	if _, err := w.group.Admit(record.FoldedStream, 1, 1); !errors.Is(err, ErrAdmit) {
		t.Errorf("admitted: %v", err)
	}
}

package stripe

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
)

// TestEndedPaceIsNoStoresFault ends the sealing of a file, and the making of a store's
// share anew, at each of their steps: it fails, and no store is out for it.
func TestEndedPaceIsNoStoresFault(t *testing.T) {
	ended := func(steps int) Pace {
		var left atomic.Int64
		left.Store(int64(steps))
		return func(int) error {
			if left.Add(-1) < 0 {
				return context.Canceled
			}
			return nil
		}
	}
	whole := func(s *Set, steps int) {
		t.Helper()
		if st := s.State(); st.Err != nil || st.Spare != 1 {
			t.Fatalf("ended after %d steps: %+v", steps, st)
		}
	}
	w := newWorld(t, 3)
	s, err := w.open(Geometry{K: 2, M: 1})
	ok(t, err)
	f, err := s.Open("/f", ioengine.Create|ioengine.Exclusive|ioengine.Direct)
	ok(t, err)
	_, err = f.WriteAt(noise(1, buf4(sealedBytes)), 0)
	ok(t, errors.Join(err, f.Sync(), f.Close(), s.SyncDir("/")))
	steps := 0
	for ; ; steps++ {
		err := s.Seal("/f", ended(steps))
		whole(s, steps)
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	if steps < 3 {
		t.Errorf("it was ended at %d steps alone", steps)
	}
	ok(t, s.Close())
}

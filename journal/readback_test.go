package journal

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/journal/segment"
)

// Beside intake segments are read back slowly; without, or with too many of them, at once.
func TestReadBackPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReadBacks()
		read := func(n int) time.Duration {
			began := time.Now()
			for range n {
				ok(t, r.pace(1<<20))
			}
			return time.Since(began)
		}
		if took := read(1000); took != 0 {
			t.Errorf("with nothing coming in it waits %v", took)
		}
		busy := make(chan struct{})
		go func() {
			for {
				r.took(0)
				select {
				case <-busy:
					return
				case <-time.After(10 * time.Millisecond):
				}
			}
		}()
		synctest.Wait()
		read(65) // what had gathered
		if took := read(128); took < 1900*time.Millisecond || took > 2100*time.Millisecond {
			t.Errorf("128 MiB beside a little intake took %v, want 2 s", took)
		}
		r.took(64 << 20 * readBackShare)
		if took := read(64); took > 100*time.Millisecond {
			t.Errorf("what the intake allows waits %v", took)
		}
		blocked := make(chan struct{})
		for range readBackMost + 1 {
			r.run(func() { <-blocked })
		}
		synctest.Wait()
		if took := read(1000); took != 0 {
			t.Errorf("with %d segments waiting it waits %v", readBackMost, took)
		}
		close(blocked)
		synctest.Wait()
		ended := make(chan error)
		go func() {
			for {
				if err := r.pace(64 << 20); err != nil {
					ended <- err
					return
				}
			}
		}()
		r.close()
		if err := <-ended; !errors.Is(err, segment.ErrClosed) {
			t.Errorf("after close: %v", err)
		}
		close(busy)
	})
}

// A round that does not let anything be read wakes nobody; one that does, does.
func TestReadBackWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReadBacks()
		r.took(readBackShare)
		<-r.woken
		r.budget.credit = -(8 << 20)
		for range 100 {
			r.took(1 << 10)
		}
		if len(r.woken) > 0 {
			t.Error("who may read nothing is woken")
		}
		r.took(9 << 20 * readBackShare)
		if len(r.woken) == 0 {
			t.Error("who may read is not woken")
		}
	})
}

// The more segments wait beyond what may, the larger is the part of the intake that is read
// back, up to more than all of it.
func TestReadBackKeepsUp(t *testing.T) {
	last := 0
	for waiting := range readBackMost {
		var b budget
		b.grow(time.Now(), 16<<20, waiting)
		switch {
		case waiting <= readBackWaiting && b.credit != 1<<20:
			t.Errorf("with %d waiting %d of 16 MiB are read back", waiting, b.credit)
		case waiting > readBackWaiting && b.credit <= last:
			t.Errorf("with %d waiting %d of 16 MiB are read back, with one less %d", waiting, b.credit, last)
		}
		last = b.credit
	}
	if last < 16<<20 {
		t.Errorf("before it goes at full speed %d of 16 MiB are read back", last)
	}
}

// One segment is read back at a time, in order.
func TestReadBackOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReadBacks()
		var order []int
		for i := range 5 {
			r.run(func() { order = append(order, i) })
		}
		synctest.Wait()
		for i, n := range order {
			if i != n {
				t.Errorf("order %v", order)
			}
		}
		if len(order) != 5 || r.running {
			t.Errorf("%d of 5 were run", len(order))
		}
	})
}

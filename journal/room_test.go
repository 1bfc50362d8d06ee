package journal

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// Who brings a record waits while room is being made, and no longer than that, nor for
// ever, nor when nothing is being done.
func TestRoomIsWaitedFor(t *testing.T) {
	wait := func(r *room, ctx context.Context) (time.Duration, error) {
		began := time.Now()
		err := r.wait(ctx)
		return time.Since(began), err
	}
	synctest.Test(t, func(t *testing.T) {
		r := new(room)
		if took, err := wait(r, t.Context()); took != 0 || err != nil {
			t.Errorf("with room: %s, %v", took, err)
		}
		r.stop(ErrLimit, false)
		if took, err := wait(r, t.Context()); took != 0 || !errors.Is(err, ErrLimit) {
			t.Errorf("without hope: %s, %v", took, err)
		}
		r.stop(ErrLimit, true)
		if took, err := wait(r, t.Context()); took != hopeFor || !errors.Is(err, ErrLimit) {
			t.Errorf("with hope in vain: %s, %v", took, err)
		}
		for _, c := range []struct{ steps, want time.Duration }{{1, 2 * hopeFor}, {3, 2 * hopeFor}, {15, 3 * hopeFor}, {hopeMost, hopeMost}} {
			ctx, stop := context.WithCancel(t.Context())
			go func() { // a pass gets on each second, for so long
				for n := time.Duration(0); n < c.steps && ctx.Err() == nil; n++ {
					time.Sleep(time.Second)
					r.step()
				}
			}()
			if took, err := wait(r, t.Context()); took != c.want || !errors.Is(err, ErrLimit) {
				t.Errorf("with hope that ends after %d steps: %s, %v", c.steps, took, err)
			}
			stop()
			time.Sleep(2 * time.Second)
		}
		go func() {
			time.Sleep(time.Second)
			r.stop(ErrLimit, true) // a plan says it again
			time.Sleep(time.Second)
			r.stop(nil, false)
		}()
		if took, err := wait(r, t.Context()); took != 2*time.Second || err != nil {
			t.Errorf("with hope: %s, %v", took, err)
		}
		r.stop(ErrLimit, true)
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		if took, err := wait(r, ctx); took != time.Second || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("given up: %s, %v", took, err)
		}
		r = new(room)
		r.set(100, 0, 0)
		r.take(100)
		go func() {
			time.Sleep(time.Second)
			r.stop(nil, false)
		}()
		if took, err := wait(r, t.Context()); took != time.Second || err != nil {
			t.Errorf("until a plan was made: %s, %v", took, err)
		}
	})
}

package wait

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		f := func(ctx context.Context, d, took time.Duration, want error) {
			t.Helper()
			began := time.Now()
			if err := For(ctx, d); !errors.Is(err, want) || time.Since(began) != took {
				t.Errorf("For %v: %v after %v, want %v after %v", d, err, time.Since(began), want, took)
			}
		}
		f(ctx, -1, 0, nil)
		f(ctx, 0, 0, nil)
		f(ctx, 59*time.Second, 59*time.Second, nil)
		f(ctx, time.Hour, time.Second, context.DeadlineExceeded)
		f(ctx, time.Hour, 0, context.DeadlineExceeded)
		f(ctx, 0, 0, context.DeadlineExceeded)
	})
}

func TestLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		busy, other := errors.New("busy"), errors.New("other")
		f := func(frees time.Duration, then error, took time.Duration, want error) {
			t.Helper()
			began := time.Now()
			n, err := Lock(time.Second, func() (int, error) {
				if time.Since(began) < frees {
					return 0, busy
				}
				return 7, then
			}, busy)
			if err != want || err == nil && n != 7 || time.Since(began) != took {
				t.Errorf("%d, %v after %v; want %v after %v", n, err, time.Since(began), want, took)
			}
		}
		f(0, nil, 0, nil)
		f(12*time.Millisecond, nil, 15*time.Millisecond, nil)
		f(0, other, 0, other)
		f(time.Hour, nil, 1005*time.Millisecond, busy)
	})
}

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

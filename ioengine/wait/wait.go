// Package wait waits for time to pass, as long as somebody wants it to, and for what another is about to let go of.
package wait

import (
	"context"
	"errors"
	"time"
)

// For waits for d, which may be none, and returns nil; or ctx.Err() as soon as ctx ends.
func For(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Lock calls try until it no longer says busy, at most so long: then that is its error.
func Lock[T any](most time.Duration, try func() (T, error), busy error) (T, error) {
	deadline := time.Now().Add(most)
	for {
		l, err := try()
		if !errors.Is(err, busy) || time.Now().After(deadline) {
			return l, err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

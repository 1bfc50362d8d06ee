// Package wait waits for time to pass, as long as somebody wants it to.
package wait

import (
	"context"
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

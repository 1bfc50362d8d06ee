package guest

import (
	"context"
	"time"
)

// Patience of a machine that has nobody to serve its disk: how often it looks, and for how long.
const (
	meetEvery = 10 * time.Millisecond
	meetLimit = 30 * time.Second
)

// Meet connects to whoever serves at the socket, as soon as somebody does, and says how long that took. It gives up with
// ctx, or after 30 s.
func (g *Guest) Meet(ctx context.Context, socket string) (time.Duration, error) {
	from := time.Now()
	again := time.NewTicker(meetEvery)
	defer again.Stop()
	for {
		err := g.Connect(socket)
		took := time.Since(from)
		if err == nil || took > meetLimit {
			return took, err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return took, err
		}
	}
}

// Stay comes back to the socket whenever who served there is gone, as QEMU does: what is under way is asked of the
// successor. Met is told each time how long that took. It returns when nobody comes any more, or once ctx has
// ended and the machine was disconnected.
func (g *Guest) Stay(ctx context.Context, socket string, met func(time.Duration)) {
	for ctx.Err() == nil {
		_ = g.Gone() // whatever ended it
		if ctx.Err() != nil {
			return
		}
		took, err := g.Meet(ctx, socket)
		if err != nil {
			return
		}
		met(took)
	}
}

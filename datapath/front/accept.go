package front

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// acceptPause follows an accept that failed.
const acceptPause = 50 * time.Millisecond

// Accept has each connection on l served on a goroutine of its own until ctx ends; then it closes
// l and returns nil once all of them are through. Before, their context ends. What the
// machine lacks for a while, such as descriptors, is logged and tried again; another error is the
// listener's. what names the protocol.
func Accept[C net.Conn](ctx context.Context, l net.Listener, what string, log *slog.Logger, serve func(context.Context, C)) error {
	run, end := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer end()
	defer context.AfterFunc(run, func() { l.Close() })()
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			wg.Go(func() { serve(run, conn.(C)) })
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("%s: %w", what, err)
		default: // the world's: too many open files, a client that was gone at once
			log.Warn(what+" accept", "err", err)
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
				return nil
			}
		}
	}
}

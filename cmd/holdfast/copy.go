package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// span is a stretch of a volume, in bytes.
type span struct{ off, n int64 }

// Copying: how much is asked for at once, how many such requests are in flight, and
// the grain in which zeros become holes.
const (
	chunkBytes = 1 << 20
	copiers    = 8
	holeBytes  = 64 << 10
	askBytes   = 1 << 30 // of block status at once
)

// source is a disk that can be copied.
type source interface {
	io.ReaderAt
	Size() int64
	BlockStatus(off, n int64, emit func(n int64, hole bool) bool) error
}

// dataOf lists the stretches of a disk that are not holes, in chunks.
func dataOf(c source) ([]span, error) {
	var plan []span
	for off := int64(0); off < c.Size(); {
		at := off
		err := c.BlockStatus(off, min(askBytes, c.Size()-off), func(n int64, hole bool) bool {
			for end := at + n; !hole && at < end; {
				n := min(chunkBytes, end-at)
				plan = append(plan, span{at, n})
				at += n
			}
			if hole {
				at += n
			}
			return true
		})
		if err != nil {
			return nil, err
		}
		if at <= off {
			return nil, errors.New("the server's block status makes no progress")
		}
		off = at
	}
	return plan, nil
}

// copySpans copies the stretches with several requests in flight; done is called for
// each, never concurrently. What reads as zeros is not written: to is new, and so
// reads as zeros there.
func copySpans(ctx context.Context, from io.ReaderAt, to io.WriterAt, plan []span, done func(n int64)) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	work := make(chan span)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range copiers {
		wg.Go(func() {
			buf := make([]byte, chunkBytes)
			for s := range work {
				p := buf[:s.n]
				if _, err := from.ReadAt(p, s.off); err != nil {
					fail(err)
					continue
				}
				if err := writeData(to, p, s.off); err != nil {
					fail(err)
					continue
				}
				mu.Lock()
				done(s.n)
				mu.Unlock()
			}
		})
	}
	for _, s := range plan {
		select {
		case work <- s:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(work)
	wg.Wait()
	return context.Cause(ctx)
}

var zeros [holeBytes]byte

// writeData writes p, except its pieces that are zero.
func writeData(to io.WriterAt, p []byte, off int64) error {
	for len(p) > 0 {
		n := min(holeBytes, len(p))
		zero := bytes.Equal(p[:n], zeros[:n])
		if invariant.Planted("holdfast/first-byte-zero") {
			zero = p[0] == 0
		}
		if !zero {
			if _, err := to.WriteAt(p[:n], off); err != nil {
				return err
			}
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

package wire

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/ioengine/wait"
)

const (
	// bulkStall is how long the sender of a bulk may write without the kernel taking
	// anything: a link of 300 kb/s takes the largest piece in less.
	bulkStall = 10 * time.Second
	// paceQuantum is what a paced sender writes at once, and paceDebt how far behind it
	// may be and still catch up: what is older than that is no rate but a burst.
	paceQuantum = 20 * time.Millisecond
	paceDebt    = 250 * time.Millisecond
)

// sendBulk sends what k says on the data connection, and its End. It returns when the
// kernel has all of it. told, where there is one, is called for each write.
func sendBulk(ctx context.Context, data *link, k bulk, told func(bytes int)) error {
	size := testChunk
	if k.rate > 0 {
		size = int(min(testChunk, max(256, k.rate/8*int64(paceQuantum)/int64(time.Second))))
	}
	frame := appendFrame(nil, typeChunk, func(p []byte) []byte { return append(p, make([]byte, size)...) })
	began, sent := time.Now(), int64(0)
	free := began // when the next chunk may go
	for sent < k.bytes && time.Since(began) < k.lasts {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		data.SetWriteDeadline(time.Now().Add(bulkStall))
		if _, err := data.Write(frame); err != nil {
			return err
		}
		sent += int64(size)
		if told != nil {
			told(len(frame))
		}
		if k.rate == 0 || invariant.Planted("wire/test-ignores-cap") {
			continue
		}
		if err := data.socket.flush(); err != nil {
			return err
		}
		free = free.Add(time.Duration(int64(len(frame)) * 8 * int64(time.Second) / k.rate))
		now := time.Now()
		if free.Before(now.Add(-paceDebt)) {
			free = now.Add(-paceDebt)
		}
		if wait.For(ctx, free.Sub(now)) != nil {
			return context.Cause(ctx)
		}
	}
	data.SetWriteDeadline(time.Now().Add(bulkStall))
	if err := writeHandshake(data, typeEnd, nil); err != nil {
		return err
	}
	return data.socket.flush()
}

// receiveBulk takes a bulk off the data connection up to its End, and tells now and
// then how far it is. More bytes than limit break the protocol.
func receiveBulk(data io.Reader, limit int64, tell func(measured)) (measured, error) {
	var m measured
	var first, told time.Time
	took := func(n int) error {
		now := time.Now()
		if first.IsZero() {
			first, told = now, now
		}
		m.bytes, m.took = m.bytes+int64(n), now.Sub(first)
		if m.bytes > limit && !invariant.Planted("wire/test-without-end") {
			return protocolError("a bulk of more than %d bytes", limit)
		}
		if now.Sub(told) >= reportEvery {
			told = now
			tell(m)
		}
		return nil
	}
	limit += limit/8 + testChunk + 2*frameBytes // headers, the End, and the rest of the last chunk
	var head [frameBytes]byte
	body := make([]byte, testChunk)
	for {
		if _, err := io.ReadFull(data, head[:]); err != nil {
			return m, err
		}
		t, n, err := parseFrame(head[:])
		if err != nil {
			return m, err
		}
		if err := took(frameBytes); err != nil {
			return m, err
		}
		switch t {
		case typeEnd:
			m.last = true
			return m, nil
		case typeChunk:
		default:
			return m, badFrame(BadType, "type %d within a bulk", t)
		}
		for n > 0 {
			got, err := data.Read(body[:n])
			if err != nil {
				return m, errors.Join(io.ErrUnexpectedEOF, err)
			}
			if err := took(got); err != nil {
				return m, err
			}
			n -= got
		}
	}
}

// isStuck says whether an error is a connection's silence, and not its end.
func isStuck(err error) bool {
	return isTimeout(err) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
}

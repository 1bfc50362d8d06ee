package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine"
)

// Source is a connection to an export of a guest's disk: an nbd.Client.
type Source interface {
	io.ReaderAt
	Size() int64
	// BlockStatus tells what stands in [off, off+n), in order and without gaps, until emit returns false: whether it is a hole, or,
	// of one that was dialled with a bitmap, whether it is dirty there.
	BlockStatus(off, n int64, emit func(n int64, hole bool) bool) error
	Done() <-chan struct{} // closed when the connection is lost
	Close() error
}

// DialSource connects to the export that uri names; bitmap is empty, or what BlockStatus is to tell of. ctx bounds that alone.
type DialSource func(ctx context.Context, uri, bitmap string) (Source, error)

// mirrorFile stands in for the disk of a mirror volume. What is written to it has been written: QEMU did, before it
// came to us. What is read comes from QEMU, which exports the guest's disk, read-only.
type mirrorFile struct {
	bytes   int64
	connect DialSource

	mu struct {
		sync.Mutex
		uri    string // of the export; empty: nobody has said yet
		client Source
		closed bool
		known  span // of data, as QEMU said last; more may have become data since, and a hole is asked for again
	}
}

var _ ioengine.File = (*mirrorFile)(nil)

// sourceWait bounds a connecting to QEMU.
const sourceWait = 5 * time.Second

var errNoSource = errors.New("nobody has said yet where the guest's disk is read: holdfast attach --mirror")

// open takes the export that the disk is read from.
func (f *mirrorFile) open(ctx context.Context, uri string) error {
	c, err := f.dial(ctx, uri, "")
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.closed {
		return errors.Join(errNoSource, c.Close())
	}
	old := f.mu.client
	f.mu.uri, f.mu.client, f.mu.known = uri, c, span{}
	if old != nil {
		return old.Close()
	}
	return nil
}

func (f *mirrorFile) dial(ctx context.Context, uri, bitmap string) (Source, error) {
	ctx, cancel := context.WithTimeout(ctx, sourceWait)
	defer cancel()
	c, err := f.connect(ctx, uri, bitmap)
	if err == nil && c.Size() != f.bytes {
		err = errors.Join(fmt.Errorf("the guest's disk has %d bytes, and the volume %d: they must be the same", c.Size(), f.bytes), c.Close())
	}
	return c, err
}

// source is a connection to the export, a new one where the last is lost.
func (f *mirrorFile) source() (Source, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.uri == "" || f.mu.closed {
		return nil, errNoSource
	}
	if f.mu.client != nil {
		select {
		case <-f.mu.client.Done():
			f.mu.client = nil
		default:
			return f.mu.client, nil
		}
	}
	c, err := f.dial(context.Background(), f.mu.uri, "")
	if err != nil {
		return nil, err
	}
	f.mu.client = c
	return c, nil
}

func (f *mirrorFile) ReadAt(p []byte, off int64) (int, error) {
	if off >= f.bytes {
		return 0, io.EOF
	}
	c, err := f.source()
	if err != nil {
		return 0, err
	}
	n, err := c.ReadAt(p[:min(int64(len(p)), f.bytes-off)], off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// statusAsk is how much QEMU is asked of: its main loop, and so the guest's devices, waits while it looks. That is as much as a sync read takes at
// once; behind it the next block is called data, to be read, so that a hole of any length is walked once. Holes are not
// remembered: the guest may write there meanwhile.
const statusAsk = 4 << 20

func (f *mirrorFile) NextData(off int64) (at, n int64, err error) {
	f.mu.Lock()
	known := f.mu.known
	f.mu.Unlock()
	if known.off <= off && off < known.end {
		return off, known.end - off, nil
	}
	if off >= f.bytes {
		return 0, 0, nil
	}
	c, err := f.source()
	if err != nil {
		return 0, 0, err
	}
	at = off
	for end := min(f.bytes, off+statusAsk); n == 0 && at < end; {
		err = c.BlockStatus(at, end-at, func(size int64, hole bool) bool {
			if !hole {
				n = size
				return false
			}
			at += size
			return true
		})
		if err != nil {
			return 0, 0, err
		}
	}
	switch {
	case n == 0 && at >= f.bytes:
		return 0, 0, nil
	case n == 0:
		return at, min(BlockBytes, f.bytes-at), nil
	}
	f.mu.Lock()
	f.mu.known = span{at, at + n}
	f.mu.Unlock()
	return at, n, nil
}

func (f *mirrorFile) WriteAt(p []byte, off int64) (int, error)               { return len(p), nil }
func (f *mirrorFile) WriteStart(parts [][]byte, off int64, done func(error)) { go done(nil) }
func (f *mirrorFile) WriteParts(parts [][]byte, off int64) error             { return nil }
func (f *mirrorFile) Align() int                                             { return 1 }
func (f *mirrorFile) Sync() error                                            { return nil }
func (f *mirrorFile) Allocate(off, n int64) error                            { return nil }
func (f *mirrorFile) Zero(off, n int64) error                                { return nil }
func (f *mirrorFile) Truncate(int64) error                                   { return errors.ErrUnsupported }
func (f *mirrorFile) Size() (int64, error)                                   { return f.bytes, nil }
func (f *mirrorFile) WillRead(off, n int64)                                  {}
func (f *mirrorFile) WriteBack(off, n int64)                                 {}

// Hold is had at once: who has the marks alone has the volume.
func (f *mirrorFile) Hold() error { return nil }

// Close ends reads that are under way, too.
func (f *mirrorFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.closed = true
	if f.mu.client == nil {
		return nil
	}
	return f.mu.client.Close()
}

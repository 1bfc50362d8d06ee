package nbd

import (
	"context"
	"errors"
)

// Client is one connection to an export. Its methods may be called concurrently;
// the requests then travel together. After an error of the connection (not of a
// request: see Error) every call fails; a caller that wants to go on dials again.
type Client struct{}

// Dial connects to the export that uri names (see ParseURI). The context bounds the
// handshake alone.
func Dial(ctx context.Context, uri string) (*Client, error) { return nil, errors.ErrUnsupported }

// Error is what the server answered to a request. errors.Is knows
// front.ErrNoSpace and front.ErrReadOnly; the connection is still good.
type Error struct {
	Code uint32 // as in the protocol: the errno of Linux
	Text string // the server's own words, or ""
}

func (e *Error) Error() string { return e.Text }

// ErrClosed is wrapped by the error of every call that found the connection closed
// or lost; a write in flight then may or may not have happened.
var ErrClosed = errors.New("nbd: connection closed")

// Size is the export's size in bytes.
func (c *Client) Size() int64 { return 0 }

// ReadOnly says whether the server refuses writes.
func (c *Client) ReadOnly() bool { return false }

// ReadAt fills p (io.ReaderAt, but a range past the end is the server's error).
func (c *Client) ReadAt(p []byte, off int64) (int, error) { return 0, errors.ErrUnsupported }

// WriteAt writes p (io.WriterAt). It returns once the server answered; nothing is
// durable before a Flush. p is borrowed until then.
func (c *Client) WriteAt(p []byte, off int64) (int, error) { return 0, errors.ErrUnsupported }

// WriteFUA is WriteAt that is durable when it returns.
func (c *Client) WriteFUA(p []byte, off int64) (int, error) { return 0, errors.ErrUnsupported }

// WriteZeroes makes the range read as zeros; mayUnmap lets the server give space back.
func (c *Client) WriteZeroes(off, n int64, mayUnmap bool) error { return errors.ErrUnsupported }

// Trim discards the range: it reads as zeros or as before.
func (c *Client) Trim(off, n int64) error { return errors.ErrUnsupported }

// Flush makes durable all that was answered before it.
func (c *Client) Flush() error { return errors.ErrUnsupported }

// BlockStatus tells what stands in [off, off+n), in order and without gaps, until
// emit returns false. Without base:allocation at the server everything is data.
func (c *Client) BlockStatus(off, n int64, emit func(n int64, hole bool) bool) error {
	return errors.ErrUnsupported
}

// Close says goodbye, closes the connection and waits for its goroutine; calls in
// flight fail.
func (c *Client) Close() error { return errors.ErrUnsupported }

package nbd

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/front"
)

// Client is one connection to an export. Its methods may be called concurrently;
// the requests then travel together, maxCalls at most. After an error of the
// connection (not of a request: see Error) every call fails; a caller that wants to
// go on dials again.
type Client struct {
	h    handshake
	out  *sender
	free chan *call // calls that nobody uses
	over chan struct{}
	once sync.Once

	mu struct {
		sync.Mutex
		flying [maxCalls]*call // by slot
		err    error           // why the connection is lost; set once
	}
}

// call is one request of a Client, used again and again.
type call struct {
	slot   int
	cookie uint64
	cmd    uint16
	off    int64
	p      []byte // where a read's payload goes
	got    int    // how much of it came
	bufs   [1][]byte

	extents []extent // a block status' answer
	code    uint32
	text    string
	err     error // the connection's

	open atomic.Int32 // of: payload written, answer taken
	done chan struct{}
}

// release says that the payload is written, or never will be.
func (k *call) release() { k.finish() }

func (k *call) finish() {
	if k.open.Add(-1) == 0 {
		k.done <- struct{}{} // has room for one
	}
}

// Error is what the server answered to a request; the connection is still good.
type Error struct {
	Code uint32 // as in the protocol: the number of an errno of Linux
	Text string // the server's own words, or ""
}

func (e *Error) Error() string {
	text := e.Text
	if text == "" {
		text = fmt.Sprintf("error %d", e.Code)
		switch e.Code {
		case wirePerm:
			text = "not permitted"
		case wireIO:
			text = "I/O error"
		case wireInvalid:
			text = "invalid request"
		case wireNoSpace:
			text = "no space left"
		case wireNotSup:
			text = "not supported"
		}
	}
	return "server: " + text
}

// Is knows front.ErrNoSpace and front.ErrReadOnly.
func (e *Error) Is(target error) bool {
	return target == front.ErrNoSpace && e.Code == wireNoSpace || target == front.ErrReadOnly && e.Code == wirePerm
}

// ErrClosed is wrapped by the error of every call that found the connection closed
// or lost; a change in flight then may or may not have happened.
var ErrClosed = errors.New("nbd: connection closed")

var errByCaller = errors.New("by its owner")

func newClient(h handshake) *Client {
	c := &Client{h: h, free: make(chan *call, maxCalls), over: make(chan struct{})}
	c.out = newSender(h.nc, c.lose)
	for i := range maxCalls {
		c.free <- &call{slot: i, done: make(chan struct{}, 1)}
	}
	go func() {
		defer close(c.over)
		c.receive()
	}()
	return c
}

// lose notes why the connection is lost and closes it.
func (c *Client) lose(err error) {
	c.mu.Lock()
	if c.mu.err == nil {
		c.mu.err = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	c.mu.Unlock()
	c.h.nc.Close()
}

// Close says goodbye, closes the connection and waits for its goroutine; calls in
// flight fail.
func (c *Client) Close() error {
	c.once.Do(func() {
		c.h.nc.SetWriteDeadline(time.Now().Add(partingTime))
		c.out.add(request{cmd: cmdDisconnect}.appendTo(nil), nil, nil)
		c.out.flush()
		c.lose(errByCaller)
	})
	<-c.over
	return nil
}

// Done is closed when the connection is closed or lost.
func (c *Client) Done() <-chan struct{} { return c.over }

// Size is the export's size in bytes.
func (c *Client) Size() int64 { return c.h.size }

// ReadOnly says whether the server refuses writes.
func (c *Client) ReadOnly() bool { return c.h.flags&canReadOnly != 0 }

// ReadAt fills p (io.ReaderAt, but a range past the end is the server's error).
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	return c.pieces(cmdRead, 0, p, off)
}

// WriteAt writes p (io.WriterAt). It returns once the server answered; nothing is
// durable before a Flush. p is lent until then. More than front.MaxWrite bytes are
// several writes.
func (c *Client) WriteAt(p []byte, off int64) (int, error) {
	return c.pieces(cmdWrite, 0, p, off)
}

// WriteFUA is WriteAt that is durable when it returns.
func (c *Client) WriteFUA(p []byte, off int64) (int, error) {
	return c.pieces(cmdWrite, flagFUA, p, off)
}

// WriteZeroes makes the range read as zeros; mayUnmap lets the server give space back.
func (c *Client) WriteZeroes(off, n int64, mayUnmap bool) error {
	flags := uint16(flagNoHole)
	if mayUnmap {
		flags = 0
	}
	return c.ranges(cmdWriteZeroes, flags, off, n)
}

// Trim discards the range: it reads as zeros or as before.
func (c *Client) Trim(off, n int64) error { return c.ranges(cmdTrim, 0, off, n) }

// Flush makes durable all that was answered before it.
func (c *Client) Flush() error { return c.one(cmdFlush, 0, 0, 0) }

// BlockStatus tells what stands in [off, off+n), in order and without gaps, until
// emit returns false. Without base:allocation at the server everything is data.
func (c *Client) BlockStatus(off, n int64, emit func(n int64, hole bool) bool) error {
	if !c.h.allocation {
		emit(n, false)
		return nil
	}
	for n > 0 {
		k := <-c.free
		err := c.do(k, cmdBlockStatus, 0, off, int(min(n, longRange)), nil)
		if err != nil {
			c.free <- k
			return err
		}
		more := true
		for _, x := range k.extents {
			if x.n = min(x.n, n); x.n == 0 || !more {
				break // a server may tell of more than it was asked for
			}
			more = emit(x.n, x.hole)
			off, n = off+x.n, n-x.n
		}
		c.free <- k
		if !more {
			return nil
		}
	}
	return nil
}

// longRange is the longest range without payload that is asked for at once.
const longRange = 1 << 30

// pieces reads or writes p by requests that the server takes.
func (c *Client) pieces(cmd, flags uint16, p []byte, off int64) (done int, err error) {
	for done < len(p) {
		piece := p[done:min(len(p), done+c.h.maxBlock)]
		k := <-c.free
		err := c.do(k, cmd, flags, off+int64(done), len(piece), piece)
		c.free <- k
		if err != nil {
			return done, err
		}
		done += len(piece)
	}
	return done, nil
}

// ranges carries out a command without payload on a range of any length.
func (c *Client) ranges(cmd, flags uint16, off, n int64) error {
	for n > 0 {
		step := min(n, longRange)
		if err := c.one(cmd, flags, off, int(step)); err != nil {
			return err
		}
		off, n = off+step, n-step
	}
	return nil
}

func (c *Client) one(cmd, flags uint16, off int64, n int) error {
	k := <-c.free
	defer func() { c.free <- k }()
	return c.do(k, cmd, flags, off, n, nil)
}

// do sends one request and waits for its answer; p is its payload, or where that goes.
func (c *Client) do(k *call, cmd, flags uint16, off int64, n int, p []byte) error {
	k.cmd, k.off, k.p, k.got = cmd, off, p, 0
	k.extents, k.code, k.text, k.err = k.extents[:0], wireOK, "", nil
	k.cookie = (k.cookie>>32+1)<<32 | uint64(k.slot)
	k.open.Store(1)
	var payload []byte
	var home releaser
	if cmd == cmdWrite {
		payload, home = p, k
		k.open.Store(2)
	}
	c.mu.Lock()
	if err := c.mu.err; err != nil {
		c.mu.Unlock()
		return err
	}
	c.mu.flying[k.slot] = k
	c.mu.Unlock()

	var head [requestBytes]byte
	c.out.add(request{flags: flags, cmd: cmd, cookie: k.cookie, off: uint64(off), n: uint32(n)}.appendTo(head[:0]), payload, home)
	c.out.flush()
	<-k.done
	k.p, k.bufs[0] = nil, nil
	switch {
	case k.err != nil:
		return fmt.Errorf("%s of %d bytes at %d: %w", cmdNames[cmd], n, off, k.err)
	case k.code != wireOK:
		return fmt.Errorf("nbd: %s of %d bytes at %d: %w", cmdNames[cmd], n, off, &Error{Code: k.code, Text: k.text})
	}
	return nil
}

var cmdNames = map[uint16]string{
	cmdRead: "read", cmdWrite: "write", cmdFlush: "flush", cmdTrim: "trim",
	cmdWriteZeroes: "write-zeroes", cmdBlockStatus: "block status",
}

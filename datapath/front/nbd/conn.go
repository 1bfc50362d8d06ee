package nbd

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/front"
)

// conn is a connection at the server.
type conn struct {
	srv *Server
	nc  net.Conn
	in  *receiver // used by the reader alone
	out answers

	// What was negotiated; fixed once requests come.
	dev        front.Device
	size       int64
	readOnly   bool
	structured bool
	allocation bool
	hasContext bool
	context    string // the export for which base:allocation was chosen

	stopped      atomic.Bool
	wake         atomic.Pointer[func()] // makes who serves by a lane look at stopped; nil: nobody does
	deviceErrors atomic.Int64

	// reader is the reader's place: whoever takes it from here reads the next request.
	// Only who holds it gives it back, or closes it when there is nothing to read.
	reader  chan struct{}
	waiting atomic.Int32 // workers that wait for the place
	busy    atomic.Int32 // requests that other workers carry out
	workers int          // started so far; the reader's
	wg      sync.WaitGroup
	cost    atomic.Int64 // what a small read or write took of late, in ns
	held    bool         // answers were added and not flushed; the reader's
	// big has a token while a read holds a buffer beyond pieceBytes: until that is written.
	big   chan struct{}
	ended error // why reading ended; set before reader is closed

	parted bool // at the end of all, the client was gone before us
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{srv: s, nc: nc, reader: make(chan struct{}, 1), big: make(chan struct{}, 1)}
	c.out = newSender(nc, func(error) { nc.Close() })
	c.in = newReceiver(nc, c.out.flush)
	c.cost.Store(int64(quickTime)) // lone ones at once, others when they are seen to be cheap
	return c
}

// stop ends the connection: no further request is read, those taken in are carried
// out, and the client has a moment to take the answers.
func (c *conn) stop() {
	c.stopped.Store(true)
	c.nc.SetReadDeadline(time.Unix(1, 0))
	c.nc.SetWriteDeadline(time.Now().Add(partingTime))
	if wake := c.wake.Load(); wake != nil {
		(*wake)()
	}
}

// within bounds what follows by a deadline, unless the connection is stopped.
func (c *conn) within(deadline time.Time) {
	c.nc.SetDeadline(deadline)
	if c.stopped.Load() { // perhaps before the line above undid it
		c.stop()
	}
}

var errDisconnect = errors.New("client said goodbye")

// transmit serves requests until the client is gone or the connection is stopped.
// All requests are finished then. It returns nil for an end in good order.
func (c *conn) transmit(log *slog.Logger) error {
	l, err := c.openLane()
	if err != nil {
		log.Info("nbd connection goes by threads", "why", err)
	}
	if l != nil {
		c.ended = l.run()
	} else {
		c.workers = 1
		c.work()
		c.wg.Wait()
		c.out.flush()
		c.parted = hungUp(c.nc)
	}
	c.parted = c.parted || c.ended == errDisconnect || c.ended == io.EOF
	switch err := c.ended; {
	case err == errDisconnect, err == io.EOF:
		return nil
	case c.stopped.Load() && errors.Is(err, os.ErrDeadlineExceeded):
		return nil
	default:
		return err
	}
}

// work is the life of a worker: it begins as the reader, and gives the place away
// whenever it has something to do that others should not wait for.
func (c *conn) work() {
	var t task
	for {
		err := c.take(&t)
		if err != nil {
			c.ended = err
			close(c.reader)
			return
		}
		if c.keepPlace(&t) {
			c.carryOut(&t)
			c.held = c.out.add(t.head, t.payload, t.home()) < holdBytes
			if !c.held {
				c.out.flush()
			}
			continue // the receiver flushes what is held before it asks the socket again
		}
		if c.held {
			c.held = false
			c.out.flush()
		}
		c.busy.Add(1)
		c.passPlace()
		c.carryOut(&t)
		c.out.add(t.head, t.payload, t.home())
		c.busy.Add(-1)
		c.out.flush()
		c.waiting.Add(1)
		_, ok := <-c.reader
		c.waiting.Add(-1)
		if !ok {
			return
		}
	}
}

// keepPlace decides whether the reader carries out t itself, while nobody reads: a
// small read or write that costs less of late than to wake somebody, or less than
// others notice when it is alone (the socket was empty before it came, and nobody
// else has work). A flush never keeps others waiting.
func (c *conn) keepPlace(t *task) bool {
	limit := quickTime
	if c.in.waited && c.in.buffered() == 0 && c.busy.Load() == 0 {
		limit = loneTime
	}
	return t.quick() && time.Duration(c.cost.Load()) < limit
}

// passPlace makes another worker the reader, a new one if none is waiting.
func (c *conn) passPlace() {
	if c.waiting.Load() == 0 && c.workers < maxWorkers {
		c.workers++
		c.wg.Go(c.work)
		return
	}
	c.reader <- struct{}{} // never blocks: there is one place, and we hold it
}

package faultlink

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// carried is one connection through the relay.
type carried struct {
	relay  *Relay
	target string
	faults Faults
	ctx    context.Context
	end    context.CancelFunc
	frozen atomic.Bool

	mu        sync.Mutex
	near, far *net.TCPConn
	isCut     bool
}

// carry dials the target and carries both ways until both are through or one breaks.
func (c *carried) carry() {
	defer c.relay.forget(c)
	defer c.end()
	defer c.cut()
	dialer := net.Dialer{Timeout: 5 * time.Second}
	conn, err := dialer.DialContext(c.ctx, "tcp", c.target)
	if err != nil {
		c.relay.c.Log.Info("relay: target does not answer", "target", c.target, "error", err)
		return
	}
	if !c.setFar(conn.(*net.TCPConn)) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { c.oneWay(c.far, c.near, &c.faults.Up, &c.relay.up, &c.relay.sent) })
	both.Go(func() { c.oneWay(c.near, c.far, &c.faults.Down, &c.relay.down, &c.relay.received) })
	both.Wait()
	// Both ways came to their end: what was written is still delivered.
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.isCut {
		c.isCut = true
		c.near.Close()
		c.far.Close()
	}
}

func (c *carried) setFar(far *net.TCPConn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isCut {
		reset(far)
		return false
	}
	c.far = far
	return true
}

// cut resets both ends, once.
func (c *carried) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isCut {
		return
	}
	c.isCut = true
	c.end()
	reset(c.near)
	if c.far != nil {
		reset(c.far)
	}
}

// oneWay carries src to dst: read a quantum, wait for its time on the link, then
// for its delay, and write. It passes on an end, and cuts both ways on an error.
func (c *carried) oneWay(dst, src *net.TCPConn, way *Way, link *pacer, count *atomic.Int64) {
	line := newLine(c, dst)
	p := make([]byte, maxQuantum)
	var passed int64
	for {
		asked := time.Now()
		n, err := src.Read(p[:link.quantum()])
		for rest := p[:n]; len(rest) > 0; {
			k, cut, stall := way.pass(passed, rest)
			if stall {
				c.frozen.Store(true)
			}
			now := time.Now()
			due := link.reserve(now, k, now.Sub(asked) > idleSlack)
			if !c.wait(due) || !line.put(rest[:k], way.Delay+time.Duration(c.relay.delay.Load())) {
				line.close()
				c.cut()
				return
			}
			if cut {
				line.close()
				c.cut()
				return
			}
			passed += int64(k)
			count.Add(int64(k))
			rest = rest[k:]
		}
		if err != nil {
			line.close()
			if c.frozen.Load() {
				<-c.ctx.Done() // nobody is told of an end either
			}
			if err != io.EOF || dst.CloseWrite() != nil {
				c.cut()
			}
			return
		}
	}
}

// wait sleeps until due; false when the connection was cut meanwhile.
func (c *carried) wait(due time.Time) bool {
	d := time.Until(due)
	if due.IsZero() || d <= 0 {
		return c.ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.ctx.Done():
		return false
	}
}

// line is the length of the link: what was put in comes out at dst after its delay.
type line struct {
	c    *carried
	dst  *net.TCPConn
	in   chan flying // nil until there is a delay
	done chan struct{}
	bad  atomic.Bool
}

type flying struct {
	bytes []byte
	due   time.Time
}

// lineDepth bounds what is under way: 128 quanta, so 2 MiB at most with a rate.
const lineDepth = 128

func newLine(c *carried, dst *net.TCPConn) *line { return &line{c: c, dst: dst} }

// put sends p on its way; false when the connection is broken.
func (l *line) put(p []byte, delay time.Duration) bool {
	if l.c.frozen.Load() {
		return true // lost on the way, and nobody is told
	}
	if delay == 0 && l.in == nil {
		_, err := l.dst.Write(p)
		return err == nil
	}
	if l.in == nil {
		l.in, l.done = make(chan flying, lineDepth), make(chan struct{})
		go l.deliver()
	}
	select {
	case l.in <- flying{append([]byte(nil), p...), time.Now().Add(delay)}:
		return !l.bad.Load()
	case <-l.c.ctx.Done():
		return false
	}
}

func (l *line) deliver() {
	defer close(l.done)
	for f := range l.in {
		if l.bad.Load() || !l.c.wait(f.due) {
			l.bad.Store(true)
			continue
		}
		if _, err := l.dst.Write(f.bytes); err != nil {
			l.bad.Store(true)
			l.c.cut()
		}
	}
}

// close waits until all that is under way has come out.
func (l *line) close() {
	if l.in != nil {
		close(l.in)
		<-l.done
	}
}

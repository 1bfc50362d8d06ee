package faultlink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Route is a port to listen on and where its connections go, both host:port.
type Route struct{ Listen, Target string }

// RelayConfig is a link.
type RelayConfig struct {
	Routes []Route
	Rate   int64         // bits a second, each way, for all routes together; 0 is no limit
	Delay  time.Duration // each way
	// Script gives the faults of a connection: route is its place in Routes, number
	// counts its connections from 0. nil is good connections.
	Script func(route, number int) Faults
	Log    *slog.Logger
}

// Relay carries TCP connections over a link that can be slow, far or cut.
type Relay struct {
	c     RelayConfig
	ports []net.Listener
	up    pacer
	down  pacer
	delay atomic.Int64

	sent, received atomic.Int64

	mu    sync.Mutex
	isOff bool
	pipes map[*carried]bool
	count []int // of each route
}

// minRate is the slowest link: below it a quantum would take seconds.
const minRate = 8_000

// OpenRelay opens the ports. Connections are taken once Serve runs.
func OpenRelay(c RelayConfig) (*Relay, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	r := &Relay{c: c, pipes: make(map[*carried]bool), count: make([]int, len(c.Routes))}
	if err := r.SetRate(c.Rate); err != nil {
		return nil, err
	}
	r.SetDelay(c.Delay)
	// A small window towards the sender: what is not through the link yet waits at
	// the sender, as it would on a real one. Accepted sockets inherit it.
	listen := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) {
			syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, windowBytes)
		})
	}}
	for _, route := range c.Routes {
		port, err := listen.Listen(context.Background(), "tcp", route.Listen)
		if err != nil {
			r.Close()
			return nil, fmt.Errorf("relay to %s: %w", route.Target, err)
		}
		r.ports = append(r.ports, port)
	}
	return r, nil
}

const windowBytes = 128 << 10

// Addrs are the ports, in the order of the routes.
func (r *Relay) Addrs() []net.Addr {
	var a []net.Addr
	for _, p := range r.ports {
		a = append(a, p.Addr())
	}
	return a
}

// Close closes the ports of a relay that is not to Serve.
func (r *Relay) Close() {
	for _, p := range r.ports {
		p.Close()
	}
}

// Serve carries connections until ctx ends; then all are cut.
func (r *Relay) Serve(ctx context.Context) error {
	run, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	defer context.AfterFunc(run, func() {
		r.Close()
		r.Down()
	})()
	var wg sync.WaitGroup
	for route, port := range r.ports {
		wg.Go(func() { fail(r.accept(run, route, port, &wg)) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(run)
}

func (r *Relay) accept(ctx context.Context, route int, port net.Listener, wg *sync.WaitGroup) error {
	for {
		conn, err := port.Accept()
		if err != nil {
			var passing interface{ Temporary() bool }
			if ctx.Err() == nil && errors.As(err, &passing) && passing.Temporary() {
				select {
				case <-time.After(20 * time.Millisecond):
				case <-ctx.Done():
				}
				continue
			}
			return err
		}
		c := r.admit(ctx, route, conn.(*net.TCPConn))
		if c == nil {
			reset(conn.(*net.TCPConn))
			continue
		}
		wg.Go(func() { c.carry() })
	}
}

// admit counts a connection in, unless the link is down.
func (r *Relay) admit(ctx context.Context, route int, conn *net.TCPConn) *carried {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isOff {
		return nil
	}
	c := &carried{relay: r, target: r.c.Routes[route].Target, near: conn}
	if r.c.Script != nil {
		c.faults = r.c.Script(route, r.count[route])
	}
	r.count[route]++
	c.ctx, c.end = context.WithCancel(ctx)
	r.pipes[c] = true
	return c
}

// Down cuts every connection at once: both ends see a reset, and what is in the
// relay is lost. New ones are reset too, until Up.
func (r *Relay) Down() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.isOff = true
	for c := range r.pipes {
		if !invariant.Planted("wire/faultlink/late-cut") {
			c.cut()
		}
	}
}

// Up carries new connections again.
func (r *Relay) Up() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.isOff = false
}

// Freeze lets nothing through any more on the connections there are, and tells nobody.
func (r *Relay) Freeze() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.pipes {
		c.frozen.Store(true)
	}
}

// IsDown says whether the link is cut.
func (r *Relay) IsDown() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.isOff
}

// SetRate changes the rate, in bits a second each way; 0 is no limit.
func (r *Relay) SetRate(bits int64) error {
	if bits != 0 && bits < minRate {
		return fmt.Errorf("a link of %d bit/s: at least %d, or 0 for no limit", bits, minRate)
	}
	now := time.Now()
	r.up.set(bits, now)
	r.down.set(bits, now)
	return nil
}

// Rate is the rate in bits a second, 0 for no limit.
func (r *Relay) Rate() int64 {
	r.up.mu.Lock()
	defer r.up.mu.Unlock()
	return r.up.bits
}

// SetDelay changes the delay each way, for new connections and for those that have one.
func (r *Relay) SetDelay(d time.Duration) { r.delay.Store(int64(d)) }

// Carried is how many bytes went through: from the diallers, and to them.
func (r *Relay) Carried() (up, down int64) { return r.sent.Load(), r.received.Load() }

func (r *Relay) forget(c *carried) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pipes, c)
}

// reset closes a connection so that its peer sees ECONNRESET.
func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

package faultlink

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
)

// Net is a network in memory: addresses are any strings. All methods may be called
// concurrently, and under testing/synctest.
type Net struct {
	// Script gives the faults of a connection: address is whom it was dialled to,
	// number counts those to it from 0. nil is good connections. It is set before use.
	Script func(address string, number int) Faults
	// Window is how many bytes a connection holds each way until they are read; 0 is 64 KiB.
	Window int

	mu      sync.Mutex
	ports   map[string]*port
	dialled map[string]int
	newest  map[string]*pair
	pairs   map[*pair]bool
	down    bool
}

// Listen is net.Listen.
func (n *Net) Listen(_, address string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ports == nil {
		n.ports, n.dialled = make(map[string]*port), make(map[string]int)
		n.newest, n.pairs = make(map[string]*pair), make(map[*pair]bool)
	}
	if n.ports[address] != nil {
		return nil, &net.OpError{Op: "listen", Net: "mem", Addr: addr(address), Err: syscall.EADDRINUSE}
	}
	p := &port{net: n, address: address, arriving: make(chan net.Conn, 128), closed: make(chan struct{})}
	n.ports[address] = p
	return p, nil
}

// Dial is net.Dialer.DialContext.
func (n *Net) Dial(ctx context.Context, _, address string) (net.Conn, error) {
	n.mu.Lock()
	port := n.ports[address]
	if port == nil || n.down {
		n.mu.Unlock()
		return nil, &net.OpError{Op: "dial", Net: "mem", Addr: addr(address), Err: syscall.ECONNREFUSED}
	}
	number := n.dialled[address]
	n.dialled[address]++
	var f Faults
	if n.Script != nil {
		f = n.Script(address, number)
	}
	window := n.Window
	if window == 0 {
		window = 64 << 10
	}
	p := newPair(f, window)
	n.pairs[p], n.newest[address] = true, p
	p.gone = func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.pairs, p)
	}
	n.mu.Unlock()
	local := addr(fmt.Sprintf("dialler-%d-of-%s", number, address))
	select {
	case port.arriving <- &end{pair: p, in: p.up, out: p.down, local: addr(address), remote: local}:
		return &end{pair: p, in: p.down, out: p.up, local: local, remote: addr(address)}, nil
	case <-port.closed:
		p.reset()
		return nil, &net.OpError{Op: "dial", Net: "mem", Addr: addr(address), Err: syscall.ECONNREFUSED}
	case <-ctx.Done():
		p.reset()
		return nil, context.Cause(ctx)
	}
}

// Down resets every connection at once and refuses new ones, until Up.
func (n *Net) Down() { n.each(func(p *pair) { p.reset() }, true) }

// Up takes connections again.
func (n *Net) Up() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = false
}

// Freeze lets nothing arrive any more on the connections there are, and tells nobody.
func (n *Net) Freeze() {
	n.each(func(p *pair) {
		p.up.freeze()
		p.down.freeze()
	}, false)
}

// From has the newest connection to an address suffer faults from now on, in place of those that
// it had: the counts begin at what was written up to now.
func (n *Net) From(address string, f Faults) {
	n.mu.Lock()
	p := n.newest[address]
	n.mu.Unlock()
	p.up.from(f.Up)
	p.down.from(f.Down)
}

func (n *Net) each(do func(*pair), down bool) {
	n.mu.Lock()
	n.down = n.down || down
	var pairs []*pair
	for p := range n.pairs {
		pairs = append(pairs, p)
	}
	n.mu.Unlock()
	for _, p := range pairs {
		do(p)
	}
}

// Dialled is how many connections were made to an address.
func (n *Net) Dialled(address string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dialled[address]
}

type addr string

func (addr) Network() string  { return "mem" }
func (a addr) String() string { return string(a) }

// port is a listener.
type port struct {
	net      *Net
	address  string
	arriving chan net.Conn
	once     sync.Once
	closed   chan struct{}
}

func (p *port) Accept() (net.Conn, error) {
	select {
	case c := <-p.arriving:
		return c, nil
	case <-p.closed:
		return nil, &net.OpError{Op: "accept", Net: "mem", Addr: p.Addr(), Err: net.ErrClosed}
	}
}

func (p *port) Addr() net.Addr { return addr(p.address) }

func (p *port) Close() error {
	p.once.Do(func() {
		close(p.closed)
		p.net.mu.Lock()
		delete(p.net.ports, p.address)
		p.net.mu.Unlock()
		for {
			select {
			case c := <-p.arriving:
				c.(*end).pair.reset()
				continue
			default:
			}
			return
		}
	})
	return nil
}

// errReset and errTimeout look as those of a TCP connection do.
var (
	errReset   = &net.OpError{Op: "read", Net: "mem", Err: os.NewSyscallError("recv", syscall.ECONNRESET)}
	errPipe    = &net.OpError{Op: "write", Net: "mem", Err: os.NewSyscallError("send", syscall.EPIPE)}
	errTimeout = &net.OpError{Op: "wait", Net: "mem", Err: os.ErrDeadlineExceeded}
	errClosed  = &net.OpError{Op: "use", Net: "mem", Err: net.ErrClosed}
)

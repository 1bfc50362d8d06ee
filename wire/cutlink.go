package wire

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/cutword"
)

// CutHandler is told what happens on connections between the source VRAs of one site that
// share groups.
type CutHandler interface {
	// Opened is called first.
	Opened(*CutLink)
	// Word is called for each word, one after the other. It must not wait for the peer. An
	// error ends the connection.
	Word(*CutLink, cutword.Word) error
	// Closed is called last, once, when no other call is running.
	Closed(*CutLink, error)
}

// CutLink is a connection over which one VRA leads cuts, that dialled it, and the other takes part.
type CutLink struct {
	l     *link
	leads bool // this end
	queue queue
	ctx   context.Context
	end   context.CancelCauseFunc
}

// Peer is whom the other end's certificate names.
func (c *CutLink) Peer() Peer { return c.l.peer }

// Leads says that this end dialled, and leads.
func (c *CutLink) Leads() bool { return c.leads }

// Send queues a word, and never waits. After the end it returns the reason.
func (c *CutLink) Send(w cutword.Word) error {
	if err := w.Check(); err != nil {
		return err
	}
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	if c.queue.add(typeCutWord, func(p []byte) []byte { return appendCutWord(p, w) }) {
		c.end(ErrSlow)
		return ErrSlow
	}
	return nil
}

// Close ends it, and returns at once.
func (c *CutLink) Close() { c.end(ErrClosed) }

// cutsSince is the first version with connections for cuts, and the one whose targets take cuts
// that say how many sources their group has.
const cutsSince = 9

// maxCutLinks bounds what a CutServer takes at once, connections that open among them.
const maxCutLinks = 64

func newCutLink(ctx context.Context, l *link, leads bool) *CutLink {
	c := &CutLink{l: l, leads: leads}
	c.queue.wake = make(chan struct{}, 1)
	c.ctx, c.end = context.WithCancelCause(ctx)
	return c
}

// run carries the connection to its end, which it returns.
func (c *CutLink) run(h CutHandler) error {
	defer c.l.hangUp()
	defer context.AfterFunc(c.ctx, c.l.cut)()
	h.Opened(c)
	var writing sync.WaitGroup
	writing.Go(c.write)
	c.end(c.read(h))
	writing.Wait()
	err := context.Cause(c.ctx)
	h.Closed(c, err)
	return err
}

// write sends what is queued, and a beat each second.
func (c *CutLink) write() {
	tick := time.NewTicker(heartbeatEvery)
	defer tick.Stop()
	var spare []byte
	for {
		out := c.queue.take(spare)
		if len(out) > 0 {
			c.l.SetWriteDeadline(time.Now().Add(deadAfter))
			if _, err := c.l.Write(out); err != nil {
				if isTimeout(err) {
					err = ErrDead
				}
				c.end(&lostError{"cut", err})
				return
			}
		}
		spare = out
		select {
		case <-tick.C:
			c.queue.add(typeCutBeat, nil)
		case <-c.queue.wake:
		case <-c.ctx.Done():
			return
		}
	}
}

// read hands words on until the connection ends.
func (c *CutLink) read(h CutHandler) error {
	r := bufio.NewReaderSize(c.l, 4<<10)
	var head [frameBytes]byte
	body := make([]byte, maxCutWord)
	for {
		c.l.SetReadDeadline(time.Now().Add(deadAfter))
		if _, err := io.ReadFull(r, head[:]); err != nil {
			if isTimeout(err) {
				err = ErrDead
			}
			return &lostError{"cut", err}
		}
		t, n, err := parseFrame(head[:])
		if err != nil {
			return err
		}
		if t != typeCutWord && t != typeCutBeat {
			return badFrame(BadType, "type %d on a connection for cuts", t)
		}
		if _, err := io.ReadFull(r, body[:n]); err != nil {
			return &lostError{"cut", err}
		}
		if t == typeCutBeat {
			continue
		}
		w, err := parseCutWord(body[:n])
		if err != nil {
			return err
		}
		if w.FromLeader() == c.leads {
			return badFrame(BadType, "%v from the wrong end", w.Kind)
		}
		if err := h.Word(c, w); err != nil {
			return err
		}
	}
}

// CutServerConfig is where a source VRA is told to take part in cuts.
type CutServerConfig struct {
	Listen      string      // host:port
	Credentials Credentials // whose pins are of the VRA's own site
	Knows       func(Peer) bool
	Log         *slog.Logger
	// Open replaces net.Listen.
	Open func(network, address string) (net.Listener, error)
}

// CutServer takes connections for cuts.
type CutServer struct {
	c     CutServerConfig
	port  net.Listener
	tls   *tls.Config
	slots chan struct{}
	said  refusalLog
}

// ListenCuts opens the port. Connections are taken once Serve runs.
func ListenCuts(c CutServerConfig) (*CutServer, error) {
	if err := c.Credentials.validate(); err != nil {
		return nil, fmt.Errorf("wire: %w", err)
	}
	if c.Open == nil {
		c.Open = net.Listen
	}
	s := &CutServer{c: c, tls: c.Credentials.config(x509.ExtKeyUsageClientAuth, Peer{}), slots: make(chan struct{}, maxCutLinks)}
	var err error
	if s.port, err = c.Open("tcp", c.Listen); err != nil {
		return nil, fmt.Errorf("port for cuts: %w", err)
	}
	return s, nil
}

// Addr is the address of the port.
func (s *CutServer) Addr() net.Addr { return s.port.Addr() }

// Close closes the port of a server that is not to Serve.
func (s *CutServer) Close() error { return s.port.Close() }

// Serve takes connections until ctx ends or the port fails; then all are over. Asked to stop, it returns nil.
func (s *CutServer) Serve(ctx context.Context, h CutHandler) error {
	run, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(run, func() { s.port.Close() })()
	err := acceptAll(run, s.port, s.slots, func(conn net.Conn) {
		defer func() { <-s.slots }()
		if err := s.take(run, conn, h); err != nil {
			s.refuse(conn, err)
		}
	}, func(conn net.Conn) { s.refuse(conn, &refusal{ReasonFull, errors.New("too many connections")}) }, stop)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *CutServer) refuse(conn net.Conn, err error) {
	reason := reasonOf(err)
	if n := s.said.say(reason, time.Now()); n > 0 {
		s.c.Log.Warn("connection for cuts refused", "from", conn.RemoteAddr(), "reason", reason, "error", err, "times", n)
	}
}

// take carries a connection; its error says why it never opened.
func (s *CutServer) take(ctx context.Context, conn net.Conn, h CutHandler) error {
	var none Counters
	l, err := open(ctx, conn, false, s.tls, &none.ControlSent, &none.ControlReceived)
	if err != nil {
		return err
	}
	whole := l.guard(ctx, handshakeTime)
	bad := func(code Code, err error) error {
		writeHandshake(l, typeBye, bye{code, err.Error()}.appendTo)
		whole()
		l.hangUp()
		return err
	}
	body, err := readHandshake(l, typeMeet)
	if err != nil {
		whole()
		l.hangUp()
		return err
	}
	if !s.c.Knows(l.peer) && !invariant.Planted("wire/anybody-cuts") {
		return bad(CodeUnknown, &refusal{ReasonName, fmt.Errorf("%v shares no group with this VRA: no member of its groups has that name", l.peer)})
	}
	hi, err := parseHello(body)
	if err != nil {
		return bad(CodeProtocol, err)
	}
	if v := pick(cutVersions, hi.speaks); v == 0 {
		return bad(CodeVersion, &refusal{ReasonVersion, &VersionError{cutVersions, hi.speaks}})
	}
	if err := writeHandshake(l, typeMet, hello{cutVersions}.appendTo); err != nil || !whole() {
		l.hangUp()
		return &lostError{"cut", errors.Join(err, ctx.Err())}
	}
	tune(conn, true)
	if err := newCutLink(ctx, l, false).run(h); !isLost(err) && ctx.Err() == nil {
		s.c.Log.Warn("connection for cuts ended", "peer", l.peer.String(), "error", err)
	}
	return nil
}

// cutVersions are those in which there are connections for cuts.
var cutVersions = Versions{cutsSince, ours.Max}

// CutClientConfig is how a VRA reaches another one to lead its cuts.
type CutClientConfig struct {
	Address     string      // host:port
	Credentials Credentials // whose pins are of the VRA's own site
	Peer        Peer        // the only one to talk to
	Log         *slog.Logger
	// Dial replaces ours, which looks names up each time and tries all their addresses.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// ConnectCuts keeps a connection to a VRA until ctx ends: it dials, and dials again when that ended.
func ConnectCuts(ctx context.Context, c CutClientConfig, h CutHandler) error {
	if err := c.Credentials.validate(); err != nil {
		return fmt.Errorf("wire: %w", err)
	}
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, _, address string) (net.Conn, error) {
			return newDialer(smallPackets).reach(ctx, address)
		}
	}
	var wait backoff
	said := ""
	for {
		lasted, err := c.once(ctx, h)
		if ctx.Err() != nil {
			return nil
		}
		if text := err.Error(); text != said {
			c.Log.Warn("no connection to a VRA that shares groups", "peer", c.Peer.String(), "address", c.Address, "error", err)
			said = text
		}
		t := time.NewTimer(wait.next(lasted, rand.Float64))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
	}
}

func (c *CutClientConfig) once(ctx context.Context, h CutHandler) (time.Duration, error) {
	dialling, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	conn, err := c.Dial(dialling, "tcp", c.Address)
	if err != nil {
		return 0, err
	}
	tune(conn, true)
	var none Counters
	l, err := open(ctx, conn, true, c.Credentials.config(x509.ExtKeyUsageServerAuth, c.Peer), &none.ControlSent, &none.ControlReceived)
	if err != nil {
		return 0, err
	}
	whole := l.guard(ctx, handshakeTime)
	body, err := ask(l, typeMeet, hello{cutVersions}.appendTo, typeMet)
	if err == nil {
		_, err = parseHello(body)
	}
	if !whole() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		l.hangUp()
		return 0, err
	}
	began := time.Now()
	err = newCutLink(ctx, l, true).run(h)
	return time.Since(began), err
}

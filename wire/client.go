package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"time"

	"github.com/holdfast-dr/holdfast/wire/breadth"
	"github.com/holdfast-dr/holdfast/wire/tape"
)

// ClientConfig is a source's end towards one target VRA.
type ClientConfig struct {
	Control     string // host:port
	Data        string // empty: the same
	Credentials Credentials
	// Target, where set, is the only peer to talk to; else any VRA of a pinned site is.
	Target   Peer
	Counters *Counters // nil makes one
	Log      *slog.Logger
	// Connections is how many data connections a session has, 1 to 8; 0 is as many as
	// pay, by measurement. A target of a version before OrderedSince has one.
	Connections int
	// Failed is told why an attempt or a session ended, and in how long the next
	// attempt begins. It is not called once ctx has ended.
	Failed func(why error, next time.Duration)
	// Dial replaces ours, which looks names up each time and tries all their addresses.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Tape, for debugging, is where the frames of all connections go; nil is nowhere.
	Tape *tape.Tape

	speaks Versions // tests only; zero is ours
}

func (c *ClientConfig) validate() error {
	var mistakes []error
	if c.Control == "" {
		mistakes = append(mistakes, errors.New("the address of the target is missing"))
	}
	if c.Data == "" {
		c.Data = c.Control
	}
	if err := c.Credentials.validate(); err != nil {
		mistakes = append(mistakes, err)
	}
	if c.Connections < 0 || c.Connections > maxLines {
		mistakes = append(mistakes, fmt.Errorf("%d connections: at most %d", c.Connections, maxLines))
	}
	if c.Counters == nil {
		c.Counters = new(Counters)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Failed == nil {
		c.Failed = func(error, time.Duration) {}
	}
	if c.speaks == (Versions{}) {
		c.speaks = ours
	}
	return errors.Join(mistakes...)
}

// Connect keeps one session with a target until ctx ends: it dials, hands the
// session to h, and dials again when that ended, after 0.2 s to 5 s. It returns
// when the last session is over; an error only for a useless configuration.
func Connect(ctx context.Context, c ClientConfig, h Handler) error {
	if err := c.validate(); err != nil {
		return fmt.Errorf("wire: %w", err)
	}
	var wait backoff
	var size packets
	said := ""
	for {
		lasted, err := c.once(ctx, h, size.size())
		if ctx.Err() != nil {
			return nil
		}
		if c.Dial == nil && size.ended(err, lasted) {
			c.Log.Warn("the data connection's packets change", "address", c.Data, "bytes", size.size(), "error", err)
		}
		if text := err.Error(); text != said {
			log := c.Log.With("address", c.Control)
			if r, ok := refusedHere(err); ok {
				log = log.With("reason", r)
			}
			log.Warn("no session with the target", "error", err)
			said = text
		}
		d := wait.next(lasted, rand.Float64)
		if errors.Is(err, ErrSuperseded) {
			d = backoffMax // another process has our name: it keeps the seat
		}
		c.Failed(err, d)
		t := time.NewTimer(d)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
	}
}

// once makes one session and returns how long it lasted and how it ended.
func (c *ClientConfig) once(ctx context.Context, h Handler, packet int) (time.Duration, error) {
	s, err := c.dialSession(ctx, h, packet)
	if err != nil {
		return 0, err
	}
	defer s.end(ErrClosed)
	defer close(s.done)
	if err := h.Opened(s); err != nil {
		s.control.SetWriteDeadline(time.Now().Add(byeTime))
		s.control.Write(appendBye(nil, err))
		s.control.hangUp()
		s.data.hangUp()
		return 0, err
	}
	opened := time.Now()
	if s.version >= OrderedSince {
		b := breadth.New(opened, c.Connections)
		s.wanted.Store(int32(b.Want()))
		s.work.Go(func() { s.spread(c, b, packet) })
	}
	err = s.run()
	return time.Since(opened), err
}

// dialSession makes both connections of a session, data with packets of at most so many bytes.
func (c *ClientConfig) dialSession(ctx context.Context, h Handler, packet int) (s *Session, err error) {
	control, err := c.controlLink(ctx, smallPackets)
	if err != nil {
		return nil, fmt.Errorf("control connection: %w", err)
	}
	shake, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	controlWhole := control.guard(shake, handshakeTime)
	defer controlWhole()
	defer func() {
		if err != nil {
			control.hangUp()
		}
	}()
	w, err := c.greet(control)
	if err != nil {
		return nil, fmt.Errorf("control connection: %w", err)
	}
	data, err := c.dataLink(shake, control, packet)
	if err != nil {
		return nil, fmt.Errorf("data connection: %w", err)
	}
	dataWhole := data.guard(shake, handshakeTime)
	defer dataWhole()
	if err := join(data, w.token); err != nil {
		data.hangUp()
		return nil, fmt.Errorf("data connection: %w", err)
	}
	if !controlWhole() || !dataWhole() {
		data.hangUp()
		return nil, context.Cause(shake)
	}
	data.socket.cork()
	s = newSession(ctx, true, control, h, c.Counters, c.Log)
	s.version, s.token = w.version, w.token
	s.wanted.Store(1)
	s.setData(data)
	return s, nil
}

// join ties a data connection to its session and waits until the target has
// opened that.
func join(data *link, t token) error {
	_, err := ask(data, typeJoin, func(p []byte) []byte { return append(p, t[:]...) }, typeJoined)
	return err
}

// ask writes one frame and reads the answer. It reads even if the write failed: a
// target that refuses us says why, and hangs up before it reads anything.
func ask(l *link, t frameType, body func([]byte) []byte, want frameType) ([]byte, error) {
	failed := writeHandshake(l, t, body)
	answer, err := readHandshake(l, want)
	if err == nil {
		err = failed
	}
	return answer, err
}

// controlLink dials the control connection and takes it through TLS; see newDialer for
// packet.
func (c *ClientConfig) controlLink(ctx context.Context, packet int) (*link, error) {
	conn, err := c.dial(ctx, c.Control, packet)
	if err != nil {
		return nil, err
	}
	tune(conn, true)
	l, err := open(ctx, conn, true, c.tls(c.Target), &c.Counters.ControlSent, &c.Counters.ControlReceived)
	if err != nil {
		return nil, err
	}
	l.taped(c.Tape, tape.Dialled)
	return l, nil
}

// dataLink does the same for the data connection that goes with control.
func (c *ClientConfig) dataLink(ctx context.Context, control *link, packet int) (*link, error) {
	conn, err := c.dial(ctx, sameHost(control.socket.Conn, c.Control, c.Data), packet)
	if err != nil {
		return nil, err
	}
	tune(conn, false)
	ctx, done := watchHole(ctx, conn)
	defer done()
	l, err := open(ctx, conn, true, c.tls(control.peer), &c.Counters.DataSent, &c.Counters.DataReceived)
	if err != nil && errors.Is(context.Cause(ctx), ErrBlackHole) {
		err = ErrBlackHole
	}
	if err != nil {
		return nil, err
	}
	l.taped(c.Tape, tape.Dialled)
	return l, nil
}

func (c *ClientConfig) dial(ctx context.Context, address string, packet int) (net.Conn, error) {
	if c.Dial != nil {
		ctx, cancel := context.WithTimeout(ctx, tlsTime)
		defer cancel()
		return c.Dial(ctx, "tcp", address)
	}
	return newDialer(packet).reach(ctx, address)
}

func (c *ClientConfig) tls(want Peer) *tls.Config {
	return c.Credentials.config(x509.ExtKeyUsageServerAuth, want)
}

// greet agrees on a version.
func (c *ClientConfig) greet(control *link) (welcome, error) {
	body, err := ask(control, typeHello, hello{c.speaks}.appendTo, typeWelcome)
	if err != nil {
		return welcome{}, err
	}
	w, err := parseWelcome(body)
	if err != nil {
		return welcome{}, err
	}
	if w.version == 0 {
		return welcome{}, &VersionError{c.speaks, w.speaks}
	}
	if w.version != pick(c.speaks, w.speaks) {
		return welcome{}, protocolError("welcome: version %d of %v and %v", w.version, c.speaks, w.speaks)
	}
	return w, nil
}

package wire

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/wire/tape"
)

// ServerConfig is a target's end.
type ServerConfig struct {
	ListenControl string // host:port; port 0 picks one
	ListenData    string // empty: the control port takes both
	Credentials   Credentials
	// ReceiveBytes bounds the memory of records received and not yet released, over
	// all sessions, but never to less than two of the largest; 0 is DefaultReceiveBytes.
	ReceiveBytes int64
	MaxSessions  int       // 0 is 64
	Counters     *Counters // nil makes one
	Log          *slog.Logger
	// Listen replaces net.Listen.
	Listen func(network, address string) (net.Listener, error)
	// Tape, for debugging, is where the frames of all connections go; nil is nowhere.
	Tape *tape.Tape

	speaks Versions // tests only; zero is ours
}

const defaultSessions = 64

// handshakes is how many connections may be between accept and session at once.
const handshakes = 256

func (c *ServerConfig) validate() error {
	var mistakes []error
	if c.ListenControl == "" {
		mistakes = append(mistakes, errors.New("an address to listen on is missing"))
	}
	if err := c.Credentials.validate(); err != nil {
		mistakes = append(mistakes, err)
	}
	if c.ReceiveBytes < 0 || c.MaxSessions < 0 {
		mistakes = append(mistakes, errors.New("a limit below zero"))
	}
	if c.ReceiveBytes == 0 {
		c.ReceiveBytes = DefaultReceiveBytes
	}
	if c.MaxSessions == 0 {
		c.MaxSessions = defaultSessions
	}
	if c.Counters == nil {
		c.Counters = new(Counters)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Listen == nil {
		c.Listen = net.Listen
	}
	if c.speaks == (Versions{}) {
		c.speaks = ours
	}
	return errors.Join(mistakes...)
}

// Server takes sessions.
type Server struct {
	c             ServerConfig
	control, data net.Listener // data is nil where one port takes both
	tls           *tls.Config
	memory        *memory
	slots         chan struct{} // an entry for each connection before its session
	tests         chan struct{} // an entry for each link test
	refusals      refusalLog

	mu struct {
		sync.Mutex
		joining map[token]*joining
		running map[token]*Session // open ones, which further data connections may be attached to
		peers   map[Peer]*seat
		open    int // sessions
	}
}

// joining is a control connection that waits for its data connection.
type joining struct {
	peer Peer
	data chan *link // capacity 1: whoever takes the token out of the map sends
}

// seat is the one place a peer has: a session takes it after the one before has left.
type seat struct {
	free  chan struct{} // holds one when nobody sits
	sits  *Session      // nil: nobody
	users int           // who sits, and who waits
}

// Listen opens both ports. Connections are taken once Serve runs.
func Listen(c ServerConfig) (*Server, error) {
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("wire: %w", err)
	}
	s := &Server{
		c: c, tls: c.Credentials.config(x509.ExtKeyUsageClientAuth, Peer{}),
		memory: newMemory(c.ReceiveBytes), slots: make(chan struct{}, handshakes),
		tests: make(chan struct{}, linkTests),
	}
	s.mu.joining, s.mu.peers = make(map[token]*joining), make(map[Peer]*seat)
	s.mu.running = make(map[token]*Session)
	var err error
	if s.control, err = c.Listen("tcp", c.ListenControl); err != nil {
		return nil, fmt.Errorf("control port: %w", err)
	}
	if c.ListenData == "" {
		return s, nil
	}
	if s.data, err = c.Listen("tcp", c.ListenData); err != nil {
		s.control.Close()
		return nil, fmt.Errorf("data port: %w", err)
	}
	return s, nil
}

// ControlAddr is the address of the control port.
func (s *Server) ControlAddr() net.Addr { return s.control.Addr() }

// DataAddr is the address of the data port, which may be the control port.
func (s *Server) DataAddr() net.Addr {
	if s.data == nil {
		return s.control.Addr()
	}
	return s.data.Addr()
}

// Counters of all sessions, ever.
func (s *Server) Counters() *Counters { return s.c.Counters }

// Close closes the ports of a server that is not to Serve.
func (s *Server) Close() {
	s.control.Close()
	if s.data != nil {
		s.data.Close()
	}
}

// Serve takes sessions until ctx ends or a port fails; then all sessions are over
// and both ports closed. Asked to stop, it returns nil.
func (s *Server) Serve(ctx context.Context, h Handler) error {
	run, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	defer context.AfterFunc(run, s.Close)()
	var wg sync.WaitGroup
	listen := func(port net.Listener, first ...frameType) {
		wg.Go(func() { fail(s.accept(run, port, func(c net.Conn) { s.take(run, c, h, first) })) })
	}
	if s.data == nil {
		listen(s.control, typeHello, typeJoin, typeTest, typeAttach)
	} else {
		listen(s.control, typeHello)
		listen(s.data, typeJoin, typeTest, typeAttach)
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(run)
}

// accept gives each connection to take, in a goroutine of its own, until the port
// is closed; it returns when all of them have.
func (s *Server) accept(ctx context.Context, port net.Listener, take func(net.Conn)) error {
	return acceptAll(ctx, port, s.slots, take, func(conn net.Conn) {
		s.refuse(conn, &refusal{ReasonFull, errors.New("too many connections")})
	}, func() {})
}

// acceptAll gives each connection to take, in a goroutine of its own and with an entry in slots that take
// gives back, or where there is no room to refused, until the port is closed. Then it calls closed, and returns when all takes
// have. A want of descriptors passes.
func acceptAll(ctx context.Context, port net.Listener, slots chan struct{}, take, refused func(net.Conn), closed func()) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer closed()
	for {
		conn, err := port.Accept()
		var passing interface{ Temporary() bool }
		switch {
		case err == nil:
		case ctx.Err() == nil && errors.As(err, &passing) && passing.Temporary():
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		default:
			return err
		}
		select {
		case slots <- struct{}{}:
			wg.Go(func() { take(conn) })
		default:
			conn.Close()
			refused(conn)
		}
	}
}

// refuse counts, and tells the log now and then.
func (s *Server) refuse(conn net.Conn, err error) {
	reason := reasonOf(err)
	s.c.Counters.refused[reason].Add(1)
	if n := s.refusals.say(reason, time.Now()); n > 0 {
		s.c.Log.Warn("connection refused", "from", conn.RemoteAddr(), "reason", reason, "error", err, "times", n)
	}
}

// refusalLog lets one line a second and reason through, so that nobody can fill the log.
type refusalLog struct {
	sync.Mutex
	last   [reasons]time.Time
	silent [reasons]int
}

// say returns how many refusals the line to be written now stands for, 0 for none.
func (l *refusalLog) say(r Reason, now time.Time) int {
	l.Lock()
	defer l.Unlock()
	l.silent[r]++
	if !l.last[r].IsZero() && now.Sub(l.last[r]) < time.Second {
		return 0
	}
	n := l.silent[r]
	l.last[r], l.silent[r] = now, 0
	return n
}

// take takes a connection through TLS; its first frame, one of those that its port
// takes, says what it is. It returns at the connection's end, or when a control
// connection has taken it.
func (s *Server) take(ctx context.Context, conn net.Conn, h Handler, first []frameType) {
	release := sync.OnceFunc(func() { <-s.slots })
	defer release()
	deadline := time.Now().Add(handshakeTime)
	c := s.c.Counters
	sent, received := &c.ControlSent, &c.ControlReceived
	if first[0] != typeHello {
		sent, received = &c.DataSent, &c.DataReceived
	}
	l, err := open(ctx, conn, false, s.tls, sent, received)
	if err != nil {
		s.refuse(conn, err)
		return
	}
	l.taped(s.c.Tape, tape.Taken)
	whole := l.guard(ctx, tlsTime)
	t, body, err := readOneOf(l, first...)
	if err != nil {
		whole()
		l.hangUp()
		s.refuse(conn, err)
		return
	}
	tune(conn, t == typeHello)
	if t != typeHello {
		l.test = t == typeTest
		l.socket.belongs(&c.DataSent, &c.DataReceived)
		if t == typeAttach {
			s.takeAttach(l, body, whole)
			return
		}
		s.takeData(l, token(body), whole)
		return
	}
	l.SetDeadline(deadline)
	s.takeControl(ctx, l, body, h, deadline, whole, release)
}

// takeControl takes a control connection from its first frame to the end of its session.
func (s *Server) takeControl(ctx context.Context, l *link, first []byte, h Handler, deadline time.Time, whole func() bool, release func()) {
	defer l.hangUp()
	defer whole()
	conn := l.socket.Conn
	session := newSession(ctx, false, l, h, s.c.Counters, s.c.Log)
	session.memory = s.memory
	defer session.end(ErrClosed)
	defer close(session.done)
	if err := s.greet(session, first, deadline); err != nil {
		s.refuse(conn, err)
		return
	}
	defer session.data.hangUp()
	if session.data.test {
		if !whole() {
			return
		}
		release()
		s.takeTest(ctx, session)
		return
	}
	if !s.enter(session) {
		s.reject(session, CodeBusy, "too many sessions")
		s.refuse(conn, &refusal{ReasonFull, errors.New("too many sessions")})
		return
	}
	defer s.leave(session)
	left, err := s.sit(session, deadline)
	if err != nil {
		s.reject(session, CodeSuperseded, err.Error())
		return
	}
	defer left()
	if err := h.Opened(session); err != nil {
		s.reject(session, CodeOther, err.Error())
		return
	}
	s.run(session, true)
	defer s.run(session, false)
	if err := writeHandshake(session.data, typeJoined, nil); err != nil || !whole() || session.data.SetDeadline(time.Time{}) != nil {
		session.end(&lostError{"data", errors.Join(err, net.ErrClosed)})
	}
	release()
	session.run()
}

// greet agrees on a version and waits for the data connection. What goes wrong is
// a refusal.
func (s *Server) greet(session *Session, first []byte, deadline time.Time) error {
	hi, err := parseHello(first)
	if err != nil {
		return err
	}
	w := welcome{version: pick(s.c.speaks, hi.speaks), speaks: s.c.speaks}
	if w.version == 0 {
		writeHandshake(session.control, typeWelcome, w.appendTo)
		return &refusal{ReasonVersion, &VersionError{s.c.speaks, hi.speaks}}
	}
	session.version = w.version
	rand.Read(w.token[:])
	session.token = w.token
	j := &joining{session.control.peer, make(chan *link, 1)}
	s.mu.Lock()
	s.mu.joining[w.token] = j
	s.mu.Unlock()
	err = writeHandshake(session.control, typeWelcome, w.appendTo)
	timeout := time.NewTimer(time.Until(deadline))
	defer timeout.Stop()
	if err == nil {
		select {
		case data := <-j.data:
			session.setData(data)
			return nil
		case <-timeout.C:
			err = &refusal{ReasonTimeout, errors.New("no data connection joined")}
		case <-session.ctx.Done():
			err = session.reason()
		}
	}
	s.mu.Lock()
	_, still := s.mu.joining[w.token]
	delete(s.mu.joining, w.token)
	s.mu.Unlock()
	if !still { // it came in this very moment
		(<-j.data).cut()
	}
	return err
}

// takeData gives a data connection to the control connection it names.
func (s *Server) takeData(l *link, t token, whole func() bool) {
	err := net.ErrClosed
	if whole() {
		if j := s.join(t, l.peer); j != nil {
			l.SetDeadline(time.Now().Add(handshakeTime)) // for Joined
			j.data <- l
			return
		}
		err = &refusal{ReasonToken, fmt.Errorf("%v joins no session of its own", l.peer)}
		writeHandshake(l, typeBye, bye{CodeProtocol, "no such session"}.appendTo)
	}
	l.hangUp()
	s.refuse(l.socket.Conn, err)
}

// join finds, once, the control connection of the same peer that was given the token.
func (s *Server) join(t token, peer Peer) *joining {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.mu.joining[t]
	if j == nil || j.peer != peer {
		return nil
	}
	delete(s.mu.joining, t)
	return j
}

// reject tells the peer, on the data connection, why there is no session.
func (s *Server) reject(session *Session, code Code, text string) {
	s.c.Log.Warn("session refused", "peer", session.Peer().String(), "reason", text)
	writeHandshake(session.data, typeBye, bye{code, text}.appendTo)
}

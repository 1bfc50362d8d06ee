package wire

import (
	"bufio"
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// linkTests is how many link tests a target runs at once; more are told it is busy.
const linkTests = 2

// takeTest carries the target's end of a link test. It has no part in the peer's
// session, if there is one, which goes on beside it.
func (s *Server) takeTest(ctx context.Context, session *Session) {
	if session.version < testsSince {
		s.reject(session, CodeProtocol, "a link test in a version without it")
		return
	}
	select {
	case s.tests <- struct{}{}:
		defer func() { <-s.tests }()
	default:
		s.reject(session, CodeBusy, "another link test is running")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, testWhole)
	defer cancel()
	e := &testEnd{control: session.control, data: session.data}
	defer context.AfterFunc(ctx, func() { e.control.cut(); e.data.cut() })()
	if writeHandshake(e.data, typeJoined, nil) != nil || e.data.SetDeadline(time.Time{}) != nil {
		return
	}
	e.data.socket.cork()
	s.c.Counters.LinkTests.Add(1)
	began := time.Now()
	err := e.serve(ctx)
	s.c.Counters.broke(err)
	s.c.Log.Info("link test", "peer", session.Peer().String(), "lasted", time.Since(began).Round(time.Millisecond),
		"received", e.data.socket.received.Load(), "sent", e.data.socket.sent.Load(), "error", err)
}

// testEnd is the target's end of one test.
type testEnd struct {
	control, data *link
	writing       sync.Mutex // of frames on control
	mu            struct {
		sync.Mutex
		bulk bool // one is under way
	}
}

// serve answers until the source says Bye or goes.
func (e *testEnd) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var bulks sync.WaitGroup
	defer bulks.Wait()
	defer e.data.cut()
	defer cancel()
	r := bufio.NewReader(e.control)
	for {
		e.control.SetReadDeadline(time.Now().Add(testIdle))
		t, body, err := readOneOf(r, typePing, typePush, typePull)
		var peer *PeerError
		switch {
		case errors.As(err, &peer) && peer.Code == CodeStopping, errors.Is(err, io.EOF):
			return nil
		case err == nil && t == typePing:
			err = e.pong(body)
		case err == nil:
			err = e.begin(ctx, t, body, &bulks)
		}
		if err != nil {
			if errors.Is(err, ErrProtocol) {
				e.say(typeBye, bye{CodeProtocol, err.Error()}.appendTo)
			}
			return err
		}
	}
}

func (e *testEnd) pong(body []byte) error {
	p, err := parsePing(body)
	if err != nil {
		return err
	}
	return e.say(typePong, func(b []byte) []byte { return pong{p.number, time.Now().UnixNano()}.appendTo(b) })
}

// begin starts the bulk that was asked for; there is one at a time.
func (e *testEnd) begin(ctx context.Context, t frameType, body []byte, bulks *sync.WaitGroup) error {
	k, err := parseBulk(body)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.mu.bulk {
		return protocolError("two bulks at once")
	}
	e.mu.bulk = true
	bulks.Go(func() {
		var m measured
		var err error
		if t == typePush {
			m, err = receiveBulk(e.data, k.bytes, func(m measured) { e.say(typeMeasured, m.appendTo) })
		} else {
			err = sendBulk(ctx, e.data, k, nil)
			tcp, _ := tcpOf(e.data.socket.Conn)
			m.tcp, m.last = tcp.TCPStats, true
		}
		if err != nil {
			e.control.cut() // the source learns that this test is over
			return
		}
		e.mu.Lock()
		e.mu.bulk = false
		e.mu.Unlock()
		e.say(typeMeasured, m.appendTo)
	})
	return nil
}

// say writes one frame on control.
func (e *testEnd) say(t frameType, body func([]byte) []byte) error {
	e.writing.Lock()
	defer e.writing.Unlock()
	e.control.SetWriteDeadline(time.Now().Add(deadAfter))
	return writeHandshake(e.control, t, body)
}

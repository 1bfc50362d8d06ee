package wire

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// probe is the source's end of one test. Its methods are for one goroutine.
type probe struct {
	control, data *link
	version       uint16
	ctx           context.Context
	end           context.CancelCauseFunc
	reading       sync.WaitGroup
	pongs         chan seen     // of the reader; nobody waits to give one
	reports       chan measured // of the reader

	told func(bytes int) // of what push writes; may be nil

	number uint64 // of the last ping
	asked  map[uint64]time.Time
	seen   []seen // answers to pings
}

// seen is an answer to a ping.
type seen struct {
	number  uint64
	came    time.Time
	trip    time.Duration
	theirs  int64 // the target's wall clock as it answered, ns since 1970
	ourWall int64 // ours as the answer came
}

// dialTest opens both connections of a test. The data connection's packets are of at
// most packet bytes, 0 for no bound of ours; those of control are always small, so
// that it works where large ones get lost.
func dialTest(ctx context.Context, c *ClientConfig, packet int) (p *probe, err error) {
	small := smallPackets
	if packet > 0 {
		small = min(small, packet)
	}
	control, err := c.controlLink(ctx, small)
	if err != nil {
		return nil, fmt.Errorf("control connection: %w", err)
	}
	shake, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	controlWhole := control.guard(shake, handshakeTime)
	defer func() {
		if err != nil {
			controlWhole()
			control.hangUp()
		}
	}()
	w, err := c.greet(control)
	if err != nil {
		return nil, fmt.Errorf("control connection: %w", err)
	}
	if w.version < testsSince && !invariant.Planted("wire/test-of-old-peers") {
		return nil, ErrNoLinkTest
	}
	data, err := c.testData(shake, control, w.token, packet)
	if err != nil {
		var refused *PeerError
		if ctx.Err() == nil && !errors.As(err, &refused) && (isStuck(err) || errors.Is(err, ErrBlackHole) || shake.Err() != nil) {
			err = errStuck // the same peer answered on control just now
		}
		return nil, fmt.Errorf("data connection: %w", err)
	}
	if !controlWhole() {
		data.hangUp()
		return nil, fmt.Errorf("control connection: %w", context.Cause(shake))
	}
	p = &probe{
		control: control, data: data, version: w.version, asked: make(map[uint64]time.Time),
		pongs: make(chan seen, 64), reports: make(chan measured, 64),
	}
	p.ctx, p.end = context.WithCancelCause(ctx)
	p.reading.Go(p.read)
	return p, nil
}

// testData opens the data connection of a test.
func (c *ClientConfig) testData(ctx context.Context, control *link, t token, packet int) (*link, error) {
	data, err := c.dataLink(ctx, control, packet)
	if err != nil {
		return nil, err
	}
	whole := data.guard(ctx, handshakeTime)
	_, err = ask(data, typeTest, func(p []byte) []byte { return append(p, t[:]...) }, typeJoined)
	if !whole() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		data.hangUp()
		return nil, err
	}
	data.socket.cork()
	return data, nil
}

// close ends the test: the target is told, and both connections are gone.
func (p *probe) close() {
	p.control.SetWriteDeadline(time.Now().Add(byeTime))
	writeHandshake(p.control, typeBye, bye{CodeStopping, "done"}.appendTo)
	p.end(ErrClosed)
	p.control.hangUp()
	p.data.cut()
	p.reading.Wait()
}

// ipv6 says which headers the segments have.
func (p *probe) ipv6() bool {
	a, ok := p.data.socket.RemoteAddr().(*net.TCPAddr)
	return ok && a.IP.To4() == nil
}

// read takes what the target says on control, until that ends.
func (p *probe) read() {
	defer context.AfterFunc(p.ctx, p.control.cut)()
	r := bufio.NewReader(p.control)
	for {
		p.control.SetReadDeadline(time.Now().Add(deadAfter))
		t, body, err := readOneOf(r, typePong, typeMeasured)
		if isTimeout(err) {
			err = ErrDead
		}
		if err == nil {
			err = p.hear(t, body)
		}
		if err != nil {
			p.end(fmt.Errorf("control connection: %w", err))
			return
		}
	}
}

func (p *probe) hear(t frameType, body []byte) error {
	if t == typePong {
		g, err := parsePong(body)
		if err != nil {
			return err
		}
		now := time.Now()
		select {
		case p.pongs <- seen{number: g.number, came: now, theirs: g.wall, ourWall: now.UnixNano()}:
			return nil
		default:
			return protocolError("answers to pings that nobody sent")
		}
	}
	m, err := parseMeasured(body)
	if err != nil {
		return err
	}
	select {
	case p.reports <- m:
		return nil
	default:
		return protocolError("more reports than there is anything to report")
	}
}

// ping asks once.
func (p *probe) ping() error {
	p.number++
	p.asked[p.number] = time.Now()
	p.control.SetWriteDeadline(time.Now().Add(deadAfter))
	return writeHandshake(p.control, typePing, ping{p.number}.appendTo)
}

// pong takes an answer in.
func (p *probe) pong(s seen) error {
	at, ok := p.asked[s.number]
	if !ok {
		return protocolError("an answer to ping %d, which was not sent or was answered", s.number)
	}
	delete(p.asked, s.number)
	s.trip = s.came.Sub(at)
	p.seen = append(p.seen, s)
	return nil
}

// pingIdle measures the round trip with nothing else on the link.
func (p *probe) pingIdle() error {
	whole := time.NewTimer(pingsTake)
	defer whole.Stop()
	for range pings {
		if err := p.ping(); err != nil {
			return err
		}
		select {
		case s := <-p.pongs:
			if err := p.pong(s); err != nil {
				return err
			}
		case <-whole.C:
			if len(p.seen) > 0 {
				return nil // fewer do as well
			}
			return ErrDead
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		}
	}
	return nil
}

// push measures source to target.
func (p *probe) push(k bulk, tell func(measured)) (*WayReport, error) {
	if err := p.say(typePush, k.appendTo); err != nil {
		return nil, err
	}
	sending, stop := context.WithCancelCause(p.ctx)
	defer stop(nil)
	var sender sync.WaitGroup
	var tcp tcpState
	sender.Go(func() {
		err := sendBulk(sending, p.data, k, p.told)
		if err != nil && !isStuck(err) {
			p.end(fmt.Errorf("data connection: %w", err))
		}
		tcp, _ = tcpOf(p.data.socket.Conn)
	})
	defer sender.Wait()
	way, err := p.watch(p.reports, nil, tell)
	if err != nil {
		stop(err)
		p.data.cut()
		return nil, err
	}
	sender.Wait()
	way.TCP = tcp.TCPStats
	return way, nil
}

// pull measures target to source.
func (p *probe) pull(k bulk, tell func(measured)) (*WayReport, error) {
	if err := p.say(typePull, k.appendTo); err != nil {
		return nil, err
	}
	var receiver sync.WaitGroup
	got := make(chan measured, 1)
	receiver.Go(func() {
		keep := func(m measured) { // the newest is enough
			select {
			case <-got:
			default:
			}
			got <- m
		}
		m, err := receiveBulk(p.data, k.bytes, keep)
		if err != nil {
			p.end(fmt.Errorf("data connection: %w", err))
			return
		}
		keep(m)
	})
	defer receiver.Wait()
	way, err := p.watch(got, p.reports, tell)
	if err != nil {
		p.data.cut()
		return nil, err
	}
	return way, nil
}

func (p *probe) say(t frameType, body func([]byte) []byte) error {
	p.control.SetWriteDeadline(time.Now().Add(deadAfter))
	return writeHandshake(p.control, t, body)
}

// watch follows a bulk by what its receiver says, with pings beside it, until the
// receiver has all and the sender, where that is the target, has told of its
// connection. Without a byte for stuckAfter, or with the marks of a black hole on our
// side, it is errStuck.
func (p *probe) watch(received <-chan measured, sender <-chan measured, tell func(measured)) (*WayReport, error) {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	var samples []measured
	way := new(WayReport)
	grew, done := time.Now(), false
	for {
		select {
		case m := <-received:
			if n := len(samples); n == 0 || m.bytes > samples[n-1].bytes {
				grew = time.Now()
			}
			samples = append(samples, m)
			tell(m)
			if done = m.last; !done {
				continue
			}
			way.Bytes, way.Took, way.Payload = m.bytes, m.took, payloadRate(samples)
		case m := <-sender:
			if !m.last {
				return nil, protocolError("a report of what is received here")
			}
			way.TCP, sender = m.tcp, nil
		case s := <-p.pongs:
			if err := p.pong(s); err != nil {
				return nil, err
			}
			continue
		case <-tick.C:
			tcp, _ := tcpOf(p.data.socket.Conn)
			if (time.Since(grew) > stuckAfter || holed(tcp)) && !done {
				return nil, errStuck
			}
			if err := p.ping(); err != nil {
				return nil, err
			}
			continue
		case <-p.ctx.Done():
			return nil, context.Cause(p.ctx)
		}
		if done && sender == nil {
			return way, nil
		}
	}
}

// passes says whether bulks pass both ways in packets of at most so many bytes. It
// takes at most so long.
func passes(ctx context.Context, c *ClientConfig, packet int, most time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	p, err := dialTest(ctx, c, packet)
	if err != nil {
		return false
	}
	defer p.close()
	k, nobody := bulk{time.Second, 32 << 10, 0}, func(measured) {}
	if _, err = p.push(k, nobody); err == nil {
		_, err = p.pull(k, nobody)
	}
	return err == nil
}

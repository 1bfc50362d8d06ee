package wire

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// LinkTest says what a link test does. The zero value is a short one.
type LinkTest struct {
	Lasts time.Duration // each way; 0 is DefaultTestTime, at most MaxTestTime
	Bytes int64         // at most, each way; 0 is DefaultTestBytes, at most MaxTestBytes
	// Cap, in bits per second as the interface counts them, is what the test does not
	// exceed, and what it tells whether it can be reached; 0 is none.
	Cap int64
	// Limit is not exceeded either, and nothing is said of it; 0 is none.
	Limit int64
	// Sent is told of what the test puts on the interface towards the target, as it does;
	// nil is nobody.
	Sent func(bytes int64)
	// Progress is told now and then how far the test is; nil is nobody. It must not wait.
	Progress func(LinkProgress)
}

// What a test does when it is not told.
const (
	DefaultTestTime  = 5 * time.Second
	DefaultTestBytes = 256 << 20
)

// Stages of a test, in order; the search only where full-size segments get lost.
const (
	StageConnect = "connect"
	StagePing    = "round trip"
	StageUp      = "to the target"
	StageDown    = "from the target"
	StageMTU     = "path MTU"
)

// LinkProgress is how far a test is.
type LinkProgress struct {
	Stage string
	Bytes int64         // received in this stage
	Took  time.Duration // since the first of them
}

// LinkReport is what a test found.
type LinkReport struct {
	Peer    Peer
	Version uint16 // of the protocol
	Idle    Spread // round trips with nothing else of the test on the link
	Loaded  Spread // and beside its bulk
	Clock   Clock
	Up      *WayReport // source to target; nil when nothing got through
	Down    *WayReport
	MTU     MTUReport
	Cap     int64 // as asked, bits per second; 0 is none
}

// Spread is of several measurements; all zero when there was none.
type Spread struct {
	Count            int
	Min, Median, Max time.Duration
}

// Clock is by how much the target's wall clock is ahead of ours, and how wrong that
// may be: half of the shortest round trip.
type Clock struct{ Ahead, Within time.Duration }

// WayReport is one direction, as its receiver saw it.
type WayReport struct {
	Bytes     int64
	Took      time.Duration
	Payload   int64 // bits per second, without what TLS and all below it add; the slow start left out
	Interface int64 // bits per second, as an Ethernet interface counts them
	TCP       TCPStats
}

// MTUReport is which packets get through. All is zero where the kernel cannot tell.
type MTUReport struct {
	Path int  // the largest packet that does, in bytes; 0 unknown
	Lost bool // larger ones vanish, and the sender is not told: a black hole
	Told int  // what the kernel takes the path MTU for
}

// ErrNoLinkTest is a target whose version has no link tests.
var ErrNoLinkTest = errors.New("the target does not support link tests: it is of an older release")

// errStuck is a bulk of which nothing arrives any more though the target answers.
var errStuck = errors.New("full-size segments do not arrive, and short ones do")

const (
	pings      = 20
	pingEvery  = 200 * time.Millisecond // beside a bulk
	pingsTake  = 5 * time.Second        // at most, all of them
	stuckAfter = 4 * time.Second        // without a byte of a bulk
	trialTime  = 3 * time.Second        // of one size of packets
)

// RunLinkTest measures the link to a target on connections of its own; c is as for
// Connect. It takes at most about twice Lasts and a minute. An error says that no
// report could be made.
func RunLinkTest(ctx context.Context, c ClientConfig, test LinkTest) (*LinkReport, error) {
	if err := errors.Join(c.validate(), test.validate()); err != nil {
		return nil, fmt.Errorf("link test: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*test.Lasts+testWhole-2*MaxTestTime)
	defer cancel()
	r := &LinkReport{Cap: test.Cap}
	err := test.measure(ctx, &c, r, 0)
	if errors.Is(err, errStuck) {
		r.MTU.Lost = true
		test.Progress(LinkProgress{Stage: StageMTU})
		most := trialTime + 20*min(r.Idle.Median, 300*time.Millisecond)
		if r.MTU.Path = findMTU(func(mtu int) bool { return passes(ctx, &c, mtu, most) }); r.MTU.Path > 0 {
			// What the link does with packets that fit it.
			if err = test.measure(ctx, &c, r, r.MTU.Path); errors.Is(err, errStuck) {
				err = nil
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("link test: %w", err)
	}
	return r, nil
}

func (t *LinkTest) validate() error {
	if t.Lasts == 0 {
		t.Lasts = DefaultTestTime
	}
	if t.Bytes == 0 {
		t.Bytes = DefaultTestBytes
	}
	if t.Progress == nil {
		t.Progress = func(LinkProgress) {}
	}
	if t.Lasts < 0 || t.Lasts > MaxTestTime || t.Bytes < 0 || t.Bytes > MaxTestBytes || t.Cap < 0 || t.Limit < 0 {
		return fmt.Errorf("%v and %d bytes each way, cap %d: at most %v and %d bytes", t.Lasts, t.Bytes, t.Cap, MaxTestTime, int64(MaxTestBytes))
	}
	return nil
}

// measure does the whole test once, with packets of at most so many bytes; 0 leaves
// them alone. It is errStuck when packets get lost for their size.
func (t *LinkTest) measure(ctx context.Context, c *ClientConfig, r *LinkReport, packet int) error {
	t.Progress(LinkProgress{Stage: StageConnect})
	p, err := dialTest(ctx, c, packet)
	if err != nil {
		return err
	}
	defer p.close()
	r.Peer, r.Version = p.control.peer, p.version
	if r.Idle.Count == 0 {
		t.Progress(LinkProgress{Stage: StagePing})
		if err := p.pingIdle(); err != nil {
			return err
		}
		r.Idle, r.Clock = spread(p.seen), clockOf(p.seen)
	}
	p.seen = nil
	k := bulk{t.Lasts, t.Bytes, 0}
	before, _ := tcpOf(p.data.socket.Conn)
	overhead := onInterface(before.MSS, p.ipv6())
	for _, limit := range []int64{t.Cap, t.Limit} {
		if rate := int64(float64(limit) / overhead); limit > 0 && (k.rate == 0 || rate < k.rate) {
			k.rate = rate
		}
	}
	if t.Sent != nil && !invariant.Planted("wire/test-is-not-charged") {
		p.told = func(bytes int) { t.Sent(int64(float64(bytes) * overhead)) }
	}
	for _, way := range []struct {
		stage string
		run   func(bulk, func(measured)) (*WayReport, error)
		to    **WayReport
	}{{StageUp, p.push, &r.Up}, {StageDown, p.pull, &r.Down}} {
		w, err := way.run(k, func(m measured) { t.Progress(LinkProgress{way.stage, m.bytes, m.took}) })
		if err != nil {
			return err
		}
		w.Interface = int64(float64(w.Payload) * overhead)
		*way.to = w
	}
	r.Loaded = spread(p.seen)
	if !r.MTU.Lost {
		r.MTU.Path = int(min(r.Up.TCP.PathMTU, r.Down.TCP.PathMTU))
	}
	r.MTU.Told = int(r.Up.TCP.PathMTU)
	return nil
}

package wire

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/wire/faultlink"
)

// linkTest runs a test against a target of a world.
func linkTest(w *world, test LinkTest, change func(*ClientConfig)) (*LinkReport, error) {
	c := ClientConfig{Control: "control", Data: "data", Dial: w.net.Dial, Credentials: sourceCredentials()}
	if change != nil {
		change(&c)
	}
	return RunLinkTest(context.Background(), c, test)
}

// A test goes beside the session of the same peer, and takes nothing of it.
func TestLinkTestBesideASession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		delay := faultlink.Way{Delay: 20 * time.Millisecond}
		w := newWorld(t, &faultlink.Net{Script: func(string, int) faultlink.Faults { return faultlink.Faults{Up: delay, Down: delay} }}, nil)
		defer w.stop()
		source := newHandler(t)
		defer w.connect(source, nil)()
		s := <-source.opened
		stages := map[string]bool{}
		const cap = 8_000_000
		r, err := linkTest(w, LinkTest{Lasts: 4 * time.Second, Cap: cap, Progress: func(p LinkProgress) { stages[p.Stage] = true }}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if r.Peer.ID != "t1" || r.Version != ours.Max || r.Idle.Count != pings || r.Idle.Median != 40*time.Millisecond || r.Loaded.Count == 0 {
			t.Errorf("%+v", r)
		}
		if r.Clock != (Clock{0, 20 * time.Millisecond}) {
			t.Errorf("clocks: %+v", r.Clock)
		}
		for _, way := range []*WayReport{r.Up, r.Down} {
			if way.Interface > cap*103/100 || way.Interface < cap*97/100 {
				t.Errorf("%d bit/s under a cap of %d", way.Interface, int64(cap))
			}
			if most := int64(cap / 8 * 4); way.Bytes > most || way.Bytes < most*8/10 {
				t.Errorf("%d bytes in 4 s under a cap of %d bit/s", way.Bytes, int64(cap))
			}
		}
		for _, stage := range []string{StageConnect, StagePing, StageUp, StageDown} {
			if !stages[stage] {
				t.Errorf("nothing was told of %q", stage)
			}
		}
		if err := s.SendRecord(context.Background(), small(1)); err != nil || s.Context().Err() != nil {
			t.Errorf("the session: %v, %v", err, context.Cause(s.Context()))
		}
		if n := w.server.Counters().LinkTests.Load(); n != 1 {
			t.Errorf("%d tests were counted", n)
		}
	})
}

// A test ends with its bytes where its time is not over.
func TestLinkTestIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, nil)
		defer w.stop()
		charged := int64(0)
		start := time.Now()
		r, err := linkTest(w, LinkTest{Lasts: time.Minute, Bytes: 1 << 20, Limit: 1 << 20, Sent: func(n int64) { charged += n }}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if charged < 1<<20 || charged > 1<<20*11/10 || r.Cap != 0 {
			t.Errorf("%d bytes were charged: %+v", charged, r)
		}
		if took := time.Since(start); took < 15*time.Second { // twice 8 s at that rate
			t.Errorf("%v: faster than the limit", took)
		}
		for _, way := range []*WayReport{r.Up, r.Down} {
			if way.Bytes < 1<<20 || way.Bytes > 1<<20+1<<16 {
				t.Errorf("%d bytes of %d", way.Bytes, 1<<20)
			}
		}
		for _, bad := range []LinkTest{{Lasts: MaxTestTime + 1}, {Bytes: MaxTestBytes + 1}, {Cap: -1}} {
			if _, err := linkTest(w, bad, nil); err == nil {
				t.Errorf("%+v was run", bad)
			}
		}
	})
}

// A target without link tests says so at once, and nothing it does not know is sent to it.
func TestLinkTestOfAnOlderTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, func(c *ServerConfig) { c.speaks = Versions{1, 3} })
		defer w.stop()
		start := time.Now()
		if _, err := linkTest(w, LinkTest{}, nil); !errors.Is(err, ErrNoLinkTest) {
			t.Errorf("an older target: %v", err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("after %v", took)
		}
		time.Sleep(handshakeTime)
		synctest.Wait()
		if got := w.server.Counters().Refusals(); got[ReasonTimeout] != 1 || len(got) != 1 {
			t.Errorf("the target refused %v", got)
		}
	})
}

// More tests at once than a target takes are told that it is busy.
func TestLinkTestsAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, nil)
		defer w.stop()
		results := make(chan error)
		for range linkTests + 1 {
			go func() {
				_, err := linkTest(w, LinkTest{Cap: 1_000_000}, nil)
				results <- err
			}()
		}
		busy := 0
		for range linkTests + 1 {
			err := <-results
			var peer *PeerError
			if errors.As(err, &peer) && peer.Code == CodeBusy {
				busy++
			} else if err != nil {
				t.Error(err)
			}
		}
		if busy != 1 {
			t.Errorf("%d of %d were told that the target is busy", busy, linkTests+1)
		}
	})
}

// A data connection that swallows everything while control lives is looked into: other
// sizes of packets are tried. One that answers nothing at all is an error.
func TestLinkTestOfALinkThatSwallows(t *testing.T) {
	f := func(name string, stuck func(address string, number int) bool, check func(*LinkReport, error)) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, &faultlink.Net{Script: func(address string, number int) (f faultlink.Faults) {
				if stuck(address, number) {
					f.Up.StallAt = 20_000
				}
				return f
			}}, nil)
			defer w.stop()
			start := time.Now()
			check(linkTest(w, LinkTest{Bytes: 1 << 20}, nil))
			if took := time.Since(start); took > 90*time.Second {
				t.Errorf("%s: %v", name, took)
			}
		})
	}
	f("the first", func(address string, number int) bool { return address == "data" && number == 0 }, func(r *LinkReport, err error) {
		if err != nil || !r.MTU.Lost || r.MTU.Path != knownMTUs[len(knownMTUs)-1] || r.Up == nil || r.Down == nil {
			t.Errorf("the first connection swallows: %+v, %v", r, err)
		}
	})
	f("all", func(address string, number int) bool { return address == "data" }, func(r *LinkReport, err error) {
		if !errors.Is(err, errStuck) {
			t.Errorf("all swallow: %+v, %v", r, err)
		}
	})
}

// What a peer may not say in a test ends the test, and no session.
func TestBadFramesOfALinkTest(t *testing.T) {
	frame := func(t frameType, body []byte) []byte {
		return appendFrame(nil, t, func(p []byte) []byte { return append(p, body...) })
	}
	k := bulk{time.Second, 1000, 0}
	f := func(name string, control, data []byte) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, &faultlink.Net{}, nil)
			defer w.stop()
			good := newHandler(t)
			defer w.connect(good, nil)()
			s := <-good.opened
			c := ClientConfig{Control: "control", Data: "data", Dial: w.net.Dial, Credentials: sourceCredentials()}
			if err := c.validate(); err != nil {
				t.Fatal(err)
			}
			p, err := dialTest(context.Background(), &c, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer p.close()
			p.control.Write(control)
			p.data.Write(data)
			p.data.socket.flush()
			select {
			case <-p.ctx.Done():
			case <-time.After(time.Second):
				t.Errorf("%s: the test goes on", name)
			}
			if s.Context().Err() != nil {
				t.Errorf("%s: the session ended: %v", name, context.Cause(s.Context()))
			}
		})
	}
	long := make([]byte, 0, 8<<20)
	for len(long) < cap(long)-testChunk-frameBytes {
		long = append(long, frame(typeChunk, make([]byte, testChunk))...)
	}
	push := frame(typePush, k.appendTo(nil))
	f("a message of sessions", frame(typeCloseStream, make([]byte, 8)), nil)
	f("a bulk without end", frame(typePush, bulk{MaxTestTime + 1, 1, 0}.appendTo(nil)), nil)
	f("two bulks", append(push, push...), nil)
	f("a record within a bulk", push, frame(typeRecord, small(1)))
	f("more bytes than announced", push, long)
}

func TestFindMTU(t *testing.T) {
	for i, want := range knownMTUs {
		asked := 0
		got := findMTU(func(mtu int) bool { asked++; return mtu <= want })
		if got != want || asked > 5 {
			t.Errorf("of path MTU %d: %d, after %d trials", knownMTUs[i], got, asked)
		}
	}
	if got := findMTU(func(mtu int) bool { return mtu <= 1410 }); got != 1400 {
		t.Errorf("of path MTU 1410: %d", got)
	}
	if got := findMTU(func(int) bool { return false }); got != 0 {
		t.Errorf("of nothing: %d", got)
	}
}

func TestPayloadRate(t *testing.T) {
	at := func(ms int, bytes int64) measured {
		return measured{bytes: bytes, took: time.Duration(ms) * time.Millisecond}
	}
	f := func(want int64, samples ...measured) {
		t.Helper()
		if got := payloadRate(samples); got != want {
			t.Errorf("%d, want %d", got, want)
		}
	}
	f(0)
	f(0, at(0, 100))
	f(8000, at(1000, 1000))
	f(8000, at(1000, 0), at(4000, 3000)) // it took a second to get going
	f(16000, at(1000, 1000), at(2000, 3000), at(4000, 7000))
}

func TestClockOf(t *testing.T) {
	answer := func(trip time.Duration, ahead time.Duration) seen {
		return seen{trip: trip, ourWall: 1_000_000, theirs: 1_000_000 + int64(ahead-trip/2)}
	}
	got := clockOf([]seen{answer(100*time.Millisecond, 0), answer(10*time.Millisecond, 3*time.Second), answer(time.Second, 0)})
	if got != (Clock{3 * time.Second, 5 * time.Millisecond}) {
		t.Errorf("%+v", got)
	}
}

func TestFindings(t *testing.T) {
	good := func() *LinkReport {
		return &LinkReport{
			Idle: Spread{20, 9e6, 10e6, 12e6}, Loaded: Spread{20, 9e6, 30e6, 60e6}, Clock: Clock{-20e6, 5e6},
			Up:   &WayReport{Interface: 19_900_000, TCP: TCPStats{Segments: 10_000, Retransmitted: 3}},
			Down: &WayReport{Interface: 94_000_000, TCP: TCPStats{Segments: 10_000}},
			MTU:  MTUReport{Path: 1500}, Cap: 20_000_000,
		}
	}
	warnings := func(change func(*LinkReport)) string {
		r := good()
		change(r)
		var texts []string
		for _, f := range r.Findings() {
			if f.Level == "warning" {
				texts = append(texts, f.Text)
			}
		}
		return strings.Join(texts, "\n")
	}
	f := func(want string, change func(*LinkReport)) {
		t.Helper()
		got := warnings(change)
		if want == "" && got != "" || !strings.Contains(got, want) || strings.Count(got, "\n") > 0 {
			t.Errorf("warnings %q, want %q", got, want)
		}
	}
	f("", func(*LinkReport) {})
	f("", func(r *LinkReport) { r.Up, r.Down, r.Loaded = nil, nil, Spread{} })
	f("20 Mbit/s to the target cannot be reached", func(r *LinkReport) { r.Up.Interface = 19_000_000 })
	f("2.0 s ahead", func(r *LinkReport) { r.Clock.Ahead = 2 * time.Second })
	f("2.0 s behind", func(r *LinkReport) { r.Clock.Ahead = -2 * time.Second })
	f("", func(r *LinkReport) { r.Clock = Clock{1500 * time.Millisecond, time.Second} }) // it may be half a second
	f("more than 1400 bytes vanish", func(r *LinkReport) { r.MTU = MTUReport{1400, true, 1500} })
	f("5.0 % of the segments from the target", func(r *LinkReport) { r.Down.TCP.Retransmitted = 500 })
	f("Under load it takes 1.5 s", func(r *LinkReport) { r.Loaded.Median = 1500 * time.Millisecond })
}

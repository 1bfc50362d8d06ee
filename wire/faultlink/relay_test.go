package faultlink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sink is a target: it reads all and says how much it has, and echoes single bytes.
type sink struct {
	port net.Listener
	wg   sync.WaitGroup
	echo bool
	mu   sync.Mutex
	got  int64
	more sync.Cond
	errs []error
}

func newSink(t *testing.T, echo bool) *sink {
	t.Helper()
	port, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{port: port, echo: echo}
	s.more.L = &s.mu
	s.wg.Go(func() {
		for {
			c, err := port.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() { s.take(c) })
		}
	})
	t.Cleanup(func() {
		port.Close()
		s.wg.Wait()
	})
	return s
}

func (s *sink) take(c net.Conn) {
	defer c.Close()
	p := make([]byte, 64<<10)
	for {
		n, err := c.Read(p)
		if s.echo && n > 0 {
			c.Write(p[:n])
		}
		s.mu.Lock()
		s.got += int64(n)
		if err != nil {
			s.errs = append(s.errs, err)
		}
		s.more.Broadcast()
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// wait waits until the condition on the sink holds.
func (s *sink) wait(until func() bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !until() {
		s.more.Wait()
	}
}

func (s *sink) route() Route { return Route{"127.0.0.1:0", s.port.Addr().String()} }

func startRelay(t *testing.T, c RelayConfig) *Relay {
	t.Helper()
	r, err := OpenRelay(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

func dialRelay(t *testing.T, r *Relay, route int) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", r.Addrs()[route].String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// flood writes until the connection ends.
func flood(c net.Conn) error {
	p := make([]byte, 64<<10)
	for {
		if _, err := c.Write(p); err != nil {
			return err
		}
	}
}

func TestRelayRate(t *testing.T) {
	for _, bits := range []int64{5e6, 50e6} {
		t.Run(fmt.Sprint(bits/1e6, "Mbit"), func(t *testing.T) {
			t.Parallel()
			s := newSink(t, false)
			r := startRelay(t, RelayConfig{Routes: []Route{s.route()}, Rate: bits})
			c := dialRelay(t, r, 0)
			done := make(chan error, 1)
			go func() { done <- flood(c) }()
			more := func(n int64) {
				s.mu.Lock()
				from := s.got
				s.mu.Unlock()
				s.wait(func() bool { return s.got >= from+n })
			}
			more(bits / 8 / 4) // a quarter of a second
			best := 0.0
			for range 4 {
				start := time.Now()
				from, _ := r.Carried()
				more(bits / 8 / 2)
				to, _ := r.Carried()
				took := time.Since(start)
				if most := float64(bits)*(took+catchUp).Seconds()/8 + float64(r.up.quantum()); float64(to-from) > most {
					t.Errorf("%d bytes went through in %v, of %.0f at most", to-from, took, most)
				}
				best = max(best, float64(to-from)*8/took.Seconds())
			}
			// How near it comes is told by -v; a busy machine must not fail this.
			t.Logf("carried %.2f Mb/s", best/1e6)
			if best < float64(bits)/2 {
				t.Errorf("carried %.2f Mb/s at best", best/1e6)
			}
			r.Down()
			<-done
		})
	}
}

// A full connection delays a byte on another by a few quanta, not by what it has queued.
func TestFullRouteDoesNotStarveAnother(t *testing.T) {
	full, echo := newSink(t, false), newSink(t, true)
	r := startRelay(t, RelayConfig{Routes: []Route{full.route(), echo.route()}, Rate: 5e6})
	c, ping := dialRelay(t, r, 0), dialRelay(t, r, 1)
	done := make(chan error, 1)
	go func() { done <- flood(c) }()
	full.wait(func() bool { return full.got > 100<<10 })
	var took []time.Duration
	for range 11 {
		start := time.Now()
		var p [1]byte
		if _, err := ping.Write(p[:]); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(ping, p[:]); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	// What is queued takes each of them seconds; a busy machine is late with some.
	if d := took[len(took)/4]; d > 50*time.Millisecond {
		t.Errorf("a byte there and back beside a full connection takes %v", took)
	}
	r.Down()
	<-done
}

func TestDownCutsAtOnceAndUpCarriesAgain(t *testing.T) {
	s := newSink(t, false)
	r := startRelay(t, RelayConfig{Routes: []Route{s.route()}, Rate: 5e6})
	c := dialRelay(t, r, 0)
	done := make(chan error, 1)
	go func() { done <- flood(c) }()
	s.wait(func() bool { return s.got > 200<<10 })
	r.Down()
	through, _ := r.Carried()
	if !r.IsDown() {
		t.Error("down, and does not say so")
	}
	var err error
	for ended := false; !ended; {
		select {
		case err = <-done:
			ended = true
		case <-time.After(10 * time.Millisecond):
		}
		if after, _ := r.Carried(); after > through+int64(r.up.quantum()) { // what was under way
			t.Fatalf("%d bytes went through after the cut", after-through)
		}
	}
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the sender saw %v", err)
	}
	s.wait(func() bool { return len(s.errs) == 1 })
	if !errors.Is(s.errs[0], syscall.ECONNRESET) {
		t.Errorf("the receiver saw %v", s.errs[0])
	}
	again, err := net.Dial("tcp", r.Addrs()[0].String())
	if err == nil {
		again.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err = again.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a connection over a link that is down: %v", err)
		}
		again.Close()
	}
	r.Up()
	before := s.got
	again = dialRelay(t, r, 0)
	if _, err := again.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	s.wait(func() bool { return s.got == before+100 })
}

// What goes in comes out, whatever the rate, the delay and the size of the pieces,
// and an end of one way leaves the other.
func TestRelayKeepsBytesAndHalfCloses(t *testing.T) {
	port, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { // answers with what it got, once it has all
		for {
			c, err := port.Accept()
			if err != nil {
				return
			}
			p, _ := io.ReadAll(c)
			c.Write(p)
			c.Close()
		}
	})
	defer port.Close()
	for _, c := range []RelayConfig{{}, {Rate: 80e6}, {Delay: 30 * time.Millisecond}, {Rate: 80e6, Delay: 10 * time.Millisecond},
		{Script: func(int, int) Faults { return Faults{Way{Slice: 7}, Way{Slice: 1000}} }}} {
		c.Routes = []Route{{"127.0.0.1:0", port.Addr().String()}}
		r := startRelay(t, c)
		conn := dialRelay(t, r, 0)
		sent := make([]byte, 200<<10)
		for i, rng := 0, rand.New(rand.NewPCG(3, 4)); i < len(sent); i++ {
			sent[i] = byte(rng.Uint32())
		}
		start := time.Now()
		go func() {
			conn.Write(sent)
			conn.(*net.TCPConn).CloseWrite()
		}()
		got, err := io.ReadAll(conn)
		if err != nil || string(got) != string(sent) {
			t.Errorf("rate %d, delay %v: %d bytes came back, %v", c.Rate, c.Delay, len(got), err)
		}
		if d := time.Since(start); d < 2*c.Delay {
			t.Errorf("a delay of %v each way, and back after %v", c.Delay, d)
		}
		if up, down := r.Carried(); up != int64(len(sent)) || down != up {
			t.Errorf("counted %d up and %d down", up, down)
		}
	}
}

func TestScriptedCutIsToTheByte(t *testing.T) {
	s := newSink(t, false)
	r := startRelay(t, RelayConfig{Routes: []Route{s.route()},
		Script: func(_, number int) Faults { return Faults{Up: Way{CutAt: 1000 + int64(number)}} }})
	for i := range 2 {
		before := s.got
		c := dialRelay(t, r, 0)
		c.Write(make([]byte, 5000))
		s.wait(func() bool { return len(s.errs) == i+1 })
		if s.got > before+1000+int64(i) {
			t.Errorf("%d bytes passed a cut at %d", s.got-before, 1000+i)
		}
		c.Close()
	}
}

func TestFrozenRelayTellsNobody(t *testing.T) {
	s := newSink(t, true)
	r := startRelay(t, RelayConfig{Routes: []Route{s.route()}})
	c := dialRelay(t, r, 0)
	c.Write([]byte("a"))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	r.Freeze()
	c.Write([]byte("b"))
	c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	var timeout net.Error
	if _, err := c.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("over a frozen link: %v", err)
	}
}

func TestRelayRefusesUselessRates(t *testing.T) {
	if _, err := OpenRelay(RelayConfig{Rate: 100}); err == nil {
		t.Error("a link of 100 bit/s")
	}
	if _, err := OpenRelay(RelayConfig{Routes: []Route{{"127.0.0.1:0", "x"}, {"256.0.0.1:0", "x"}}}); err == nil {
		t.Error("a port on no address")
	}
}

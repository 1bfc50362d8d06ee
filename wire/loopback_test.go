package wire

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/wire/faultlink"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// overRelay is a target on real sockets behind a relay, and a source's configuration for it.
func overRelay(t testing.TB, rate int64, h Handler) (*faultlink.Relay, ClientConfig) {
	t.Helper()
	s, err := Listen(ServerConfig{
		ListenControl: "127.0.0.1:0", ListenData: "127.0.0.1:0",
		Credentials: Credentials{Certificate: sites().target, Pins: []Pin{sites().east.pin()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	r, err := faultlink.OpenRelay(faultlink.RelayConfig{Rate: rate, Routes: []faultlink.Route{
		{Listen: "127.0.0.1:0", Target: s.ControlAddr().String()}, {Listen: "127.0.0.1:0", Target: s.DataAddr().String()}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 2)
	go func() { served <- s.Serve(ctx, h) }()
	go func() { served <- r.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-served; err != nil {
				t.Error(err)
			}
		}
		if out := s.memory.out(); out != 0 {
			t.Errorf("%d buffers are not home", out)
		}
	})
	return r, ClientConfig{Control: r.Addrs()[0].String(), Data: r.Addrs()[1].String(), Credentials: sourceCredentials()}
}

// connected runs a source until the test ends.
func connected(t testing.TB, c ClientConfig, h Handler) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Connect(ctx, c, h) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A link that is full of data for longer than a silent peer would live: heartbeats
// and acks pass in time.
func TestFullDataDoesNotStarveControl(t *testing.T) {
	t.Parallel()
	target, source := newHandler(t), newHandler(t)
	target.onRecord = func(s *Session, r *Received) error {
		defer r.Release()
		return s.Send(&Durable{testStream, r.Header().Seq})
	}
	r, c := overRelay(t, 4e6, target)
	connected(t, c, source)
	s := <-source.opened
	var took []time.Duration
	start := time.Now()
	for seq := record.Seq(1); time.Since(start) < deadAfter+2*time.Second; seq++ {
		if err := s.SendRecord(context.Background(), large(seq, 400_000)); err != nil {
			t.Fatalf("after %v: %v", time.Since(start), err)
		}
		took = append(took, s.RTT())
	}
	slices.Sort(took) // one behind data would wait for a record of 800 ms each time; one alone, when the machine stood still
	if d := took[len(took)/2]; d == 0 || d > 500*time.Millisecond {
		t.Errorf("heartbeats took %v", took)
	}
	r.Down()
	if err := <-source.closed; err == nil {
		t.Error("the link was cut, and the session ended for nothing")
	}
}

// The link is cut many times under load: each session goes on where the target
// stands, and every record comes once.
func TestLinkFlaps(t *testing.T) {
	t.Parallel()
	target, source := newHandler(t), newHandler(t)
	const last = 400
	var durable atomic.Uint64
	target.onMessage = func(s *Session, m Message) error {
		return s.Send(&Stand{Stream: testStream, Durable: record.Seq(durable.Load()), Epoch: 1})
	}
	target.onRecord = func(s *Session, r *Received) error {
		defer r.Release()
		if seq := uint64(r.Header().Seq); seq != durable.Load()+1 {
			return fmt.Errorf("record %d after %d", seq, durable.Load())
		}
		return s.Send(&Durable{testStream, record.Seq(durable.Add(1))})
	}
	done := make(chan struct{})
	reached := sync.OnceFunc(func() { close(done) })
	records := make([][]byte, last+1)
	for seq := record.Seq(1); seq <= last; seq++ {
		records[seq] = large(seq, 20_000)
	}
	half := make(chan struct{}, 1)
	source.onOpened = func(s *Session) error { return s.Send(openStream()) }
	source.onMessage = func(s *Session, m Message) error {
		switch m := m.(type) {
		case *Stand:
			if m.Durable == last { // the acknowledgement itself was cut off
				reached()
			}
			go func() {
				for seq := m.Durable + 1; seq <= last; seq++ {
					if s.SendRecord(context.Background(), records[seq]) != nil {
						return
					}
				}
			}()
		case *Durable:
			if m.Seq%80 == 0 {
				select {
				case half <- struct{}{}:
				default:
				}
			}
			if m.Seq == last {
				reached()
			}
		}
		return nil
	}
	r, c := overRelay(t, 0, target)
	connected(t, c, source)
	for cuts := 0; ; {
		select {
		case <-half:
			if cuts++; cuts <= 3 {
				r.Down()
				r.Up()
			}
			continue
		case <-done:
		case <-time.After(5 * time.Minute):
			t.Errorf("stuck at %d", durable.Load())
		}
		break
	}
	if durable.Load() != last {
		t.Errorf("%d of %d records came", durable.Load(), last)
	}
}

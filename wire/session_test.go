package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/wire/faultlink"
	"github.com/holdfast-dr/holdfast/wire/record"
)

func TestSessionCarriesMessagesAndRecordsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, nil)
		defer w.stop()
		var got [][]byte
		w.target.onRecord = func(s *Session, r *Received) error {
			got = append(got, bytes.Clone(r.Bytes()))
			if r.Header().Seq == 5 {
				return errors.Join(s.Send(&Durable{testStream, 5}), release(r))
			}
			return release(r)
		}
		w.target.onMessage = func(s *Session, m Message) error { return s.Send(&Stand{Stream: testStream, Epoch: 1}) }
		source := newHandler(t)
		stop := w.connect(source, nil)
		defer stop()
		s := <-source.opened
		if s.Peer() != (Peer{"west", RoleVRA, "t1"}) {
			t.Errorf("the source talks to %v", s.Peer())
		}
		if err := s.Send(openStream()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		records := [][]byte{small(1), large(2, 100), large(3, 16<<10), small(4), large(5, 3<<20)}
		for _, rec := range records {
			if err := s.SendRecord(context.Background(), rec); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		stop()
		w.stop()
		if !slices.EqualFunc(got, records, bytes.Equal) {
			t.Errorf("%d records came, or other bytes", len(got))
		}
		want := []string{"opened west/vra/t1", "&{Stream:0000000000000007 Durable:0 Incarnation:0 Epoch:1 NeedOpen:false}",
			"&{Stream:0000000000000007 Seq:5}", "closed"}
		if said := source.said(); !slices.Equal(said, want) {
			t.Errorf("the source saw %q", said)
		}
		want = []string{"opened east/vra/s1", fmt.Sprintf("%+v", openStream())}
		for i, rec := range records {
			want = append(want, fmt.Sprintf("record %d of %d bytes", i+1, len(rec)))
		}
		if said := w.target.said(); !slices.Equal(said, append(want, "closed")) {
			t.Errorf("the target saw %q", said)
		}
		if err := <-source.closed; !errors.Is(err, ErrClosed) {
			t.Errorf("the source, asked to stop, closed for: %v", err)
		}
		var peer *PeerError
		if err := <-w.target.closed; !errors.As(err, &peer) || peer.Code != CodeStopping {
			t.Errorf("the target was told: %v", err)
		}
	})
}

func release(r *Received) error {
	r.Release()
	return nil
}

func TestSessionWithoutTrafficLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		delay := faultlink.Faults{Up: faultlink.Way{Delay: 300 * time.Millisecond}, Down: faultlink.Way{Delay: 50 * time.Millisecond}}
		w := newWorld(t, &faultlink.Net{Script: func(string, int) faultlink.Faults { return delay }}, nil)
		defer w.stop()
		source := newHandler(t)
		defer w.connect(source, nil)()
		s := <-source.opened
		select {
		case <-s.Done():
			t.Fatal("the session ended: ", <-source.closed)
		case <-time.After(time.Hour):
		}
		if s.RTT() != 350*time.Millisecond {
			t.Errorf("the round trip is %v", s.RTT())
		}
		if since := time.Since(s.Heard()); since > 2*heartbeatEvery {
			t.Errorf("last heard %v ago", since)
		}
	})
}

// ended waits for a session to close, and says how long that took and why.
func ended(t *testing.T, h *handler, start time.Time) (time.Duration, error) {
	t.Helper()
	select {
	case err := <-h.closed:
		return time.Since(start), err
	case <-time.After(time.Minute):
		t.Error("the session goes on")
		return time.Since(start), nil
	}
}

func TestSilentPeerIsDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, nil)
		defer w.stop()
		source := newHandler(t)
		defer w.connect(source, nil)()
		s := <-source.opened
		<-w.target.opened
		synctest.Wait()
		start := time.Now()
		w.net.Freeze()
		for _, h := range []*handler{source, w.target} {
			took, err := ended(t, h, start)
			if !errors.Is(err, ErrDead) || took < 4*time.Second || took > 6*time.Second {
				t.Errorf("the link went silent: after %v, %v", took, err)
			}
		}
		if err := s.Send(openStream()); !errors.Is(err, ErrDead) {
			t.Errorf("Send after the end: %v", err)
		}
		if err := s.SendRecord(context.Background(), small(1)); !errors.Is(err, ErrDead) {
			t.Errorf("SendRecord after the end: %v", err)
		}
		<-source.opened // and it comes back by itself
	})
}

// The data connection alone goes silent, mid-record: heartbeats go on, and still
// it is found.
func TestStuckDataConnectionIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &faultlink.Net{Script: func(address string, number int) (f faultlink.Faults) {
			if address == "data" && number == 0 {
				f.Up.StallAt = 100_000
			}
			return f
		}}
		w := newWorld(t, n, nil)
		defer w.stop()
		source := newHandler(t)
		defer w.connect(source, nil)()
		s := <-source.opened
		start := time.Now()
		go func() {
			for seq := record.Seq(1); s.SendRecord(context.Background(), large(seq, 60_000)) == nil; seq++ {
			}
		}()
		took, err := ended(t, source, start)
		if !errors.Is(err, ErrStalled) || took < stalledAfter || took > stalledAfter+3*time.Second {
			t.Errorf("the data connection went silent: after %v, %v", took, err)
		}
		if err != nil {
			<-source.opened
		}
	})
}

func TestIdleDataConnectionIsNotStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, nil)
		defer w.stop()
		source := newHandler(t)
		defer w.connect(source, nil)()
		s := <-source.opened
		for seq := record.Seq(1); seq <= 20; seq++ { // rare, as on an idle group
			time.Sleep(time.Minute)
			if err := s.SendRecord(context.Background(), small(seq)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A target whose journal hangs holds back its source for as long as it takes; both
// know that the other lives.
func TestSlowTargetIsNotDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, nil)
		defer w.stop()
		w.target.onRecord = func(s *Session, r *Received) error {
			defer r.Release()
			select {
			case <-time.After(2 * time.Minute):
			case <-s.Context().Done():
			}
			return nil
		}
		source := newHandler(t)
		defer w.connect(source, nil)()
		s := <-source.opened
		for seq := record.Seq(1); seq <= 3; seq++ {
			if err := s.SendRecord(context.Background(), large(seq, 500_000)); err != nil {
				t.Fatalf("record %d: %v", seq, err)
			}
		}
	})
}

// The same when it is the receive memory that is used up.
func TestUsedUpMemoryHoldsBackTheSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, func(c *ServerConfig) { c.ReceiveBytes = 1 })
		defer w.stop()
		held := make(chan *Received, 100)
		w.target.onRecord = func(_ *Session, r *Received) error {
			held <- r
			return nil
		}
		source := newHandler(t)
		stop := w.connect(source, nil)
		defer stop()
		s := <-source.opened
		sent := make(chan error, 1)
		go func() {
			var err error
			for seq := record.Seq(1); seq <= 40 && err == nil; seq++ {
				err = s.SendRecord(context.Background(), large(seq, 60_000))
			}
			sent <- err
		}()
		time.Sleep(5 * time.Minute)
		if len(held) != 2 || w.server.memory.out() != 2 {
			t.Errorf("%d records were received into room for 2", len(held))
		}
		for range 40 {
			(<-held).Release()
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
	})
}

// A source that is started anew gets its seat once what is left of its session before is found dead,
// and done with what it had under way.
func TestSeatOfADeadSessionIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, nil)
		defer w.stop()
		w.target.onRecord = func(s *Session, r *Received) error {
			defer r.Release()
			<-s.Context().Done()        // the end is asked for,
			time.Sleep(2 * time.Second) // and what runs takes its time
			return nil
		}
		first, second := newHandler(t), newHandler(t)
		stop := w.connect(first, nil)
		old := <-first.opened
		if err := old.SendRecord(context.Background(), small(1)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.net.Freeze() // the host is gone: nobody says goodbye
		stop()
		began := time.Now()
		defer w.connect(second, nil)()
		<-second.opened
		if took := time.Since(began); took > seatTime {
			t.Errorf("it waited %v for its own seat", took)
		}
		if err := <-w.target.closed; !errors.Is(err, ErrDead) {
			t.Errorf("the target closed the older one for: %v", err)
		}
		want := []string{"opened east/vra/s1", fmt.Sprintf("record 1 of %d bytes", len(small(1))), "closed", "opened east/vra/s1"}
		if said := w.target.said(); !slices.Equal(said, want) {
			t.Errorf("the target saw %q", said)
		}
	})
}

// A clone of a source gets nothing while its original lives, which takes no notice, and does not knock
// several times a second.
func TestLivingSessionKeepsItsSeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, nil)
		defer w.stop()
		first, clone := newHandler(t), newHandler(t)
		stop := w.connect(first, nil)
		s := <-first.opened
		<-w.target.opened
		var refused atomic.Int64
		defer w.connect(clone, func(c *ClientConfig) {
			c.Failed = func(err error, next time.Duration) {
				if refused.Add(1); !errors.Is(err, ErrSuperseded) || !strings.Contains(err.Error(), "clone") || next != backoffMax {
					t.Errorf("the clone was told: %v, and tries again in %v", err, next)
				}
			}
		})()
		time.Sleep(time.Minute)
		if n := refused.Load(); n < 3 || n > int64(time.Minute/backoffMax) {
			t.Errorf("it was refused %d times in a minute", n)
		}
		if err := s.SendRecord(context.Background(), small(1)); err != nil {
			t.Error(err)
		}
		select {
		case err := <-first.closed:
			t.Errorf("the original's session ended: %v", err)
		case <-clone.opened:
			t.Error("the clone has a session beside its original's")
		default:
		}
		stop()
		<-clone.opened // who is left is let in
	})
}

func TestPeersDoNotDisturbEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, nil)
		defer w.stop()
		a, b := newHandler(t), newHandler(t)
		defer w.connect(a, nil)()
		stop := w.connect(b, func(c *ClientConfig) { c.Credentials.Certificate = sites().other })
		defer stop()
		s := <-a.opened
		<-b.opened
		stop()
		time.Sleep(time.Minute)
		if err := s.SendRecord(context.Background(), small(1)); err != nil {
			t.Error(err)
		}
	})
}

func TestHandlerErrorsEndTheSession(t *testing.T) {
	f := func(name string, change func(source, target *handler), do func(*Session) error) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, &faultlink.Net{}, nil)
				defer w.stop()
				source := newHandler(t)
				change(source, w.target)
				var failed []error
				stop := w.connect(source, func(c *ClientConfig) { c.Failed = func(err error, _ time.Duration) { failed = append(failed, err) } })
				if do != nil {
					if err := do(<-source.opened); err != nil {
						t.Error(err)
					}
				}
				time.Sleep(100 * time.Millisecond)
				stop()
				var peer *PeerError
				if len(failed) == 0 || !errors.Is(failed[0], errTest) && (!errors.As(failed[0], &peer) || peer.Code != CodeOther ||
					!bytes.Contains([]byte(peer.Text), []byte(errTest.Error()))) {
					t.Errorf("the source learned %v", failed)
				}
			})
		})
	}
	no := func(*Session) error { return errTest }
	f("target opened", func(_, h *handler) { h.onOpened = no }, nil)
	f("source opened", func(h, _ *handler) { h.onOpened = no }, nil)
	f("target message", func(_, h *handler) { h.onMessage = func(*Session, Message) error { return errTest } },
		func(s *Session) error { return s.Send(openStream()) })
	f("target record", func(_, h *handler) {
		h.onRecord = func(_ *Session, r *Received) error { return errors.Join(release(r), errTest) }
	}, func(s *Session) error { return s.SendRecord(context.Background(), small(1)) })
}

func TestSendHoldsToLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, nil)
		defer w.stop()
		source := newHandler(t)
		defer w.connect(source, nil)()
		s, far := <-source.opened, <-w.target.opened
		if err := s.Send(&Durable{}); err == nil {
			t.Error("an empty ack was sent")
		}
		if err := s.SendRecord(context.Background(), make([]byte, record.MaxRecordBytes+1)); err == nil {
			t.Error("a record beyond its limit was sent")
		}
		if err := far.SendRecord(context.Background(), small(1)); !errors.Is(err, ErrDirection) {
			t.Errorf("a target sends a record: %v", err)
		}
		canceled, cancel := context.WithCancel(context.Background())
		cancel()
		s.turn <- struct{}{} // somebody else is at it
		if err := s.SendRecord(canceled, small(1)); !errors.Is(err, context.Canceled) {
			t.Errorf("waited for a turn after its context ended: %v", err)
		}
		<-s.turn
		select {
		case <-s.Done():
			t.Error("the session ended")
		default:
		}
	})
}

func TestPeerThatTakesNoMessagesIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, nil)
		defer w.stop()
		source := newHandler(t)
		defer w.connect(source, nil)()
		far := <-w.target.opened
		<-source.opened
		w.net.Freeze()
		var err error
		for range 1 << 20 {
			if err = far.Send(&Durable{testStream, 1}); err != nil {
				break
			}
		}
		if !errors.Is(err, ErrSlow) {
			t.Errorf("a million acks that nobody takes: %v", err)
		}
		if n := cap(far.queue.out); n > 2*queueBytes+1<<20 {
			t.Errorf("the queue grew to %d bytes", n)
		}
	})
}

func TestCountersAreTheBytesOfTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var near, far Counters
		w := newWorld(t, &faultlink.Net{}, func(c *ServerConfig) { c.Counters = &far })
		defer w.stop()
		source := newHandler(t)
		stop := w.connect(source, func(c *ClientConfig) { c.Counters = &near })
		s := <-source.opened
		before := s.Traffic()
		const records, size = 20, 1 << 20
		for seq := range record.Seq(records) {
			if err := s.SendRecord(context.Background(), large(seq+1, size)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		sent := s.Traffic().DataSent - before.DataSent
		if sent < records*size || sent > records*size*101/100 {
			t.Errorf("%d bytes on the wire for %d of data", sent, records*size)
		}
		stop()
		w.stop()
		if near.DataSent.Load() != far.DataReceived.Load() || near.RecordsSent.Load() != records || far.RecordsReceived.Load() != records {
			t.Errorf("sent %d bytes in %d records, received %d in %d", near.DataSent.Load(), near.RecordsSent.Load(),
				far.DataReceived.Load(), far.RecordsReceived.Load())
		}
		if got := near.DataSent.Load(); got != s.Traffic().DataSent {
			t.Errorf("the only session sent %d bytes of %d", s.Traffic().DataSent, got)
		}
		if near.ControlSent.Load() == 0 || near.ControlSent.Load() != far.ControlReceived.Load() || far.Sessions.Load() != 1 {
			t.Errorf("control: sent %d, received %d; %d sessions", near.ControlSent.Load(), far.ControlReceived.Load(), far.Sessions.Load())
		}
	})
}

func TestBackoff(t *testing.T) {
	var b backoff
	f := func(lasted time.Duration, chance float64, want time.Duration) {
		t.Helper()
		if got := b.next(lasted, func() float64 { return chance }); got.Round(time.Millisecond) != want {
			t.Errorf("waits %v, want %v", got, want)
		}
	}
	f(0, 0, 200*time.Millisecond)
	f(0, 1, 800*time.Millisecond)
	f(0, 0.5, 900*time.Millisecond)
	f(0, 1, 3200*time.Millisecond)
	f(time.Second, 1, 5*time.Second)
	f(0, 1, 5*time.Second)
	f(0, 0, 200*time.Millisecond)
	f(6*time.Second, 1, 400*time.Millisecond)
}

func TestUnreachableTargetIsTriedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &faultlink.Net{}
		w := newWorld(t, n, nil)
		defer w.stop()
		n.Down()
		var tries atomic.Int64
		source := newHandler(t)
		defer w.connect(source, func(c *ClientConfig) { c.Failed = func(error, time.Duration) { tries.Add(1) } })()
		time.Sleep(10 * time.Minute)
		if n := tries.Load(); n < 600/5 || n > 600 {
			t.Errorf("%d attempts in ten minutes", n)
		}
		n.Up()
		start := time.Now()
		<-source.opened
		if took := time.Since(start); took > backoffMax {
			t.Errorf("the target was back for %v", took)
		}
	})
}

package wire

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/wire/faultlink"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// A way of 40 ms there and back whose window holds 2 KiB of each connection: what one
// connection carries, and what is carried once measurement has found how many pay. The
// time is the bubble's, so the figures are the same on any machine.
func TestMoreConnectionsOnALongWay(t *testing.T) {
	carried := func(connections int) (rate float64, up int) {
		synctest.Test(t, func(t *testing.T) {
			n := &faultlink.Net{Window: 2 << 10, Script: func(string, int) (f faultlink.Faults) {
				f.Up.Delay, f.Down.Delay = 20*time.Millisecond, 20*time.Millisecond
				return f
			}}
			w := newWorld(t, n, nil)
			f := newFeeder(t, 1<<40, newest())
			durable := record.Seq(0)
			w.target.onMessage = func(s *Session, m Message) error { return s.Send(&Stand{Stream: testStream, Epoch: 1}) }
			w.target.onRecord = func(s *Session, r *Received) error {
				r.Release()
				durable++
				return s.Send(&Durable{testStream, durable})
			}
			stop := w.connect(f, func(c *ClientConfig) { c.Connections = connections })
			s := <-f.opened
			time.Sleep(75 * time.Second)
			before := w.server.Counters().DataReceived.Load()
			time.Sleep(15 * time.Second)
			rate = float64(w.server.Counters().DataReceived.Load()-before) / 15
			up = s.Connections()
			stop()
			f.senders.Wait()
			w.stop()
		})
		return rate, up
	}
	one, _ := carried(1)
	auto, up := carried(0)
	t.Logf("40 ms, 2 KiB of window: %.0f kB/s over one connection, %.0f kB/s over %d found by measurement", one/1e3, auto/1e3, up)
	if up < 6 || auto < 4*one {
		t.Errorf("%.0f kB/s over one connection, %.0f kB/s over %d", one/1e3, auto/1e3, up)
	}
}

// newest makes records as they are asked for, and keeps the last one.
func newest() func(record.Seq) []byte {
	var mu sync.Mutex
	var made []byte
	at := record.Seq(0)
	return func(seq record.Seq) []byte {
		mu.Lock()
		defer mu.Unlock()
		if at != seq {
			made, at = large(seq, 15_000), seq
		}
		return made
	}
}

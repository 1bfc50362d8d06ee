package datapath

import (
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/wire/faultlink"
)

// One data connection after the other is cut, in the middle of whatever it carries: what
// the target has in the end is what the guest has, and nothing was resynced for it.
func TestDataConnectionsAreCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) {
		w.connections = 4
		w.script = func(route, number int) (f faultlink.Faults) {
			if route == 1 && number < 6 {
				f.Up.CutAt = 300_000 + int64(number)*70_001
				if number == 0 {
					f.Up.CutAt = 9 << 20 // after the first synchronisation
				}
			}
			return f
		}
	})
	w.start()
	w.awaitState(api.StateProtected)
	f, p := w.s.flows[0], w.s.peers[0]
	w.await("four data connections", func() bool { return f.connections() == 4 })
	life := f.incarnationNow()
	g := w.writeGently(4<<20, time.Millisecond)
	w.await("two of them to be cut", func() bool { return p.counters.ConnectionsLost.Load() >= 2 })
	g.end()
	w.awaitState(api.StateProtected)
	w.verify("after the cuts")
	if now := f.incarnationNow(); now != life || p.counters.Sessions.Load() > 3 {
		t.Errorf("incarnation %d after %d, %d sessions", now, life, p.counters.Sessions.Load())
	}
	if n := f.totals(); n.Sent < n.Stored {
		t.Errorf("%d bytes of records were sent, it counts, and %d made", n.Sent, n.Stored)
	}
	if r := w.tg.server.Counters(); r.RecordsReceived.Load() == 0 {
		t.Error("no records were counted")
	}
}

// What a connection had that was cut goes again though nothing new comes, neither writes nor
// checkpoints.
func TestCutRecordNeedsNoOtherToGoAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) {
		w.interval, w.connections = time.Hour, 2
		w.script = func(route, number int) (f faultlink.Faults) {
			if route == 1 && number == 0 {
				f.Up.CutAt = 6 << 20 // after the first synchronisation
			}
			return f
		}
	})
	w.start()
	w.awaitState(api.StateProtected)
	f, p := w.s.flows[0], w.s.peers[0]
	w.await("two data connections", func() bool { return f.connections() == 2 })
	if err := w.link.SetRate(16 << 20); err != nil { // what is on its way was sent long ago when it is cut
		t.Fatal(err)
	}
	for off := int64(0); p.counters.ConnectionsLost.Load() == 0; off = (off + 1<<20) % w.size {
		w.put("vol1", off, 1<<20)
		w.await("all of it to be durable", func() bool { b := w.status().BytesBehind; return b != nil && *b == 0 })
	}
	if n := p.counters.Sessions.Load(); n > 1 {
		t.Errorf("%d sessions", n)
	}
}

func (f *flow) incarnationNow() uint32 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return uint32(f.mu.inc)
}

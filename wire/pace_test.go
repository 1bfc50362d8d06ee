package wire

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/wire/faultlink"
	"github.com/holdfast-dr/holdfast/wire/shape"
)

// pieces lets a record go in pieces of a size, until there are no more of them.
type pieces struct {
	bytes, count int
	before       func()
}

var errNoMore = errors.New("no more")

func (p *pieces) Next(left int) (int, error) {
	if p.before != nil {
		p.before()
	}
	if p.count--; p.count < 0 {
		return 0, errNoMore
	}
	return p.bytes, nil
}

func TestPacedRecordGoesInPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, nil)
		defer w.stop()
		var got [][]byte
		w.target.onRecord = func(_ *Session, r *Received) error {
			got = append(got, bytes.Clone(r.Bytes()))
			return release(r)
		}
		source := newHandler(t)
		stop := w.connect(source, nil)
		defer stop()
		s := <-source.opened
		want := [][]byte{large(1, 100_000), small(2), large(3, 20_000)}
		for _, rec := range want {
			before, most := s.data.socket.sent.Load(), uint64(0)
			p := &pieces{bytes: 3000, count: 1000, before: func() {
				now := s.data.socket.sent.Load()
				most = max(most, now-before)
				before = now
			}}
			if err := s.SendPaced(context.Background(), rec, p); err != nil {
				t.Fatal(err)
			}
			if most > 3000+3*shape.TLSOverhead {
				t.Errorf("%d bytes of TLS at once", most)
			}
		}
		if err := s.SendPaced(context.Background(), small(4), &pieces{}); !errors.Is(err, errNoMore) || s.Context().Err() != nil {
			t.Errorf("a pace that ended before the record: %v, session %v", err, s.Context().Err())
		}
		synctest.Wait()
		if len(got) != 3 || !bytes.Equal(got[0], want[0]) || !bytes.Equal(got[1], want[1]) || !bytes.Equal(got[2], want[2]) {
			t.Errorf("%d records came, or other bytes", len(got))
		}
		if err := s.SendPaced(context.Background(), large(4, 20_000), &pieces{bytes: 1000, count: 3}); err == nil || s.Context().Err() == nil {
			t.Errorf("half a record leaves a session: %v", err)
		}
	})
}

// What the kernel says was sent is what was written, with headers.
func TestSpentCountsAsTheInterfaceDoes(t *testing.T) {
	h := newHandler(t)
	_, config := overRelay(t, 0, newHandler(t))
	connected(t, config, h)
	s := <-h.opened
	s.Bound(100e6)
	before := s.Spent()
	written := s.data.socket.sent.Load()
	for range 5 {
		if err := s.SendPaced(context.Background(), large(1, 100_000), &pieces{bytes: 10_000, count: 100}); err != nil {
			t.Fatal(err)
		}
	}
	after := s.Spent()
	wrote := s.data.socket.sent.Load() - written
	spent := after.Sent + after.Unsent - before.Sent - before.Unsent
	if after.Framing.Headers < 54 || after.Framing.Segment < 500 {
		t.Errorf("framing %+v", after.Framing)
	}
	if spent < wrote+wrote/65536*54 || spent > wrote+wrote/5 {
		t.Errorf("%d bytes of TLS are %d on the interface", wrote, spent)
	}
	s.Bound(0)
}

// What the target reports is what a connection's share of the kernel's memory goes by.
func TestReportsTellTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, nil)
		defer w.stop()
		source := newHandler(t)
		stop := w.connect(source, nil)
		defer stop()
		s, there := <-source.opened, <-w.target.opened
		from, to := s.all()[0], there.all()[0]
		unsent := func() int {
			s.lines.Lock()
			defer s.lines.Unlock()
			return from.unsent
		}
		for _, c := range []struct{ bytes, want int }{{0, unsentBytes}, {1 << 30, mostUnsent}, {10 << 20, unsentBytes}} {
			time.Sleep(2 * heartbeatEvery)
			synctest.Wait()
			for range 2 {
				s.sent.Add(uint64(c.bytes))
				from.sent.Add(uint64(c.bytes))
				to.taken.Add(uint64(c.bytes))
				there.taken.Add(uint64(c.bytes))
				time.Sleep(heartbeatEvery)
				synctest.Wait()
			}
			if got := unsent(); got != c.want {
				t.Errorf("%d bytes a second: %d may wait unsent", c.bytes, got)
			}
		}
	})
}

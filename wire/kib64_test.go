package wire

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/wire/faultlink"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// A scripted exchange of 64 KiB: whatever a fault does to it, and at whichever byte, each
// record comes whole, once and in order. A sample of the bytes is tried, which moves with
// each kind of fault; all of them with HOLDFAST_EVERY_BYTE=1 (make wire-every-byte, a quarter of an hour).
func TestFaultsWithin64KiB(t *testing.T) {
	records := [][]byte{small(1), large(2, 9_000), large(3, 31_000), small(4), large(5, 26_000), small(6)}
	ways, shake := exchange(t, "no fault", records, nil)
	if ways[2]-shake[2] < 64<<10 {
		t.Fatalf("only %d bytes of data", ways[2]-shake[2])
	}
	every, each := everyByte(), map[bool]int64{false: 5, true: 1}[raceBuild]
	for k, kind := range []struct {
		name  string
		fault func(at int64) faultlink.Way
	}{
		{"reset", func(at int64) faultlink.Way { return faultlink.Way{CutAt: at} }},
		{"one-way stall", func(at int64) faultlink.Way { return faultlink.Way{StallAt: at} }},
		{"changed bit", func(at int64) faultlink.Way { return faultlink.Way{FlipAt: at} }},
		{"bytes twice", func(at int64) faultlink.Way { return faultlink.Way{RepeatAt: at} }},
	} {
		for way, name := range []string{"control up", "control down", "data up", "data down"} {
			t.Run(kind.name+" of "+name, func(t *testing.T) {
				t.Parallel()
				step := max(1, (ways[way]-shake[way])/(each*map[bool]int64{false: 1, true: 5}[way == 2]))
				first := 1 + int64(k)*step/4 // of what follows the handshake
				if every {
					step, first = 1, 1
				}
				if way == 2 {
					inARow(t, kind.name+" of "+name, records, kind.fault, first, step, ways[way]-shake[way])
					return
				}
				for at := first; at <= ways[way]-shake[way]; at += step {
					exchange(t, fmt.Sprintf("%s of %s at %d", kind.name, name, at), records, func(address string, number int) (f faultlink.Faults) {
						if number > 0 || (address == "control") != (way < 2) {
							return f
						}
						if fault := kind.fault(shake[way] + at); way%2 == 0 {
							f.Up = fault
						} else {
							f.Down = fault
						}
						return f
					})
				}
			})
		}
	}
}

// taped is a connection whose written bytes are kept.
type taped struct {
	net.Conn
	mu   *sync.Mutex
	tape *[]byte
}

func (t taped) Write(p []byte) (int, error) {
	t.mu.Lock()
	*t.tape = append(*t.tape, p...)
	t.mu.Unlock()
	return t.Conn.Write(p)
}

// Whoever listened to a whole session and sends the same bytes again gets nowhere, while
// the session stands and after it.
func TestReplayedSessionsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, nil)
		defer w.stop()
		var mu sync.Mutex
		tapes := map[string]*[]byte{"control": new([]byte), "data": new([]byte)}
		source := newHandler(t)
		stop := w.connect(source, func(c *ClientConfig) {
			c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := w.net.Dial(ctx, network, address)
				return taped{conn, &mu, tapes[address]}, err
			}
		})
		s := <-source.opened
		for seq := range record.Seq(3) {
			if err := s.SendRecord(context.Background(), large(seq+1, 5000)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(3 * time.Second)
		replay := func() {
			for _, address := range []string{"control", "data"} {
				conn, err := w.net.Dial(context.Background(), "tcp", address)
				if err != nil {
					t.Fatal(err)
				}
				mu.Lock()
				p := append([]byte(nil), *tapes[address]...)
				mu.Unlock()
				go conn.Write(p)
				conn.SetReadDeadline(time.Now().Add(time.Minute))
				if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
					t.Errorf("%s: the connection is still open", address)
				}
				conn.Close()
			}
		}
		replay()
		if s.Context().Err() != nil {
			t.Errorf("the session ended: %v", context.Cause(s.Context()))
		}
		stop()
		replay()
		synctest.Wait()
		if got := w.server.Counters().Refusals(); got[ReasonTLS] != 4 || w.server.Counters().Sessions.Load() != 1 || len(got) != 1 {
			t.Errorf("refused %v, %d sessions", got, w.server.Counters().Sessions.Load())
		}
	})
}

// A record that a peer sends twice comes twice: only who stores them knows their order.
// Their sum counts, and the target is not told that more came than was sent.
func TestPeerThatSendsARecordTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, nil)
		defer w.stop()
		source := newHandler(t)
		defer w.connect(source, nil)()
		s := <-source.opened
		for range 2 {
			if err := s.SendRecord(context.Background(), small(7)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(5 * time.Second)
		if n := w.server.Counters().RecordsReceived.Load(); n != 2 || s.Context().Err() != nil {
			t.Errorf("%d records; %v", n, context.Cause(s.Context()))
		}
	})
}

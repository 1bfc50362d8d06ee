package wire

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/wire/faultlink"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// shortRecords are those of the exchange that is cut at every byte.
func shortRecords() [][]byte { return [][]byte{small(1), large(2, 300), small(3)} }

// exchange runs a scripted exchange over a network with faults: the source opens
// its stream, sends what the target lacks, and is done when the last record is
// acknowledged. The target must see each record whole, once, and in order, however
// many sessions that takes. It returns the bytes that went each way, and how many
// of those made the session: control up and down, data up and down.
func exchange(t *testing.T, name string, records [][]byte, script func(address string, number int) faultlink.Faults) (ways, shake [4]int64) {
	exchanged := record.Seq(len(records))
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{Script: script}, nil)
		defer w.stop()
		var durable record.Seq // of the target's two calling goroutines, one at a time
		var mu sync.Mutex
		w.target.onMessage = func(s *Session, m Message) error {
			mu.Lock()
			defer mu.Unlock()
			return s.Send(&Stand{Stream: testStream, Durable: durable, Epoch: 1})
		}
		w.target.onRecord = func(s *Session, r *Received) error {
			defer r.Release()
			rec, err := record.Parse(r.Bytes())
			if err == nil {
				err = rec.VerifyPayload()
			}
			if err != nil || string(r.Bytes()) != string(records[rec.Seq-1]) {
				t.Errorf("%s: half a record came: %v", name, err)
				return errTest
			}
			mu.Lock()
			defer mu.Unlock()
			if rec.Seq != durable+1 {
				t.Errorf("%s: record %d after %d", name, rec.Seq, durable)
			}
			durable = rec.Seq
			return s.Send(&Durable{testStream, durable})
		}
		source, done := newHandler(t), make(chan struct{})
		finish := sync.OnceFunc(func() { close(done) })
		var senders sync.WaitGroup
		source.onOpened = func(s *Session) error {
			shake = four(s.Traffic())
			return s.Send(openStream())
		}
		source.onMessage = func(s *Session, m Message) error {
			switch m := m.(type) {
			case *Stand:
				if m.Durable == exchanged {
					finish()
				}
				senders.Go(func() {
					for seq := m.Durable + 1; seq <= exchanged; seq++ {
						if s.SendRecord(context.Background(), records[seq-1]) != nil {
							return
						}
					}
				})
			case *Durable:
				if m.Seq == exchanged {
					finish()
				}
			}
			return nil
		}
		var counters Counters
		stop := w.connect(source, func(c *ClientConfig) { c.Counters = &counters })
		select {
		case <-done:
		case <-time.After(10 * time.Minute):
			t.Errorf("%s: the exchange does not end: %d of %d", name, durable, exchanged)
		}
		stop()
		senders.Wait()
		w.stop()
		if durable != exchanged {
			t.Errorf("%s: %d of %d records came", name, durable, exchanged)
		}
		ways = four(Traffic{counters.ControlSent.Load(), counters.ControlReceived.Load(),
			counters.DataSent.Load(), counters.DataReceived.Load()})
	})
	return ways, shake
}

func four(t Traffic) [4]int64 {
	return [4]int64{int64(t.ControlSent), int64(t.ControlReceived), int64(t.DataSent), int64(t.DataReceived)}
}

// Each way of each connection is cut after each of its bytes; the handshakes,
// which are long and the same every time, at every few of theirs.
func TestCutAtEveryByte(t *testing.T) {
	ways, shake := exchange(t, "no cut", shortRecords(), nil)
	t.Log("bytes of control up and down, data up and down:", ways, "of that the handshake:", shake)
	for i, total := range ways {
		t.Run(fmt.Sprint("way", i), func(t *testing.T) {
			t.Parallel()
			for at := int64(1); at <= total+1; at += stride(at > shake[i]) {
				f := faultlink.Way{CutAt: at}
				exchange(t, fmt.Sprintf("way %d cut at %d", i, at), shortRecords(), func(address string, number int) (faults faultlink.Faults) {
					if number == 0 && (address == "control") == (i < 2) {
						if i%2 == 0 {
							faults.Up = f
						} else {
							faults.Down = f
						}
					}
					return faults
				})
			}
		})
	}
}

func stride(open bool) int64 {
	switch {
	case open && !raceBuild:
		return 1
	case open:
		return 11
	case raceBuild:
		return 307
	}
	return 41
}

// A record of several TLS records is cut within each of them and between them.
func TestCutInsideALargeRecord(t *testing.T) {
	records := [][]byte{small(1), large(2, 40_000), small(3)}
	ways, shake := exchange(t, "no cut", records, nil)
	for at := shake[2] + 1; at <= ways[2]; at += 613 {
		exchange(t, fmt.Sprint("cut at ", at), records, func(address string, number int) (f faultlink.Faults) {
			if address == "data" && number == 0 {
				f.Up.CutAt = at
			}
			return f
		})
	}
}

// Many connections in a row have faults of all kinds, from a seed, and the exchange
// still ends, with each record once.
func TestExchangeOverBadLinks(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			rng := rand.New(rand.NewPCG(seed, 7))
			exchange(t, fmt.Sprint("seed ", seed), append(shortRecords(), large(4, 20_000)), func(_ string, number int) faultlink.Faults {
				mu.Lock()
				defer mu.Unlock()
				if number > 20 {
					return faultlink.Faults{}
				}
				return faultlink.Random(rng, 30_000)
			})
		})
	}
}

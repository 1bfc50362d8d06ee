package wire

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/wire/faultlink"
	"github.com/holdfast-dr/holdfast/wire/record"
	"github.com/holdfast-dr/holdfast/wire/reorder"
)

// loan is a record that a test lends.
type loan struct {
	t     *testing.T
	bytes []byte
	out   *atomic.Int64
	back  atomic.Bool
}

func (l *loan) Bytes() []byte { return l.bytes }

func (l *loan) Return() {
	if l.back.Swap(true) {
		l.t.Error("a loan ended twice")
	}
	l.out.Add(-1)
}

// feeder is a source that sends records of the tests' stream over all connections, as a
// flow of the data path does.
type feeder struct {
	*handler
	records func(record.Seq) []byte
	last    record.Seq
	done    chan struct{} // closed when last is acknowledged
	finish  func()
	senders sync.WaitGroup
	loans   atomic.Int64
	pause   time.Duration // after each record
	source  Counters

	mu    sync.Mutex
	under *reorder.Source
	wake  chan struct{} // closed when something changed
	lines map[uint32]int
	again int // records sent again in their opening
}

func newFeeder(t *testing.T, last record.Seq, records func(record.Seq) []byte) *feeder {
	f := &feeder{handler: newHandler(t), records: records, last: last, done: make(chan struct{}), lines: make(map[uint32]int)}
	f.finish = sync.OnceFunc(func() { close(f.done) })
	f.wake = make(chan struct{})
	f.onOpened = func(s *Session) error { return s.Send(openStream()) }
	f.onMessage = f.message
	f.onLost = func(_ *Session, line uint32) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.under.Lost(line)
		f.wakeLocked()
	}
	return f
}

func (f *feeder) wakeLocked() {
	close(f.wake)
	f.wake = make(chan struct{})
}

func (f *feeder) message(s *Session, m Message) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch m := m.(type) {
	case *Stand:
		if m.Durable == f.last {
			f.finish()
			return nil
		}
		under := reorder.NewSource(m.Durable + 1)
		f.under = under
		opening := s.Opening(testStream)
		f.senders.Go(func() { f.send(s, opening, under) })
	case *Durable:
		f.under.Acked(m.Seq)
		if m.Seq == f.last {
			f.finish()
		}
	}
	f.wakeLocked()
	return nil
}

func (f *feeder) send(s *Session, opening uint32, under *reorder.Source) {
	for {
		f.mu.Lock()
		seq, again := under.Pick()
		how := Sending{Opening: opening, Pace: atOnce{}}
		how.Line, how.Sole = s.Sole()
		how.Sole = how.Sole && under.Only(how.Line)
		may := seq <= f.last
		if may {
			may = how.Sole || under.May(seq, len(f.records(seq)))
		}
		wake := f.wake
		f.mu.Unlock()
		if !may {
			select {
			case <-wake:
				continue
			case <-s.Context().Done():
				return
			}
		}
		f.loans.Add(1)
		line, err := s.SendOrdered(context.Background(), &loan{t: f.t, bytes: f.records(seq), out: &f.loans}, how)
		if errors.Is(err, ErrMoved) {
			continue
		} else if err != nil {
			return
		}
		f.mu.Lock()
		under.Sent(seq, line, len(f.records(seq)))
		f.lines[line]++
		if again {
			f.again++
		}
		f.mu.Unlock()
		time.Sleep(f.pause)
	}
}

// taker4 is a target that keeps to a world what it took: each record must be the one
// after that before, whole.
func (w *world) takesInOrder(records func(record.Seq) []byte) *record.Seq {
	durable := new(record.Seq)
	var mu sync.Mutex
	w.target.onMessage = func(s *Session, m Message) error {
		mu.Lock()
		defer mu.Unlock()
		return s.Send(&Stand{Stream: testStream, Durable: *durable, Epoch: 1})
	}
	w.target.onRecord = func(s *Session, r *Received) error {
		defer r.Release()
		mu.Lock()
		defer mu.Unlock()
		if seq := r.Header().Seq; seq != *durable+1 || string(r.Bytes()) != string(records(seq)) {
			w.t.Errorf("record %d after %d, or other bytes", seq, *durable)
			return errTest
		}
		*durable++
		return s.Send(&Durable{testStream, *durable})
	}
	return durable
}

// sample makes records of several sizes, the same for the same seq.
func sample() func(record.Seq) []byte {
	var mu sync.Mutex
	made := make(map[record.Seq][]byte)
	return func(seq record.Seq) []byte {
		mu.Lock()
		defer mu.Unlock()
		if made[seq] == nil {
			switch seq % 5 {
			case 0:
				made[seq] = large(seq, 30_000)
			case 3:
				made[seq] = large(seq, 80_000)
			default:
				made[seq] = small(seq)
			}
		}
		return made[seq]
	}
}

// run has the feeder's records all arrive in the world, over so many connections.
func (f *feeder) run(w *world, connections int, change func(*ClientConfig)) {
	f.t.Helper()
	durable := w.takesInOrder(f.records)
	stop := w.connect(f, func(c *ClientConfig) {
		c.Connections, c.Counters = connections, &f.source
		if change != nil {
			change(c)
		}
	})
	select {
	case <-f.done:
	case <-time.After(10 * time.Minute):
		f.t.Errorf("%d of %d records came", *durable, f.last)
	}
	stop()
	f.senders.Wait()
	w.stop()
	if n := f.loans.Load(); n != 0 {
		f.t.Errorf("%d loans are out", n)
	}
	if *durable != f.last {
		f.t.Errorf("%d of %d records came", *durable, f.last)
	}
}

func TestRecordsTravelOnAllConnections(t *testing.T) {
	for _, one := range []bool{false, true} {
		t.Run(fmt.Sprint("one port ", one), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := map[bool]string{false: "data", true: "control"}[one]
				n := &faultlink.Net{Script: func(address string, number int) (f faultlink.Faults) {
					if address == data { // the later ones overtake the earlier ones
						f.Up.Delay = time.Duration(max(0, 8-number)) * 37 * time.Millisecond
					}
					return f
				}}
				w := newWorld(t, n, func(c *ServerConfig) {
					if one {
						c.ListenData = ""
					}
				})
				f := newFeeder(t, 400, sample())
				f.pause = 20 * time.Millisecond
				f.run(w, 5, func(c *ClientConfig) { c.Data = data })
				c := w.server.Counters()
				if len(f.lines) < 5 || c.RecordsEarly.Load() == 0 || c.Sessions.Load() != 1 || f.again != 0 {
					t.Errorf("records by connection: %v; %d early, %d sessions, %d again", f.lines, c.RecordsEarly.Load(), c.Sessions.Load(), f.again)
				}
				if near, far := f.source.DataSent.Load(), c.DataReceived.Load(); near != far {
					t.Errorf("%d bytes of data sent, %d received", near, far)
				}
			})
		})
	}
}

// Connections are cut at any byte, one after the other; the session lives on while one is
// left, what was on its way goes again, and nothing that was acknowledged does.
func TestCutConnectionsAreMissedByNobody(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				rng := rand.New(rand.NewPCG(seed, 3))
				n := &faultlink.Net{Script: func(address string, number int) (f faultlink.Faults) {
					mu.Lock()
					defer mu.Unlock()
					f.Up.Delay = time.Duration(60+rng.IntN(100)) * time.Millisecond
					if address == "data" && number > 0 && number < 12 {
						f.Up.CutAt = 4000 + rng.Int64N(400_000)
					}
					return f
				}}
				w := newWorld(t, n, nil)
				f := newFeeder(t, 300, sample())
				f.pause = time.Millisecond
				f.run(w, 4, nil)
				if s := w.server.Counters().Sessions.Load(); s != 1 {
					t.Errorf("%d sessions", s)
				}
				if lost := f.source.ConnectionsLost.Load(); lost == 0 {
					t.Error("no connection was cut")
				}
			})
		})
	}
}

// The first connection is one as the others: it may go too.
func TestFirstConnectionMayBeCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &faultlink.Net{Script: func(address string, number int) (f faultlink.Faults) {
			if address == "data" && number == 0 {
				f.Up.CutAt = 1_500_000
			}
			f.Up.Delay = 100 * time.Millisecond
			return f
		}}
		w := newWorld(t, n, nil)
		f := newFeeder(t, 400, sample())
		f.pause = 10 * time.Millisecond
		f.run(w, 3, nil)
		if s, lost := w.server.Counters().Sessions.Load(), f.source.ConnectionsLost.Load(); s != 1 || lost != 1 || f.again == 0 {
			t.Errorf("%d sessions, %d connections lost, %d records again", s, lost, f.again)
		}
	})
}

// A connection that goes silent, and tells nobody, is found and does not take the others along.
func TestHalfOpenConnectionIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &faultlink.Net{Script: func(address string, number int) (f faultlink.Faults) {
			if address == "data" && number == 2 {
				f.Up.StallAt = 150_000
			}
			f.Up.Delay = 100 * time.Millisecond
			return f
		}}
		w := newWorld(t, n, nil)
		f := newFeeder(t, 2000, sample())
		f.pause = 10 * time.Millisecond
		start := time.Now()
		f.run(w, 4, nil)
		if s, lost := w.server.Counters().Sessions.Load(), f.source.ConnectionsLost.Load(); s != 1 || lost != 1 || f.again == 0 {
			t.Errorf("%d sessions, %d connections lost, %d records again", s, lost, f.again)
		}
		if took := time.Since(start); took > time.Minute {
			t.Errorf("it took %v", took)
		}
	})
}

// Connections of all kinds of faults, from a seed: sessions may end, records arrive once.
func TestConnectionsOverBadLinks(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				rng := rand.New(rand.NewPCG(seed, 11))
				n := &faultlink.Net{Script: func(address string, number int) (f faultlink.Faults) {
					mu.Lock()
					defer mu.Unlock()
					if address == "data" && number < 15 || number < 4 {
						f = faultlink.Random(rng, 600_000)
						f.Up.Slice, f.Down.Slice = 0, 0
					}
					return f
				}}
				w := newWorld(t, n, nil)
				f := newFeeder(t, 150, sample())
				f.pause = 20 * time.Millisecond
				f.run(w, 4, nil)
			})
		})
	}
}

// With hardly any memory for what comes early the records still arrive.
func TestConnectionsWithLittleMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &faultlink.Net{Script: func(address string, number int) (f faultlink.Faults) {
			if address == "data" {
				f.Up.Delay = time.Duration(number*number) * 20 * time.Millisecond
			}
			if address == "data" && number == 1 {
				f.Up.CutAt = 300_000
			}
			return f
		}}
		w := newWorld(t, n, func(c *ServerConfig) { c.ReceiveBytes = 1 })
		f := newFeeder(t, 200, sample())
		f.run(w, 4, nil)
	})
}

// A connection that is given up is read to its end: nothing of it goes again.
func TestFewerConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, nil)
		f := newFeeder(t, 600, sample())
		f.pause = 10 * time.Millisecond
		go func() {
			s := <-f.opened
			for n := range 4 {
				time.Sleep(1200 * time.Millisecond)
				s.retire()
				if n == 3 {
					time.Sleep(time.Second)
				}
			}
		}()
		f.run(w, 4, nil)
		if s, lost := w.server.Counters().Sessions.Load(), f.source.ConnectionsLost.Load(); s != 1 || lost != 0 || f.again != 0 {
			t.Errorf("%d sessions, %d connections lost, %d records again", s, lost, f.again)
		}
		if n := w.net.Dialled("data"); n < 6 {
			t.Errorf("%d data connections were made", n)
		}
	})
}

// A target or a source of the version before has one connection, and all arrives.
func TestOneConnectionWithAnOlderPeer(t *testing.T) {
	for _, old := range []string{"target", "source"} {
		t.Run(old, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, &faultlink.Net{}, func(c *ServerConfig) {
					if old == "target" {
						c.speaks = Versions{1, OrderedSince - 1}
					}
				})
				defer w.stop()
				h := newHandler(t)
				defer w.connect(h, func(c *ClientConfig) {
					c.Connections = 8
					if old == "source" {
						c.speaks = Versions{1, OrderedSince - 1}
					}
				})()
				s := <-h.opened
				for seq := record.Seq(1); seq <= 50; seq++ {
					if err := s.SendRecord(context.Background(), small(seq)); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Second)
				}
				if s.Ordered() || s.Connections() != 1 || w.net.Dialled("data") != 1 {
					t.Errorf("version %d with %d connections, %d dialled", s.version, s.Connections(), w.net.Dialled("data"))
				}
			})
		})
	}
}

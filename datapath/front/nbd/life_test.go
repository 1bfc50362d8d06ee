package nbd

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdfast-dr/holdfast/datapath/front/memdisk"
)

func TestAddRemove(t *testing.T) { both(t, addRemove) }

func addRemove(t *testing.T) {
	s := serve(t)
	f := func(err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	e, _ := memory("a", 1<<20)
	f(s.Add(e), nil)
	f(s.Add(e), ErrExists)
	f(s.Remove("b"), ErrNoExport)
	if s.Add(Export{Name: "no device"}) == nil {
		t.Error("an export without a device is taken")
	}
	other, _ := memory("b", 1<<20)
	f(s.Add(other), nil)
	c, d := s.dial(t, "a"), s.dial(t, "b")
	f(s.Remove("a"), nil)
	_, err := c.ReadAt(make([]byte, 512), 0)
	f(err, ErrClosed)
	f(c.Flush(), ErrClosed) // and again
	<-c.Done()
	if _, err := Dial(t.Context(), s.uri("a")); !errors.Is(err, errRefused) {
		t.Errorf("a removed export: %v", err)
	}
	f(d.Flush(), nil) // the other one goes on
	f(s.Add(e), nil)  // the name is free again
	s.dial(t, "a")    // and served
	f(s.Remove("a"), nil)
}

// gate is a device whose operations wait until they are let go.
type gate struct {
	*memdisk.Spy
	inside atomic.Int64
	most   atomic.Int64
	enter  chan string   // told of each operation that begins
	pass   chan struct{} // one for each that may go on; closed: all
}

func newGate(size int64) *gate {
	g := &gate{Spy: memdisk.NewSpy(size), enter: make(chan string, 1000), pass: make(chan struct{})}
	g.Before = func(op string, _, _ int64) error {
		n := g.inside.Add(1)
		for most := g.most.Load(); n > most && !g.most.CompareAndSwap(most, n); most = g.most.Load() {
		}
		g.enter <- op
		<-g.pass
		g.inside.Add(-1)
		return nil
	}
	return g
}

// TestRemoveWaits: the device is not used any more when Remove returns, and what was
// in flight was carried out and answered.
func TestRemoveWaits(t *testing.T) { both(t, removeWaits) }

func removeWaits(t *testing.T) {
	g := newGate(1 << 20)
	s := serve(t, Export{Name: "v", Device: g})
	c := s.dial(t, "v")
	read := make(chan error, 1)
	go func() {
		_, err := c.ReadAt(make([]byte, 512), 0)
		read <- err
	}()
	<-g.enter
	removed := make(chan int64)
	go func() {
		if err := s.Remove("v"); err != nil {
			t.Error(err)
		}
		removed <- g.inside.Load()
	}()
	for s.lookup("v") != nil {
		runtime.Gosched() // the removal has begun once the name is gone
	}
	g.pass <- struct{}{}
	if n := <-removed; n != 0 {
		t.Errorf("Remove returns while %d operations run", n)
	}
	if err := <-read; err != nil {
		t.Errorf("the read in flight was not answered: %v", err)
	}
}

// TestParallelRequests: as many requests of a connection run as there are workers,
// and no more.
func TestParallelRequests(t *testing.T) { both(t, parallelRequests) }

func parallelRequests(t *testing.T) {
	g := newGate(1 << 20)
	c := serve(t, Export{Device: g}).dial(t, "")
	const requests = 3 * maxWorkers
	var wg sync.WaitGroup
	for range requests {
		wg.Go(func() {
			if err := c.Flush(); err != nil {
				t.Error(err)
			}
		})
	}
	for range maxWorkers {
		<-g.enter // all at once: none of them was let go
	}
	close(g.pass)
	wg.Wait()
	if most := g.most.Load(); most != maxWorkers {
		t.Errorf("%d requests ran at a time, want %d", most, maxWorkers)
	}
}

// TestFlushHoldsNobodyUp: requests overtake a flush, though that came alone.
func TestFlushHoldsNobodyUp(t *testing.T) { both(t, flushHoldsNobodyUp) }

func flushHoldsNobodyUp(t *testing.T) {
	g := newGate(1 << 20)
	c := serve(t, Export{Device: g}).dial(t, "")
	flushed := make(chan error, 1)
	go func() { flushed <- c.Flush() }()
	<-g.enter
	read := make(chan error, 1)
	go func() {
		_, err := c.ReadAt(make([]byte, 512), 0)
		read <- err
	}()
	if op := <-g.enter; op != "read" {
		t.Errorf("%s enters", op)
	}
	close(g.pass)
	if err := errors.Join(<-read, <-flushed); err != nil {
		t.Error(err)
	}
}

// TestMultiConn: what one connection was told is written, another reads and flushes.
func TestMultiConn(t *testing.T) { both(t, multiConn) }

func multiConn(t *testing.T) {
	d := memdisk.NewSpy(8 << 20)
	s := serve(t, Export{Device: d})
	const conns = 4
	var clients [conns]*Client
	for i := range clients {
		clients[i] = s.dial(t, "")
	}
	var wg sync.WaitGroup
	for w := range 8 { // each writes and reads its own stretch over all connections
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(7, uint64(w)))
			p, got := make([]byte, 64<<10), make([]byte, 64<<10)
			for i := range 200 {
				n := 1 + rng.IntN(len(p))
				off := int64(w)<<20 + rng.Int64N(1<<20-int64(n))
				fill(p[:n], byte(i+w))
				if _, err := clients[rng.IntN(conns)].WriteAt(p[:n], off); err != nil {
					t.Error(err)
					return
				}
				if err := clients[rng.IntN(conns)].Flush(); err != nil {
					t.Error(err)
					return
				}
				if _, err := clients[rng.IntN(conns)].ReadAt(got[:n], off); err != nil || string(got[:n]) != string(p[:n]) {
					t.Errorf("worker %d, round %d: other bytes (%v)", w, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if open, mistakes := d.State(); open != 0 || mistakes != nil {
		t.Errorf("%d writes are left open, %q", open, mistakes)
	}
}

// TestStopUnderLoad: a stop in the middle of everything leaves no goroutine and no
// open write; each client is told either that its request was done or that it was not.
func TestStopUnderLoad(t *testing.T) { both(t, stopUnderLoad) }

func stopUnderLoad(t *testing.T) {
	for round := range 5 {
		d := memdisk.NewSpy(8 << 20)
		s := serve(t, Export{Device: d})
		var done atomic.Int64
		var wg sync.WaitGroup
		var clients []*Client
		enough := make(chan struct{})
		for w := range 6 {
			c, err := Dial(t.Context(), s.uri(""))
			if err != nil {
				t.Fatal(err)
			}
			clients = append(clients, c)
			for depth := range 8 {
				wg.Go(func() {
					p := make([]byte, 512<<(w*2)) // 512 B to 512 KiB
					for {
						var err error
						if depth%2 == 0 {
							_, err = c.WriteAt(p, int64(depth)<<20)
						} else {
							_, err = c.ReadAt(p, int64(depth)<<20)
						}
						if err != nil {
							if !errors.Is(err, ErrClosed) {
								t.Errorf("round %d: %v", round, err)
							}
							return
						}
						if done.Add(1) == 2000 {
							close(enough)
						}
					}
				})
			}
		}
		<-enough
		s.stop()
		wg.Wait()
		for _, c := range clients {
			c.Close()
		}
		if open, mistakes := d.State(); open != 0 || mistakes != nil {
			t.Errorf("round %d: %d writes are left open, %q", round, open, mistakes)
		}
	}
}

func TestServeEndsWithItsListener(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := (&Server{}).Serve(context.Background(), l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve on a closed listener: %v", err)
	}
}

package vhostuser

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
	"github.com/holdfast-dr/holdfast/datapath/internal/testvolume"
	"github.com/holdfast-dr/holdfast/ioengine"
)

// slowFlush is a device whose flushes wait for one channel to close, and whose queue waits once, in Told, for another.
type slowFlush struct {
	front.Laned
	flush, gate, in chan struct{}
	armed           atomic.Bool
}

func (d *slowFlush) Flush() error { <-d.flush; return d.Laned.Flush() }

func (d *slowFlush) Lane(n int) (front.Lane, error) {
	l, err := d.Laned.Lane(n)
	return slowLane{l, d}, err
}

type slowLane struct {
	front.Lane
	d *slowFlush
}

func (l slowLane) Told() {
	l.Lane.Told()
	if l.d.armed.CompareAndSwap(true, false) {
		l.d.in <- struct{}{}
		<-l.d.gate
	}
}

// TestNothingIsHeldBack: a write that has ended is answered though the queue waits for a worker, and all of them flush a slow disk.
func TestNothingIsHeldBack(t *testing.T) {
	f := func(open func(t testing.TB, fs ioengine.FS, size int64) (front.Device, string)) {
		t.Helper()
		v, _ := open(t, ioengine.OS(), mib)
		d := &slowFlush{Laned: v.(front.Laned), flush: make(chan struct{}), gate: make(chan struct{}), in: make(chan struct{})}
		g := newGuest(t, guest.Options{Slots: maxWorkers + 3})
		connect(t, g, serve(t, d))
		var calls []*guest.Call
		begun := func(c *guest.Call, err error) *guest.Call {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			calls = append(calls, c)
			return c
		}
		d.armed.Store(true)
		begun(g.BeginWrite(0, noise(4096, 3), 0))
		<-d.in // what comes now is one batch
		write := begun(g.BeginWrite(0, noise(4096, 2), 4096))
		for range maxWorkers + 1 {
			begun(g.Begin(0, 4, 0, nil, nil))
		}
		close(d.gate)
		answered := make(chan error, 1)
		go func() { answered <- write.Wait() }()
		select {
		case err := <-answered:
			if err != nil {
				t.Error(err)
			}
			calls = append(calls[:1], calls[2:]...)
		case <-time.After(10 * time.Second):
			t.Error("a write that has ended waits for flushes")
			<-closed(d.flush)
			<-answered
			return
		}
		<-closed(d.flush)
		for _, c := range calls {
			if err := c.Wait(); err != nil {
				t.Error(err)
			}
		}
	}
	f(testvolume.Open)
	f(testvolume.OpenCached)
}

func closed(c chan struct{}) chan struct{} {
	close(c)
	return c
}

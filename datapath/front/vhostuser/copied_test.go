package vhostuser

import (
	"bytes"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
	"github.com/holdfast-dr/holdfast/ioengine"
)

// looking is a device whose lanes look at what they read. What hold is told of is filled, and told of when it calls the function.
type looking struct {
	front.Laned
	hold func(end func()) (begun bool) // nil: at once
}

// looks makes dev one, where it has lanes.
func looks(dev front.Device, hold func(end func()) bool) front.Device {
	return looking{dev.(front.Laned), hold}
}

func (d looking) Lane(requests int) (front.Lane, error) {
	l, err := d.Laned.Lane(requests)
	if err != nil {
		return nil, err
	}
	return lookingLane{l, d}, nil
}

type lookingLane struct {
	front.Lane
	d looking
}

func (lookingLane) Looks() bool { return true }

func (l lookingLane) Read(parts [][]byte, off int64, done func(error)) bool {
	if l.d.hold == nil {
		return l.Lane.Read(parts, off, done)
	}
	p := parts[0]
	return l.d.hold(func() { done(l.d.ReadAt(p, off)) })
}

func (lookingLane) Write(front.Write, func(error)) { panic("BUG: writes are for workers") }

func (lookingLane) Pass([][]byte, int64, func(error)) bool {
	panic("BUG: it is given what a guest may change")
}

func needLoops(t *testing.T) {
	t.Helper()
	if engine := ioengine.Engine(ioengine.OS()); engine != "io_uring" {
		t.Skip("this system offers no io_uring: ", engine)
	}
}

// TestCopiesAreBounded: what a lane that looks at it reads comes to the guest when it is told of, and not before; beyond so many such reads
// workers do the rest, who keep nobody waiting.
func TestCopiesAreBounded(t *testing.T) {
	needLoops(t)
	const more = 5
	data, other := noise(512, 1), noise(512, 2)
	var mu sync.Mutex
	var held []func()
	all := make(chan struct{})
	d := looks(newVolume(t, mib), func(end func()) bool {
		mu.Lock()
		defer mu.Unlock()
		if len(held) == laneCopies {
			t.Error("it is given more than it may be")
			return false
		}
		if held = append(held, end); len(held) == laneCopies {
			close(all)
		}
		return true
	})
	g := newGuest(t, guest.Options{Slots: laneCopies + more, SlotBytes: 4096})
	connect(t, g, serve(t, d))
	if err := errors.Join(g.Write(0, data, 0), g.Write(0, other, 512)); err != nil {
		t.Fatal(err)
	}
	clear(g.Memory()[len(g.Memory())-(laneCopies+more)*4096:]) // payload stands behind the queue
	var calls []*guest.Call
	begin := func(sector uint64) *guest.Call {
		c, err := g.Begin(0, blkRead, sector, nil, make([]byte, 512))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for range laneCopies {
		calls = append(calls, begin(0))
	}
	<-all
	for range more {
		if err := begin(1).Wait(); err != nil {
			t.Error(err)
		}
	}
	if !bytes.Contains(g.Memory(), other) || bytes.Contains(g.Memory(), data) {
		t.Error("the guest has what was not told of, or lacks what was")
	}
	for _, end := range held {
		end()
	}
	for _, c := range calls {
		if err := c.Wait(); err != nil {
			t.Error(err)
		}
	}
	if n := bytes.Count(g.Memory(), data); n != laneCopies {
		t.Errorf("the guest has %d of %d", n, laneCopies)
	}
}

// locked is a device whose writes wait for a read of its lane, as a reader's lock has them.
type locked struct {
	looking
	writes chan struct{} // gets what begins to write
	ended  chan struct{} // closed when the read has ended
}

func (d *locked) BeginWrite(off int64, n int) (front.Write, error) {
	d.writes <- struct{}{}
	<-d.ended
	return d.looking.BeginWrite(off, n)
}

// TestWorkersWaitForTheLane: while workers wait for a read in the lane, and more requests come than there are workers, the lane goes on.
func TestWorkersWaitForTheLane(t *testing.T) {
	needLoops(t)
	const writes = 2*maxWorkers + 1
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(event) })
	d := &locked{writes: make(chan struct{}, writes), ended: make(chan struct{})}
	end := sync.OnceFunc(func() { close(d.ended) })
	all := make(chan struct{})
	loop := make(chan *ioengine.Loop, 1)
	d.looking = looking{laneKnown{newVolume(t, mib).(front.Laned), loop}, func(told func()) bool {
		<-all // of the writes stand in the queue: it takes them without a Step between
		told = sync.OnceFunc(told)
		err := (<-loop).Hear(event, func() { told(); end() })
		if err != nil {
			t.Error(err)
		}
		return err == nil
	}}
	g := newGuest(t, guest.Options{Slots: 1 + writes, SlotBytes: 4096})
	connect(t, g, serve(t, d))
	defer end()
	read, err := g.Begin(0, blkRead, 0, nil, make([]byte, 512))
	if err != nil {
		t.Fatal(err)
	}
	calls := []*guest.Call{read}
	for k := range writes {
		c, err := g.BeginWrite(0, noise(512, 1), int64(k)*512)
		if err != nil {
			t.Fatal(err)
		}
		calls = append(calls, c)
	}
	close(all)
	for range maxWorkers {
		<-d.writes
	}
	if _, err := unix.Write(event, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(20*time.Second, func() {
		select {
		case <-d.ended:
		default:
			t.Error("the read waits for those that wait for it")
			end()
		}
	}).Stop()
	for _, c := range calls {
		if err := c.Wait(); err != nil {
			t.Error(err)
		}
	}
}

// laneKnown tells of its lane's loop.
type laneKnown struct {
	front.Laned
	loop chan<- *ioengine.Loop
}

func (d laneKnown) Lane(requests int) (front.Lane, error) {
	l, err := d.Laned.Lane(requests)
	if err == nil {
		d.loop <- l.Loop()
	}
	return l, err
}

// TestCopyMemoryTakenAway: what was read for a guest whose memory is gone is given back, and other guests go on.
func TestCopyMemoryTakenAway(t *testing.T) {
	needLoops(t)
	ends := make(chan func(), 8)
	var gone atomic.Bool
	d := looks(newVolume(t, 8*mib), func(end func()) bool {
		if gone.Load() {
			return false
		}
		ends <- end
		return true // whatever became of it meanwhile
	})
	socket := serve(t, d)
	g := newGuest(t, guest.Options{Slots: 8})
	connect(t, g, socket)
	for range cap(ends) {
		if _, err := g.Begin(0, blkRead, 0, nil, make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
	}
	var all []func()
	for range cap(ends) {
		all = append(all, <-ends)
	}
	gone.Store(true)
	if err := unix.Ftruncate(g.File(), 0); err != nil {
		t.Fatal(err)
	}
	for _, end := range all {
		end()
	}
	if err := g.Gone(); err != nil {
		t.Error(err)
	}
	other := newGuest(t, guest.Options{})
	connect(t, other, socket)
	if err := exercise(other, 0, 0, 1); err != nil {
		t.Error(err)
	}
}

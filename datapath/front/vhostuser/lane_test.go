package vhostuser

import (
	"bytes"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/datapath/front/memdisk"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
	"github.com/holdfast-dr/holdfast/datapath/internal/testvolume"
	"github.com/holdfast-dr/holdfast/ioengine"
)

// newVolume is a filter's volume: a device with lanes, where the system has io_uring.
func newVolume(t testing.TB, size int64) front.Device { return newVolumeOn(t, ioengine.OS(), size) }

func newVolumeOn(t testing.TB, fs ioengine.FS, size int64) front.Device {
	t.Helper()
	d, _ := testvolume.Open(t, fs, size)
	return d
}

// TestLaneIsTold: whenever the guest was told of answers, to one request or to many, the device's lane hears
// of it: what it put off until then nobody else does.
func TestLaneIsTold(t *testing.T) {
	t.Run("direct", func(t *testing.T) { laneIsTold(t, testvolume.Open) })
	t.Run("cached", func(t *testing.T) { laneIsTold(t, testvolume.OpenCached) })
}

func laneIsTold(t *testing.T, open func(testing.TB, ioengine.FS, int64) (front.Device, string)) {
	if engine := ioengine.Engine(ioengine.OS()); engine != "io_uring" {
		t.Skip("this system offers no io_uring: ", engine)
	}
	told := make(chan struct{}, 1)
	v, _ := open(t, ioengine.OS(), mib)
	var last atomic.Int64 // where the last write of a round goes, which puts the round's number there
	var round atomic.Int64
	d := testvolume.Hear(v, func() {
		p := make([]byte, 512)
		if err := v.ReadAt(p, last.Load()); err != nil || int64(p[0]) != round.Load() {
			return // it was told of what came before
		}
		select {
		case told <- struct{}{}:
		default:
		}
	})
	g := newGuest(t, guest.Options{Slots: 8})
	connect(t, g, serve(t, d))
	for _, many := range []int{1, 1, 8} {
		select {
		case <-told: // of the writes before
		default:
		}
		last.Store(int64(many-1) * 4096)
		p := bytes.Repeat([]byte{byte(round.Add(1))}, 4096)
		var calls []*guest.Call
		for k := range many {
			c, err := g.BeginWrite(0, p, int64(k)*4096)
			if err != nil {
				t.Fatal(err)
			}
			calls = append(calls, c)
		}
		for _, c := range calls {
			if err := c.Wait(); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case <-told:
		case <-time.After(time.Minute):
			t.Fatalf("%d writes were answered, and the lane was not told", many)
		}
	}
}

// TestLaneMemoryTakenAway: the lane is left in good order by who loses the guest's memory.
func TestLaneMemoryTakenAway(t *testing.T) {
	d := newVolume(t, 32*mib)
	socket := serve(t, d)
	for range 8 {
		g := newGuest(t, guest.Options{Slots: 8})
		connect(t, g, socket)
		for k := range 8 {
			if _, err := g.BeginWrite(0, noise(64<<10, 1), int64(k)*mib); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Ftruncate(g.File(), 0); err != nil {
			t.Fatal(err)
		}
		g.Kick(0)
		if err := g.Gone(); err != nil {
			t.Error(err)
		}
	}
	other := newGuest(t, guest.Options{})
	connect(t, other, socket)
	if err := exercise(other, 0, 8*mib, 1); err != nil {
		t.Error(err)
	}
}

// TestLoad: the loop that measurements use gets every answer, and no error.
func TestLoad(t *testing.T) {
	for _, write := range []bool{true, false} {
		g := newGuest(t, guest.Options{Slots: 16})
		connect(t, g, serve(t, newVolume(t, 8*mib)))
		m, err := g.Run(guest.Load{Write: write, Bytes: 4096, Depth: 16, Size: 8 * mib, Duration: 20 * time.Millisecond})
		if err != nil || m.Errors > 0 || m.Requests < 16 || m.P99 < m.P50 || m.P50 <= 0 {
			t.Errorf("%+v, %v", m, err)
		}
	}
}

// TestLoadAtARate: requests come evenly, whether or not the disk answers at once, and their times
// begin when they were due.
func TestLoadAtARate(t *testing.T) {
	const rate, lasts, held = 500, 400 * time.Millisecond, 100 * time.Millisecond
	g := newGuest(t, guest.Options{Slots: 2})
	d := memdisk.New(mib)
	first := make(chan struct{}, 1)
	first <- struct{}{}
	d.Before = func(string, int64, int64) error {
		select {
		case <-first:
			<-time.After(held)
		default:
		}
		return nil
	}
	connect(t, g, serve(t, d))
	data := noise(3*4096, 1)
	m, err := g.Run(guest.Load{Write: true, Bytes: 4096, Depth: 1, Size: mib, Duration: lasts, Rate: rate, Data: data})
	if err != nil || m.Errors > 0 {
		t.Fatalf("%+v, %v", m, err)
	}
	if most := int(rate*lasts/time.Second) + 1; m.Requests > most || m.Requests < 3 { // a slow machine comes to fewer
		t.Errorf("%d requests, at most %d were due", m.Requests, most)
	}
	if m.Gap < held || m.P99 < held/2 || m.P99 > m.Took {
		t.Errorf("the disk held one for %v; told: %+v", held, m)
	}
}

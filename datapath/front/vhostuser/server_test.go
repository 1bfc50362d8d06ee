package vhostuser

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/datapath/front/memdisk"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
	"github.com/holdfast-dr/holdfast/datapath/internal/testsocket"
	"github.com/holdfast-dr/holdfast/ioengine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

// serve offers the device until the test ends, and returns the socket.
func serve(t *testing.T, dev front.Device) string {
	t.Helper()
	return serveAs(t, &Server{Device: dev})
}

// serveUntil offers the device until end is called.
func serveUntil(t *testing.T, dev front.Device) (socket string, end func()) {
	t.Helper()
	s := &Server{Device: dev, Name: "vol1", Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	return testsocket.Serve(t, s.Serve)
}

func newGuest(t *testing.T, o guest.Options) *guest.Guest {
	t.Helper()
	g, err := guest.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func connect(t *testing.T, g *guest.Guest, socket string) {
	t.Helper()
	if err := g.Connect(socket); err != nil {
		t.Fatal(err)
	}
}

func noise(n int, seed uint64) []byte {
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

// onEach runs a test on a disk of each kind: one that workers serve, one with lanes, one whose lanes look at what they read, and one that
// would have lanes if the system had io_uring.
func onEach(t *testing.T, size int64, test func(t *testing.T, d front.Device)) {
	t.Run("workers", func(t *testing.T) {
		d := memdisk.NewSpy(size)
		test(t, d)
		if open, mistakes := d.State(); open != 0 || len(mistakes) > 0 {
			t.Errorf("%d writes open; %q", open, mistakes)
		}
	})
	t.Run("lanes", func(t *testing.T) { test(t, newVolume(t, size)) })
	t.Run("lanes that look", func(t *testing.T) { test(t, looks(newVolume(t, size), nil)) })
	t.Run("lanes refused", func(t *testing.T) { test(t, newVolumeOn(t, ioengine.Threads(), size)) })
}

// TestReadsWhatWasWritten has several queues write, zero and read places of their own, by
// drivers of all kinds.
func TestReadsWhatWasWritten(t *testing.T) {
	for name, o := range map[string]guest.Options{
		"plain":     {Queues: 2},
		"scattered": {Queues: 2, Scatter: 1536},
		"no events": {NoEvents: true, Scatter: 4096},
		"no table":  {NoTable: true, Slots: 1},
		"regions":   {Regions: 8, SlotBytes: 256 << 10},
		"no flush":  {NoFlush: true, Slots: 8},
	} {
		t.Run(name, func(t *testing.T) {
			onEach(t, 32*mib, func(t *testing.T, d front.Device) {
				g := newGuest(t, o)
				connect(t, g, serve(t, d))
				var wg sync.WaitGroup
				for w := range 4 {
					wg.Go(func() {
						if err := exercise(g, w%max(1, o.Queues), int64(w)*8*mib, uint64(w)); err != nil {
							t.Errorf("%d: %v", w, err)
						}
					})
				}
				wg.Wait()
			})
		})
	}
}

// exercise compares a stretch of 8 MiB with a model of it.
func exercise(g *guest.Guest, queue int, base int64, seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 2))
	model := make([]byte, 8*mib)
	for range 60 {
		n := (1 + r.Int64N(64)) * 512
		off := r.Int64N(int64(len(model))-n) &^ 511
		part := model[off : off+n]
		var err error
		switch r.IntN(6) {
		case 0:
			clear(part)
			err = g.WriteZeroes(queue, r.IntN(2) == 0, guest.Range{Off: base + off, Len: n})
		case 1:
			clear(part)
			err = g.Discard(queue, guest.Range{Off: base + off, Len: n})
		case 2:
			err = g.Flush(queue)
		case 3:
			got := make([]byte, n)
			if err = g.Read(queue, got, base+off); err == nil && !bytes.Equal(got, part) {
				err = fmt.Errorf("%d bytes at %d differ", n, off)
			}
		default:
			copy(part, noise(int(n), r.Uint64()))
			err = g.Write(queue, part, base+off)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func TestDeviceIsAskedAsTheGuestAsked(t *testing.T) {
	for _, durable := range []bool{false, true} {
		d := memdisk.NewSpy(64 * mib)
		g := newGuest(t, guest.Options{NoFlush: durable})
		connect(t, g, serve(t, d))
		f := func(err error, want ...string) {
			t.Helper()
			if err != nil {
				t.Error(err)
			}
			for i := range want {
				want[i] = strings.ReplaceAll(want[i], "FUA", fmt.Sprintf("fua=%t", durable))
			}
			if got := d.Taken(); !slices.Equal(got, want) {
				t.Errorf("asked %q, want %q", got, want)
			}
		}
		f(g.Write(0, noise(4096, 1), 8192), "write 8192 4096 FUA")
		f(g.Flush(0), "flush")
		f(g.Discard(0, guest.Range{Off: 4096, Len: mib}, guest.Range{Off: 8 * mib, Len: 512}), "trim 4096 1048576 FUA", "trim 8388608 512 FUA")
		f(g.WriteZeroes(0, true, guest.Range{Off: 512, Len: 1024}), "zero 512 1024 unmap=true FUA")
		f(g.WriteZeroes(0, false, guest.Range{Off: 0, Len: 64 * mib}), "zero 0 67108864 unmap=false FUA")
		f(g.WriteZeroes(0, false, guest.Range{Off: 0, Len: 0}))
		if id, err := g.ID(0); id != "vol1" || err != nil {
			t.Errorf("id %q, %v", id, err)
		}
		if n, err := g.Capacity(); n != 64*mib || err != nil {
			t.Errorf("capacity %d, %v", n, err)
		}
	}
}

// TestRequestsThatNoDiskTakes are refused before the device hears of them.
func TestRequestsThatNoDiskTakes(t *testing.T) {
	d := memdisk.NewSpy(mib)
	g := newGuest(t, guest.Options{})
	connect(t, g, serve(t, d))
	const read, write, discard, zeroes = 0, 1, 11, 13
	f := func(kind uint32, sector uint64, payload, into []byte, want error) {
		t.Helper()
		c, err := g.Begin(0, kind, sector, payload, into)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Wait(); !errors.Is(err, want) {
			t.Errorf("kind %d, sector %d, %d+%d bytes: %v, want %v", kind, sector, len(payload), len(into), err, want)
		}
	}
	p := make([]byte, 1024)
	f(write, 2047, p, nil, guest.ErrIO)
	f(write, 1<<55, p, nil, guest.ErrIO)
	f(write, 1<<63, p, nil, guest.ErrIO)
	f(write, ^uint64(0), p, nil, guest.ErrIO)
	f(write, 0, p[:100], nil, guest.ErrIO)
	f(write, 0, nil, nil, guest.ErrIO)
	f(read, 2047, nil, p, guest.ErrIO)
	f(read, 0, nil, p[:511], guest.ErrIO)
	f(2, 0, nil, nil, guest.ErrUnsupported)
	f(0xffffffff, 0, p, nil, guest.ErrUnsupported)
	f(discard, 0, p[:15], nil, guest.ErrIO)
	f(discard, 0, nil, nil, guest.ErrIO)
	f(discard, 0, make([]byte, 17*16), nil, guest.ErrIO)
	one := func(sector uint64, count, flags uint32) []byte {
		return le.AppendUint32(le.AppendUint32(le.AppendUint64(nil, sector), count), flags)
	}
	f(discard, 0, one(0, 8, 1), nil, guest.ErrUnsupported)
	f(zeroes, 0, one(0, 8, 2), nil, guest.ErrUnsupported)
	f(zeroes, 0, one(2048, 1, 0), nil, guest.ErrIO)
	f(zeroes, 0, one(2047, 2, 0), nil, guest.ErrIO)
	f(zeroes, 0, one(^uint64(0), 1, 0), nil, guest.ErrIO)
	f(zeroes, 0, one(0, ^uint32(0), 0), nil, guest.ErrIO)
	if calls := d.Taken(); len(calls) > 0 {
		t.Errorf("the device was asked %q", calls)
	}
	if _, mistakes := d.State(); len(mistakes) > 0 {
		t.Errorf("%q", mistakes)
	}
	if err := g.Write(0, p, 0); err != nil {
		t.Error(err)
	}
}

func TestErrorsAreTold(t *testing.T) {
	d := memdisk.NewSpy(mib)
	broken := errors.New("broken")
	d.Before = func(op string, off, _ int64) error {
		if off == 4096 || op == "flush" {
			return broken
		}
		return nil
	}
	g := newGuest(t, guest.Options{})
	connect(t, g, serve(t, d))
	p := make([]byte, 4096)
	for name, err := range map[string]error{
		"write":   g.Write(0, p, 4096),
		"read":    g.Read(0, p, 4096),
		"flush":   g.Flush(0),
		"discard": g.Discard(0, guest.Range{Off: 4096, Len: 512}),
		"zeroes":  g.WriteZeroes(0, true, guest.Range{Off: 4096, Len: 512}),
	} {
		if !errors.Is(err, guest.ErrIO) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := g.Write(0, p, 0); err != nil {
		t.Error(err)
	}
}

func TestReadOnly(t *testing.T) {
	d := memdisk.NewSpy(mib)
	d.Sealed = true
	g := newGuest(t, guest.Options{})
	connect(t, g, serve(t, d))
	v, err := g.AskWord(guest.GetFeatures)
	if err != nil || v&featReadOnly == 0 || v&featDiscard != 0 {
		t.Errorf("features %#x, %v", v, err)
	}
	p := make([]byte, 512)
	if err := g.Read(0, p, 0); err != nil {
		t.Error(err)
	}
	for _, err := range []error{g.Write(0, p, 0), g.Discard(0, guest.Range{Len: 512}), g.WriteZeroes(0, false, guest.Range{Len: 512})} {
		if !errors.Is(err, guest.ErrIO) {
			t.Error(err)
		}
	}
	if calls := d.Taken(); len(calls) > 0 {
		t.Errorf("the device was asked %q", calls)
	}
}

// TestOneFrontEnd: a second is refused while the first stands, and served when that has left.
func TestOneFrontEnd(t *testing.T) {
	socket := serve(t, memdisk.NewSpy(mib))
	a, b := newGuest(t, guest.Options{}), newGuest(t, guest.Options{})
	connect(t, a, socket)
	if err := b.Connect(socket); err == nil {
		t.Error("two front ends")
	}
	if err := a.Write(0, noise(512, 1), 0); err != nil {
		t.Error(err)
	}
	if err := a.Disconnect(); err != nil {
		t.Error(err)
	}
	connect(t, b, socket)
	p := make([]byte, 512)
	if err := b.Read(0, p, 0); err != nil || !bytes.Equal(p, noise(512, 1)) {
		t.Error("read back:", err)
	}
}

// TestServeEnds: what is under way is answered, and then nothing is.
func TestServeEnds(t *testing.T) {
	d := memdisk.NewSpy(mib)
	begun, goOn := make(chan bool), make(chan bool)
	d.Before = func(op string, _, _ int64) error {
		if op == "flush" {
			begun <- true
			<-goOn
		}
		return nil
	}
	socket, end := serveUntil(t, d)
	g := newGuest(t, guest.Options{})
	connect(t, g, socket)
	c, err := g.Begin(0, 4, 0, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	<-begun
	ended := make(chan bool)
	go func() { end(); close(ended) }()
	if err := g.Gone(); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
		t.Error("Serve returned while the device was busy")
	default:
	}
	close(goOn)
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
	<-ended
}

// TestQueueGoesOn: a queue that is stopped answers what is under way, and neither that nor memory
// that is told anew loses a request.
func TestQueueGoesOn(t *testing.T) {
	for _, o := range []guest.Options{{Queues: 2}, {Queues: 2, NoTable: true}} {
		onEach(t, mib, func(t *testing.T, d front.Device) { goesOn(t, newGuest(t, o), serve(t, d)) })
	}
}

func goesOn(t *testing.T, g *guest.Guest, socket string) {
	connect(t, g, socket)
	const rounds, each = 40, 4
	for i := range rounds {
		var calls []*guest.Call
		for k := range each {
			c, err := g.BeginWrite(i%2, noise(4096, 3), int64(each*i+k)*4096)
			if err != nil {
				t.Fatal(err)
			}
			calls = append(calls, c)
		}
		switch i % 5 {
		case 1:
			if _, err := g.StopQueue(i % 2); err != nil {
				t.Fatal(err)
			}
			if err := g.StartQueue(i % 2); err != nil {
				t.Fatal(err)
			}
		case 3:
			if err := g.ShareMemory(); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range calls {
			if err := c.Wait(); err != nil {
				t.Errorf("%d: %v", i, err)
			}
		}
	}
	if base, err := g.StopQueue(0); base != rounds/2*each || err != nil {
		t.Errorf("base %d, %v", base, err)
	}
}

// TestMemoryTakenAway ends the session of who took it, and nothing else.
func TestMemoryTakenAway(t *testing.T) {
	d := memdisk.NewSpy(64 * mib)
	begun, goOn := make(chan bool), make(chan bool)
	d.Before = func(op string, off, _ int64) error {
		if op == "write" && off == mib {
			begun <- true
			<-goOn
		}
		return nil
	}
	socket := serve(t, d)
	g := newGuest(t, guest.Options{Slots: 4})
	connect(t, g, socket)
	if err := g.Write(0, noise(4096, 1), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := g.BeginWrite(0, noise(4096, 1), mib); err != nil { // nobody can answer it
		t.Fatal(err)
	}
	<-begun
	if err := unix.Ftruncate(g.File(), 0); err != nil {
		t.Fatal(err)
	}
	close(goOn)
	if err := g.Gone(); err != nil {
		t.Error(err)
	}
	other := newGuest(t, guest.Options{})
	connect(t, other, socket)
	if err := exercise(other, 0, 8*mib, 1); err != nil {
		t.Error(err)
	}
	if open, _ := d.State(); open != 0 {
		t.Errorf("%d writes open", open)
	}
}

// growing is a device whose size changes.
type growing struct {
	front.Device
	size atomic.Int64
}

func (d *growing) Size() int64 { return d.size.Load() }

// TestResized: a front end that gave a channel is told on it that the disk has grown, and then uses what is new; one
// without a channel asks.
func TestResized(t *testing.T) {
	d := &growing{Device: memdisk.NewSpy(2 * mib)}
	d.size.Store(mib)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	s := &Server{Device: d, Name: "vol1"}
	go func() { done <- s.Serve(ctx, l) }()
	s.Resized() // to nobody
	g := newGuest(t, guest.Options{})
	connect(t, g, socket)
	capacity := func() int64 {
		t.Helper()
		p, _, err := g.Ask(guest.GetConfig, append([]byte{0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 8)...))
		if err != nil || len(p) != 20 {
			t.Fatalf("the configuration: %d bytes, %v", len(p), err)
		}
		return int64(le.Uint64(p[12:])) * 512
	}
	if n := capacity(); n != mib {
		t.Errorf("the disk has %d bytes", n)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours := os.NewFile(uintptr(pair[0]), "channel")
	defer ours.Close()
	features, err := g.AskWord(guest.GetProtocolFeatures)
	if err != nil || features&protoBackend == 0 {
		t.Fatalf("protocol features %#x, %v", features, err)
	}
	if err := g.Tell(guest.SetProtocolFeatures, le.AppendUint64(nil, features)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second is another, and the first is gone
		if err := g.Tell(askSetBackendChannel, nil, pair[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Close(pair[1]); err != nil {
		t.Fatal(err)
	}
	if err := g.Write(0, noise(512, 1), mib); err == nil {
		t.Error("a write beyond the end went well")
	}
	hears := func() {
		t.Helper()
		var p [12]byte
		if _, err := io.ReadFull(ours, p[:]); err != nil || le.Uint32(p[:]) != tellConfig || le.Uint32(p[4:]) != flagVersion || le.Uint32(p[8:]) != 0 {
			t.Errorf("the channel says %x, %v", p, err)
		}
	}
	for range 2 { // queues that start have it told once
		if err := g.ShareMemory(); err != nil {
			t.Fatal(err)
		}
	}
	hears()
	d.size.Store(2 * mib)
	s.Resized()
	hears()
	if n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCINQ); n != 0 || err != nil {
		t.Errorf("the channel says %d bytes more, %v", n, err)
	}
	if n := capacity(); n != 2*mib {
		t.Errorf("the disk has %d bytes", n)
	}
	if err := g.Write(0, noise(512, 1), 2*mib-512); err != nil {
		t.Error(err)
	}
	if err := ours.Close(); err != nil {
		t.Fatal(err)
	}
	s.Resized() // who does not listen any more is not waited for
	if err := g.Tell(guest.SetProtocolFeatures, le.AppendUint64(nil, features)); err != nil {
		t.Fatal(err)
	}
	if err := g.Tell(askSetBackendChannel, nil, g.File()); err == nil {
		t.Error("a channel that is no socket")
	}
	if err := g.Disconnect(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

package nbd

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/datapath/front/memdisk"
	"github.com/holdfast-dr/holdfast/datapath/internal/testvolume"
	"github.com/holdfast-dr/holdfast/ioengine"
)

// seen is a device whose lanes' loops are told.
type seen struct {
	front.Laned
	loops chan *ioengine.Loop
}

func (s seen) Lane(requests int) (front.Lane, error) {
	l, err := s.Laned.Lane(requests)
	if err == nil {
		s.loops <- l.Loop()
	}
	return l, err
}

// TestIdleIsNoHang: a connection whose client is silent shows that it waits in the kernel, however it waits, and so
// the watchdog leaves it alone.
func TestIdleIsNoHang(t *testing.T) {
	needLanes(t)
	dev, _ := testvolume.Open(t, ioengine.OS(), 1<<20)
	d := seen{dev.(front.Laned), make(chan *ioengine.Loop, 1)}
	s := serve(t, Export{Name: "v", Device: d})
	r := s.raw(t)
	r.begin("v", false)
	loop := <-d.loops
	write := request{cmd: cmdWrite, n: 4096}
	for _, many := range []int{0, 1, 16, 1} {
		var all []byte
		for range many {
			all = append(write.appendTo(all), make([]byte, 4096)...)
		}
		before, _ := loop.Pulse()
		r.send(all)
		r.get(many * simpleBytes)
		for deadline := time.Now().Add(time.Minute); ; runtime.Gosched() {
			if pulse, _ := loop.Pulse(); pulse%2 == 1 && (many == 0 || pulse != before) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("after %d writes a silent client's loop seems to stand still", many)
			}
		}
	}
}

// needLanes skips a test where the system offers no io_uring.
func needLanes(t *testing.T) {
	t.Helper()
	if engine := ioengine.Engine(ioengine.OS()); engine != "io_uring" {
		t.Skip("this system offers no io_uring: ", engine)
	}
}

// TestPipelined: requests come as the client sends them, many in a piece and in pieces of any size, and each
// is carried out and answered once.
func TestPipelined(t *testing.T) {
	const size, requests, most = 2 << 20, 300, 40_000
	lanes, threads := ioengine.OS(), ioengine.Threads()
	for _, engine := range []struct {
		fs     ioengine.FS
		cached bool
	}{{lanes, false}, {lanes, true}, {threads, false}, {threads, true}} {
		open := testvolume.Open
		if engine.cached {
			open = testvolume.OpenCached
		}
		dev, _ := open(t, engine.fs, size)
		s := serve(t, Export{Name: "v", Device: dev})
		for _, piece := range []int{1 << 30, 70_000, 4096, 100} {
			t.Run(fmt.Sprintf("%s/cached=%v/piece=%d", ioengine.Engine(engine.fs)[:7], engine.cached, piece), func(t *testing.T) {
				r := s.raw(t)
				r.begin("v", false)
				rng := rand.New(rand.NewPCG(uint64(piece), 3))
				want := make([]byte, size)
				if err := dev.ReadAt(want, 0); err != nil {
					t.Fatal(err)
				}
				var all []byte
				open := make(map[uint64]bool)
				for i := range requests { // at places of their own, as requests of one moment have no order
					n := 1 + rng.IntN(min(most, size/requests))
					q := request{cmd: cmdWrite, cookie: uint64(i), off: uint64(i * (size / requests)), n: uint32(n)}
					if i%3 == 0 { // aligned, as guests' are
						q.off, q.n = (q.off+511)/512*512, 512
					}
					switch rng.IntN(8) {
					case 0:
						q = request{cmd: cmdFlush, cookie: q.cookie}
					case 1:
						q.off = size // refused, with its payload
					case 2:
						q.flags = flagFUA
					}
					open[q.cookie] = true
					if all = q.appendTo(all); q.cmd != cmdWrite {
						continue
					}
					payload := make([]byte, q.n)
					noise(payload, rng)
					all = append(all, payload...)
					if q.off < size {
						copy(want[q.off:], payload)
					}
				}
				sent := make(chan error, 1)
				go func() {
					var err error
					for p := all; len(p) > 0 && err == nil; {
						n := min(piece, len(p))
						_, err = r.Write(p[:n])
						p = p[n:]
					}
					sent <- err
				}()
				for range requests {
					p := r.get(simpleBytes)
					cookie := uint64(p[14])<<8 | uint64(p[15])
					if !open[cookie] || p[7] != 0 && p[7] != wireNoSpace {
						t.Fatalf("answer %x", p)
					}
					delete(open, cookie)
				}
				if err := <-sent; err != nil {
					t.Error(err)
				}
				got := make([]byte, size)
				if err := dev.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
					t.Errorf("the disk holds other bytes (%v)", err)
				}
			})
		}
	}
}

// TestSlowReader: who asks and does not listen is not served beyond what is bounded; when he listens he is
// told everything. Others go on.
func TestSlowReader(t *testing.T) { both(t, slowReader) }

func slowReader(t *testing.T) {
	const size, each, requests = 8 << 20, 256 << 10, 400
	d := memdisk.NewSpy(size)
	noisy := make([]byte, size)
	noise(noisy, rand.New(rand.NewPCG(1, 1)))
	put(t, d.Disk, noisy, 0)
	var asked atomic.Int64
	d.Before = func(op string, _, n int64) error { asked.Add(n); return nil }
	s := serve(t, Export{Name: "v", Device: d})
	r := s.raw(t)
	r.begin("v", true)
	var all []byte
	for i := range requests {
		all = request{cmd: cmdRead, cookie: uint64(i), off: uint64(i*each) % size, n: each}.appendTo(all)
	}
	r.send(all)
	other := s.dial(t, "v")
	for last := int64(-1); last != asked.Load() || last == 0; { // until nothing moves any more
		last = asked.Load()
		for range 20 {
			if _, err := other.ReadAt(make([]byte, 512), 0); err != nil {
				t.Fatal(err)
			}
		}
		asked.Add(-20 * 512)
	}
	const inSockets = 2 << 20
	if n := asked.Load(); n > 2*waitingBytes+laneBytes+2*each+inSockets {
		t.Errorf("%d bytes were read for nobody", n)
	}
	told := make(map[uint64]int)
	for len(told) < requests || told[0] < each {
		_, kind, cookie, p := r.chunk()
		if kind != chunkData || !bytes.Equal(p[8:], noisy[int(cookie)*each%size:][:len(p)-8]) {
			t.Fatalf("chunk %#x of %d bytes to %d: other bytes", kind, len(p), cookie)
		}
		told[cookie] += len(p) - 8
	}
}

// TestRoomAtOnce: what was not taken in because too many answers waited is taken in when all of them go at
// once, and nothing else happens that would have the connection look again.
func TestRoomAtOnce(t *testing.T) { both(t, roomAtOnce) }

func roomAtOnce(t *testing.T) {
	const each, requests = 256 << 10, 100
	d := memdisk.NewSpy(each)
	var asked atomic.Int64
	d.Before = func(string, int64, int64) error { asked.Add(1); return nil }
	s := serve(t, Export{Name: "v", Device: d})
	r := s.raw(t)
	r.begin("v", false)
	for i := range requests {
		r.send(request{cmd: cmdRead, cookie: uint64(i), n: each}.appendTo(nil))
	}
	other := s.dial(t, "v")
	for last := int64(-1); last != asked.Load() || last <= 0; { // until nothing moves any more
		last = asked.Load()
		for range 20 {
			if err := other.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		asked.Add(-20)
	}
	if n := asked.Load(); n == 0 || n >= requests {
		t.Fatalf("%d of %d are carried out: the test has lost its reach", n, requests)
	}
	sockets, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range sockets { // the server's is one of them, and tells that it takes more
		if fd, err := strconv.Atoi(e.Name()); err == nil && unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 256<<20) == unix.EPERM {
			t.Skip("only root gives a socket this much")
		}
	}
	r.get(requests * (simpleBytes + each))
}

// TestLaneIsTold: whenever answers were sent, a lone one or many, the device's lane hears of it: what it put
// off until then nobody else does.
func TestLaneIsTold(t *testing.T) {
	needLanes(t)
	dev, _ := testvolume.Open(t, ioengine.OS(), 1<<20)
	told := make(chan struct{}, 1)
	s := serve(t, Export{Name: "v", Device: testvolume.Hear(dev, func() {
		select {
		case told <- struct{}{}:
		default:
		}
	})})
	r := s.raw(t)
	r.begin("v", false)
	write := request{cmd: cmdWrite, n: 4096}
	for _, many := range []int{1, 1, 16} {
		select {
		case <-told: // of the writes before
		default:
		}
		var all []byte
		for range many {
			all = append(write.appendTo(all), make([]byte, 4096)...)
		}
		r.send(all)
		r.get(many * simpleBytes)
		select {
		case <-told:
		case <-time.After(time.Minute):
			t.Fatalf("%d writes were answered, and the lane was not told", many)
		}
	}
}

// TestStopBesideOneWhoNeverReads: it does not wait for him longer than partingTime.
func TestStopBesideOneWhoNeverReads(t *testing.T) { both(t, stopBesideOneWhoNeverReads) }

func stopBesideOneWhoNeverReads(t *testing.T) {
	d := memdisk.NewSpy(64 << 20)
	s := serve(t, Export{Name: "v", Device: d})
	for _, structured := range []bool{false, true} {
		r := s.raw(t)
		r.begin("v", structured)
		for range 3 {
			r.send(request{cmd: cmdRead, n: 4 << 20}.appendTo(nil))
		}
		r.get(simpleBytes)
	}
	start := time.Now()
	s.stop()
	if took := time.Since(start); took < partingTime || took > 5*partingTime {
		t.Errorf("the stop took %v", took)
	}
}

// TestGoneInFlight: a client that goes while its requests are carried out leaves nothing behind, and what
// the disk is at keeps its memory until it has ended.
func TestGoneInFlight(t *testing.T) { both(t, goneInFlight) }

func goneInFlight(t *testing.T) {
	const requests = 6
	g := newGate(1 << 20)
	s := serve(t, Export{Name: "v", Device: g})
	r := s.raw(t)
	r.begin("v", false)
	for i := range requests {
		r.send(request{cmd: cmdRead, off: uint64(i) * 4096, n: 4096}.appendTo(nil))
	}
	<-g.enter
	r.Close()
	removed := make(chan int64)
	go func() {
		if err := s.Remove("v"); err != nil {
			t.Error(err)
		}
		removed <- g.inside.Load()
	}()
	close(g.pass)
	if n := <-removed; n != 0 {
		t.Errorf("Remove returns while %d operations run", n)
	}
	if open, mistakes := g.State(); open != 0 || mistakes != nil {
		t.Errorf("%d writes are left open, %q", open, mistakes)
	}
}

// TestStopAnswers: a stop has the client told of all that it had asked for and that was taken in.
func TestStopAnswers(t *testing.T) { both(t, stopAnswers) }

func stopAnswers(t *testing.T) {
	const requests = 6
	g := newGate(1 << 20)
	s := serve(t, Export{Name: "v", Device: g})
	r := s.raw(t)
	r.begin("v", false)
	var all []byte
	for i := range requests {
		all = request{cmd: cmdRead, cookie: uint64(i), off: uint64(i) * 4096, n: 4096}.appendTo(all)
	}
	r.send(all)
	for range requests {
		<-g.enter
	}
	removed := make(chan error)
	go func() { removed <- s.Remove("v") }()
	for s.lookup("v") != nil {
		runtime.Gosched()
	}
	close(g.pass)
	for range requests {
		r.get(simpleBytes + 4096)
	}
	r.gone()
	if err := <-removed; err != nil {
		t.Error(err)
	}
}

// TestGoneFromADisk: the same with a real disk, as often as it takes; a write is there whole or not at all.
func TestGoneFromADisk(t *testing.T) {
	needLanes(t)
	const rounds, requests, each, size = 40, 64, 8192, 64 * 8192
	dev, _ := testvolume.Open(t, ioengine.OS(), size)
	s := serve(t, Export{Name: "v", Device: dev})
	for round := range rounds {
		r := s.raw(t)
		r.begin("v", true)
		var all []byte
		for i := range requests {
			if i%4 == 3 {
				all = request{cmd: cmdRead, off: uint64(i) * each, n: each}.appendTo(all)
				continue
			}
			all = request{cmd: cmdWrite, off: uint64(i) * each, n: each}.appendTo(all)
			all = append(all, bytes.Repeat([]byte{byte(1 + round)}, each)...)
		}
		r.send(all[:len(all)*(1+round)/rounds])
		r.Close()
	}
	s.stop()
	got := make([]byte, size)
	if err := dev.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < size; i += each {
		if p := got[i:][:each]; !bytes.Equal(p, bytes.Repeat(p[:1], each)) {
			t.Errorf("at %d stands half a write", i)
		}
	}
}

// TestErrorsByEveryWay: what the device says is told, whoever carries the request out: the reader of the
// socket itself, a lane, or a worker.
func TestErrorsByEveryWay(t *testing.T) { both(t, errorsByEveryWay) }

func errorsByEveryWay(t *testing.T) {
	d := memdisk.NewSpy(4 << 20)
	var fails atomic.Value
	d.Before = func(op string, _, _ int64) error {
		if err, ok := fails.Load().(error); ok && op != "write" {
			return err
		}
		return nil
	}
	s := serve(t, Export{Name: "v", Device: d})
	r := s.raw(t)
	r.begin("v", false)
	for _, c := range []struct {
		err  error
		code uint32
	}{{fmt.Errorf("disk: %w", syscall.EIO), wireIO}, {fmt.Errorf("disk: %w", front.ErrNoSpace), wireNoSpace}} {
		fails.Store(c.err)
		d.Refuse(c.err)
		for _, n := range []int{1, 20} { // alone, and many in one piece
			var all []byte
			asked := 0
			for i := range n {
				for _, q := range []request{
					{cmd: cmdRead, off: 512, n: 4096},
					{cmd: cmdRead, off: 1, n: 4096}, // no lane has it
					{cmd: cmdWrite, n: 512},
					{cmd: cmdWrite, flags: flagFUA, n: 512},
					{cmd: cmdWriteZeroes, n: 512}, {cmd: cmdTrim, n: 512}, {cmd: cmdFlush},
				} {
					q.cookie = uint64(i)
					if all = q.appendTo(all); q.cmd == cmdWrite {
						all = append(all, make([]byte, q.n)...)
					}
					if asked++; n == 1 {
						r.send(all)
						if code := r.simpleReply(0); code != c.code {
							t.Errorf("%+v with %v: %d", q, c.err, code)
						}
						all, asked = nil, 0
					}
				}
			}
			if r.send(all); asked == 0 {
				continue
			}
			for range asked {
				if p := r.get(simpleBytes); uint32(p[7]) != c.code {
					t.Errorf("%x with %v", p, c.err)
				}
			}
		}
	}
	if open, _ := d.State(); open != 0 {
		t.Errorf("%d writes left open", open)
	}
}

// TestDiskErrors: a disk that has lost its end answers so by io_uring and without it, and goes on
// with what it has.
func TestDiskErrors(t *testing.T) {
	for _, engine := range []ioengine.FS{ioengine.OS(), ioengine.Threads()} {
		dev, disk := testvolume.Open(t, engine, 1<<20)
		s := serve(t, Export{Name: "v", Device: dev})
		r := s.raw(t)
		r.begin("v", false)
		if err := os.Truncate(disk, 512<<10); err != nil {
			t.Fatal(err)
		}
		const each = 16
		for _, depth := range []int{1, each} {
			var all []byte
			for i := range depth {
				all = request{cmd: cmdRead, cookie: uint64(i), off: uint64(512<<10 + i*4096), n: 4096}.appendTo(all)
			}
			r.send(all)
			for range depth {
				if p := r.get(simpleBytes); p[7] != wireIO {
					t.Errorf("%s: a read of what is not there: %x", ioengine.Engine(engine), p)
				}
			}
		}
		if code := r.simple(request{cmd: cmdRead, n: 4096}, nil); code != wireOK {
			t.Errorf("a read of what is there: %d", code)
		}
	}
}

// TestWithoutIOUring: the log says so, and everything goes by threads.
func TestWithoutIOUring(t *testing.T) {
	dev, _ := testvolume.Open(t, ioengine.Threads(), 1<<20)
	var log bytes.Buffer
	var mu sync.Mutex
	s := serveLogged(t, slog.New(slog.NewTextHandler(lockedWriter{&mu, &log}, nil)), Export{Name: "v", Device: dev})
	c := s.dial(t, "v")
	if _, err := c.WriteAt(make([]byte, 4096), 4096); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if !strings.Contains(log.String(), "goes by threads") || !strings.Contains(log.String(), "switched off") {
		t.Errorf("the log: %s", log.String())
	}
}

type lockedWriter struct {
	mu  *sync.Mutex
	buf *bytes.Buffer
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(p)
}

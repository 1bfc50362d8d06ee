package vhostuser

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/datapath/front/memdisk"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
	"github.com/holdfast-dr/holdfast/datapath/internal/testsocket"
)

// serveAs has a server serve until the test ends, and returns the socket.
func serveAs(t *testing.T, s *Server) string {
	t.Helper()
	s.Name, s.Log = "vol1", slog.New(slog.NewTextHandler(t.Output(), nil))
	socket, end := testsocket.Serve(t, s.Serve)
	t.Cleanup(end)
	return socket
}

// life counts who serves: a device that is asked while another one, or none, is to serve is a mistake.
type life struct {
	t    *testing.T
	now  atomic.Int64 // 0: none
	open atomic.Int64
	last int64
}

func (l *life) asked(n int64) {
	if now := l.now.Load(); now != n {
		l.t.Errorf("device %d was asked while %d serves", n, now)
	}
}

// lived is a device of one life.
type lived struct {
	front.Device
	l *life
	n int64
}

func (d lived) Size() int64  { d.l.asked(d.n); return d.Device.Size() }
func (d lived) Close() error { d.l.open.Add(-1); return nil }

func (d lived) BeginWrite(off int64, n int) (front.Write, error) {
	d.l.asked(d.n)
	return d.Device.BeginWrite(off, n)
}

// lanedLife is one with lanes.
type lanedLife struct {
	front.Laned
	l *life
	n int64
}

func (d lanedLife) Size() int64  { d.l.asked(d.n); return d.Laned.Size() }
func (d lanedLife) Close() error { d.l.open.Add(-1); return nil }

// next is the device from now on.
func (l *life) next(d front.Device) Opened {
	l.last++
	l.now.Store(l.last)
	l.open.Add(1)
	if laned, ok := d.(front.Laned); ok {
		return lanedLife{laned, l, l.last}
	}
	return lived{d, l, l.last}
}

// TestHold has a guest write while its device is held and changed, again and again: nothing is asked of a device while it is held, or after it was changed for
// another; no request is lost, and none is in error.
func TestHold(t *testing.T) {
	onEach(t, 8*mib, func(t *testing.T, d front.Device) {
		l := &life{t: t}
		s := &Server{}
		s.OpenEach(func() (Opened, error) { return l.next(d), nil })
		g := newGuest(t, guest.Options{Queues: 2, Slots: 8, SlotBytes: 64 << 10})
		connect(t, g, serveAs(t, s))
		var wg sync.WaitGroup
		var stop atomic.Bool
		var wrote [4]uint64
		more := make(chan bool, 1)
		for w := range wrote {
			wg.Go(func() {
				for !stop.Load() {
					p := noise(4096, wrote[w]+1)
					if err := g.Write(w%2, p, int64(w)*mib); err != nil {
						t.Errorf("%d: %v", w, err)
						return
					}
					wrote[w]++
					select {
					case more <- true:
					default:
					}
					got := make([]byte, len(p))
					if err := g.Read(w%2, got, int64(w)*mib); err != nil || !bytes.Equal(got, p) {
						t.Errorf("%d: write %d is not read back: %v", w, wrote[w], err)
						return
					}
				}
			})
		}
		was := d
		for i := range 60 {
			<-more
			goOn := s.Hold()
			n := l.now.Swap(0)
			if i%3 == 0 {
				l.now.Store(n)
				goOn(nil)
				continue
			}
			goOn(func() (Opened, error) { return l.next(was), nil })
		}
		stop.Store(true)
		wg.Wait()
		if n := l.open.Load(); n != 1 {
			t.Errorf("%d devices are open", n)
		}
	})
}

// TestHeldFrontEndLeaves: who leaves while it is held, or cannot be served any more, may come again, and is served by what is opened then.
func TestHeldFrontEndLeaves(t *testing.T) {
	d := memdisk.NewSpy(mib)
	l := &life{t: t}
	s := &Server{Device: lived{d, l, 0}} // which is not the server's to close
	socket := serveAs(t, s)
	g := newGuest(t, guest.Options{})
	connect(t, g, socket)
	if err := g.Write(0, noise(512, 1), 0); err != nil {
		t.Fatal(err)
	}
	goOn := s.Hold()
	if err := g.Disconnect(); err != nil {
		t.Fatal(err)
	}
	var fails atomic.Bool
	open := func() (Opened, error) {
		if fails.Load() {
			return nil, errors.New("somebody has the disk")
		}
		return l.next(d), nil
	}
	goOn(open)
	connect(t, g, socket)
	p := make([]byte, 512)
	if err := g.Read(0, p, 0); err != nil || !bytes.Equal(p, noise(512, 1)) {
		t.Error("read back:", err)
	}
	fails.Store(true)
	s.Hold()(open)
	if err := g.Gone(); err != nil {
		t.Error(err)
	}
	other := newGuest(t, guest.Options{})
	if err := other.Connect(socket); err == nil {
		t.Error("it is served by nothing")
	}
	fails.Store(false)
	connect(t, other, socket)
	if err := other.Read(0, p, 0); err != nil || !bytes.Equal(p, noise(512, 1)) {
		t.Error("read back again:", err)
	}
	if n := l.open.Load(); n != 1 {
		t.Errorf("%d devices are open", n)
	}
}

// TestToldWhileHeldInVain: a message that comes while its front end is held, and then there is nothing to go on with, starts no queue on the device that was, and
// asks it nothing. What waits in the queues is carried out once the front end comes again.
func TestToldWhileHeldInVain(t *testing.T) {
	for name, message := range map[string]func(g *guest.Guest) error{
		"a queue is on": func(g *guest.Guest) error {
			return g.Send(askSetVringEnable, flagVersion, append(make([]byte, 4), 1, 0, 0, 0))
		},
		"a queue is asked": func(g *guest.Guest) error {
			return g.Send(askGetConfig, flagVersion, append(append(make([]byte, 4), 60), make([]byte, 7+60)...))
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := memdisk.NewSpy(mib)
			l := &life{t: t}
			s := &Server{Device: lived{d, l, 0}}
			socket := serveAs(t, s)
			g := newGuest(t, guest.Options{})
			connect(t, g, socket)
			goOn := s.Hold()
			l.now.Store(-1)
			want := noise(512, 1)
			call, err := g.BeginWrite(0, want, 0)
			if err == nil {
				err = message(g)
			}
			for unread := 1; err == nil && unread > 0; runtime.Gosched() {
				unread, err = inbound(s.live.conn)
			}
			if err != nil {
				t.Fatal(err)
			}
			var opens atomic.Bool
			goOn(func() (Opened, error) {
				if !opens.Load() {
					return nil, errors.New("somebody has the disk")
				}
				return l.next(d), nil
			})
			if err := g.Gone(); err != nil {
				t.Error(err)
			}
			opens.Store(true)
			connect(t, g, socket)
			p := make([]byte, 512)
			if err := errors.Join(call.Wait(), g.Read(0, p, 0)); err != nil || !bytes.Equal(p, want) {
				t.Errorf("what waited is not carried out: %v", err)
			}
		})
	}
}

// inbound is how many bytes wait to be read.
func inbound(conn *net.UnixConn) (n int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	return n, errors.Join(raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCINQ) }), err)
}

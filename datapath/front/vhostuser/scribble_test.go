package vhostuser

import (
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/datapath/front/memdisk"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
)

// wild is a machine whose memory is full of almost sensible requests, and nonsense, that change
// while they are carried out.
type wild struct {
	*guest.Guest
	rnd        *rand.Rand
	kick, call int
}

const (
	wildSize  = 64
	wildAvail = wildSize * descBytes
	wildUsed  = wildAvail + 4096
	wildData  = wildUsed + 4096
)

// addr is where something may lie: mostly inside, at times across or beyond an end.
func (w *wild) addr() uint64 {
	n := uint64(len(w.Memory()))
	switch w.rnd.IntN(12) {
	case 0:
		return w.rnd.Uint64()
	case 1:
		return guest.Base + n - w.rnd.Uint64N(32)
	case 2:
		return guest.Base + n/2 - w.rnd.Uint64N(512)
	case 3: // the queue itself
		return guest.Base + w.rnd.Uint64N(wildData)
	}
	return guest.Base + wildData + w.rnd.Uint64N(n-wildData)&^15
}

func (w *wild) bytes() uint32 {
	return [...]uint32{0, 1, 15, 16, 17, 32, 512, 512, 4096, 1024, 16 << 4, 1 << 16, w.rnd.Uint32()}[w.rnd.IntN(13)]
}

// scribble changes something.
func (w *wild) scribble() {
	mem := w.Memory()
	switch w.rnd.IntN(8) {
	case 0: // anything anywhere
		le.PutUint64(mem[w.rnd.IntN(len(mem)-8):], w.rnd.Uint64())
	case 1: // the queue itself
		le.PutUint16(mem[wildAvail+2*w.rnd.IntN(wildSize+3):], uint16(w.rnd.IntN(wildSize)))
	case 2: // a header, or a range
		p := mem[w.header()-guest.Base:]
		le.PutUint32(p, [...]uint32{0, 1, 4, 8, 11, 13, 7}[w.rnd.IntN(7)])
		le.PutUint64(p[8:], [...]uint64{0, 1, mib / 512, mib/512 - 1, 1 << 55, 1<<64 - 1}[w.rnd.IntN(6)])
		p = p[16:]
		le.PutUint64(p, w.rnd.Uint64N(mib/512))
		le.PutUint32(p[8:], w.rnd.Uint32N(mib/512))
		le.PutUint32(p[12:], w.rnd.Uint32N(3))
	case 3, 4, 5, 6: // a request of three
		i := w.rnd.IntN(wildSize - 3)
		at := w.header()
		w.describe(i, at, 16, descNext, i+1)
		switch w.rnd.IntN(3) {
		case 0:
			w.describe(i+1, at+16, 16, descNext, i+2)
		case 1:
			w.describe(i+1, w.addr(), w.bytes(), descNext, i+2)
		case 2:
			w.describe(i+1, w.addr(), w.bytes(), descNext|descWrite, i+2)
		}
		w.describe(i+2, w.addr(), 1, descWrite, 0)
	default: // one descriptor
		w.describe(w.rnd.IntN(wildSize), w.addr(), w.bytes(), uint16(w.rnd.IntN(8)), w.rnd.IntN(wildSize+1))
	}
}

// header is the place of a request's header, with a range behind it.
func (w *wild) header() uint64 { return guest.Base + wildData + 32*w.rnd.Uint64N(64) }

func (w *wild) describe(i int, addr uint64, n uint32, flags uint16, next int) {
	p := w.Memory()[i*descBytes:]
	le.PutUint64(p, addr)
	le.PutUint32(p[8:], n)
	le.PutUint16(p[12:], flags)
	le.PutUint16(p[14:], uint16(next))
}

// begin starts queue i at its begin.
func (w *wild) begin(i uint64, user uint64) error {
	clear(w.Memory()[wildUsed:][:4096])
	le.PutUint32(w.Memory()[wildAvail:], 0)
	for _, m := range []struct {
		ask  uint32
		body []byte
		fds  []int
	}{
		{guest.GetVringBase, words(i), nil},
		{guest.SetVringNum, words(i | wildSize<<32), nil},
		{guest.SetVringBase, words(i), nil},
		{guest.SetVringAddr, words(i, user, user+wildUsed, user+wildAvail, 0), nil},
		{guest.SetVringCall, words(i), []int{w.call}},
		{guest.SetVringKick, words(i), []int{w.kick}},
	} {
		if m.ask == guest.GetVringBase {
			if _, _, err := w.Ask(m.ask, m.body); err != nil {
				return err
			}
			continue
		}
		if err := w.Tell(m.ask, m.body, m.fds...); err != nil {
			return err
		}
	}
	return nil
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestScribble: requests that are nonsense, and change under way, ask nothing of the device that is
// outside it, and leave nothing behind.
func TestScribble(t *testing.T) {
	d := memdisk.NewSpy(mib)
	scribbled(t, d)
	if open, mistakes := d.State(); open != 0 || len(mistakes) > 0 {
		t.Errorf("%d writes not ended; asked %q", open, mistakes)
	}
	if len(d.Taken()) == 0 {
		t.Error("nothing that was asked came as far as the device")
	}
}

// TestLaneScribble is TestScribble on a disk with lanes.
func TestLaneScribble(t *testing.T) { scribbled(t, newVolume(t, mib)) }

// TestCopiedScribble is TestScribble on a disk whose lanes look at what they read.
func TestCopiedScribble(t *testing.T) { scribbled(t, looks(newVolume(t, mib), nil)) }

func scribbled(t *testing.T, d front.Device) {
	t.Helper()
	socket, end := serveUntil(t, d)
	scribbleOnce(t, socket, 0)
	before := openFiles(t)
	for round := range uint64(10) {
		scribbleOnce(t, socket, round)
	}
	g, err := guest.New(guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	connect(t, g, socket)
	if err := g.Write(0, noise(512, 1), 0); err != nil {
		t.Error(err)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	end()
	if after := openFiles(t); after > before {
		t.Errorf("%d open files, %d before", after, before)
	}
}

func scribbleOnce(t *testing.T, socket string, seed uint64) {
	w := &wild{rnd: rand.New(rand.NewPCG(seed, 1))}
	var err error
	if w.Guest, err = guest.New(guest.Options{NoTable: seed%2 == 0, NoEvents: seed%3 == 0, Regions: 1 + int(seed%2), Slots: 22}); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, fd := range []*int{&w.kick, &w.call} {
		if *fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(*fd)
	}
	if err := w.Connect(socket); err != nil {
		t.Fatal(err)
	}
	user := w.UserAddress()
	for i := range w.Memory() {
		w.Memory()[i] = 0
	}
	for range 8 {
		if err := w.begin(0, user); err != nil {
			t.Fatal(err)
		}
		for range 600 {
			w.scribble()
		}
		for i := range uint16(wildSize) {
			le.PutUint16(w.Memory()[wildAvail+atRing+2*int(i):], i)
		}
		idx := uint16(0)
		for range 20 {
			for range 1 + w.rnd.IntN(16) {
				w.scribble()
			}
			idx = le.Uint16(w.Memory()[wildUsed+atIndex:]) + uint16(w.rnd.IntN(wildSize))
			le.PutUint16(w.Memory()[wildAvail+atIndex:], idx)
			unix.Write(w.kick, []byte{1, 0, 0, 0, 0, 0, 0, 0})
			for range w.rnd.IntN(200) {
				w.scribble()
			}
		}
	}
	if w.rnd.IntN(2) == 0 {
		unix.Ftruncate(w.File(), 16384)
	}
}

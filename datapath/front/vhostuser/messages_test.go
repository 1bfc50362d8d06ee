package vhostuser

import (
	"math/rand/v2"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/datapath/front/memdisk"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
)

// TestRandomMessages: front ends that say anything, and bring descriptors where none belong, leave
// none behind.
func TestRandomMessages(t *testing.T) {
	d := memdisk.NewSpy(mib)
	socket, end := serveUntil(t, d)
	g := newGuest(t, guest.Options{})
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(event)
	connect(t, g, socket)
	if err := g.Disconnect(); err != nil {
		t.Fatal(err)
	}
	before := openFiles(t)
	for i := range uint64(200) {
		if err := randomMessages(socket, rand.New(rand.NewPCG(i, 3)), g, event); err != nil {
			t.Fatal(err)
		}
	}
	connect(t, g, socket) // who was there before is gone now
	if err := g.Write(0, noise(512, 1), 0); err != nil {
		t.Error(err)
	}
	if err := g.Disconnect(); err != nil {
		t.Error(err)
	}
	end()
	if after := openFiles(t); after > before {
		t.Errorf("%d open files, %d before", after, before)
	}
	if open, mistakes := d.State(); open != 0 || len(mistakes) > 0 {
		t.Errorf("%d writes not ended; asked %q", open, mistakes)
	}
}

func randomMessages(socket string, r *rand.Rand, g *guest.Guest, event int) error {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer conn.Close()
	asks := []uint32{1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 31, 32, 21}
	for range 1 + r.IntN(12) {
		ask := asks[r.IntN(len(asks))]
		var body []byte
		fds := []int{}
		for range r.IntN(10) / 3 {
			fds = append(fds, [...]int{g.File(), event, event}[r.IntN(3)])
		}
		switch ask {
		case askSetFeatures:
			body = words(1<<32 | r.Uint64N(2)<<29)
		case askSetProtocolFeatures:
			body = words(protoFeatures & r.Uint64())
		case askSetMemTable:
			user := g.UserAddress()
			body, fds = words(1, guest.Base, 4096*(1+r.Uint64N(4)), user, 0), fds[:0]
			for range r.IntN(3) {
				fds = append(fds, g.File())
			}
		case askSetVringAddr:
			body = words(r.Uint64N(17), g.UserAddress(), g.UserAddress()+8192, g.UserAddress()+4096, 0)
		case askGetInflight, askSetInflight:
			body = inflightInfo{r.Uint64N(1 << 13), r.Uint64N(3) * 4, uint16(r.IntN(18)), uint16(r.IntN(70))}.appendTo(nil)
		default:
			body = words(r.Uint64N(17) | r.Uint64N(20)/19<<8 | uint64(1)<<32<<r.Uint64N(8))
			if r.IntN(8) == 0 {
				body = body[:r.IntN(9)]
			}
		}
		p := le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, ask), 1|8*r.Uint32N(2)), uint32(len(body)))
		p = append(p, body...)
		if r.IntN(30) == 0 {
			p = p[:r.IntN(len(p))+1]
		}
		var rights []byte
		if len(fds) > 0 {
			rights = unix.UnixRights(fds...)
		}
		cut := len(p)
		if r.IntN(6) == 0 {
			cut = r.IntN(len(p)) + 1
		}
		if _, _, err := conn.WriteMsgUnix(p[:cut], rights, nil); err != nil {
			return nil // refused: it was wrong
		}
		if cut < len(p) {
			if r.IntN(2) == 0 {
				rights = nil
			}
			if _, _, err := conn.WriteMsgUnix(p[cut:], rights, nil); err != nil {
				return nil
			}
		}
	}
	return nil
}

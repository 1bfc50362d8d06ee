package vhostuser

import (
	"errors"
	"testing"

	"github.com/holdfast-dr/holdfast/datapath/front/memdisk"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
)

func words(w ...uint64) (p []byte) {
	for _, v := range w {
		p = le.AppendUint64(p, v)
	}
	return p
}

// TestHostileFrontEnd: a message that is none by the protocol ends its sender's session.
func TestHostileFrontEnd(t *testing.T) {
	d := memdisk.NewSpy(mib)
	socket := serve(t, d)
	header := func(ask, flags, n uint32) []byte {
		return le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, ask), flags), n)
	}
	for name, send := range map[string]func(g *guest.Guest) error{
		"unknown":           func(g *guest.Guest) error { return g.Send(99, 1, nil) },
		"another version":   func(g *guest.Guest) error { return g.Send(1, 2, nil) },
		"an answer":         func(g *guest.Guest) error { return g.Send(1, 5, nil) },
		"too long":          func(g *guest.Guest) error { return g.Raw(header(1, 1, maxMessage+1)) },
		"of 4 GiB":          func(g *guest.Guest) error { return g.Raw(header(1, 1, ^uint32(0))) },
		"empty features":    func(g *guest.Guest) error { return g.Send(guest.SetFeatures, 1, nil) },
		"wrong features":    func(g *guest.Guest) error { return g.Send(guest.SetFeatures, 1, words(^uint64(0))) },
		"wrong protocol":    func(g *guest.Guest) error { return g.Send(guest.SetProtocolFeatures, 1, words(1<<60)) },
		"no memory":         func(g *guest.Guest) error { return g.Send(guest.SetMemTable, 1, words(0)) },
		"memory of nothing": func(g *guest.Guest) error { return g.Send(guest.SetMemTable, 1, words(1, 0, 4096, 0, 0)) },
		"memory of no size": func(g *guest.Guest) error {
			return g.Send(guest.SetMemTable, 1, words(1, 0, 0, 0, 0), g.File())
		},
		"memory beyond its file": func(g *guest.Guest) error {
			return g.Send(guest.SetMemTable, 1, words(1, 0, 1<<40, 0, 0), g.File())
		},
		"memory that wraps": func(g *guest.Guest) error {
			return g.Send(guest.SetMemTable, 1, words(1, ^uint64(0), 4096, 0, 0), g.File())
		},
		"memory of many pieces": func(g *guest.Guest) error { return g.Send(guest.SetMemTable, 1, words(9, 0, 4096, 0, 0), g.File()) },
		"queue 16":              func(g *guest.Guest) error { return g.Send(guest.SetVringNum, 1, words(16|64<<32)) },
		"base of queue 2^31":    func(g *guest.Guest) error { return g.Send(guest.GetVringBase, 1, words(1<<31)) },
		"queue of no power":     func(g *guest.Guest) error { return g.Send(guest.SetVringNum, 1, words(0|100<<32)) },
		"queue of 2^31":         func(g *guest.Guest) error { return g.Send(guest.SetVringNum, 1, words(0|1<<63)) },
		"queue nowhere":         func(g *guest.Guest) error { return g.Send(guest.SetVringAddr, 1, words(0, 1, 2, 3, 4)) },
		"queue to be polled":    func(g *guest.Guest) error { return g.Send(guest.SetVringKick, 1, words(0|noDescriptor)) },
		"kick of nothing":       func(g *guest.Guest) error { return g.Send(guest.SetVringKick, 1, words(0)) },
		"kick of a file":        func(g *guest.Guest) error { return g.Send(guest.SetVringKick, 1, words(0), g.File()) },
		"call of two":           func(g *guest.Guest) error { return g.Send(guest.SetVringCall, 1, words(0), g.File(), g.File()) },
		"configuration beyond":  func(g *guest.Guest) error { return g.Send(guest.GetConfig, 1, words(250|60<<32, 0)) },
		"configuration of less": func(g *guest.Guest) error { return g.Send(guest.GetConfig, 1, append(words(0|60<<32), 0, 0, 0, 0)) },
		"table of no queues":    func(g *guest.Guest) error { return g.Send(guest.GetInflight, 1, make([]byte, inflightInfoBytes)) },
		"table while running": func(g *guest.Guest) error {
			return g.Send(guest.SetInflight, 1, inflightInfo{64, 0, 1, 1}.appendTo(nil), g.File())
		},
		"many descriptors": func(g *guest.Guest) error {
			f := g.File()
			return g.Send(guest.SetVringCall, 1, words(0), f, f, f, f, f, f, f, f, f)
		},
	} {
		g := newGuest(t, guest.Options{})
		connect(t, g, socket)
		if err := send(g); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := g.Gone(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := g.Disconnect(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	g := newGuest(t, guest.Options{})
	connect(t, g, socket)
	if err := g.Write(0, noise(512, 1), 0); err != nil {
		t.Error(err)
	}
}

// TestHostileQueue: a queue of nonsense is not served any more; another is, and this one
// again when it is set up anew.
func TestHostileQueue(t *testing.T) {
	g := newGuest(t, guest.Options{Queues: 2, Slots: 4})
	d := memdisk.NewSpy(mib)
	connect(t, g, serve(t, d))
	if err := g.Write(0, noise(512, 1), 0); err != nil {
		t.Fatal(err)
	}
	if err := g.Leap(0, 1000); err != nil { // it says that a thousand requests are there
		t.Fatal(err)
	}
	if err := g.Write(1, noise(512, 2), 512); err != nil {
		t.Error(err)
	}
	if err := g.Head(1, 0xffff); err != nil { // a head beyond the queue
		t.Fatal(err)
	}
	for i := range 2 {
		if _, err := g.StopQueue(i); err != nil {
			t.Error(err)
		}
	}
	if calls := d.Taken(); len(calls) != 2 {
		t.Errorf("the device was asked %q", calls)
	}
}

// FuzzMessage: whatever comes, what is taken from a message is within its limits.
func FuzzMessage(f *testing.F) {
	f.Add(appendReply(nil, askSetVringNum, words(1|128<<32)), 0)
	f.Add(appendReply(nil, askSetMemTable, words(1, 0, 4096, 0, 0)), 1)
	f.Fuzz(func(t *testing.T, p []byte, fds int) {
		if len(p) < headerBytes {
			return
		}
		m, n, err := parseHeader(p)
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Fatal(err)
			}
			m = message{ask: le.Uint32(p)}
			n = len(p) - headerBytes
		}
		m.body = p[headerBytes:][:min(n, len(p)-headerBytes)]
		m.fds = make([]int, max(0, min(fds, maxRegions+1)))
		for i := range m.fds {
			m.fds[i] = -1
		}
		if i, _, err := m.state(); err == nil && (i < 0 || i >= MaxQueues) {
			t.Fatal(i)
		}
		if i, _, err := m.vringAddr(); err == nil && (i < 0 || i >= MaxQueues) {
			t.Fatal(i)
		}
		if list, err := m.regions(); err == nil && (len(list) > maxRegions || len(list) != len(m.fds)) {
			t.Fatal(len(list))
		}
		if r, err := m.configRange(); err == nil && (r.off < 0 || r.bytes < 0 || r.off+r.bytes > maxConfig) {
			t.Fatal(r)
		}
		if i, err := m.inflight(); err == nil && (i.queues > MaxQueues || i.size > maxQueueSize) {
			t.Fatal(i)
		}
		if i, _, err := m.descriptor(); err == nil && (i < 0 || i >= MaxQueues) {
			t.Fatal(i)
		}
	})
}

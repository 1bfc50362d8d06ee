package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// script is a server that answers one request with bytes made up by a test.
type script struct {
	answer func(q request) []byte
	hangUp bool // after the answer
}

// start listens, plays the script to one client, and returns the URI.
func (s script) start(t *testing.T) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		s.play(nc)
	}()
	t.Cleanup(func() {
		l.Close()
		<-ended
	})
	return URI{Network: "unix", Address: socket}.String()
}

// play lets our own server do the talk, and then speaks itself.
func (s script) play(nc net.Conn) {
	srv := &Server{}
	e, _ := memory("", 1<<20)
	if srv.Add(e) != nil {
		return
	}
	c := newConn(srv, nc)
	exp, err := c.negotiate()
	if exp == nil || err != nil {
		return
	}
	defer srv.detach(exp, c)
	for {
		p, err := c.in.next(requestBytes)
		if err != nil {
			return
		}
		q, err := parseRequest(p)
		if err != nil || q.cmd == cmdDisconnect {
			return
		}
		if q.cmd == cmdWrite && c.in.discard(int(q.n)) != nil {
			return
		}
		if _, err := nc.Write(s.answer(q)); err != nil || s.hangUp {
			return
		}
	}
}

// TestHostileServer: whatever a server answers, a call ends, with an error that says
// which kind it is, and no byte goes where it does not belong.
func TestHostileServer(t *testing.T) {
	chunk := func(q request, flags, kind uint16, data ...byte) []byte {
		return append(appendChunk(nil, q.cookie, flags, kind, len(data)), data...)
	}
	at := func(off uint64, p ...byte) []byte { return append(binary.BigEndian.AppendUint64(nil, off), p...) }
	hole := func(off uint64, n uint32) []byte { return binary.BigEndian.AppendUint32(at(off), n) }
	// The call is a read of 4 bytes at 100.
	f := func(name string, ask asking, answer func(q request) []byte, want error) {
		t.Helper()
		c, err := dial(t.Context(), script{answer: answer, hangUp: true}.start(t), ask)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		defer c.Close()
		around := bytes.Repeat([]byte{0xEE}, 12)
		_, err = c.ReadAt(around[4:8], 100)
		if !errors.Is(err, want) || !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
		if !bytes.Equal(around[:4], around[8:]) || around[0] != 0xEE {
			t.Errorf("%s: bytes beside the buffer: %x", name, around)
		}
	}
	s, plain := asking{structured: true, info: true}, asking{info: true}
	f("nothing", s, func(request) []byte { return nil }, io.ErrUnexpectedEOF)
	f("half a header", s, func(request) []byte { return make([]byte, 7) }, io.ErrUnexpectedEOF)
	f("magic", s, func(request) []byte { return make([]byte, 64) }, errMagic)
	f("another cookie", s, func(q request) []byte { q.cookie += 1 << 32; return chunk(q, 1, chunkData, at(100, 1, 2, 3, 4)...) }, errImpolite)
	f("a slot beyond all", s, func(q request) []byte { q.cookie |= 0xffffffff; return chunk(q, 1, chunkNone) }, errImpolite)
	f("simple where structured", s, func(q request) []byte { return append(appendSimple(nil, q.cookie, 0), 1, 2, 3, 4) }, errImpolite)
	f("structured where simple", plain, func(q request) []byte { return chunk(q, 1, chunkData, at(100, 1, 2, 3, 4)...) }, errImpolite)
	f("half a payload", plain, func(q request) []byte { return append(appendSimple(nil, q.cookie, 0), 1, 2) }, io.ErrUnexpectedEOF)
	f("no payload", s, func(q request) []byte { return chunk(q, 1, chunkNone) }, errImpolite)
	f("too little", s, func(q request) []byte { return chunk(q, 1, chunkData, at(100, 1, 2, 3)...) }, errImpolite)
	f("too much", s, func(q request) []byte { return chunk(q, 1, chunkData, at(100, 1, 2, 3, 4, 5)...) }, errImpolite)
	f("before the place", s, func(q request) []byte { return chunk(q, 1, chunkData, at(99, 1, 2, 3, 4)...) }, errImpolite)
	f("behind it", s, func(q request) []byte { return chunk(q, 1, chunkData, at(103, 1, 2)...) }, errImpolite)
	f("round the end", s, func(q request) []byte { return chunk(q, 1, chunkData, at(1<<64-1, 1, 2)...) }, errImpolite)
	f("hole beyond", s, func(q request) []byte { return chunk(q, 1, chunkHole, hole(100, 1<<31)...) }, errImpolite)
	f("hole before", s, func(q request) []byte { return chunk(q, 1, chunkHole, hole(98, 4)...) }, errImpolite)
	f("the same bytes twice", s, func(q request) []byte {
		return append(chunk(q, 0, chunkData, at(100, 1, 2, 3, 4)...), chunk(q, 1, chunkData, at(100, 1, 2)...)...)
	}, errImpolite)
	f("empty data", s, func(q request) []byte { return chunk(q, 1, chunkData, at(100)...) }, errImpolite)
	f("none with data", s, func(q request) []byte { return chunk(q, 1, chunkNone, 1) }, errImpolite)
	f("extents to a read", s, func(q request) []byte { return chunk(q, 1, chunkBlockStatus, make([]byte, 12)...) }, errImpolite)
	f("unknown kind", s, func(q request) []byte { return chunk(q, 1, 77, 1, 2, 3) }, errImpolite)
	f("chunk of 4 GiB", s, func(q request) []byte { return appendChunk(nil, q.cookie, 1, chunkError, 1<<32-1) }, errImpolite)
	f("error too short", s, func(q request) []byte { return chunk(q, 1, chunkError, 0, 0, 0, 5) }, errImpolite)
}

// TestHoleInRead: a server may leave zeros out; ours does not, so a script does.
func TestHoleInRead(t *testing.T) {
	uri := script{answer: func(q request) []byte {
		p := appendChunk(nil, q.cookie, 0, chunkHole, 12)
		p = binary.BigEndian.AppendUint64(p, q.off)
		p = binary.BigEndian.AppendUint32(p, 2)
		p = appendChunk(p, q.cookie, chunkDone, chunkData, 10)
		p = binary.BigEndian.AppendUint64(p, q.off+2)
		return append(p, 7, 8)
	}}.start(t)
	c, err := Dial(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p := []byte{1, 2, 3, 4}
	if _, err := c.ReadAt(p, 100); err != nil || !bytes.Equal(p, []byte{0, 0, 7, 8}) {
		t.Errorf("%x (%v)", p, err)
	}
}

// TestLongStatus: QEMU answers with as many extents as go into 1 MiB, behind the number of their context.
func TestLongStatus(t *testing.T) {
	const count, each = 1 << 20 / 8, 8
	uri := script{answer: func(q request) []byte {
		p := appendChunk(nil, q.cookie, chunkDone, chunkBlockStatus, 4+8*count)
		p = binary.BigEndian.AppendUint32(p, contextID)
		for i := range uint32(count) {
			p = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(p, each), i%2*stateZero)
		}
		return p
	}}.start(t)
	c, err := Dial(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	holes, told := int64(0), int64(0)
	err = c.BlockStatus(0, count*each, func(n int64, hole bool) bool {
		if told += n; hole {
			holes += n
		}
		return true
	})
	if err != nil || told != count*each || holes != told/2 {
		t.Errorf("%d bytes are told of, %d of them holes: %v", told, holes, err)
	}
}

// TestServerWords: an error comes with the server's words, and leaves the connection good.
func TestServerWords(t *testing.T) {
	uri := script{answer: func(q request) []byte {
		p := appendChunk(nil, q.cookie, chunkDone, chunkErrorOffset, 6+4+8)
		p = binary.BigEndian.AppendUint32(p, wireNoSpace)
		p = append(binary.BigEndian.AppendUint16(p, 4), "full"...)
		return binary.BigEndian.AppendUint64(p, 0)
	}}.start(t)
	c, err := Dial(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 2 {
		_, err = c.WriteAt(make([]byte, 512), 1024)
		if err == nil || !strings.Contains(err.Error(), "write of 512 bytes at 1024: server: full") {
			t.Errorf("%v", err)
		}
	}
}

// TestCloseWithCallsInFlight: Close ends calls that wait, and does not hang on a
// server that does not read.
func TestCloseWithCallsInFlight(t *testing.T) {
	g := newGate(64 << 20)
	s := serve(t, Export{Device: g})
	c := s.dial(t, "")
	errs := make(chan error, 2*maxCalls)
	for range 2 * maxCalls { // half of them wait for a place
		go func() {
			_, err := c.WriteAt(make([]byte, 1<<20), 0)
			errs <- err
		}()
	}
	<-g.enter
	c.Close()
	for range 2 * maxCalls {
		if err := <-errs; !errors.Is(err, ErrClosed) {
			t.Errorf("a call ends with %v", err)
		}
	}
	close(g.pass) // only now does the server read on
}

// FuzzClient: whatever a server sends, all calls end.
func FuzzClient(f *testing.F) {
	chunk := appendChunk(nil, 1<<32, chunkDone, chunkData, 12)
	chunk = append(binary.BigEndian.AppendUint64(chunk, 100), 1, 2, 3, 4)
	f.Add(true, chunk)
	f.Add(true, append(appendChunk(nil, 1<<32, chunkDone, chunkHole, 12), 0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 0, 4))
	f.Add(true, appendErrorChunk(nil, 1<<32, wireIO))
	f.Add(false, append(appendSimple(nil, 1<<32, 0), 1, 2, 3, 4))
	f.Fuzz(func(t *testing.T, structured bool, p []byte) {
		here, there := net.Pipe()
		c := newClient(handshake{nc: here, in: newReceiver(here, func() {}), size: 1 << 20, maxBlock: 1 << 20,
			structured: structured, allocation: structured, contextID: 1})
		go io.Copy(io.Discard, there)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for range 2 {
				c.ReadAt(make([]byte, 4), 100)
				c.BlockStatus(0, 4096, func(int64, bool) bool { return true })
			}
		}()
		there.Write(p)
		there.Close()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Fatal("a call does not end")
		}
		c.Close()
	})
}

// FuzzDial: whatever a server says first, a dial ends.
func FuzzDial(f *testing.F) {
	hello := binary.BigEndian.AppendUint64(nil, magicServer)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	hello = binary.BigEndian.AppendUint16(hello, flagFixedNewstyle)
	info := binary.BigEndian.AppendUint16(nil, infoExport)
	info = binary.BigEndian.AppendUint64(info, 1<<20)
	info = binary.BigEndian.AppendUint16(info, canFlags)
	p := appendOptReply(bytes.Clone(hello), optStructured, repAck, nil)
	p = appendOptReply(p, optSetMeta, repMeta, append([]byte{0, 0, 0, 1}, contextName...))
	p = appendOptReply(p, optSetMeta, repAck, nil)
	p = appendOptReply(p, optGo, repInfo, info)
	f.Add(appendOptReply(p, optGo, repAck, nil))
	p = appendOptReply(bytes.Clone(hello), optStructured, repErrUnsup, nil)
	p = appendOptReply(p, optGo, repErrUnsup, nil)
	f.Add(append(p, make([]byte, 10+exportTailZero)...))
	f.Fuzz(func(t *testing.T, p []byte) {
		here, there := net.Pipe()
		go io.Copy(io.Discard, there)
		go func() {
			there.Write(p)
			there.Close()
		}()
		h := handshake{nc: here, in: newReceiver(here, func() {})}
		if err := h.run("x", asking{structured: true, info: true}); err == nil && (h.size < 0 || h.maxBlock < 1) {
			t.Errorf("%+v is taken", h)
		}
		here.Close()
	})
}

package nbd

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/datapath/front/memdisk"
)

// TestHostileHandshake: each of these ends the connection, and nothing else.
func TestHostileHandshake(t *testing.T) {
	e, _ := memory("v", 1<<20)
	s := serve(t, e)
	f := func(name string, more ...func(r *raw)) {
		t.Helper()
		r := s.raw(t)
		for _, m := range more {
			m(r)
		}
		r.gone()
		if t.Failed() {
			t.Fatalf("%s: see above", name)
		}
	}
	send := func(p []byte) func(*raw) { return func(r *raw) { r.send(p) } }
	hello := func(r *raw) { r.hello(flagFixedNewstyle) }
	bend := func(p []byte, at int, b byte) []byte { p[at] ^= b; return p }

	f("old client", func(r *raw) { r.hello(0) })
	f("unknown flags", func(r *raw) { r.hello(1 << 31) })
	f("option magic", hello, send(bend(appendOption(nil, optList, nil), 3, 1)))
	f("option of 4 GiB", hello, send(bend(appendOption(nil, optList, nil), 12, 0xff)))
	f("EXPORT_NAME of nothing known", hello, send(appendOption(nil, optExportName, []byte("w"))))
	f("EXPORT_NAME too long", hello, send(appendOption(nil, optExportName, bytes.Repeat([]byte("v"), MaxName+1))))
	f("half an option, then no more", hello, send(appendOption(nil, optList, nil)[:7]), func(r *raw) { r.Conn.(*net.UnixConn).CloseWrite() })
	f("ABORT", hello, func(r *raw) {
		if kinds, _ := r.option(optAbort, nil); kinds[0] != repAck {
			t.Errorf("ABORT: %x", kinds)
		}
	})
	f("options without end", hello, func(r *raw) {
		for range maxOptions - 1 {
			r.option(optStructured, nil)
		}
		r.send(appendOption(nil, optStructured, nil))
		r.get(optReplyBytes)
	})
	s.dial(t, "v") // the server is none the worse
}

// TestRefusedOptions: these are answered, and the talk goes on.
func TestRefusedOptions(t *testing.T) { both(t, refusedOptions) }

func refusedOptions(t *testing.T) {
	e, _ := memory("v", 1<<20)
	r := serve(t, e).raw(t)
	r.hello(flagFixedNewstyle | flagNoZeroes)
	f := func(option uint32, data []byte, want uint32) {
		t.Helper()
		if kinds, text := r.option(option, data); len(kinds) != 1 || kinds[0] != want {
			t.Errorf("option %d: %x %q, want %x", option, kinds, text, want)
		}
	}
	meta := metaRequest{"v", []string{contextName}}.appendTo(nil)
	f(5, nil, repErrUnsup)  // STARTTLS
	f(11, nil, repErrUnsup) // EXTENDED_HEADERS
	f(1<<31, []byte("x"), repErrUnsup)
	f(optList, []byte("x"), repErrInvalid)
	f(optStructured, []byte("x"), repErrInvalid)
	f(optGo, []byte("x"), repErrInvalid)
	f(optInfo, infoRequest{name: "w"}.appendTo(nil), repErrUnknown)
	f(optGo, infoRequest{name: "w" + strings.Repeat("é", 300)}.appendTo(nil), repErrUnknown)
	f(optSetMeta, meta, repErrInvalid) // structured replies come first
	f(optStructured, nil, repAck)
	f(optSetMeta, meta[:9], repErrInvalid)
	f(optSetMeta, metaRequest{"w", nil}.appendTo(nil), repErrUnknown)
	f(optSetMeta, metaRequest{"v", []string{"x:y"}}.appendTo(nil), repAck) // nothing chosen
	if kinds, p := r.option(optListMeta, metaRequest{"v", nil}.appendTo(nil)); len(kinds) != 2 || !bytes.HasSuffix(p, []byte(contextName)) {
		t.Errorf("LIST_META_CONTEXT: %x %q", kinds, p)
	}
	// A context that was chosen for another export, or unchosen since, does not count.
	r.option(optSetMeta, meta)
	f(optSetMeta, meta[:9], repErrInvalid)
	if kinds, _ := r.option(optGo, infoRequest{name: "v"}.appendTo(nil)); kinds[len(kinds)-1] != repAck {
		t.Fatal("GO is refused")
	}
	r.send(request{cmd: cmdBlockStatus, n: 512}.appendTo(nil))
	if _, kind, _, _ := r.chunk(); kind != chunkError {
		t.Errorf("block status without its context: chunk %#x", kind)
	}
}

// TestHostileRequests: what the device must never see, and which of it a connection survives.
func TestHostileRequests(t *testing.T) { both(t, hostileRequests) }

// watchedSpy counts the changes that were refused before it was asked.
type watchedSpy struct {
	*memdisk.Spy
	refused atomic.Int64
}

func (w *watchedSpy) Connected(front.Connection) (left func()) { return func() {} }
func (w *watchedSpy) Refused(error)                            { w.refused.Add(1) }

func hostileRequests(t *testing.T) {
	d := &watchedSpy{Spy: memdisk.NewSpy(1 << 20)}
	s := serve(t, Export{Name: "v", Device: d})
	dies := func(name string, p []byte) {
		t.Helper()
		r := s.raw(t)
		r.begin("v", false)
		r.send(p)
		r.gone()
		if t.Failed() {
			t.Fatalf("%s: see above", name)
		}
	}
	magic := request{cmd: cmdFlush}.appendTo(nil)
	magic[2] ^= 1
	dies("magic", magic)
	dies("a write beyond all limits", request{cmd: cmdWrite, n: front.MaxWrite + 1}.appendTo(nil))
	dies("a write of 4 GiB", request{cmd: cmdWrite, n: 1<<32 - 1}.appendTo(nil))

	r := s.raw(t)
	r.begin("v", false)
	f := func(q request, payload int, want uint32) {
		t.Helper()
		before, told := d.refused.Load(), int64(0)
		if want != wireOK && want != wireNotSup && (q.cmd == cmdWrite || q.cmd == cmdTrim || q.cmd == cmdWriteZeroes) {
			told = 1
		}
		if code := r.simple(q, make([]byte, payload)); code != want || d.refused.Load() != before+told {
			t.Errorf("%+v: %d, and %d refusals were told; want %d and %d", q, code, d.refused.Load()-before, want, told)
		}
	}
	f(request{cmd: cmdWriteZeroes, flags: flagFastZero, n: 512}, 0, wireNotSup)
	f(request{cmd: cmdWrite, off: 1<<20 - 1, n: 4096}, 4096, wireNoSpace) // its payload is skipped
	f(request{cmd: cmdWrite, off: 1<<64 - 4096, n: 4096}, 4096, wireNoSpace)
	f(request{cmd: cmdWrite, flags: 1 << 9, n: 1 << 20}, 1<<20, wireInvalid)
	f(request{cmd: cmdTrim, off: 1, n: 1 << 20}, 0, wireNoSpace)
	f(request{cmd: cmdTrim, n: 1<<32 - 1}, 0, wireNoSpace)
	f(request{cmd: cmdWriteZeroes, off: 1 << 63, n: 1}, 0, wireNoSpace)
	f(request{cmd: cmdRead, off: 1 << 20, n: 1}, 0, wireInvalid)
	f(request{cmd: cmdRead, n: 1<<32 - 1}, 0, wireInvalid)
	f(request{cmd: 77}, 0, wireInvalid)
	f(request{cmd: cmdWrite, off: 512, n: 512}, 512, wireOK)
	if calls, want := d.Taken(), "write 512 512 fua=false"; len(calls) != 1 || calls[0] != want {
		t.Errorf("the device was asked %q, want %q", calls, want)
	}
	if _, mistakes := d.State(); mistakes != nil {
		t.Errorf("the device saw %q", mistakes)
	}
}

// TestHalfWrite: a client that dies in the middle of a payload leaves nothing behind.
func TestHalfWrite(t *testing.T) { both(t, halfWrite) }

func halfWrite(t *testing.T) {
	d := memdisk.NewSpy(4 << 20)
	s := serve(t, Export{Name: "v", Device: d})
	for _, sent := range []int{0, 1, 100, 70_000, 1<<20 - 1} {
		r := s.raw(t)
		r.begin("v", false)
		r.send(append(request{cmd: cmdWrite, n: 1 << 20}.appendTo(nil), bytes.Repeat([]byte{9}, sent)...))
		r.Close()
	}
	s.stop()
	if open, mistakes := d.State(); open != 0 || mistakes != nil {
		t.Errorf("%d writes are left open, %q", open, mistakes)
	}
	for _, call := range d.Taken() {
		if call != "abort 0 1048576" {
			t.Errorf("the device was asked %q", call)
		}
	}
	if content(t, d.Disk)[0] != 0 {
		t.Error("half a write is on the disk")
	}
}

// pipes is a listener of connections in memory, which a synctest bubble can hold.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func newPipes() *pipes { return &pipes{make(chan net.Conn), make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (p *pipes) dial() net.Conn {
	here, there := net.Pipe()
	p.conns <- there
	return here
}

// bubble runs f with a server of d in a synctest bubble; stop ends the server.
func bubble(t *testing.T, d front.Device, f func(t *testing.T, l *pipes, stop func())) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{Server: &Server{}}
		if err := s.Add(Export{Name: "v", Device: d}); err != nil {
			t.Fatal(err)
		}
		l := newPipes()
		stop := s.serveOn(t, l)
		defer stop()
		f(t, l, stop)
	})
}

func TestSlowHandshakeIsEnded(t *testing.T) {
	d := memdisk.NewSpy(1 << 20)
	bubble(t, d, func(t *testing.T, l *pipes, _ func()) {
		start := time.Now()
		r := &raw{t, l.dial()}
		r.hello(flagFixedNewstyle)
		if _, err := r.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("want an end, got %v", err)
		}
		if d := time.Since(start); d != handshakeTime {
			t.Errorf("a silent client is ended after %v, want %v", d, handshakeTime)
		}
		// Once it has begun, a client may be silent for long.
		r = &raw{t, l.dial()}
		r.begin("v", false)
		<-time.After(100 * handshakeTime)
		if code := r.simple(request{cmd: cmdFlush}, nil); code != wireOK {
			t.Errorf("flush after a long silence: %d", code)
		}
		r.Close()
	})
}

// TestNeverReads: a client that asks and does not listen makes the server stop
// asking the device, and a stop does not wait for it longer than partingTime.
func TestNeverReads(t *testing.T) {
	for _, structured := range []bool{false, true} {
		d := memdisk.NewSpy(64 << 20)
		var asked atomic.Int64
		d.Before = func(_ string, _, n int64) error { asked.Add(n); return nil }
		bubble(t, d, func(t *testing.T, l *pipes, stop func()) {
			r := &raw{t, l.dial()}
			r.begin("v", structured)
			r.SetWriteDeadline(time.Now().Add(time.Hour))
			sent := 0
			for q := (request{cmd: cmdRead, n: 4 << 20}); ; sent++ {
				if _, err := r.Write(q.appendTo(nil)); err != nil {
					break
				}
			}
			bound := int64(waitingBytes + (maxWorkers+2)*pieceBytes)
			if !structured {
				bound = 3 * 4 << 20 // one is written, one waits, one is read into
			}
			if asked.Load() > bound {
				t.Errorf("structured %v: %d bytes were read for nobody, want %d at most", structured, asked.Load(), bound)
			}
			if sent > maxWorkers+2 {
				t.Errorf("structured %v: %d requests were taken in", structured, sent)
			}
			start := time.Now()
			stop()
			if d := time.Since(start); d > partingTime {
				t.Errorf("the stop took %v", d)
			}
			r.Close()
		})
	}
}

// TestConnectionLimit: the server holds so many and no more, and takes new ones again.
func TestConnectionLimit(t *testing.T) {
	e, _ := memory("v", 1<<20)
	s := serve(t, e)
	var all []*raw
	for range maxConns {
		r := s.raw(t)
		r.get(greetingBytes)
		all = append(all, r)
	}
	s.raw(t).gone()
	for _, r := range all {
		r.Close()
	}
	for end := time.Now().Add(time.Minute); ; {
		c, err := Dial(t.Context(), s.uri("v"))
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatalf("no place becomes free: %v", err)
		}
	}
}

// FuzzServer: whatever a client sends after the greeting, the device sees only what
// is right, and the server ends.
func FuzzServer(f *testing.F) {
	hello := binary.BigEndian.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes)
	info := infoRequest{name: "v"}.appendTo(nil)
	begin := appendOption(bytes.Clone(hello), optStructured, nil)
	begin = appendOption(begin, optSetMeta, metaRequest{"v", []string{contextName}}.appendTo(nil))
	begin = appendOption(begin, optGo, info)
	add := func(p []byte, qs ...request) {
		p = bytes.Clone(p)
		for _, q := range qs {
			if p = q.appendTo(p); q.cmd == cmdWrite {
				p = append(p, make([]byte, q.n)...)
			}
		}
		f.Add(p)
	}
	add(begin, request{cmd: cmdRead, n: 512}, request{cmd: cmdWrite, off: 512, n: 700}, request{cmd: cmdFlush}, request{cmd: cmdDisconnect})
	add(begin, request{cmd: cmdBlockStatus, n: 4096}, request{cmd: cmdTrim, n: 4096}, request{cmd: cmdWriteZeroes, flags: flagFUA, n: 4096})
	add(appendOption(bytes.Clone(hello), optExportName, []byte("v")), request{cmd: cmdRead, off: 100, n: 512}, request{cmd: cmdWrite, n: 512})
	add(appendOption(appendOption(appendOption(bytes.Clone(hello), optList, nil), optInfo, info), optAbort, nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		d := memdisk.NewSpy(1 << 20)
		s := &Server{}
		if err := s.Add(Export{Name: "v", Device: d}); err != nil {
			t.Fatal(err)
		}
		here, there := net.Pipe()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			s.serveConn(t.Context(), there)
		}()
		go io.Copy(io.Discard, here)
		here.Write(p)
		here.Close()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Fatal("the connection does not end")
		}
		if open, mistakes := d.State(); open != 0 || mistakes != nil {
			t.Errorf("%d writes are left open, %q", open, mistakes)
		}
	})
}

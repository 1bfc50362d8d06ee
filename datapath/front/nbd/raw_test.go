package nbd

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// raw is a client of bytes, for what a decent client does not do.
type raw struct {
	t testing.TB
	net.Conn
}

func (s *site) raw(t testing.TB) *raw {
	t.Helper()
	c, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute)) // a test that waits longer has failed
	return &raw{t, c}
}

func (r *raw) send(p []byte) {
	r.t.Helper()
	if _, err := r.Write(p); err != nil {
		r.t.Fatal(err)
	}
}

func (r *raw) get(n int) []byte {
	r.t.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(r, p); err != nil {
		r.t.Fatal(err)
	}
	return p
}

// gone expects the server to close the connection.
func (r *raw) gone() {
	r.t.Helper()
	if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		r.t.Fatalf("the server answers (%d bytes, %v), want an end", n, err)
	}
}

// hello is the beginning of every talk.
func (r *raw) hello(flags uint32) {
	r.t.Helper()
	p := r.get(greetingBytes)
	if binary.BigEndian.Uint64(p) != magicServer || binary.BigEndian.Uint64(p[8:]) != magicOption || binary.BigEndian.Uint16(p[16:]) != 3 {
		r.t.Fatalf("greeting %x", p)
	}
	r.send(binary.BigEndian.AppendUint32(nil, flags))
}

// option sends an option and returns the kinds of the answers up to the last, and
// all their data.
func (r *raw) option(option uint32, data []byte) (kinds []uint32, all []byte) {
	r.t.Helper()
	r.send(appendOption(nil, option, data))
	for {
		p := r.get(optReplyBytes)
		if binary.BigEndian.Uint64(p) != magicOptReply || binary.BigEndian.Uint32(p[8:]) != option {
			r.t.Fatalf("answer %x to option %d", p, option)
		}
		kind := binary.BigEndian.Uint32(p[12:])
		kinds, all = append(kinds, kind), append(all, r.get(int(binary.BigEndian.Uint32(p[16:])))...)
		if kind == repAck || kind&repError != 0 {
			return kinds, all
		}
	}
}

// begin talks until requests may come.
func (r *raw) begin(name string, structured bool) {
	r.t.Helper()
	r.hello(flagFixedNewstyle | flagNoZeroes)
	if structured {
		r.option(optStructured, nil)
		r.option(optSetMeta, metaRequest{name, []string{contextName}}.appendTo(nil))
	}
	if kinds, p := r.option(optGo, infoRequest{name: name}.appendTo(nil)); kinds[len(kinds)-1] != repAck {
		r.t.Fatalf("GO: %x %q", kinds, p)
	}
}

// simple sends a request and returns the code of the simple reply.
func (r *raw) simple(q request, payload []byte) uint32 {
	r.t.Helper()
	q.cookie = q.off ^ uint64(q.n)<<32 ^ 0x1234
	r.send(append(q.appendTo(nil), payload...))
	return r.simpleReply(q.cookie)
}

func (r *raw) simpleReply(cookie uint64) uint32 {
	r.t.Helper()
	p := r.get(simpleBytes)
	if binary.BigEndian.Uint32(p) != magicSimple || binary.BigEndian.Uint64(p[8:]) != cookie {
		r.t.Fatalf("reply %x to %x", p, cookie)
	}
	return binary.BigEndian.Uint32(p[4:])
}

// chunk returns the next chunk.
func (r *raw) chunk() (flags, kind uint16, cookie uint64, data []byte) {
	r.t.Helper()
	p := r.get(structBytes)
	if binary.BigEndian.Uint32(p) != magicStructured {
		r.t.Fatalf("chunk %x", p)
	}
	return binary.BigEndian.Uint16(p[4:]), binary.BigEndian.Uint16(p[6:]), binary.BigEndian.Uint64(p[8:]), r.get(int(binary.BigEndian.Uint32(p[16:])))
}

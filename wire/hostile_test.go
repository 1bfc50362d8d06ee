package wire

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/wire/faultlink"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// rawSession is a session whose source end is the test's own hands.
func rawSession(t *testing.T, w *world) (control, data *tls.Conn) {
	t.Helper()
	control, data, _ = rawSessionToken(t, w)
	return control, data
}

// rawSessionToken tells its token too.
func rawSessionToken(t *testing.T, w *world) (control, data *tls.Conn, tok token) {
	t.Helper()
	config := (&ClientConfig{Credentials: sourceCredentials()}).tls(Peer{})
	dial := func(port string) *tls.Conn {
		c, err := w.net.Dial(context.Background(), "tcp", port)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Client(c, config)
	}
	control = dial("control")
	if err := writeHandshake(control, typeHello, hello{ours}.appendTo); err != nil {
		t.Fatal(err)
	}
	body, err := readHandshake(control, typeWelcome)
	if err != nil {
		t.Fatal(err)
	}
	welcome, err := parseWelcome(body)
	if err != nil {
		t.Fatal(err)
	}
	data = dial("data")
	if err := writeHandshake(data, typeJoin, func(p []byte) []byte { return append(p, welcome.token[:]...) }); err != nil {
		t.Fatal(err)
	}
	if _, err := readHandshake(data, typeJoined); err != nil {
		t.Fatal(err)
	}
	return control, data, welcome.token
}

// A peer with a good certificate that sends what it may not ends its own session,
// is told why, and disturbs nobody else.
func TestBadFramesEndOnlyTheirSession(t *testing.T) {
	frame := func(t frameType, body []byte) []byte {
		return appendFrame(nil, t, func(p []byte) []byte { return append(p, body...) })
	}
	huge := func(t frameType, n int) []byte {
		p := make([]byte, frameBytes)
		putFrame(p, t, n)
		return p
	}
	flipped := func(p []byte, at int) []byte {
		p[at] ^= 1
		return p
	}
	unknown := small(99)
	unknown[5] = 7 // the kind, under a right checksum
	binary.LittleEndian.PutUint32(unknown[record.HeaderBytes-4:], crc32.Checksum(unknown[:record.HeaderBytes-4], castagnoli))
	f := func(name string, onData bool, p []byte, kind Bad) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, &faultlink.Net{}, nil)
				defer w.stop()
				good := newHandler(t)
				defer w.connect(good, func(c *ClientConfig) { c.Credentials.Certificate = sites().other })()
				s := <-good.opened
				<-w.target.opened
				control, data := rawSession(t, w)
				defer control.Close()
				defer data.Close()
				<-w.target.opened
				start := time.Now()
				where := control
				if onData {
					where = data
				}
				if _, err := where.Write(p); err != nil {
					t.Fatal(err)
				}
				if err := <-w.target.closed; !errors.Is(err, ErrProtocol) {
					t.Errorf("closed for: %v", err)
				}
				if took := time.Since(start); took > time.Second {
					t.Errorf("closed after %v", took)
				}
				var told error
				for told == nil { // heartbeats come first
					_, _, told = readOneOf(control, typeHeartbeat, typeTaken)
				}
				var peer *PeerError
				if !errors.As(told, &peer) || peer.Code != CodeProtocol {
					t.Errorf("the peer was told %v", told)
				}
				if err := s.SendRecord(context.Background(), small(1)); err != nil {
					t.Errorf("the other session: %v", err)
				}
				for k, n := range w.server.Counters().BadFrames() {
					if want := map[bool]uint64{true: 1}[k == kind]; n != want {
						t.Errorf("%d of kind %v were counted, want %d of %v", n, k, want, kind)
					}
				}
				for _, line := range w.target.said() {
					if strings.HasPrefix(line, "record 99") {
						t.Error("a bad record was delivered")
					}
				}
			})
		})
	}
	rec := small(99)
	f("no magic", false, make([]byte, 64), BadHeader)
	f("header flipped", false, flipped(frame(typeCloseStream, make([]byte, 8)), 9), BadHeader)
	f("unknown type", false, frame(99, nil), BadType)
	f("a record on control", false, frame(typeRecord, rec), BadType)
	f("hello again", false, frame(typeHello, hello{ours}.appendTo(nil)), BadType)
	f("a length of 4 GiB", false, huge(typeListed, 1<<32-1), BadLength)
	f("a message one too long", false, frame(typeCloseStream, make([]byte, 9)), BadBody)
	f("a message that means nothing", false, frame(typeDurable, make([]byte, 16)), BadBody)
	f("a heartbeat without time", false, frame(typeHeartbeat, make([]byte, heartbeatBytes)), BadBody)
	f("taken more than was sent", false, frame(typeHeartbeat, heartbeat{sent: 1, taken: 1}.appendTo(nil)), BadSense)
	f("a bye without code", false, frame(typeBye, make([]byte, 4)), BadBody)
	f("a report of connections", false, frame(typeTaken, taken{}.appendTo(nil)), BadType)
	f("a connection that is gone for too long", false, frame(typeGone, make([]byte, 3)), BadBody)
	f("a record of no opening", true, frame(typeOrdered, append(make([]byte, orderedBytes), rec...)), BadBody)
	f("a record of an opening that was not", true, frame(typeOrdered, append([]byte{1, 7: 0}, rec...)), BadSense)
	f("an ordered record of one byte", true, frame(typeOrdered, make([]byte, orderedBytes+1)), BadType)
	f("an ordered record of no byte", true, frame(typeOrdered, nil), BadType)
	f("an ordered record of 4 GiB", true, huge(typeOrdered, 1<<32-1), BadLength)
	f("attach on an open connection", true, frame(typeAttach, make([]byte, attachBytes)), BadType)
	f("a message on data", true, frame(typeCloseStream, make([]byte, 8)), BadType)
	f("no magic on data", true, make([]byte, 64), BadHeader)
	f("a record of 4 GiB", true, huge(typeRecord, 1<<32-1), BadLength)
	f("a record of one byte", true, frame(typeRecord, []byte{1}), BadType)
	f("a frame longer than its record", true, append(frame(typeRecord, append(rec, 0)), 0), BadLength)
	f("a frame shorter than its record", true, frame(typeRecord, rec[:len(rec)-1]), BadLength)
	f("a record's header flipped", true, frame(typeRecord, flipped(small(99), 40)), BadRecord)
	f("a record without magic", true, frame(typeRecord, make([]byte, 4096)), BadRecord)
	f("a record of no kind", true, frame(typeRecord, unknown), BadRecord)
}

// What a peer announces costs nothing until its header is found good.
func TestAnnouncedLengthIsNotAllocated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, nil)
		defer w.stop()
		control, data := rawSession(t, w)
		defer control.Close()
		defer data.Close()
		head := make([]byte, frameBytes)
		putFrame(head, typeRecord, record.MaxRecordBytes)
		if _, err := data.Write(head); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if out := w.server.memory.out(); out != 0 {
			t.Errorf("%d buffers are out for a record of which nothing came", out)
		}
	})
}

// A target that breaks the protocol ends its session, and the source counts how; the next
// session stands.
func TestTargetBreaksTheProtocol(t *testing.T) {
	f := func(name string, kind Bad, onData bool, p []byte) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, &faultlink.Net{}, nil)
			defer w.stop()
			source, counters := newHandler(t), new(Counters)
			defer w.connect(source, func(c *ClientConfig) { c.Counters = counters })()
			far := <-w.target.opened
			<-source.opened
			where := far.control
			if onData {
				where = far.data
			}
			where.Write(p)
			if err := <-source.closed; !errors.Is(err, ErrProtocol) {
				t.Errorf("%s: closed for: %v", name, err)
			}
			if got := counters.BadFrames(); len(got) == 0 || got[kind] != 1 {
				t.Errorf("%s: counted %v, want one %v", name, got, kind)
			}
			if err := (<-source.opened).SendRecord(context.Background(), small(1)); err != nil {
				t.Errorf("%s: the next session: %v", name, err)
			}
		})
	}
	f("data", BadSense, true, small(1))
	f("no frame", BadHeader, false, make([]byte, 64))
	f("an unknown type", BadType, false, appendFrame(nil, 99, nil))
	f("a record on control", BadType, false, appendFrame(nil, typeRecord, func(p []byte) []byte { return append(p, small(1)...) }))
	f("an ack of no stream", BadBody, false, appendFrame(nil, typeDurable, func(p []byte) []byte { return append(p, make([]byte, 16)...) }))
	f("too long", BadLength, false, func() []byte { p := make([]byte, frameBytes); putFrame(p, typeListed, 1<<31); return p }())
}

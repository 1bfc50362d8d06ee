package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/wire/delta"
	"github.com/holdfast-dr/holdfast/wire/faultlink"
	"github.com/holdfast-dr/holdfast/wire/record"
	"github.com/holdfast-dr/holdfast/wire/tape"
)

// onTape gives what the way of a connection has on a tape, with zeros where something was left out.
func onTape(t *testing.T, p []byte, connection uint32, way tape.Way) (out []byte, begins []uint64) {
	t.Helper()
	r, err := tape.NewReader(bytes.NewReader(p))
	for err == nil {
		var e tape.Entry
		if e, err = r.Next(); err != nil || e.Type != tape.Bytes || e.Connection != connection || e.Way != way {
			continue
		}
		if e.Offset < uint64(len(out)) {
			t.Fatalf("bytes at %d twice", e.Offset)
		}
		out = append(append(out, make([]byte, e.Offset-uint64(len(out)))...), e.Data...)
		if e.Begins {
			begins = append(begins, e.Offset)
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return out, begins
}

// Whatever pieces the bytes come in, the tape has the frames, where they begin, and
// nothing of what guests wrote unless it was asked for.
func TestTapingFollowsTheFrames(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var stream, want []byte
	var begins []uint64
	frame := func(kind frameType, kept int, body []byte) {
		begins = append(begins, uint64(len(stream)))
		p := appendFrame(nil, kind, func(p []byte) []byte { return append(p, body...) })
		stream = append(stream, p...)
		want = append(append(want, p[:frameBytes+kept]...), make([]byte, len(body)-kept)...)
	}
	tables := func(p []byte) int {
		h, err := record.ParseHeader(p)
		if err != nil {
			t.Fatal(err)
		}
		return h.TablesEnd()
	}
	for i := range 20 {
		rec := large(record.Seq(i+1), 1+rng.IntN(100_000))
		frame(typeRecord, tables(rec), rec)
		rec = small(record.Seq(i + 1))
		frame(typeRecord, len(rec), rec)
		rec = large(record.Seq(i+1), 1+rng.IntN(100_000))
		frame(typeOrdered, orderedBytes+tables(rec), append(make([]byte, orderedBytes), rec...))
		frame(typeDurable, 16, (&Durable{testStream, 5}).appendTo(nil))
		frame(typeJoined, 0, nil)
		frame(typeChunk, 0, make([]byte, rng.IntN(testChunk)))
		frame(typeEnd, 0, nil)
	}
	for _, payload := range []bool{false, true} {
		for _, most := range []int{1, 15, 200, 1 << 14, 1 << 20} {
			var b bytes.Buffer
			to := tape.New(&b, tape.Options{Payload: payload, Limit: 1 << 30})
			see := newTaping(to.Open(tape.Opened{Side: tape.Taken, Peer: "east/vra/s1"}), tape.Received, payload)
			fed := stream
			if most == 1 {
				fed = stream[:begins[9]] // byte by byte is slow
			}
			for p := fed; len(p) > 0; {
				n := min(len(p), 1+rng.IntN(most))
				see.see(p[:n])
				p = p[n:]
			}
			to.Close()
			got, at := onTape(t, b.Bytes(), 1, tape.Received)
			expected := want[:len(fed)]
			if payload {
				expected = fed
			}
			if !bytes.Equal(bytes.TrimRight(got, "\x00"), bytes.TrimRight(expected, "\x00")) {
				t.Errorf("payload %v, pieces of up to %d: %d bytes, want %d", payload, most, len(got), len(expected))
			}
			for i, place := range at {
				if place != begins[i] {
					t.Fatalf("payload %v, pieces of up to %d: frame %d begins at %d, want %d", payload, most, i, place, begins[i])
				}
			}
		}
	}
}

// What is no frame is not put on the tape beyond its header: it could be anything.
func TestTapingStopsAtWhatIsNoFrame(t *testing.T) {
	var b bytes.Buffer
	to := tape.New(&b, tape.Options{Limit: 1 << 20})
	c := to.Open(tape.Opened{Side: tape.Taken, Peer: "east/vra/s1"})
	see := newTaping(c, tape.Sent, false)
	see.see(bytes.Repeat([]byte("secret"), 1000))
	other := newTaping(c, tape.Received, false)
	spoilt := appendFrame(nil, typeRecord, func(p []byte) []byte { return append(p, large(1, 50_000)...) })
	spoilt[frameBytes+40]++
	other.see(spoilt)
	to.Close()
	if got, _ := onTape(t, b.Bytes(), 1, tape.Sent); len(got) != frameBytes {
		t.Errorf("%d bytes of no frame", len(got))
	}
	if got, _ := onTape(t, b.Bytes(), 1, tape.Received); len(got) != frameBytes+record.HeaderBytes {
		t.Errorf("%d bytes of no record", len(got))
	}
}

// A session on tape: both ends have the same frames, nothing that a guest wrote is on either,
// and no key.
func TestTapeHoldsNoGuestData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var near, far bytes.Buffer
		nearTape, farTape := tape.New(&near, tape.Options{Limit: 1 << 20}), tape.New(&far, tape.Options{Limit: 1 << 20})
		w := newWorld(t, &faultlink.Net{}, func(c *ServerConfig) { c.Tape = farTape })
		defer w.stop()
		source := newHandler(t)
		stop := w.connect(source, func(c *ClientConfig) { c.Tape = nearTape })
		s := <-source.opened
		secret := strings.Repeat("the guest's own words ", 20_000)
		b := record.NewBatch(record.Limits{})
		b.Add(record.Piece{Volume: 1, Off: 0, Len: 32 << 10, Ticket: 1, Data: []byte(secret[:32<<10])})
		rec := b.Seal(nil, record.Identity{Stream: testStream, Epoch: 1, Incarnation: 1, Seq: 1}, 1, record.NewCompressor())
		if err := errors.Join(s.Send(openStream()), s.SendRecord(context.Background(), rec), s.SendRecord(context.Background(), small(2))); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		if _, err := linkTest(w, LinkTest{Bytes: 1 << 16}, func(c *ClientConfig) { c.Tape = nearTape }); err != nil {
			t.Error(err)
		}
		stop()
		w.stop()
		nearTape.Close()
		farTape.Close()
		for name, p := range map[string][]byte{"source": near.Bytes(), "target": far.Bytes()} {
			if bytes.Contains(p, []byte("own words")) {
				t.Errorf("the %s's tape has what the guest wrote", name)
			}
			if len(p) > 64<<10 {
				t.Errorf("the %s's tape has %d bytes", name, len(p))
			}
		}
		for connection := uint32(1); connection <= 4; connection++ {
			sent, begins := onTape(t, near.Bytes(), connection, tape.Sent)
			received, theirs := onTape(t, far.Bytes(), connection, tape.Received)
			if len(begins) == 0 || !bytes.Equal(sent, received) || len(begins) != len(theirs) {
				t.Errorf("connection %d: %d frames sent, %d received", connection, len(begins), len(theirs))
			}
		}
	})
}

// Every type has a name, and none is explained wrongly for want of a case.
func TestEveryFrameIsExplained(t *testing.T) {
	for kind := range 256 {
		name := frameNames[frameType(kind)]
		if (bodyLimit(frameType(kind)) >= 0) != (name != "") {
			t.Errorf("type %d is called %q", kind, name)
		}
	}
	if _, err := Explain(appendFrame(nil, typeDurable, (&Durable{testStream, 5}).appendTo)); err != nil {
		t.Error(err)
	}
	for _, m := range []Message{openStream(), &Stand{Stream: 1}, &Refused{1, 2, "no"}, &CloseStream{1}, &Durable{1, 2}, &Listed{1, 2, 3, "tag"},
		&Lacking{1, []Lack{{1, 2, 3}}}, &Everywhere{1, 2}, &Fenced{1, 2, true, "over"},
		&Compare{1, 2, delta.Ask{Volume: 1, Level: delta.Node, Count: 1}}, &Sums{1, 1, delta.Ask{Volume: 1, Level: delta.Node, Count: 1}, make([]byte, 32)}} {
		if e, err := Explain(appendFrame(nil, m.kind(), m.appendTo)); err != nil || e.Stream == 0 && e.Group == 0 {
			t.Errorf("%T: %+v, %v", m, e, err)
		}
	}
	bad := appendFrame(nil, typeDurable, func(p []byte) []byte { return append(p, 1) })
	for _, p := range [][]byte{nil, bad, bad[:frameBytes], append(bad, 1)} {
		if _, err := Explain(p); !errors.Is(err, ErrProtocol) {
			t.Errorf("%x: %v", p, err)
		}
	}
}

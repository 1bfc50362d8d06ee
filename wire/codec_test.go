package wire

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/wire/delta"
	"github.com/holdfast-dr/holdfast/wire/record"
)

var update = flag.Bool("update", false, "write the golden files")

// frames is one of each frame, by name, as version 1 has them.
func frames() (all []struct {
	name  string
	bytes []byte
}) {
	add := func(name string, p []byte) {
		all = append(all, struct {
			name  string
			bytes []byte
		}{name, p})
	}
	tok := token([]byte("0123456789abcdef"))
	add("hello", appendFrame(nil, typeHello, hello{Versions{1, 3}}.appendTo))
	add("welcome", appendFrame(nil, typeWelcome, welcome{2, Versions{1, 2}, tok}.appendTo))
	add("welcome-none", appendFrame(nil, typeWelcome, welcome{0, Versions{4, 5}, token{}}.appendTo))
	add("join", appendFrame(nil, typeJoin, func(p []byte) []byte { return append(p, tok[:]...) }))
	add("joined", appendFrame(nil, typeJoined, nil))
	add("bye", appendFrame(nil, typeBye, bye{CodeStopping, "going down"}.appendTo))
	add("heartbeat", appendFrame(nil, typeHeartbeat, heartbeat{1, 2, 3, 4, true}.appendTo))
	for _, m := range messages() {
		add(strings.ToLower(reflect.TypeOf(m).Elem().Name()), appendFrame(nil, m.kind(), m.appendTo))
	}
	for _, f := range testFrames() {
		add(f.name, appendFrame(nil, f.kind, f.body))
	}
	add("meet", appendFrame(nil, typeMeet, hello{Versions{9, 11}}.appendTo))
	add("met", appendFrame(nil, typeMet, hello{Versions{9, 9}}.appendTo))
	for _, w := range cutWords() {
		add("cutword-"+w.Kind.String(), appendFrame(nil, typeCutWord, func(p []byte) []byte { return appendCutWord(p, w) }))
	}
	add("cutbeat", appendFrame(nil, typeCutBeat, nil))
	add("attach", appendFrame(nil, typeAttach, attach{tok, 3}.appendTo))
	add("taken", appendFrame(nil, typeTaken, taken{[]takenLine{{0, 1 << 30, 5, false}, {3, 1 << 20, 1_500_000_000, true}}}.appendTo))
	add("gone", appendFrame(nil, typeGone, func(p []byte) []byte { return putU32(p, 3) }))
	add("ordered", appendFrame(nil, typeOrdered, func(p []byte) []byte {
		p = append(p, make([]byte, orderedBytes)...)
		putOrdered(p[len(p)-orderedBytes:], 2)
		return append(p, "a record of wire/record stands here"...)
	}))
	add("record", appendFrame(nil, typeRecord, func(p []byte) []byte { return append(p, "a record of wire/record stands here"...) }))
	return all
}

// testFrames is one of each frame of a link test.
func testFrames() []struct {
	name string
	kind frameType
	body func([]byte) []byte
} {
	return []struct {
		name string
		kind frameType
		body func([]byte) []byte
	}{
		{"test", typeTest, func(p []byte) []byte { return append(p, "0123456789abcdef"...) }},
		{"ping", typePing, ping{7}.appendTo},
		{"pong", typePong, pong{7, 1_700_000_000_000_000_000}.appendTo},
		{"push", typePush, bulk{5 * time.Second, 256 << 20, 20_000_000}.appendTo},
		{"pull", typePull, bulk{time.Second, 1 << 20, 0}.appendTo},
		{"measured", typeMeasured, measured{1 << 20, 2 * time.Second, true, TCPStats{1000, 3, 12 * time.Millisecond, 1448, 1500}}.appendTo},
		{"chunk", typeChunk, func(p []byte) []byte { return append(p, "any bytes"...) }},
		{"end", typeEnd, nil},
	}
}

func messages() []Message {
	return []Message{
		openStream(),
		&Stand{testStream, 9, 2, 3, true},
		&Refused{testStream, CodeFenced, "a higher epoch: 4"},
		&CloseStream{testStream},
		&Durable{testStream, 1 << 40},
		&Listed{1, 17, 1_700_000_000_000_000_000, "vor dem Update ✓"},
		&Lacking{1, []Lack{{2, 4096, 8192}, {3, 0, 512}}},
		&Everywhere{1, 17},
		&Fenced{5, 3, false, "a live failover has begun"}, &Fenced{5, 4, true, "rolled back"},
		&Compare{testStream, 9, delta.Ask{Volume: 2, Level: delta.Leaf, First: 256, Count: 256}},
		&Sums{testStream, 9, delta.Ask{Volume: 2, Level: delta.Block, First: 17, Count: 2}, []byte("sixteen bytes...and sixteen more")},
	}
}

func TestGoldenFrames(t *testing.T) {
	const name = "testdata/frames-v1.txt"
	var now strings.Builder
	for _, f := range frames() {
		fmt.Fprintf(&now, "%s %s\n", f.name, hex.EncodeToString(f.bytes))
	}
	if *update {
		if err := os.WriteFile(name, []byte(now.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if string(golden) != now.String() {
		t.Errorf("the frames changed:\n%s\nwant\n%s", now.String(), golden)
	}
}

func TestMessagesComeBack(t *testing.T) {
	for _, m := range messages() {
		if err := m.check(); err != nil {
			t.Errorf("%T: %v", m, err)
		}
		body := m.appendTo(nil)
		if len(body) > bodyLimit(m.kind()) {
			t.Errorf("%T has %d bytes, more than its limit", m, len(body))
		}
		got, err := decodeMessage(m.kind(), body)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%+v came back as %+v, %v", m, got, err)
		}
		for n := range len(body) {
			if _, err := decodeMessage(m.kind(), body[:n]); err == nil {
				t.Errorf("%T of %d bytes reads well from %d", m, len(body), n)
			}
		}
		if _, err := decodeMessage(m.kind(), append(bytes.Clone(body), 0)); err == nil {
			t.Errorf("%T reads well with a byte too many", m)
		}
	}
}

func TestLargestMessagesFit(t *testing.T) {
	name := strings.Repeat("n", MaxName)
	open := &OpenStream{Group: 1, GroupName: name, Lineage: 1, Stream: 1, Epoch: 1, Incarnation: 1}
	for i := range MaxVolumes {
		open.Volumes = append(open.Volumes, Volume{record.VolumeID(i + 1), name, record.VolumeLimit})
	}
	lacks := &Lacking{Group: 1}
	for i := range MaxLacks {
		lacks.Places = append(lacks.Places, Lack{1, int64(i) * 8192, 4096})
	}
	for _, m := range []Message{open, &Refused{1, 1, strings.Repeat("x", 3*MaxText)}, &Refused{1, 1, strings.Repeat("€", MaxText)},
		&Refused{1, 1, "\xff\xfe"}, &Listed{1, 1, 1, strings.Repeat("t", MaxTag)}, lacks,
		&Sums{1, 1, delta.Ask{Volume: 1, Level: delta.Block, Count: delta.Block.Most()}, make([]byte, maxSums)}} {
		p := appendFrame(nil, m.kind(), m.appendTo)
		_, n, err := parseFrame(p)
		if err != nil || n != len(p)-frameBytes {
			t.Errorf("%T of %d bytes: %v", m, n, err)
		}
		if _, err := decodeMessage(m.kind(), p[frameBytes:]); err != nil || m.check() != nil {
			t.Errorf("%T: %v, %v", m, err, m.check())
		}
	}
}

func TestMessagesThatMeanNothingAreRefused(t *testing.T) {
	f := func(change func(*OpenStream)) {
		t.Helper()
		m := openStream()
		change(m)
		if m.check() == nil {
			t.Errorf("%+v may be sent", m)
		}
		if _, err := decodeMessage(typeOpenStream, m.appendTo(nil)); err == nil {
			t.Errorf("%+v may come", m)
		}
	}
	f(func(m *OpenStream) { m.Group = 0 })
	f(func(m *OpenStream) { m.Stream = 0 })
	f(func(m *OpenStream) { m.Lineage = 0 })
	f(func(m *OpenStream) { m.Epoch = 0 })
	f(func(m *OpenStream) { m.Incarnation = 0 })
	f(func(m *OpenStream) { m.GroupName = "../etc" })
	f(func(m *OpenStream) { m.GroupName = strings.Repeat("g", MaxName+1) })
	f(func(m *OpenStream) { m.Volumes = nil })
	f(func(m *OpenStream) { m.Volumes[1].ID = m.Volumes[0].ID })
	f(func(m *OpenStream) { m.Volumes[0].ID = 0 })
	f(func(m *OpenStream) { m.Volumes[0].Bytes = -1 })
	f(func(m *OpenStream) { m.Volumes[0].Bytes = record.VolumeLimit + 1 })
	f(func(m *OpenStream) { m.Volumes[0].Name = "" })
	f(func(m *OpenStream) { m.Volumes = make([]Volume, MaxVolumes+1) })
	node := delta.Ask{Volume: 1, Level: delta.Node, Count: 1}
	for _, m := range []Message{&Stand{}, &Refused{Stream: 1}, &Refused{Code: 1}, &CloseStream{}, &Durable{Stream: 1},
		&Durable{Seq: 1}, &Listed{Group: 1}, &Listed{Group: 1, Checkpoint: 1, Tag: "\xff"},
		&Lacking{Group: 1}, &Lacking{Places: []Lack{{1, 0, 1}}}, &Lacking{1, []Lack{{0, 0, 1}}}, &Lacking{1, []Lack{{1, 0, 0}}},
		&Lacking{1, []Lack{{1, -1, 2}}}, &Lacking{1, []Lack{{1, record.VolumeLimit, 1}}}, &Lacking{1, make([]Lack, MaxLacks+1)},
		&Compare{0, 1, node}, &Compare{1, 0, node}, &Compare{1, 1, delta.Ask{}}, &Sums{0, 1, node, make([]byte, 32)}, &Sums{1, 0, node, make([]byte, 32)}, &Sums{1, 1, node, make([]byte, 31)},
		&Sums{1, 1, delta.Ask{}, nil}} {
		if m.check() == nil {
			t.Errorf("%+v may be sent", m)
		}
	}
}

func TestFrameHeaderHoldsEveryBit(t *testing.T) {
	p := make([]byte, frameBytes)
	putFrame(p, typeDurable, 16)
	if _, _, err := parseFrame(p); err != nil {
		t.Fatal(err)
	}
	for bit := range len(p) * 8 {
		q := bytes.Clone(p)
		q[bit/8] ^= 1 << (bit % 8)
		if _, _, err := parseFrame(q); err == nil {
			t.Errorf("bit %d of a frame's header may flip", bit)
		}
	}
	for _, n := range []int{bodyLimit(typeDurable) + 1, 1 << 30, 1<<32 - 1} {
		putFrame(p, typeDurable, n)
		if _, _, err := parseFrame(p); err == nil {
			t.Errorf("a message may have %d bytes", n)
		}
	}
	for typ := range 256 {
		putFrame(p, frameType(typ), 0)
		if _, _, err := parseFrame(p); (err == nil) != (bodyLimit(frameType(typ)) >= 0) {
			t.Errorf("type %d: %v", typ, err)
		}
	}
}

func TestPick(t *testing.T) {
	f := func(a, b Versions, want uint16) {
		t.Helper()
		if got := pick(a, b); got != want || pick(b, a) != want {
			t.Errorf("%v and %v speak %d, want %d", a, b, got, want)
		}
	}
	f(Versions{1, 1}, Versions{1, 1}, 1)
	f(Versions{1, 5}, Versions{3, 9}, 5)
	f(Versions{1, 2}, Versions{3, 9}, 0)
}

func TestStall(t *testing.T) {
	var s stall
	at := time.Unix(1000, 0)
	f := func(seconds int, sent, taken uint64, busy, want bool) {
		t.Helper()
		if got := s.beat(at.Add(time.Duration(seconds)*time.Second), sent, taken, busy); got != want {
			t.Errorf("after %d s, %d of %d taken, busy %v: stuck %v", seconds, taken, sent, busy, got)
		}
	}
	f(0, 0, 0, false, false)
	f(100, 0, 0, false, false)  // nothing to take
	f(101, 50, 0, false, false) // just sent
	f(109, 50, 0, false, false)
	f(109, 50, 10, false, false) // slow
	f(118, 50, 10, false, false)
	f(119, 50, 10, true, false) // storing
	f(128, 90, 10, false, false)
	f(129, 90, 10, false, true)
}

func TestRoundTrip(t *testing.T) {
	f := func(echo, held, now uint64, want time.Duration) {
		t.Helper()
		if got := (heartbeat{echo: echo, held: held}).roundTrip(now); got != want {
			t.Errorf("echo %d held %d at %d: %v", echo, held, now, got)
		}
	}
	f(10, 5, 100, 85)
	f(0, 5, 100, 0)         // none yet
	f(101, 0, 100, 0)       // from the future
	f(10, 1<<63+90, 100, 0) // held for longer than it was
}

// Every decoder: no panic, no memory beyond the input's own, and what is accepted
// encodes to the same bytes.

func FuzzFrame(f *testing.F) {
	for _, g := range frames() {
		f.Add(g.bytes)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) < frameBytes {
			return
		}
		typ, n, err := parseFrame(p[:frameBytes])
		if err != nil {
			return
		}
		if n > orderedBytes+record.MaxRecordBytes || n > bodyLimit(typ) {
			t.Fatalf("a frame of %d bytes of type %d", n, typ)
		}
		again := make([]byte, frameBytes)
		if putFrame(again, typ, n); !bytes.Equal(again, p[:frameBytes]) {
			t.Fatalf("%x encodes to %x", p[:frameBytes], again)
		}
	})
}

func FuzzMessage(f *testing.F) {
	for _, m := range messages() {
		f.Add(uint8(m.kind()), m.appendTo(nil))
	}
	f.Fuzz(func(t *testing.T, typ uint8, p []byte) {
		m, err := decodeMessage(frameType(typ), p)
		if err != nil {
			return
		}
		if open, ok := m.(*OpenStream); ok && len(open.Volumes)*volumeFixedBytes > len(p) {
			t.Fatalf("%d volumes from %d bytes", len(open.Volumes), len(p))
		}
		if again := m.appendTo(nil); m.kind() != frameType(typ) || m.check() != nil || !bytes.Equal(again, p) {
			t.Fatalf("%x reads as %+v and encodes to %x", p, m, again)
		}
	})
}

func FuzzHandshake(f *testing.F) {
	for _, g := range frames() {
		f.Add(g.bytes[frameBytes:])
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		check := func(what string, err error, again []byte) {
			if err == nil && !bytes.Equal(again, p) {
				t.Fatalf("%s: %x encodes to %x", what, p, again)
			}
		}
		h, err := parseHello(p)
		check("hello", err, h.appendTo(nil))
		w, err := parseWelcome(p)
		check("welcome", err, w.appendTo(nil))
		b, err := parseBye(p)
		check("bye", err, b.appendTo(nil))
		beat, err := parseHeartbeat(p)
		check("heartbeat", err, beat.appendTo(nil))
		ask, err := parsePing(p)
		check("ping", err, ask.appendTo(nil))
		answer, err := parsePong(p)
		check("pong", err, answer.appendTo(nil))
		k, err := parseBulk(p)
		check("bulk", err, k.appendTo(nil))
		if err == nil && (k.lasts > MaxTestTime || k.bytes > MaxTestBytes) {
			t.Fatalf("a bulk of %v and %d bytes", k.lasts, k.bytes)
		}
		a, err := parseAttach(p)
		check("attach", err, a.appendTo(nil))
		report, err := parseTaken(p)
		check("taken", err, report.appendTo(nil))
		if err == nil && len(report.lines) > maxLines {
			t.Fatalf("a report of %d connections", len(report.lines))
		}
		number, err := parseGone(p)
		check("gone", err, putU32(nil, number))
		if len(p) == orderedBytes {
			opening, err := parseOrdered(p)
			again := make([]byte, orderedBytes)
			putOrdered(again, opening)
			check("ordered", err, again)
		}
		m, err := parseMeasured(p)
		check("measured", err, m.appendTo(nil))
	})
}

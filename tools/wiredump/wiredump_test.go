package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-dr/holdfast/control/pairing"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/record"
	"github.com/holdfast-dr/holdfast/wire/tape"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// end is one end of a session: it tells when it opened and what came.
type end struct {
	opened chan *wire.Session
	came   chan string
}

func newEnd() end { return end{make(chan *wire.Session, 1), make(chan string, 100)} }

func (e end) Opened(s *wire.Session) error { e.opened <- s; return nil }
func (e end) Message(_ *wire.Session, m wire.Message) error {
	e.came <- fmt.Sprintf("%T", m)
	return nil
}
func (e end) Record(_ *wire.Session, r *wire.Received) error {
	e.came <- fmt.Sprint("record ", r.Header().Seq)
	r.Release()
	return nil
}
func (end) Lost(*wire.Session, uint32)    {}
func (e end) Closed(*wire.Session, error) {}

// credentials are of two sites that trust each other.
func credentials(t *testing.T) (source, target wire.Credentials) {
	t.Helper()
	issue := func(site string) (*pairing.CA, *pairing.Leaf) {
		ca, err := pairing.NewCA(site, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := ca.Issue(pairing.Identity{Role: "vra", ID: "one"}, time.Now(), pairing.LeafLife)
		if err != nil {
			t.Fatal(err)
		}
		return ca, leaf
	}
	east, here := issue("east")
	west, there := issue("west")
	return wire.Credentials{Certificate: here.TLS(), Pins: []wire.Pin{{Site: "west", CA: west.Certificate()}}},
		wire.Credentials{Certificate: there.TLS(), Pins: []wire.Pin{{Site: "east", CA: east.Certificate()}}}
}

const stream = record.StreamID(0x70)

// sealed is a record of n bytes, half of them noise, and a zero extent.
func sealed(seq record.Seq, n int) []byte {
	b := record.NewBatch(record.Limits{})
	rng := rand.New(rand.NewPCG(uint64(seq), 1))
	data := make([]byte, n)
	for i := range data[:n/2] {
		data[i] = byte(rng.Uint32())
	}
	b.Add(record.Piece{Volume: 1, Off: 0, Len: int64(n), Ticket: record.Ticket(seq) * 10, Data: data})
	b.Add(record.Piece{Volume: 2, Off: 0, Len: 1 << 30, Ticket: record.Ticket(seq)*10 + 5})
	return b.Seal(nil, record.Identity{Stream: stream, Epoch: 3, Incarnation: 4, Seq: seq}, record.Time(seq), record.NewCompressor())
}

func control(seq record.Seq) []byte {
	return record.AppendConfirm(nil, record.Identity{Stream: stream, Epoch: 3, Incarnation: 4, Seq: seq}, record.Time(seq), record.Ticket(seq)*10, uint64(seq))
}

// session runs one over real sockets, and gives the tapes of both ends.
func session(t *testing.T, payload bool) (near, far []byte) {
	t.Helper()
	var files [2]bytes.Buffer
	var tapes [2]*tape.Tape
	for i := range tapes {
		tapes[i] = tape.New(&files[i], tape.Options{Payload: payload, Limit: 1 << 30})
	}
	sourceCredentials, targetCredentials := credentials(t)
	server, err := wire.Listen(wire.ServerConfig{ListenControl: "127.0.0.1:0", ListenData: "127.0.0.1:0", Credentials: targetCredentials, Tape: tapes[1]})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	source, target := newEnd(), newEnd()
	done := make(chan error, 2)
	go func() { done <- server.Serve(ctx, target) }()
	connect, disconnect := context.WithCancel(ctx)
	defer disconnect()
	go func() {
		done <- wire.Connect(connect, wire.ClientConfig{Control: server.ControlAddr().String(), Data: server.DataAddr().String(),
			Credentials: sourceCredentials, Tape: tapes[0]}, source)
	}()
	s, far2 := <-source.opened, <-target.opened
	wait := func(e end, what string) {
		if got := <-e.came; got != what {
			t.Errorf("came %s, want %s", got, what)
		}
	}
	check := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	check(s.Send(&wire.OpenStream{Group: 9, GroupName: "shop", Lineage: 5, Stream: stream, Epoch: 3, Incarnation: 4, Acked: 6,
		Volumes: []wire.Volume{{ID: 1, Name: "sda", Bytes: 1 << 30}}}))
	wait(target, "*wire.OpenStream")
	check(far2.Send(&wire.Stand{Stream: stream, Durable: 6, Incarnation: 4, Epoch: 3}))
	wait(source, "*wire.Stand")
	for seq := record.Seq(7); seq <= 10; seq++ {
		rec := sealed(seq, 4096*int(seq-6))
		if seq == 9 {
			rec = control(seq)
		}
		check(s.SendRecord(ctx, rec))
		wait(target, fmt.Sprint("record ", seq))
		check(far2.Send(&wire.Durable{Stream: stream, Seq: seq}))
		wait(source, "*wire.Durable")
	}
	check(far2.Send(&wire.Listed{Group: 9, Checkpoint: 9, Wall: 1e18, Tag: "nightly"}))
	wait(source, "*wire.Listed")
	check(s.Send(&wire.Everywhere{Group: 9, Checkpoint: 9}))
	wait(target, "*wire.Everywhere")
	disconnect()
	check(<-done)
	<-far2.Done()
	cancel()
	check(<-done)
	tapes[0].Close()
	tapes[1].Close()
	return files[0].Bytes(), files[1].Bytes()
}

// decoded lists a tape's frames; heartbeats come when they like and are left out.
func decoded(t *testing.T, p []byte) (fs []frame) {
	t.Helper()
	var out bytes.Buffer
	if err := dump(context.Background(), bytes.NewReader(p), &out, io.Discard, options{json: true}); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for d := json.NewDecoder(&out); ; {
		var f frame
		if err := d.Decode(&f); errors.Is(err, io.EOF) {
			return fs
		} else if err != nil {
			t.Fatal(err)
		}
		if f.Kind != "Heartbeat" && f.Kind != "Taken" {
			fs = append(fs, f)
		}
	}
}

// line is what a test compares of a frame.
func line(f frame) string {
	s := fmt.Sprintf("%s %s %s %d", f.Link, f.Way, f.Kind, f.Bytes)
	if f.Stream != "" {
		s += " " + f.Stream
	}
	if f.Group != "" {
		s += " of " + f.Group
	}
	if f.Seq > 0 {
		s += fmt.Sprint(" seq ", f.Seq)
	}
	if r := f.Record; r != nil {
		s += fmt.Sprintf(" %s %d/%d tickets %d-%d extents %d zeros %d blocks %d %s raw %d stored %d %s", r.Kind, r.Epoch, r.Incarnation, r.First, r.Last,
			r.Extents, r.Zeros, r.Blocks, r.Codec, r.Raw, r.Stored, r.Payload)
	}
	return s
}

// A real session on tape is decoded to exactly the frames that were sent, at both ends.
func TestDecodesARealSession(t *testing.T) {
	sid, gid := stream.String(), record.GroupID(9).String()
	for _, payload := range []bool{false, true} {
		near, far := session(t, payload)
		records := make(map[record.Seq]string)
		for seq := record.Seq(7); seq <= 10; seq++ {
			p := sealed(seq, 4096*int(seq-6))
			state := map[bool]string{false: "left out", true: "verified"}[payload]
			if seq == 9 {
				p, state = control(seq), "none"
			}
			h, err := record.ParseHeader(p)
			if err != nil {
				t.Fatal(err)
			}
			zeros, codec := 1, "lz4"
			if h.Kind != record.KindData {
				zeros, codec = 0, ""
			}
			records[seq] = fmt.Sprintf("Record %d %s seq %d %s 3/4 tickets %d-%d extents %d zeros %d blocks %d %s raw %d stored %d %s",
				len(p), sid, seq, h.Kind, h.First, h.Last, h.Extents, zeros, h.Blocks, codec, h.Raw, h.Stored, state)
		}
		want := map[string][]string{
			"control sent":     {"Hello 4", "OpenStream 67 " + sid + " of " + gid + " seq 6", "Everywhere 16 of " + gid},
			"control received": {"Welcome 22", "Stand 25 " + sid + " seq 6", "Durable", "Durable", "Durable", "Durable", "Listed 33 of " + gid},
			"data sent":        {"Join 16", records[7], records[8], records[9], records[10]},
			"data received":    {"Joined 0"},
		}
		for seq := range 4 {
			want["control received"][2+seq] = fmt.Sprintf("Durable 16 %s seq %d", sid, 7+seq)
		}
		for name, p := range map[string][]byte{"source": near, "target": far} {
			got, byes := make(map[string][]string), 0
			for _, f := range decoded(t, p) {
				if f.Kind == kindOpened || f.Kind == kindClosed || f.Kind == "Bye" && name == "target" {
					continue // a Bye is not waited for
				}
				if f.Kind == "Bye" {
					byes++
					continue
				}
				way := f.Way
				if name == "target" {
					way = map[string]string{"sent": "received", "received": "sent"}[f.Way]
				}
				l, _ := strings.CutPrefix(line(f), f.Link+" "+f.Way+" ")
				got[f.Link+" "+way] = append(got[f.Link+" "+way], l)
			}
			for key := range want {
				if !slices.Equal(got[key], want[key]) {
					t.Errorf("payload %v, %s, %s:\n%s\nwant\n%s", payload, name, key, strings.Join(got[key], "\n"), strings.Join(want[key], "\n"))
				}
			}
			if len(got) != len(want) || byes > 1 || byes == 0 && name == "source" {
				t.Errorf("%s: %d ways, %d byes", name, len(got), byes)
			}
		}
	}
}

// The first frame of a connection tells what it is, whichever end wrote the tape. A further data
// connection begins with an Attach, which Joined answers.
func TestFirstFrameTellsTheLink(t *testing.T) {
	for name, want := range map[string]string{"Hello": "control", "Welcome": "control", "Join": "data", "Joined": "data", "Attach": "data", "Test": "test", "Record": ""} {
		if got := linkOf(name); got != want || !slices.Contains(wire.FrameNames(), name) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// Damage on a tape is named with its place, costs the frames it hits, and makes the exit 1.
func TestNamesDamage(t *testing.T) {
	near, _ := session(t, true)
	whole := len(decoded(t, near))
	for at := 32; at < len(near); at += 97 {
		p := bytes.Clone(near)
		p[at] ^= 4
		var out bytes.Buffer
		err := dump(context.Background(), bytes.NewReader(p), &out, io.Discard, options{})
		if err == nil || !strings.Contains(out.String(), "the tape itself: at ") || !strings.Contains(err.Error(), "damaged or missing") {
			t.Fatalf("byte %d: %v\n%s", at, err, out.String())
		}
		if n := strings.Count(out.String(), "\n"); n < whole/2 {
			t.Fatalf("byte %d: only %d lines of %d", at, n, whole)
		}
	}
}

// rewritten is a tape whose bytes of one way were changed before they got there.
func rewritten(t *testing.T, p []byte, change func(e *tape.Entry) bool) []byte {
	t.Helper()
	r, err := tape.NewReader(bytes.NewReader(p))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	to := tape.New(&out, tape.Options{Payload: r.Header().Payload, Limit: 1 << 30})
	open := make(map[uint32]*tape.Connection)
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			to.Close()
			return out.Bytes()
		}
		if err != nil {
			t.Fatal(err)
		}
		switch e.Type {
		case tape.Open:
			open[e.Connection] = to.Open(e.Opened)
		case tape.Close:
			open[e.Connection].Close()
		case tape.Bytes:
			if change(&e) {
				open[e.Connection].Bytes(e.Way, e.Offset, e.Begins, e.Data)
			}
		}
	}
}

// What the peers themselves sent wrong is named by the check that finds it.
func TestNamesWhatIsWrongInFrames(t *testing.T) {
	near, _ := session(t, true)
	f := func(name, want string, change func(e *tape.Entry) bool) {
		t.Helper()
		var out bytes.Buffer
		err := dump(context.Background(), bytes.NewReader(rewritten(t, near, change)), &out, io.Discard, options{kind: kindDamage})
		if err == nil || !strings.Contains(out.String(), want) {
			t.Errorf("%s: %v, want %q\n%s", name, err, want, out.String())
		}
	}
	f("a frame's header", "header checksum", func(e *tape.Entry) bool {
		if e.Begins && e.Offset > 0 {
			e.Data[8] ^= 1
		}
		return true
	})
	done := false
	spoil := func(at int) func(e *tape.Entry) bool {
		done = false
		var from uint64 // of the first record
		return func(e *tape.Entry) bool {
			if e.Way == tape.Sent && e.Connection == 2 && e.Begins && from == 0 && e.Offset > 0 {
				from = e.Offset
			}
			if i := int64(from) + wire.FrameHeaderBytes + int64(at) - int64(e.Offset); from > 0 && !done && e.Way == tape.Sent && e.Connection == 2 && i >= 0 && i < int64(len(e.Data)) {
				e.Data[i] ^= 1
				done = true
			}
			return true
		}
	}
	f("a record's header", "record: corrupt record: header checksum", spoil(30))
	f("its tables", "record: corrupt record: checksum of the tables", spoil(record.HeaderBytes+5))
	f("its blocks", "record: corrupt record: block 0: checksum", spoil(record.HeaderBytes+200))
	n := 0
	f("bytes that are missing", "bytes are missing on the tape", func(e *tape.Entry) bool {
		if e.Connection == 1 && e.Way == tape.Received {
			n++
		}
		return e.Connection != 1 || e.Way != tape.Received || n != 2
	})
}

// The arguments, the filters, and what is no tape.
func TestArguments(t *testing.T) {
	near, _ := session(t, false)
	name := filepath.Join(t.TempDir(), "tape")
	if err := os.WriteFile(name, near, 0o600); err != nil {
		t.Fatal(err)
	}
	f := func(want string, lines int, args ...string) {
		t.Helper()
		var out, log bytes.Buffer
		err := run(context.Background(), args, bytes.NewReader(near), &out, &log)
		text := out.String() + log.String()
		if err != nil {
			text += err.Error()
		}
		if !strings.Contains(text, want) || lines >= 0 && strings.Count(out.String(), "\n") != lines {
			t.Errorf("%q: %v\n%s", args, err, text)
		}
	}
	f("4/7 data, tickets 70-75", 4, "-kind", "Record", name)
	f("4/7 data, tickets 70-75", 2, "-kind", "Record", "-n", "2", "-")
	f(`"kind":"Durable"`, 4, "-o", "json", "-kind", "Durable", "-stream", stream.String(), name)
	f("vra --config FILE --debug-tape", 0, "--help")
	f("want damage or one of Hello", 0, "-kind", "Recrod", name)
	f("-o xml: table or json", 0, "-o", "xml", name)
	f("one tape is needed", 0)
	f("no such file", 0, name+"x")
	f("not a tape", 0, os.Args[0])

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := run(ctx, []string{name}, nil, io.Discard, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

// A record that the target puts in order is read as one, with its blocks and without.
func TestOrdered(t *testing.T) {
	rec := sealed(7, 9000)
	h, err := record.ParseHeader(rec)
	if err != nil {
		t.Fatal(err)
	}
	head := make([]byte, wire.FrameHeaderBytes+wire.OrderedBytes)
	binary.LittleEndian.PutUint32(head, 0x31574648) // the header of PROTOCOL.md
	head[4] = 17
	binary.LittleEndian.PutUint32(head[8:], uint32(wire.OrderedBytes+len(rec)))
	binary.LittleEndian.PutUint32(head[12:], crc32.Checksum(head[:12], crc32.MakeTable(crc32.Castagnoli)))
	p := append(head, rec...)
	for _, payload := range []bool{false, true} {
		var got []frame
		fs := newFrames(frame{}, payload, func(x frame) { got = append(got, x) })
		for i := range uint64(2) {
			at, q := i*uint64(len(p)), p
			if !payload {
				q = p[:len(head)+h.TablesEnd()]
			}
			fs.take(tape.Entry{Type: tape.Bytes, Way: tape.Sent, Begins: true, Offset: at, Data: q})
		}
		want := map[bool]string{false: "left out", true: "verified"}[payload]
		if len(got) != 2 || got[0].Kind != wire.FrameOrdered || got[0].Seq != 7 || got[0].Record == nil || got[0].Record.Payload != want || got[1].At != uint64(len(p)) {
			t.Errorf("payload %v: %+v", payload, got)
			continue
		}
		out := new(bytes.Buffer)
		pr := &printer{options: options{kind: wire.FrameRecord}, out: bufio.NewWriter(out)}
		pr.print(got[0])
		pr.out.Flush()
		if !strings.Contains(out.String(), "3/4/7 data") {
			t.Errorf("asked for records it prints %q", out.String())
		}
	}
}

// No bytes of a peer make the list fail, or last.
func FuzzFrames(f *testing.F) {
	f.Add(sealed(1, 5000), uint16(100), true)
	f.Add(control(1), uint16(1), false)
	f.Fuzz(func(t *testing.T, p []byte, step uint16, payload bool) {
		lines := 0
		fs := newFrames(frame{}, payload, func(frame) { lines++ })
		at, n := uint64(0), int(step)+1
		for len(p) > 0 {
			piece := p[:min(n, len(p))]
			fs.take(tape.Entry{Type: tape.Bytes, Way: tape.Sent, Begins: at%3 == 0, Offset: at, Data: piece})
			at += uint64(len(piece))
			p = p[len(piece):]
		}
		fs.end(time.Time{})
		if lines > int(at)+2 || cap(fs.p) > 2*(record.MaxRecordBytes+wire.FrameHeaderBytes) {
			t.Fatalf("%d lines and %d bytes held for %d", lines, cap(fs.p), at)
		}
	})
}

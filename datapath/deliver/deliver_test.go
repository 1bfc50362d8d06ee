package deliver

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-dr/holdfast/datapath/internal/testtrust"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/faultlink"
	"github.com/holdfast-dr/holdfast/wire/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// source is the other end: it sends what a test says and keeps what comes back.
type source struct {
	t       *testing.T
	session chan *wire.Session
	words   chan wire.Message
	ended   chan error
}

func (s *source) Opened(w *wire.Session) error { s.session <- w; return nil }
func (s *source) Message(_ *wire.Session, m wire.Message) error {
	s.words <- m
	return nil
}
func (s *source) Record(_ *wire.Session, r *wire.Received) error { r.Release(); return nil }
func (s *source) Lost(*wire.Session, uint32)                     {}
func (s *source) Closed(_ *wire.Session, err error)              { s.ended <- err }

// world is a target on a disk in memory and a source on a network in memory.
type world struct {
	t      *testing.T
	disk   *faultdisk.Disk
	target *Target
	src    *source
	w      *wire.Session
	seq    record.Seq
	inc    record.Incarnation
	ticket record.Ticket
	net    *faultlink.Net
	wrong  func(wire.Message) bool // a word that must not come now; nil for none
}

// patience is how long a word may take on a machine that is busy.
const patience = 30 * time.Second

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, disk: faultdisk.New(512), inc: 1}
	store, err := journal.Open(journal.Config{
		FS: w.disk, Dir: "store", Log: slog.New(slog.DiscardHandler), SegmentBytes: 1 << 20,
		OpenCatalogue: func() (index.Map, error) { return &index.Memory{}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	w.target = New(store, slog.New(slog.DiscardHandler))
	sourceTrust, targetTrust := testtrust.Sites()
	net := new(faultlink.Net)
	w.net = net
	server, err := wire.Listen(wire.ServerConfig{ListenControl: "c", ListenData: "d", Credentials: targetTrust, Listen: net.Listen})
	if err != nil {
		t.Fatal(err)
	}
	w.src = &source{t: t, session: make(chan *wire.Session, 8), words: make(chan wire.Message, 1024), ended: make(chan error, 8)}
	ctx, stop := context.WithCancel(context.Background())
	served, connected := make(chan error, 1), make(chan error, 1)
	go func() { served <- server.Serve(ctx, w.target) }()
	go func() {
		connected <- wire.Connect(ctx, wire.ClientConfig{Control: "c", Data: "d", Credentials: sourceTrust, Dial: net.Dial}, w.src)
	}()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-served, <-connected, store.Close()); err != nil {
			t.Error(err)
		}
	})
	w.w = <-w.src.session
	return w
}

const streamID = 5

func (w *world) openStream(change func(*wire.OpenStream)) {
	w.t.Helper()
	m := &wire.OpenStream{
		Group: 9, GroupName: "g", Lineage: 3, Stream: streamID, Epoch: 1, Incarnation: w.inc,
		Volumes: []wire.Volume{{ID: 1, Name: "v", Bytes: 1 << 20}},
	}
	if change != nil {
		change(m)
	}
	if err := w.w.Send(m); err != nil {
		w.t.Fatal(err)
	}
}

// await returns the next word of type M; words of other types are passed over.
func await[M wire.Message](w *world) M {
	w.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case m := <-w.src.words:
			if w.wrong != nil && w.wrong(m) {
				w.t.Fatalf("%T %+v must not come", m, m)
			}
			if m, ok := m.(M); ok {
				return m
			}
		case <-deadline:
			var m M
			w.t.Fatalf("no %T comes", m)
		}
	}
}

func (w *world) awaitDurable(seq record.Seq) {
	w.t.Helper()
	for await[*wire.Durable](w).Seq < seq {
	}
}

// data makes the next data record; control makes others.
func (w *world) data(text string) []byte {
	return w.next(func(id record.Identity) []byte {
		b := record.NewBatch(record.Limits{})
		b.Add(record.Piece{Volume: 1, Off: 4096, Len: int64(len(text)), Ticket: w.ticket, Data: []byte(text)})
		return b.Seal(make([]byte, 0, b.Bound()), id, 1, record.NewCompressor())
	})
}

func (w *world) open() []byte {
	return w.next(func(id record.Identity) []byte {
		return record.AppendResyncOpen(nil, id, 1, w.ticket, record.Resync{Initial: id.Seq == 1})
	})
}

func (w *world) closing() []byte {
	return w.next(func(id record.Identity) []byte {
		return record.AppendResyncClose(nil, id, 1, w.ticket, record.Resync{})
	})
}

func (w *world) cut(tag string) []byte {
	return w.next(func(id record.Identity) []byte {
		return record.AppendCut(nil, id, 1, w.ticket, record.Cut{Checkpoint: uint64(id.Seq), Wall: 77, Tag: tag, Solo: true,
			Volumes: []record.VolumeSize{{ID: 1, Bytes: 1 << 20}}})
	})
}

func (w *world) next(build func(record.Identity) []byte) []byte {
	w.seq++
	w.ticket++
	return build(record.Identity{Stream: streamID, Epoch: 1, Incarnation: w.inc, Seq: w.seq})
}

func (w *world) send(records ...[]byte) {
	w.t.Helper()
	for _, r := range records {
		if err := w.w.SendRecord(context.Background(), r); err != nil {
			w.t.Fatal(err)
		}
	}
}

// established is a world whose initial sync is over.
func established(t *testing.T) *world {
	w := newWorld(t)
	w.openStream(nil)
	if s := await[*wire.Stand](w); s.Durable != 0 || !s.NeedOpen || s.Stream != streamID {
		t.Fatalf("a new stream stands at %+v", s)
	}
	w.send(w.open(), w.data("first"), w.closing(), w.cut("tag"))
	if l := await[*wire.Listed](w); l.Group != 9 || l.Checkpoint != 4 || l.Wall != 77 || l.Tag != "tag" {
		t.Fatalf("listed %+v", l)
	}
	return w
}

func TestRecordsBecomeDurable(t *testing.T) {
	w := newWorld(t)
	w.openStream(nil)
	await[*wire.Stand](w)
	w.send(w.open(), w.data("first"), w.closing())
	w.awaitDurable(3)
	one, two := w.data("second"), w.data("third")
	w.send(one, two, one, two) // what comes twice changes nothing
	w.awaitDurable(5)
	w.send(w.cut(""))
	await[*wire.Listed](w)
	l, ok := w.target.Link(9)
	if p := l.Streams[streamID]; !ok || !l.Connected || l.Refused != "" || p.Durable != 6 || p.Records != 6 {
		t.Errorf("link %+v", l)
	}
	w.openStream(nil) // asked again, it says where it stands and what is listed
	if s := await[*wire.Stand](w); s.Durable != 6 || s.NeedOpen || s.Incarnation != 1 {
		t.Errorf("stands at %+v", s)
	}
	if l := await[*wire.Listed](w); l.Checkpoint != 6 {
		t.Errorf("listed %+v", l)
	}
}

// What a source says to be listed everywhere bounds where the history of its group may
// begin, and of no other's.
func TestEverywhere(t *testing.T) {
	w := established(t)
	for _, m := range []*wire.Everywhere{{Group: 8, Checkpoint: 4}, {Group: 9, Checkpoint: 4}} {
		if err := w.w.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	w.openStream(nil) // its answer comes after they were taken
	await[*wire.Stand](w)
	g, ok := w.target.store.Group(9)
	if !ok || g.Retention().Everywhere != 4 {
		t.Errorf("listed everywhere: %d", g.Retention().Everywhere)
	}
}

// TestRefusals holds each mistake of a source against the code it is told.
func TestRefusals(t *testing.T) {
	f := func(name string, want wire.Code, do func(w *world)) {
		t.Run(name, func(t *testing.T) {
			w := established(t)
			do(w)
			if r := await[*wire.Refused](w); r.Code != want || r.Stream != streamID || r.Text == "" {
				t.Errorf("refused with %+v, want %v", r, want)
			}
			l, _ := w.target.Link(9)
			if l.Refused == "" {
				t.Error("the refusal is not remembered")
			}
		})
	}
	f("lineage", wire.CodeLineage, func(w *world) {
		w.openStream(func(m *wire.OpenStream) { m.Lineage = 4 })
	})
	f("incarnation", wire.CodeFenced, func(w *world) {
		w.openStream(func(m *wire.OpenStream) { m.Incarnation = 7 })
		await[*wire.Stand](w)
		w.openStream(nil)
	})
	f("gap", wire.CodeGap, func(w *world) { w.seq++; w.send(w.data("late")) })
	f("no open", wire.CodeGap, func(w *world) {
		w.inc = 2
		w.openStream(nil)
		await[*wire.Stand](w)
		w.send(w.data("too early"))
	})
	f("other bytes", wire.CodeCorrupt, func(w *world) {
		w.send(w.data("one"))
		w.awaitDurable(5)
		w.seq--
		w.send(w.data("two"))
	})
	f("spoiled", wire.CodeCorrupt, func(w *world) {
		r := w.data("spoiled in memory")
		r[len(r)-1] ^= 1
		w.send(r)
	})
	f("volume", wire.CodeOther, func(w *world) {
		w.send(w.next(func(id record.Identity) []byte {
			b := record.NewBatch(record.Limits{})
			b.Add(record.Piece{Volume: 2, Off: 0, Len: 4096, Ticket: w.ticket})
			return b.Seal(make([]byte, 0, b.Bound()), id, 1, record.NewCompressor())
		}))
	})
}

// TestRefusalAndReturn fills the disk: the stream is refused, nothing is acknowledged
// that is not durable, and once there is room it goes on in the same session.
func TestRefusalAndReturn(t *testing.T) {
	w := established(t)
	w.disk.Inject(faultdisk.Fault{Ever: true, Err: syscall.ENOSPC})
	w.wrong = func(m wire.Message) bool { d, ok := m.(*wire.Durable); return ok && d.Seq > 4 }
	one := w.data("one")
	w.send(one)
	if r := await[*wire.Refused](w); r.Code != wire.CodeStorage {
		t.Fatalf("refused with %+v", r)
	}
	if l, _ := w.target.Link(9); l.Connected || l.Refused == "" {
		t.Errorf("link %+v", l)
	}
	w.disk.Heal()
	w.openStream(nil)
	if s := await[*wire.Stand](w); s.Durable != 4 {
		t.Fatalf("stands at %+v", s)
	}
	w.wrong = nil
	w.send(one)
	w.awaitDurable(5)
	w.send(w.cut("again"))
	for await[*wire.Listed](w).Checkpoint != 6 { // its Durable may come before or after
	}
}

// TestStragglers sends, after a refusal and the next Stand, records that were under
// way from before: they are dropped, and what follows Durable is taken.
func TestStragglers(t *testing.T) {
	w := established(t)
	w.disk.Inject(faultdisk.Fault{Ever: true, Err: syscall.ENOSPC})
	one, two, three := w.data("one"), w.data("two"), w.data("three")
	w.send(one)
	await[*wire.Refused](w)
	w.disk.Heal()
	w.openStream(nil)
	await[*wire.Stand](w)
	w.wrong = func(m wire.Message) bool { _, refused := m.(*wire.Refused); return refused }
	w.send(two, three) // as if sent before the refusal was heard
	w.send(one, two, three)
	w.awaitDurable(7)
}

// A source that gives its window up begins a new life within the session; what was under
// way of the one before may stand at the very seq that the new one begins at.
func TestStragglersOfTheLifeBefore(t *testing.T) {
	w := established(t)
	before := [][]byte{w.data("one"), w.data("two")}
	w.seq -= 2
	w.inc++
	w.openStream(nil)
	if s := await[*wire.Stand](w); s.Durable != 4 {
		t.Fatalf("stands at %+v", s)
	}
	w.wrong = func(m wire.Message) bool { _, refused := m.(*wire.Refused); return refused }
	w.send(before...)
	w.send(w.open(), w.data("one again"), w.closing())
	w.awaitDurable(7)
}

func TestClosedStreamIsDropped(t *testing.T) {
	w := established(t)
	if err := w.w.Send(&wire.CloseStream{Stream: streamID}); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for l, _ := w.target.Link(9); l.Connected; l, _ = w.target.Link(9) {
		<-tick.C
	}
	w.send(w.data("dropped"))
	w.seq--
	w.openStream(nil)
	if s := await[*wire.Stand](w); s.Durable != 4 {
		t.Errorf("stands at %+v", s)
	}
}

// TestUnknownStreamEndsTheSession: it is the peer's mistake, not the journal's.
func TestUnknownStreamEndsTheSession(t *testing.T) {
	w := newWorld(t)
	w.send(w.open())
	select {
	case <-w.src.ended:
	case <-time.After(patience):
		t.Fatal("the session goes on")
	}
	w.w = <-w.src.session
	if err := w.w.Send(&wire.Durable{Stream: streamID, Seq: 1}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-w.src.ended:
	case <-time.After(patience):
		t.Fatal("a word that is the target's own was taken")
	}
}

// TestFenced begins a failover under a source: it is told so, once by the refusal of what it sends
// and each time that it asks, and is granted an epoch once the failover was rolled back.
func TestFenced(t *testing.T) {
	w := established(t)
	g, _ := w.target.store.Group(9)
	if _, err := g.BeginFailover(journal.FailoverRequest{ID: "one", Checkpoint: 4, Then: failover.Rollback}); err != nil {
		t.Fatal(err)
	}
	w.send(w.data("too late"))
	f := func(want wire.Fenced) {
		t.Helper()
		m := await[*wire.Fenced](w)
		if m.Text == "" {
			t.Error("it is not said why")
		}
		if m.Text = ""; *m != want {
			t.Errorf("told %+v, want %+v", *m, want)
		}
	}
	f(wire.Fenced{Stream: streamID, Epoch: 2})
	if l, _ := w.target.Link(9); l.Refused == "" || l.Connected {
		t.Errorf("link %+v", l)
	}
	w.openStream(nil)
	f(wire.Fenced{Stream: streamID, Epoch: 2})
	if _, err := g.RollBackFailover(""); err != nil {
		t.Fatal(err)
	}
	w.openStream(nil)
	f(wire.Fenced{Stream: streamID, Epoch: 3, Granted: true})
	w.openStream(func(m *wire.OpenStream) { m.Epoch, m.Incarnation = 3, 2 })
	if s := await[*wire.Stand](w); s.Durable != 4 || !s.NeedOpen || s.Epoch != 3 {
		t.Errorf("stands at %+v", s)
	}
	w.openStream(func(m *wire.OpenStream) { m.Epoch = 3 })
	if r := await[*wire.Refused](w); r.Code != wire.CodeFenced { // the epoch is right, its life is over
		t.Errorf("refused with %+v", r)
	}
}

// A second VRA, with a name of its own and a higher incarnation, does not get a stream while the one
// that has it lives; then it does.
func TestHeldStreamIsNotTaken(t *testing.T) {
	w := established(t)
	clone := &world{t: t, target: w.target, inc: 9, src: &source{t: t, session: make(chan *wire.Session, 8), words: make(chan wire.Message, 1024), ended: make(chan error, 8)}}
	ctx, stop := context.WithCancel(context.Background())
	connected := make(chan error, 1)
	go func() {
		connected <- wire.Connect(ctx, wire.ClientConfig{Control: "c", Data: "d", Credentials: testtrust.Second(), Dial: w.net.Dial}, clone.src)
	}()
	defer func() {
		stop()
		if err := <-connected; err != nil {
			t.Error(err)
		}
	}()
	clone.w = <-clone.src.session
	clone.openStream(nil)
	if r := await[*wire.Refused](clone); r.Code != wire.CodeHeld || !strings.Contains(r.Text, "clone") {
		t.Errorf("the clone is told %+v", r)
	}
	w.send(w.data("on")) // who has it goes on,
	w.awaitDurable(5)
	if err := w.w.Send(&wire.CloseStream{Stream: streamID}); err != nil { // also when it rests,
		t.Fatal(err)
	}
	w.openStream(func(m *wire.OpenStream) { m.Lineage = 4 }) // or was refused
	await[*wire.Refused](w)
	clone.openStream(nil)
	await[*wire.Refused](clone)
	w.net.Freeze() // of both: the clone comes back at once, what is left of the other goes in time
	clone.w = <-clone.src.session
	for clone.openStream(nil); awaitAny(clone) == nil; {
		clone.openStream(nil)
	}
}

// awaitAny waits for the answer to an OpenStream: nil where it was refused.
func awaitAny(w *world) *wire.Stand {
	w.t.Helper()
	select {
	case m := <-w.src.words:
		switch m := m.(type) {
		case *wire.Stand:
			return m
		case *wire.Refused:
			return nil
		}
		return awaitAny(w)
	case <-time.After(patience):
		w.t.Fatal("the clone is not answered")
		return nil
	}
}

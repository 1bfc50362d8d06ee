package reorder

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// world is a source and a target with connections between them: each is a queue that may
// be cut, and then nothing in it arrives.
type world struct {
	source  *Source
	target  Target[Mark]
	opening uint32
	conns   map[uint32][]Mark
	next    uint32               // number of the next connection
	sizes   map[record.Seq]int   // of the records there are
	newest  record.Seq           // there is
	durable record.Seq           // taken by the target in order
	acked   record.Seq           // heard of by the source
	sends   map[record.Seq][]int // of the opening: on which connections
}

func (w *world) open() {
	w.opening++
	w.target.Open(7, w.durable+1)
	w.source = NewSource(w.durable + 1)
	w.acked = w.durable
	w.sends = make(map[record.Seq][]int)
}

func (w *world) up() (ns []uint32) {
	for n := range w.next {
		if _, ok := w.conns[n]; ok {
			ns = append(ns, n)
		}
	}
	return ns
}

// send sends the picked record if it may go; false when it may not.
func (w *world) send(t *rapid.T) bool {
	up := w.up()
	seq, again := w.source.Pick()
	if len(up) == 0 || seq > w.newest {
		return false
	}
	n := rapid.SampledFrom(up).Draw(t, "connection")
	if !w.source.May(seq, w.sizes[seq]) && !(len(up) == 1 && w.source.Only(n)) {
		return false
	}
	if again && seq <= w.acked {
		t.Fatalf("seq %d is acknowledged and sent again", seq)
	}
	if !again && len(w.sends[seq]) > 0 {
		t.Fatalf("seq %d is sent again as if it were new", seq)
	}
	w.sends[seq] = append(w.sends[seq], int(n))
	if rapid.IntRange(0, 9).Draw(t, "cut in the middle") == 0 { // before the source notes it
		delete(w.conns, n)
		w.source.Lost(n)
	} else {
		w.conns[n] = append(w.conns[n], Mark{7, w.opening, seq, w.sizes[seq], uint32(seq)})
	}
	w.source.Sent(seq, n, w.sizes[seq])
	return true
}

// arrive takes the first record off a connection.
func (w *world) arrive(t *rapid.T, n uint32) {
	m := w.conns[n][0]
	w.conns[n] = w.conns[n][1:]
	v, err := w.target.Came(start, m, m)
	if err != nil {
		t.Fatalf("refused: %v", err)
	}
	if _, room := w.target.Held(); room > Window {
		t.Fatalf("%d bytes are held", room)
	}
	if v != Next {
		return
	}
	for ok := true; ok; m, ok = w.target.Pop(start, 7) {
		if m.Opening != w.opening || m.Seq != w.durable+1 {
			t.Fatalf("seq %d of opening %d after %d of opening %d", m.Seq, m.Opening, w.durable, w.opening)
		}
		w.durable++
	}
}

// Whatever the order in which connections bring records, and wherever they are cut, the
// target takes each once and in order, holds no more than the window, and refuses nothing;
// and when the cuts stop, all arrive.
func TestRecordsOverManyConnections(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{conns: map[uint32][]Mark{}, sizes: map[record.Seq]int{}}
		w.open()
		size := rapid.SampledFrom([]int{200, 60_000, 400_000, 1_100_000, record.MaxRecordBytes})
		ack := func(t *rapid.T) {
			if w.acked < w.durable {
				w.acked += record.Seq(rapid.IntRange(1, int(w.durable-w.acked)).Draw(t, "acked"))
				w.source.Acked(w.acked)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"make": func(t *rapid.T) {
				for range rapid.IntRange(1, 20).Draw(t, "records") {
					w.newest++
					w.sizes[w.newest] = size.Draw(t, "size")
				}
			},
			"connect": func(t *rapid.T) {
				if len(w.conns) < 8 {
					w.conns[w.next] = nil
					w.next++
				}
			},
			"send": func(t *rapid.T) {
				for range rapid.IntRange(1, 8).Draw(t, "times") {
					w.send(t)
				}
			},
			"arrive": func(t *rapid.T) {
				if up := w.up(); len(up) > 0 {
					n := rapid.SampledFrom(up).Draw(t, "connection")
					for range rapid.IntRange(0, len(w.conns[n])).Draw(t, "times") {
						w.arrive(t, n)
					}
				}
			},
			"ack": ack,
			"cut": func(t *rapid.T) {
				if up := w.up(); len(up) > 0 {
					n := rapid.SampledFrom(up).Draw(t, "connection")
					delete(w.conns, n)
					w.source.Lost(n)
				}
			},
			"reopen": func(t *rapid.T) {
				if rapid.IntRange(0, 3).Draw(t, "chance") == 0 {
					w.open()
				}
			},
		})
		w.conns[w.next] = nil
		w.next++
		for steps := 0; w.acked < w.newest; steps++ {
			if steps > 100_000 {
				t.Fatalf("%d of %d arrived", w.durable, w.newest)
			}
			for w.send(t) {
			}
			if len(w.conns) == 0 { // cut in the middle
				w.conns[w.next] = nil
				w.next++
			}
			for n, q := range w.conns {
				for range q {
					w.arrive(t, n)
				}
			}
			ack(t)
		}
	})
}

func TestSourcePicks(t *testing.T) {
	s := NewSource(10)
	f := func(what string, want record.Seq, again bool) {
		t.Helper()
		if seq, a := s.Pick(); seq != want || a != again {
			t.Errorf("%s: seq %d, again %v; want %d, %v", what, seq, a, want, again)
		}
	}
	f("at first", 10, false)
	for seq := record.Seq(10); seq < 16; seq++ {
		s.Sent(seq, uint32(seq%3), 100)
	}
	f("after six", 16, false)
	s.Acked(11)
	if !s.Lost(0) {
		t.Error("nothing was lost with a connection that had 12 and 15")
	}
	f("a cut", 12, true)
	s.Sent(12, 1, 100)
	f("one is sent again", 15, true)
	s.Acked(15)
	f("acknowledged meanwhile", 16, false)
	s.Sent(16, 0, 100) // given to the connection just before it was cut
	f("lost in the moment it was sent", 16, true)
	s.Sent(16, 2, 100)
	if records, lost := s.Under(); records != 1 || lost != 0 || !s.Only(2) || s.Only(1) {
		t.Errorf("%d under way, %d lost", records, lost)
	}
	if n := s.Bytes(); n != 100 {
		t.Errorf("%d bytes are under way", n)
	}
	if s.Lost(1) {
		t.Error("something was lost with a connection that had nothing left")
	}
}

func TestSourceKeepsToTheWindow(t *testing.T) {
	s := NewSource(1)
	seq := record.Seq(1)
	for s.May(seq, 500_000) && seq < 1000 {
		s.Sent(seq, uint32(seq%2), 500_000)
		seq++
	}
	if got := int64(seq-1) * 512 << 10; got != Window {
		t.Errorf("%d bytes of room are under way, of %d", got, Window)
	}
	s.Acked(1)
	if !s.May(seq, 500_000) || s.May(seq, 600_000) {
		t.Error("an acknowledgement makes room for one of its size")
	}
	s.Lost(0)
	if next, _ := s.Pick(); next != 2 || !s.May(next, 500_000) {
		t.Errorf("seq %d goes first after a cut", next)
	}
}

package spill

import (
	"context"
	"errors"
	"os"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// TestMain sees that the tests come to every call site of the disk interface, and make it fail.
func TestMain(m *testing.M) {
	sites := faultdisk.RecordSites()
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) { os.Exit(sites.AfterTests(code)) }))
}

// buffer counts its releases.
type buffer struct {
	bytes    int
	released int
}

func (b *buffer) Bytes() []byte { return make([]byte, b.bytes) }
func (b *buffer) Held() int64   { return int64(b.bytes) }
func (b *buffer) Release()      { b.released++ }

// TestWindowModel holds a window to a list of records and their loans.
func TestWindowModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		first := record.Seq(rapid.Uint64Range(1, 1000).Draw(t, "first"))
		w := New(1000, first)
		next := first // what the model expects of Put
		all := map[record.Seq]*buffer{}
		var ever []*buffer
		lent := []*Record{}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				b := &buffer{bytes: rapid.IntRange(1, 500).Draw(t, "bytes")}
				all[next], ever = b, append(ever, b)
				w.Put(&Record{Seq: next, Through: record.Ticket(next * 10), Oldest: int64(next), Raw: 7, Buffer: b})
				next++
			},
			"ack": func(t *rapid.T) {
				seq := first + record.Seq(rapid.Uint64Range(0, 5).Draw(t, "seq")) - 1
				a, err := w.Ack(seq)
				if (err != nil) != (seq >= next) {
					t.Fatalf("ack %d with %d next: %v", seq, next, err)
				}
				if err != nil {
					return
				}
				n := 0
				for first <= seq && first < next {
					delete(all, first)
					first++
					n++
				}
				if want := record.Ticket((first - 1) * 10); a.Records != n || n > 0 && a.Through != want {
					t.Fatalf("ack %d freed %+v, want %d records through %d", seq, a, n, want)
				}
			},
			"lend": func(t *rapid.T) {
				if len(all) == 0 {
					return
				}
				seq := first + record.Seq(rapid.IntRange(0, len(all)-1).Draw(t, "seq"))
				r, err := w.Lend(context.Background(), seq)
				if err != nil || r.Seq != seq || r.Buffer != Buffer(all[seq]) {
					t.Fatalf("lend %d: %+v, %v", seq, r, err)
				}
				lent = append(lent, r)
			},
			"return": func(t *rapid.T) {
				if len(lent) == 0 {
					return
				}
				i := rapid.IntRange(0, len(lent)-1).Draw(t, "loan")
				w.Return(lent[i])
				lent = append(lent[:i], lent[i+1:]...)
			},
			"reset": func(t *rapid.T) {
				next = first + record.Seq(rapid.Uint64Range(0, 9).Draw(t, "next"))
				first = next
				clear(all)
				w.Reset(next)
			},
			"": func(t *rapid.T) {
				held, bytes := map[*buffer]bool{}, int64(0)
				for _, b := range all {
					held[b] = true
					bytes += b.Held()
				}
				for _, r := range lent {
					held[r.Buffer.(*buffer)] = true
				}
				for _, b := range ever {
					if want := map[bool]int{true: 0, false: 1}[held[b]]; b.released != want {
						t.Fatalf("a buffer was released %d times, want %d", b.released, want)
					}
				}
				s := w.Stats()
				if s.Bytes != bytes || s.Records != len(all) || s.Raw != int64(7*len(all)) || w.Next() != next {
					t.Fatalf("stats %+v, next %d; want %d bytes in %d records, next %d", s, w.Next(), bytes, len(all), next)
				}
				if len(all) > 0 && s.Oldest != int64(first) {
					t.Fatalf("oldest %d, want %d", s.Oldest, first)
				}
			},
		})
	})
}

func TestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(context.Background())
		w := New(10, 1)
		var lent *Record
		var lendErr error
		go func() { lent, lendErr = w.Lend(ctx, 1) }()
		synctest.Wait()
		if lent != nil || lendErr != nil {
			t.Fatal("a loan of what is not there did not wait")
		}
		w.Put(&Record{Seq: 1, Buffer: &buffer{bytes: 10}})
		synctest.Wait()
		if lent == nil || !w.Idle() {
			t.Fatalf("the loan did not see the record (idle %t)", w.Idle())
		}

		roomy := false
		go func() { roomy = w.Room(ctx) == nil }()
		synctest.Wait()
		if roomy {
			t.Fatal("a full window had room")
		}
		if _, err := w.Ack(1); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !roomy {
			t.Fatal("an acknowledgement made no room")
		}
		w.Return(lent)

		go func() { _, lendErr = w.Lend(ctx, 2) }()
		synctest.Wait()
		w.Reset(7)
		synctest.Wait()
		if !errors.Is(lendErr, ErrReset) {
			t.Fatalf("a loan over a reset: %v", lendErr)
		}
		lendErr = nil
		go func() { _, lendErr = w.Lend(ctx, 7) }()
		synctest.Wait()
		stop()
		synctest.Wait()
		if !errors.Is(lendErr, context.Canceled) {
			t.Fatalf("a loan over the end: %v", lendErr)
		}
	})
}

func TestRewind(t *testing.T) {
	w := New(100, 1)
	for seq := range record.Seq(3) {
		w.Put(&Record{Seq: seq + 1, Buffer: &buffer{bytes: 1}})
	}
	for seq := range record.Seq(3) {
		r, err := w.Lend(context.Background(), seq+1)
		if err != nil {
			t.Fatal(err)
		}
		w.Return(r)
	}
	if s := w.Stats(); s.Unsent != 0 || !w.Idle() {
		t.Fatalf("all is sent and %d are not", s.Unsent)
	}
	if _, err := w.Ack(1); err != nil {
		t.Fatal(err)
	}
	w.Rewind()
	if s := w.Stats(); s.Unsent != 2 || w.Idle() {
		t.Fatalf("two must be sent again, and stats say %d", s.Unsent)
	}
	r, err := w.Lend(context.Background(), 1) // acknowledged: the first after it
	if err != nil || r.Seq != 2 {
		t.Fatalf("lent %+v, %v", r, err)
	}
	w.Return(r)
}

func TestPutOutOfTurnPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a gap was taken")
		}
	}()
	New(1, 5).Put(&Record{Seq: 6, Buffer: &buffer{}})
}

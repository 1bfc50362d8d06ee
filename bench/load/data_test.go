package load

import (
	"bytes"
	"testing"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// ratio seals p in 32 KiB blocks and returns raw over stored bytes.
func ratio(t *testing.T, p []byte) float64 {
	t.Helper()
	var raw, stored int64
	c := record.NewCompressor()
	b := record.NewBatch(record.Limits{})
	var buf []byte
	for at := 0; at < len(p); at += 1 << 20 {
		b.Reset()
		if !b.Add(record.Piece{Volume: 1, Off: int64(at), Len: 1 << 20, Ticket: record.Ticket(at + 1), Data: p[at : at+1<<20]}) {
			t.Fatal("1 MiB does not fit into a batch")
		}
		buf = b.Seal(buf[:0], record.Identity{Stream: 1, Epoch: 1, Incarnation: 1, Seq: 1}, 1, c)
		h, err := record.ParseHeader(buf)
		if err != nil {
			t.Fatal(err)
		}
		raw, stored = raw+h.Raw, stored+h.Stored
	}
	return float64(raw) / float64(max(stored, 1))
}

func TestKindsCompressAsNamed(t *testing.T) {
	f := func(kind Kind, from, to float64) {
		t.Helper()
		if got := ratio(t, Corpus(kind, 5)); got < from || got > to {
			t.Errorf("%s compresses %.2f times, want %.2f to %.2f", kind, got, from, to)
		}
	}
	f(DB, 2.1, 2.3)
	f(Text, 1.5, 3.5)
	f(Random, 0.99, 1.01)
	f(Mixed, 1.3, 1.5)
}

func TestCorpusFollowsFromSeed(t *testing.T) {
	for _, kind := range Kinds {
		if !bytes.Equal(Corpus(kind, 9), Corpus(kind, 9)) {
			t.Errorf("%s: one seed, two corpora", kind)
		}
		if kind != Zero && bytes.Equal(Corpus(kind, 9), Corpus(kind, 10)) {
			t.Errorf("%s: two seeds, one corpus", kind)
		}
	}
}

package deliver

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/delta"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// sums asks for sums of what all up to `after` made of the volume.
func (w *world) sums(after record.Seq, a delta.Ask) []byte {
	w.t.Helper()
	if err := w.w.Send(&wire.Compare{Stream: streamID, After: after, Ask: a}); err != nil {
		w.t.Fatal(err)
	}
	m := await[*wire.Sums](w)
	if m.Stream != streamID || m.Ask != a {
		w.t.Fatalf("asked for %+v, answered %+v", a, m.Ask)
	}
	return m.Sums
}

// TestCompare asks for sums while records come: they are of all that was acknowledged before, at
// least, and what the volume has not is not known.
func TestCompare(t *testing.T) {
	w := established(t) // block 1 begins with "first"
	want := delta.NewRegion(0, 1<<20)
	for b := range want.Blocks() {
		want.Put(b, nil)
	}
	want.Put(1, []byte("first"))
	asks := []delta.Ask{{Volume: 1, Level: delta.Node, Count: 1}, {Volume: 1, Level: delta.Leaf, Count: 16}, {Volume: 1, Level: delta.Block, First: 250, Count: 6}, {Volume: 1, Level: delta.Block, Count: 3}}
	check := func(after record.Seq) {
		t.Helper()
		for _, a := range asks {
			if got := w.sums(after, a); !bytes.Equal(got, want.Append(nil, a)) {
				t.Errorf("after %d: sums of %+v are %x", after, a, got)
			}
		}
	}
	check(4)
	w.send(w.data("other"))
	w.awaitDurable(5)
	want.Put(1, []byte("other"))
	check(5)
	for _, a := range []delta.Ask{{Volume: 2, Level: delta.Node, Count: 1}, {Volume: 1, Level: delta.Node, First: 1, Count: 1}, {Volume: 1, Level: delta.Leaf, First: 16, Count: 2}} {
		if got := w.sums(5, a); !bytes.Equal(got, make([]byte, a.AnswerBytes())) {
			t.Errorf("%+v is not there and has sums %x", a, got)
		}
	}
}

// TestCompareOfNoStream: who compares what it never opened breaks the protocol.
func TestCompareOfNoStream(t *testing.T) {
	w := newWorld(t)
	if err := w.w.Send(&wire.Compare{Stream: streamID, After: 1, Ask: delta.Ask{Volume: 1, Level: delta.Node, Count: 1}}); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-w.src.ended:
		var peer *wire.PeerError
		if !errors.As(err, &peer) || peer.Code != wire.CodeProtocol {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the session goes on")
	}
}

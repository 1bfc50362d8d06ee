package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/wire/cutword"
	"github.com/holdfast-dr/holdfast/wire/faultlink"
)

// cutWords is one word of each kind.
func cutWords() (ws []cutword.Word) {
	for k := cutword.Place; k <= cutword.Refused; k++ {
		w := cutword.Word{Kind: k, Group: 5, ID: cutword.ID{Leader: 70, Term: 1 << 40, Number: 17}}
		switch k {
		case cutword.Place:
			w.Members, w.Wall, w.Tag = 1<<63, 1_700_000_000_000_000_000, "vor dem Update ✓"
		case cutword.Refused:
			w.Floor, w.Why = 20, "a resync is open"
		}
		ws = append(ws, w)
	}
	return ws
}

func TestCutWordsComeBack(t *testing.T) {
	for _, w := range cutWords() {
		body := appendCutWord(nil, w)
		if got, err := parseCutWord(body); err != nil || got != w || len(body) > maxCutWord {
			t.Errorf("%+v came back as %+v, %v", w, got, err)
		}
		for n := range len(body) {
			if _, err := parseCutWord(body[:n]); !errors.Is(err, ErrProtocol) {
				t.Errorf("%v reads from %d of %d bytes: %v", w.Kind, n, len(body), err)
			}
		}
	}
	f := func(name string, change func(*cutword.Word)) {
		t.Helper()
		w := cutWords()[0]
		change(&w)
		if _, err := parseCutWord(appendCutWord(nil, w)); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f("no kind", func(w *cutword.Word) { w.Kind = 0 })
	f("an unknown kind", func(w *cutword.Word) { w.Kind = cutword.Refused + 1 })
	f("no group", func(w *cutword.Word) { w.Group = 0 })
	f("no leader", func(w *cutword.Word) { w.ID.Leader = 0 })
	f("no term", func(w *cutword.Word) { w.ID.Term = 0 })
	f("no number", func(w *cutword.Word) { w.ID.Number = 0 })
	f("no members", func(w *cutword.Word) { w.Members = 0 })
	f("no time", func(w *cutword.Word) { w.Wall = 0 })
	f("before 1970", func(w *cutword.Word) { w.Wall = -1 })
	f("a reason", func(w *cutword.Word) { w.Why = "x" })
	f("a floor", func(w *cutword.Word) { w.Floor = 1 })
	f("a tag of another kind", func(w *cutword.Word) { w.Kind, w.Members, w.Wall = cutword.Void, 0, 0 })
	f("a tag that is too long", func(w *cutword.Word) { w.Tag = strings.Repeat("x", 257) })
	f("a tag that is no text", func(w *cutword.Word) { w.Tag = "\xff" })
}

func FuzzCutWord(f *testing.F) {
	for _, w := range cutWords() {
		f.Add(appendCutWord(nil, w))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if w, err := parseCutWord(p); err == nil && !bytes.Equal(appendCutWord(nil, w), p) {
			t.Fatalf("%x reads as %+v", p, w)
		}
	})
}

// cutEnd is a CutHandler that answers what a member is told, and keeps what it hears.
type cutEnd struct {
	mu     sync.Mutex
	link   *CutLink
	words  []cutword.Word
	opened int
	closed error
	fail   error // what Word returns
}

func (e *cutEnd) Opened(l *CutLink) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.link, e.opened = l, e.opened+1
}

func (e *cutEnd) Word(l *CutLink, w cutword.Word) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.words = append(e.words, w)
	if w.Kind == cutword.Place && e.fail == nil {
		l.Send(cutword.Word{Kind: cutword.Placed, Group: w.Group, ID: w.ID})
	}
	return e.fail
}

func (e *cutEnd) Closed(_ *CutLink, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.link, e.closed = nil, err
}

func (e *cutEnd) now() (l *CutLink, words []cutword.Word, opened int, closed error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.link, e.words, e.opened, e.closed
}

// cutPair runs a VRA that takes part and one that leads, on a network in memory. change may spoil either.
func cutPair(t *testing.T, change func(*CutServerConfig, *CutClientConfig), body func(n *faultlink.Net, leader, member *cutEnd)) {
	pin := sites().east.pin()
	synctest.Test(t, func(t *testing.T) {
		n := &faultlink.Net{}
		own := Credentials{Certificate: sites().other, Pins: []Pin{pin}}
		sc := CutServerConfig{Listen: "s2:4007", Credentials: own, Knows: func(p Peer) bool { return p.ID == "s1" }, Log: slog.New(slog.DiscardHandler), Open: n.Listen}
		cc := CutClientConfig{Address: "s2:4007", Credentials: Credentials{Certificate: sites().source, Pins: []Pin{pin}},
			Peer: Peer{"east", RoleVRA, "s2"}, Log: slog.New(slog.DiscardHandler), Dial: n.Dial}
		if change != nil {
			change(&sc, &cc)
		}
		s, err := ListenCuts(sc)
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		leader, member := new(cutEnd), new(cutEnd)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := s.Serve(ctx, member); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if err := ConnectCuts(ctx, cc, leader); err != nil {
				t.Error(err)
			}
		})
		body(n, leader, member)
		stop()
		wg.Wait()
	})
}

// TestCutLink has words go both ways, for as long as it takes, and a connection come back.
func TestCutLink(t *testing.T) {
	cutPair(t, nil, func(n *faultlink.Net, leader, member *cutEnd) {
		time.Sleep(time.Minute)
		l, _, opened, _ := leader.now()
		if l == nil || opened != 1 || !l.Leads() || l.Peer().ID != "s2" {
			t.Fatalf("%v, opened %d times", l, opened)
		}
		place := cutWords()[0]
		if err := l.Send(place); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		time.Sleep(time.Second)
		if _, words, _, _ := member.now(); len(words) != 1 || words[0] != place {
			t.Errorf("the member heard %+v", words)
		}
		if _, words, _, _ := leader.now(); len(words) != 1 || words[0].Kind != cutword.Placed || words[0].ID != place.ID {
			t.Errorf("the leader heard %+v", words)
		}
		if err := l.Send(cutword.Word{Kind: cutword.Void}); err == nil {
			t.Error("a word that none may send is sent")
		}
		at, _, _, _ := member.now()
		at.Close()
		time.Sleep(10 * time.Second)
		if again, _, opened, closed := leader.now(); opened != 2 || again == nil || closed == nil {
			t.Errorf("opened %d times, closed: %v", opened, closed)
		}
		if err := l.Send(place); err == nil {
			t.Error("a connection that is over sends")
		}
	})
}

// A member that says what only leaders say is hung up on, and so is one whose words are not taken.
func TestCutLinkWrongWords(t *testing.T) {
	cutPair(t, nil, func(n *faultlink.Net, leader, member *cutEnd) {
		time.Sleep(time.Second)
		l, _, _, _ := member.now()
		if err := l.Send(cutWords()[0]); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		if _, words, _, closed := leader.now(); !errors.Is(closed, ErrProtocol) || len(words) > 0 {
			t.Errorf("closed: %v, heard %v", closed, words)
		}
	})
	bad := errors.New("no such group")
	cutPair(t, nil, func(n *faultlink.Net, leader, member *cutEnd) {
		time.Sleep(time.Second)
		member.mu.Lock()
		member.fail = bad
		member.mu.Unlock()
		l, _, _, _ := leader.now()
		if err := l.Send(cutWords()[0]); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		if _, _, _, closed := member.now(); !errors.Is(closed, bad) {
			t.Errorf("closed: %v", closed)
		}
	})
}

// Who is not who it should be gets no connection.
func TestCutLinkRefuses(t *testing.T) {
	f := func(name string, change func(*CutServerConfig, *CutClientConfig)) {
		t.Helper()
		cutPair(t, change, func(n *faultlink.Net, leader, member *cutEnd) {
			time.Sleep(20 * time.Second)
			_, _, a, _ := leader.now()
			if _, _, b, _ := member.now(); a != 0 || b != 0 {
				t.Errorf("%s: opened %d and %d times", name, a, b)
			}
		})
	}
	f("not of our groups", func(s *CutServerConfig, c *CutClientConfig) { s.Knows = func(p Peer) bool { return p.ID == "s3" } })
	f("of the other site", func(s *CutServerConfig, c *CutClientConfig) { c.Credentials.Certificate = sites().target })
	f("another VRA answers", func(s *CutServerConfig, c *CutClientConfig) { c.Peer.ID = "s4" })
	f("a site that is not pinned", func(s *CutServerConfig, c *CutClientConfig) { c.Credentials.Pins = []Pin{sites().west.pin()} })
	f("what answers is a target's port", func(s *CutServerConfig, c *CutClientConfig) {
		c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) { return nil, io.ErrClosedPipe }
	})
}

// A first frame that is none of its own ends a connection before anybody hears of it.
func TestCutLinkFirstFrame(t *testing.T) {
	cutPair(t, nil, func(n *faultlink.Net, leader, member *cutEnd) {
		time.Sleep(time.Second)
		for _, frame := range [][]byte{appendFrame(nil, typeHello, hello{ours}.appendTo), appendFrame(nil, typeMeet, hello{Versions{1, 8}}.appendTo)} {
			conn, err := n.Dial(context.Background(), "tcp", "s2:4007")
			if err != nil {
				t.Fatal(err)
			}
			c := &Credentials{Certificate: sites().source, Pins: []Pin{sites().east.pin()}}
			l := tls.Client(conn, c.config(0, Peer{}))
			l.Write(frame)
			l.SetDeadline(time.Now().Add(time.Minute))
			if p, err := io.ReadAll(l); len(p) > 0 && frameType(p[atFrameType]) != typeBye {
				t.Errorf("answered with %x, %v", p, err)
			}
			l.Close()
		}
		if _, _, opened, _ := member.now(); opened != 1 {
			t.Errorf("opened %d times", opened)
		}
	})
}

// A peer that falls silent is given up, at both ends.
func TestCutLinkSilent(t *testing.T) {
	cutPair(t, nil, func(n *faultlink.Net, leader, member *cutEnd) {
		time.Sleep(time.Second)
		n.Freeze()
		time.Sleep(3 * time.Second)
		if _, _, _, closed := leader.now(); closed != nil {
			t.Errorf("given up after 4 s: %v", closed)
		}
		time.Sleep(3 * time.Second)
		for _, e := range []*cutEnd{leader, member} {
			if _, _, _, closed := e.now(); !errors.Is(closed, ErrDead) {
				t.Errorf("closed: %v", closed)
			}
		}
	})
}

func TestCutLinkNeedsCredentials(t *testing.T) {
	if _, err := ListenCuts(CutServerConfig{}); err == nil {
		t.Error("a server without credentials")
	}
	if err := ConnectCuts(t.Context(), CutClientConfig{}, new(cutEnd)); err == nil {
		t.Error("a client without credentials")
	}
}

package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/wire/faultlink"
	"github.com/holdfast-dr/holdfast/wire/record"
	"github.com/holdfast-dr/holdfast/wire/reorder"
)

// ordered is a frame with a record of the tests' stream.
func ordered(opening uint32, rec []byte) []byte {
	return appendFrame(nil, typeOrdered, func(p []byte) []byte {
		p = append(p, make([]byte, orderedBytes)...)
		putOrdered(p[len(p)-orderedBytes:], opening)
		return append(p, rec...)
	})
}

// A source that lies about the order of its records is refused, with a name for what it did.
func TestLiesAboutOrderEndTheSession(t *testing.T) {
	f := func(name string, want error, frames ...[]byte) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, &faultlink.Net{}, nil)
				defer w.stop()
				w.takesInOrder(small)
				control, data := rawSession(t, w)
				defer control.Close()
				defer data.Close()
				<-w.target.opened
				control.Write(appendFrame(nil, typeOpenStream, openStream().appendTo))
				if _, _, err := readOneOf(skipBeats{control}, typeStand); err != nil {
					t.Fatal(err)
				}
				for _, p := range frames {
					data.Write(p)
				}
				var both sync.WaitGroup
				both.Go(func() { // it lives, but for that
					for sent := uint64(1); ; sent++ {
						time.Sleep(time.Second)
						if writeHandshake(control, typeHeartbeat, heartbeat{sent: sent}.appendTo) != nil {
							return
						}
					}
				})
				both.Go(func() {
					for p := make([]byte, 1000); ; {
						if _, err := control.Read(p); err != nil {
							return
						}
					}
				})
				if err := <-w.target.closed; !errors.Is(err, want) || !errors.Is(err, ErrProtocol) && want != ErrCramped {
					t.Errorf("closed for: %v", err)
				}
				control.Close()
				both.Wait()
				if out := w.server.memory.out(); out != 0 {
					t.Errorf("%d buffers are out", out)
				}
			})
		})
	}
	other := large(3, 500)
	f("an opening to come", reorder.ErrOpening, ordered(2, small(1)))
	f("beyond the window", reorder.ErrBeyond, ordered(1, small(1)), ordered(1, small(2+384)))
	f("two of one seq", reorder.ErrDiffers, ordered(1, small(3)), ordered(1, other))
	f("a gap for ever", reorder.ErrGap, ordered(1, small(2)))
}

// skipBeats reads a control connection without what comes every second. Frames come whole.
type skipBeats struct{ c *tls.Conn }

func (s skipBeats) Read(p []byte) (int, error) {
	for len(p) == frameBytes {
		n, err := s.c.Read(p)
		if err != nil || n < frameBytes {
			return n, err
		}
		t, size, err := parseFrame(p)
		if err != nil || t != typeHeartbeat && t != typeTaken {
			return n, err
		}
		body := make([]byte, size)
		for len(body) > 0 {
			n, err := s.c.Read(body)
			if err != nil {
				return 0, err
			}
			body = body[n:]
		}
	}
	return s.c.Read(p)
}

func TestAttachIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, nil)
		defer w.stop()
		control, data, tok := rawSessionToken(t, w)
		defer control.Close()
		defer data.Close()
		session := <-w.target.opened
		var dialled []*tls.Conn
		defer func() {
			for _, c := range dialled {
				c.Close()
			}
		}()
		f := func(name string, who tls.Certificate, a attach, want Code) {
			t.Helper()
			c, err := w.net.Dial(context.Background(), "tcp", "data")
			if err != nil {
				t.Fatal(err)
			}
			credentials := sourceCredentials()
			credentials.Certificate = who
			conn := tls.Client(c, (&ClientConfig{Credentials: credentials}).tls(Peer{}))
			dialled = append(dialled, conn)
			if err := writeHandshake(conn, typeAttach, a.appendTo); err != nil {
				t.Fatal(err)
			}
			_, err = readHandshake(conn, typeJoined)
			var peer *PeerError
			if want == 0 && err != nil || want != 0 && (!errors.As(err, &peer) || peer.Code != want) {
				t.Errorf("%s: %v", name, err)
			}
			synctest.Wait()
		}
		wrong := tok
		wrong[3] ^= 1
		f("a token of nobody", sites().source, attach{wrong, 1}, CodeProtocol)
		f("the token of another", sites().other, attach{tok, 1}, CodeProtocol)
		f("its own", sites().source, attach{tok, 5}, 0)
		f("the same number", sites().source, attach{tok, 5}, CodeBusy)
		f("a lower number", sites().source, attach{tok, 4}, CodeBusy)
		for n := range uint32(maxLines - 2) {
			f("up to eight", sites().source, attach{tok, 6 + n}, 0)
		}
		f("the ninth", sites().source, attach{tok, 99}, CodeBusy)
		if n := session.Connections(); n != maxLines {
			t.Errorf("%d connections", n)
		}
		control.Write(appendFrame(nil, typeGone, func(p []byte) []byte { return putU32(p, 7) }))
		synctest.Wait()
		f("in the place of one that is gone", sites().source, attach{tok, 100}, 0)
		if n := session.Connections(); n != maxLines {
			t.Errorf("%d connections", n)
		}
		select {
		case err := <-w.target.closed:
			t.Errorf("the session ended: %v", err)
		default:
		}
		if refused := w.server.Counters().Refusals(); refused[ReasonToken] != 2 || refused[ReasonFull] != 3 {
			t.Errorf("refused: %v", refused)
		}
	})
}

// What comes twice, over two connections, is taken once.
func TestRecordsThatComeTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, nil)
		defer w.stop()
		durable := w.takesInOrder(small)
		control, data, tok := rawSessionToken(t, w)
		defer control.Close()
		defer data.Close()
		<-w.target.opened
		c, err := w.net.Dial(context.Background(), "tcp", "data")
		if err != nil {
			t.Fatal(err)
		}
		second := tls.Client(c, (&ClientConfig{Credentials: sourceCredentials()}).tls(Peer{}))
		defer second.Close()
		writeHandshake(second, typeAttach, attach{tok, 1}.appendTo)
		if _, err := readHandshake(second, typeJoined); err != nil {
			t.Fatal(err)
		}
		control.Write(appendFrame(nil, typeOpenStream, openStream().appendTo))
		synctest.Wait()
		for _, p := range [][]byte{ordered(1, small(3)), ordered(1, small(1)), ordered(1, small(1))} {
			second.Write(p)
		}
		synctest.Wait()
		data.Write(bytes.Join([][]byte{ordered(1, small(3)), ordered(1, small(2)), ordered(1, small(2)), ordered(1, small(4))}, nil))
		synctest.Wait()
		second.Write(ordered(1, small(4)))
		synctest.Wait()
		if n := w.server.Counters(); *durable != record.Seq(4) || n.RecordsAgain.Load() != 4 || n.RecordsEarly.Load() != 1 {
			t.Errorf("%d came, %d again, %d early", *durable, n.RecordsAgain.Load(), n.RecordsEarly.Load())
		}
	})
}

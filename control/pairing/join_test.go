package pairing

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"
)

// connections are two ends of one over loopback.
func connections(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err = net.Dial("tcp", l.Addr().String())
	if err == nil {
		far, err = l.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// clock is one that a test sets.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

// pair joins over a connection of its own; the errors are both ends'.
func pair(t *testing.T, i *Inviter, token Token, joiner Site) (inviters, joiners *Peer, acceptErr, joinErr error) {
	t.Helper()
	near, far := connections(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		inviters, acceptErr = i.Accept(context.Background(), far)
	}()
	joiners, joinErr = Join(context.Background(), near, token, joiner)
	<-done
	return inviters, joiners, acceptErr, joinErr
}

func TestJoin(t *testing.T) {
	c := &clock{now}
	west, east := newCA(t, "west"), newCA(t, "east")
	i := NewInviter(Site{CA: west, Endpoint: Endpoint{"198.51.100.1:4007", "198.51.100.1:4008"}, Now: c.now})
	token, err := i.Invite(DefaultTokenLife)
	if err != nil {
		t.Fatal(err)
	}
	token, err = ParseToken(" " + token.Text() + "\n") // as it was carried
	if err != nil {
		t.Fatal(err)
	}
	joiner := Site{CA: east, Now: c.now}
	got, peer, acceptErr, joinErr := pair(t, i, token, joiner)
	if acceptErr != nil || joinErr != nil {
		t.Fatal(acceptErr, joinErr)
	}
	if got.Site != "east" || !got.CA.Equal(east.cert) || got.Endpoint != (Endpoint{}) {
		t.Errorf("the inviter has %+v", got)
	}
	if peer.Site != "west" || !bytes.Equal(peer.CertPEM(), west.CertPEM()) || peer.Endpoint.Control != "198.51.100.1:4007" || peer.Endpoint.Data != "198.51.100.1:4008" {
		t.Errorf("the joiner has %+v", peer)
	}
	// A token works once.
	if _, _, acceptErr, joinErr := pair(t, i, token, joiner); acceptErr == nil || joinErr == nil || !strings.Contains(joinErr.Error(), "make a new one") {
		t.Errorf("twice: %v, %v", acceptErr, joinErr)
	}
	// And of the same sites another one does.
	if token, err = i.Invite(time.Minute); err != nil {
		t.Fatal(err)
	}
	if _, _, acceptErr, joinErr := pair(t, i, token, joiner); acceptErr != nil || joinErr != nil {
		t.Errorf("again: %v, %v", acceptErr, joinErr)
	}
}

// Who may not join, and with whom nobody joins.
func TestJoinRefuses(t *testing.T) {
	c := &clock{now}
	west := newCA(t, "west")
	inviter := Site{CA: west, Now: c.now}
	f := func(name, accept, join string, change func(i *Inviter, token *Token, joiner *Site)) {
		t.Helper()
		c.at = now
		i := NewInviter(inviter)
		token, err := i.Invite(DefaultTokenLife)
		if err != nil {
			t.Fatal(err)
		}
		joiner := Site{CA: newCA(t, "east"), Now: c.now}
		change(i, &token, &joiner)
		inviters, joiners, acceptErr, joinErr := pair(t, i, token, joiner)
		if inviters != nil || joiners != nil || acceptErr == nil || joinErr == nil || !strings.Contains(acceptErr.Error(), accept) || !strings.Contains(joinErr.Error(), join) {
			t.Errorf("%s:\n%v, want %q\n%v, want %q", name, acceptErr, accept, joinErr, join)
		}
	}
	f("a token of another making", "no such token", "refused: no such token", func(_ *Inviter, token *Token, _ *Site) { token.secret[0]++ })
	f("one whose proof is wrong", "no such token", "refused: no such token", func(i *Inviter, token *Token, _ *Site) {
		other := *token
		other.secret[0]++
		i.mu.tokens[token.id()] = other
	})
	f("one that expired on the way", "expired at 2026-03-01T12:15:00Z", "refused: the token expired", func(i *Inviter, token *Token, _ *Site) {
		c.at = now.Add(16 * time.Minute)
		token.Expires = now.Add(time.Hour) // the joiner believes so
	})
	f("one of another authority", "", "not the authority that the token names", func(i *Inviter, token *Token, _ *Site) { token.fingerprint[3]++ })
	f("one of another site", "", "not the authority that the token names", func(i *Inviter, token *Token, _ *Site) { token.Site = "north" })
	f("the same site", "", "does not join itself", func(i *Inviter, _ *Token, joiner *Site) { joiner.CA = newCA(t, "west") })
	pinned := func(site string) func(string) *x509.Certificate {
		other := newCA(t, site).cert
		return func(s string) *x509.Certificate { return map[string]*x509.Certificate{site: other}[s] }
	}
	f("a joiner of another pin", "another authority is pinned for east", "refused: another authority is pinned", func(i *Inviter, _ *Token, _ *Site) { i.site.Pinned = pinned("east") })
	f("an inviter of another pin", "", "another authority is pinned for west", func(_ *Inviter, _ *Token, joiner *Site) { joiner.Pinned = pinned("west") })
	f("an expired authority", "", "beyond that of the CA", func(i *Inviter, token *Token, joiner *Site) {
		old, err := NewCA("east", now.Add(-CALife-2*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		joiner.CA = &CA{"east", old.cert, old.key}
	})
}

// A refused attempt does not spend the token of another.
func TestTokenOutlivesAttempts(t *testing.T) {
	c := &clock{now}
	i := NewInviter(Site{CA: newCA(t, "west"), Now: c.now})
	token, err := i.Invite(DefaultTokenLife)
	if err != nil {
		t.Fatal(err)
	}
	for _, talk := range []func(net.Conn){
		func(c net.Conn) { io.WriteString(c, "GET / HTTP/1.1\r\n\r\n") },
		func(c net.Conn) { c.Close() },
		func(c net.Conn) { tls.Client(c, &tls.Config{InsecureSkipVerify: true}).Handshake() }, // shows nothing
	} {
		near, far := connections(t)
		go talk(near)
		if peer, err := i.Accept(t.Context(), far); err == nil {
			t.Errorf("a stranger joined as %v", peer)
		}
	}
	if _, _, acceptErr, joinErr := pair(t, i, token, Site{CA: newCA(t, "east"), Now: c.now}); acceptErr != nil || joinErr != nil {
		t.Errorf("%v, %v", acceptErr, joinErr)
	}
}

// A wait ends with its context.
func TestJoinEnds(t *testing.T) {
	i := NewInviter(Site{CA: newCA(t, "west"), Now: (&clock{now}).now})
	_, far := connections(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := i.Accept(ctx, far); err == nil {
		t.Error("accepted from a silent connection")
	}
}

func TestTokens(t *testing.T) {
	c := &clock{now}
	i := NewInviter(Site{CA: newCA(t, "west"), Now: c.now})
	for _, life := range []time.Duration{0, -1, MaxTokenLife + 1} {
		if _, err := i.Invite(life); err == nil {
			t.Errorf("a token for %v", life)
		}
	}
	var token Token
	for range maxTokens {
		var err error
		if token, err = i.Invite(time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := i.Invite(time.Minute); err == nil {
		t.Error("tokens without end")
	}
	c.at = now.Add(2 * time.Minute)
	if _, err := i.Invite(time.Minute); err != nil {
		t.Errorf("expired tokens are in the way: %v", err)
	}
	text := token.Text()
	secret := strings.TrimPrefix(text, tokenPrefix)
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("invited", "token", token)
	for _, printed := range []string{fmt.Sprint(token), fmt.Sprintf("%s %+v %#v %q", token, token, token, token), log.String()} {
		if strings.Contains(printed, secret[:20]) {
			t.Errorf("the secret is printed: %s", printed)
		}
	}
	if back, err := ParseToken(text); err != nil || back != token {
		t.Errorf("%s reads as %#v, %v", text, back, err)
	}
	for _, bad := range []string{"", "hfj1-", text[5:], text[:len(text)-1], text + "a", "hfj2" + text[4:], strings.Replace(text, "a", "1", 1), text[:40]} {
		if _, err := ParseToken(bad); bad != text && !errors.Is(err, ErrToken) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzToken(f *testing.F) {
	ca, err := NewCA("west", now)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(newToken(ca, now).Text())
	f.Add("hfj1-aaaa")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err == nil && (token.Text() != strings.TrimSpace(text) || !validName(token.Site)) {
			t.Fatalf("%q reads as %v", text, token)
		}
	})
}

func FuzzJoinMessage(f *testing.F) {
	m := joinMessage{kind: kindJoined, endpoint: Endpoint{"a:1", "b:2"}, text: "no"}
	f.Add(m.append(nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		var m joinMessage
		if err := m.read(bytes.NewReader(p)); err != nil {
			return
		}
		if again := m.append(nil); !bytes.HasPrefix(p, again) {
			t.Fatalf("%x reads as %+v and encodes to %x", p, m, again)
		}
	})
}

// TestGoldenJoin holds what travels to its bytes: version 1 of tokens and messages.
func TestGoldenJoin(t *testing.T) {
	token := Token{Site: "west", Expires: time.Unix(1_772_366_400, 0)}
	copy(token.secret[:], "0123456789abcdef")
	copy(token.fingerprint[:], "ABCDEFGHIJKLMNOPQRSTUVWXYZ012345")
	const text = "hfj1-ngscuqbqgezdgnbvgy3tqolbmjrwizlgifbegrcfizduqskkjnge2tspkbiveu2ukvlfowczliydcmrtgq2xozltoq"
	if got := token.Text(); got != text {
		t.Errorf("%s, want %s", got, text)
	}
	m := joinMessage{kind: kindJoined, id: token.id(), proof: token.proof("joiner", []byte("a connection")), endpoint: Endpoint{"t:4007", "t:4008"}}
	const want = "48464a3102003a026c6bfab81dde0f77d387f3e3e0ec0570319cfd0d3028006ddbab11e21080871ba45c47741a9d040006743a343030370006743a343030380000"
	if got := fmt.Sprintf("%x", m.append(nil)); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

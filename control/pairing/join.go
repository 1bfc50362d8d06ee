package pairing

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Two sites come to pin each other's CA: one invites, which makes a token; the token
// is carried to the other by hand; that one joins over any connection.
//
//	joiner                                inviter
//	── TLS 1.3: each shows a leaf for role "pairing" and its CA, and has its key ──
//	the CA's fingerprint is the token's
//	Join: which token, proof that it has it, where it is reached ──►
//	                                      the token stands, unused, and the proof is right
//	◄── Joined: proof, where it is reached
//
// A token works once: it is spent before the answer is sent. When that is lost, the
// inviter has the joiner's pin and the joiner nothing: a new token mends that.

// Role is that of the certificates of a join; no VRA takes it.
const Role = "pairing"

// joinTime bounds a whole exchange.
const joinTime = 10 * time.Second

// Endpoint is what a peer is to dial to reach a site's VRA: advertised by the site, since
// behind a translation of addresses nobody can tell by looking. Empty: this site is not
// dialled, or its user tells the other's by hand.
type Endpoint struct{ Control, Data string } // host:port

// Peer is a site that was paired with.
type Peer struct {
	Site     string
	CA       *x509.Certificate // to be pinned for Site alone
	Endpoint Endpoint
}

// CertPEM is the peer's CA as SavePEM writes it.
func (p *Peer) CertPEM() []byte { return certPEM(p.CA.Raw) }

// Site is one end of a join.
type Site struct {
	CA       *CA
	Endpoint Endpoint // advertised
	// Pinned is the CA that is pinned for a site, nil for none. Another one is not put in
	// its place by a join.
	Pinned func(site string) *x509.Certificate
	Now    func() time.Time // nil is time.Now
}

func (s *Site) now() time.Time {
	if s.Now == nil {
		return time.Now()
	}
	return s.Now()
}

// Inviter makes tokens and takes who joins by them. Its methods may be called at once.
type Inviter struct {
	site Site
	mu   struct {
		sync.Mutex
		tokens map[[8]byte]Token // not used yet
	}
}

// NewInviter begins without tokens; they are gone with it.
func NewInviter(site Site) *Inviter {
	i := &Inviter{site: site}
	i.mu.tokens = make(map[[8]byte]Token)
	return i
}

// maxTokens stand at once.
const maxTokens = 64

// Invite makes a token that is good for so long, at most MaxTokenLife.
func (i *Inviter) Invite(life time.Duration) (Token, error) {
	if life <= 0 || life > MaxTokenLife {
		return Token{}, fmt.Errorf("a token that is good for %v: want up to %v", life, MaxTokenLife)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	for id, t := range i.mu.tokens {
		if i.site.now().After(t.Expires) {
			delete(i.mu.tokens, id)
		}
	}
	if len(i.mu.tokens) >= maxTokens {
		return Token{}, fmt.Errorf("%d tokens stand: wait until one expires", maxTokens)
	}
	t := newToken(i.site.CA, i.site.now().Add(life))
	i.mu.tokens[t.id()] = t
	return t, nil
}

// Accept takes one connection of a site that joins, and closes it. The token is spent
// when it returns a peer, and also where only the answer was lost.
func (i *Inviter) Accept(ctx context.Context, conn net.Conn) (*Peer, error) {
	peer, err := i.accept(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("pairing with %s: %w", conn.RemoteAddr(), err)
	}
	return peer, nil
}

func (i *Inviter) accept(ctx context.Context, conn net.Conn) (*Peer, error) {
	c, err := i.site.secure(ctx, conn, tls.Server)
	if err != nil {
		return nil, err
	}
	defer c.close()
	var ask joinMessage
	if err := ask.read(c); err != nil {
		return nil, err
	}
	peer, token, err := i.judge(c, ask)
	if err != nil {
		(&joinMessage{kind: kindRefused, text: err.Error()}).write(c) // it learns why, if it can
		return nil, err
	}
	answer := joinMessage{kind: kindJoined, id: ask.id, proof: token.proof("inviter", c.binding), endpoint: i.site.Endpoint}
	return peer, answer.write(c)
}

// judge spends the token, if all is well.
func (i *Inviter) judge(c *channel, ask joinMessage) (*Peer, Token, error) {
	if ask.kind != kindJoin {
		return nil, Token{}, errors.New("not a join")
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	t, ok := i.mu.tokens[ask.id]
	if !ok || !sameProof(ask.proof, t.proof("joiner", c.binding)) && !invariant.Planted("control/pairing/any-proof") {
		return nil, t, errors.New("no such token, or it was used: make a new one")
	}
	if i.site.now().After(t.Expires) && !invariant.Planted("control/pairing/stale-token") {
		delete(i.mu.tokens, ask.id)
		return nil, t, errExpired(t.Expires)
	}
	if err := i.site.mayPin(c.peer); err != nil {
		return nil, t, err
	}
	if !invariant.Planted("control/pairing/token-twice") {
		delete(i.mu.tokens, ask.id)
	}
	return &Peer{c.peer.site, c.peer.cert, ask.endpoint}, t, nil
}

// Join pairs with the site that made the token, over a connection to its inviter, and
// closes it.
func Join(ctx context.Context, conn net.Conn, token Token, site Site) (*Peer, error) {
	peer, err := site.join(ctx, conn, token)
	if err != nil {
		return nil, fmt.Errorf("pairing with %s: %w", token.Site, err)
	}
	return peer, nil
}

func (s *Site) join(ctx context.Context, conn net.Conn, token Token) (*Peer, error) {
	if s.now().After(token.Expires) {
		conn.Close()
		return nil, errExpired(token.Expires)
	}
	c, err := s.secure(ctx, conn, tls.Client)
	if err != nil {
		return nil, err
	}
	defer c.close()
	// Before a word is said: whoever answers must be the one who made the token.
	if (c.peer.site != token.Site || fingerprintOf(c.peer.cert) != token.fingerprint) && !invariant.Planted("control/pairing/any-authority") {
		return nil, fmt.Errorf("who answers has not the authority that the token names: it is not %s, or its authority changed", token.Site)
	}
	if err := s.mayPin(c.peer); err != nil {
		return nil, err
	}
	ask := joinMessage{kind: kindJoin, id: token.id(), proof: token.proof("joiner", c.binding), endpoint: s.Endpoint}
	if err := ask.write(c); err != nil {
		return nil, err
	}
	var answer joinMessage
	if err := answer.read(c); err != nil {
		return nil, err
	}
	if answer.kind == kindRefused {
		return nil, fmt.Errorf("refused: %s", answer.text)
	}
	if answer.kind != kindJoined || !sameProof(answer.proof, token.proof("inviter", c.binding)) {
		return nil, errors.New("who answers does not know the token")
	}
	return &Peer{c.peer.site, c.peer.cert, answer.endpoint}, nil
}

// mayPin refuses to change a pin.
func (s *Site) mayPin(peer authority) error {
	if peer.site == s.CA.site {
		return errOurs
	}
	if s.Pinned == nil {
		return nil
	}
	if ca := s.Pinned(peer.site); ca != nil && !ca.Equal(peer.cert) && !invariant.Planted("control/pairing/repin") {
		return fmt.Errorf("another authority is pinned for %s: remove that first, if its site really has a new one", peer.site)
	}
	return nil
}

// authority is a peer's CA as it showed it.
type authority struct {
	site string
	cert *x509.Certificate
}

// channel is a connection after TLS.
type channel struct {
	*tls.Conn
	peer    authority
	binding []byte // of this connection alone, the same at both ends
	stop    func() bool
}

func (c *channel) close() {
	c.stop()
	c.NetConn().Close() // without TLS's goodbye, which may wait for a peer that does not read
}

// secure takes a connection through TLS. It ends with ctx and after joinTime.
func (s *Site) secure(ctx context.Context, conn net.Conn, end func(net.Conn, *tls.Config) *tls.Conn) (*channel, error) {
	conn.SetDeadline(time.Now().Add(joinTime))
	c := &channel{stop: context.AfterFunc(ctx, func() { conn.Close() })}
	leaf, err := s.CA.Issue(Identity{Role, "join"}, s.now(), time.Hour)
	if err == nil {
		cert := leaf.TLS()
		cert.Certificate = append(cert.Certificate, s.CA.cert.Raw)
		c.Conn = end(conn, &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, Time: s.Now, SessionTicketsDisabled: true,
			ClientAuth: tls.RequireAnyClientCert, InsecureSkipVerify: true, // the check is VerifyConnection's: no CA is known yet
			VerifyConnection: func(cs tls.ConnectionState) error {
				c.peer, err = checkChain(cs.PeerCertificates, s.now())
				return err
			},
		})
		err = c.HandshakeContext(ctx)
	}
	if err == nil {
		state := c.ConnectionState()
		c.binding, err = state.ExportKeyingMaterial("EXPORTER-holdfast-join", nil, sha256.Size)
	}
	if err != nil {
		c.stop()
		conn.Close()
		return nil, err
	}
	return c, nil
}

// checkChain holds a peer to a leaf for joining, signed by the CA of a site that it
// shows. Whether that is the right site, only the token tells.
func checkChain(certs []*x509.Certificate, now time.Time) (authority, error) {
	if len(certs) != 2 {
		return authority{}, fmt.Errorf("%d certificates: want a leaf and its authority", len(certs))
	}
	site, err := siteOf(certs[1])
	if err != nil {
		return authority{}, err
	}
	want := url.URL{Scheme: "holdfast", Host: site, Path: "/" + Role + "/join"}
	if len(certs[0].URIs) != 1 || certs[0].URIs[0].String() != want.String() {
		return authority{}, fmt.Errorf("a certificate for %v: want %v", certs[0].URIs, &want)
	}
	roots := x509.NewCertPool()
	roots.AddCert(certs[1])
	_, err = certs[0].Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err == nil {
		err = certs[1].CheckSignatureFrom(certs[1])
	}
	return authority{site, certs[1]}, err
}

// joinMessage is one of the two words of a join:
//
//	0 magic "HFJ1"   4 kind u8   5 length u16, of what follows
//	id [8]   proof [32]   control, data, text: each u16 length and bytes
type joinMessage struct {
	kind     uint8
	id       [8]byte
	proof    [sha256.Size]byte
	endpoint Endpoint
	text     string // of a refusal
}

const (
	kindJoin    = 1
	kindJoined  = 2
	kindRefused = 3

	joinHead  = 4 + 1 + 2
	joinMost  = 2048 // bytes after the head
	maxString = 512
)

func (m *joinMessage) append(p []byte) []byte {
	body := append(append([]byte(nil), m.id[:]...), m.proof[:]...)
	for _, s := range []string{m.endpoint.Control, m.endpoint.Data, m.text} {
		s = s[:min(len(s), maxString)]
		body = append(binary.BigEndian.AppendUint16(body, uint16(len(s))), s...)
	}
	p = append(append(p, "HFJ1"...), m.kind)
	return append(binary.BigEndian.AppendUint16(p, uint16(len(body))), body...)
}

func (m *joinMessage) write(w io.Writer) error {
	_, err := w.Write(m.append(nil))
	return err
}

var errJoin = errors.New("not a message of a join")

func (m *joinMessage) read(r io.Reader) error {
	var head [joinHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := int(binary.BigEndian.Uint16(head[5:]))
	if string(head[:4]) != "HFJ1" || n > joinMost {
		return errJoin
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	return m.decode(head[4], body)
}

func (m *joinMessage) decode(kind uint8, p []byte) error {
	if kind < kindJoin || kind > kindRefused || len(p) < len(m.id)+len(m.proof) {
		return errJoin
	}
	m.kind = kind
	p = p[copy(m.id[:], p):]
	p = p[copy(m.proof[:], p):]
	for _, to := range []*string{&m.endpoint.Control, &m.endpoint.Data, &m.text} {
		if len(p) < 2 {
			return errJoin
		}
		n := int(binary.BigEndian.Uint16(p))
		if p = p[2:]; n > len(p) || n > maxString || !printable(p[:n]) {
			return errJoin
		}
		*to, p = string(p[:n]), p[n:]
	}
	if len(p) > 0 {
		return errJoin
	}
	return nil
}

// printable keeps what a peer sends from writing on anybody's terminal.
func printable(p []byte) bool {
	for _, c := range p {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

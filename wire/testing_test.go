package wire

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-dr/holdfast/wire/faultlink"
	"github.com/holdfast-dr/holdfast/wire/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority is a site's CA in the tests. Its certificates are good from 1999 to
// 2099, since a synctest bubble lives in 2000.
type authority struct {
	site string
	cert *x509.Certificate
	key  crypto.Signer
}

var (
	year1999 = time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)
	year2099 = time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)
)

func newAuthority(site string) *authority {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: site}, NotBefore: year1999, NotAfter: year2099,
		URIs: []*url.URL{{Scheme: "holdfast", Host: site, Path: "/ca"}}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	a := &authority{site: site}
	a.cert, a.key = signed(template, template, nil, newKey(true))
	return a
}

// newKey makes a key of the kind that sites have; where every byte is tried, and nearly all
// time goes into handshakes, of the kinds that cost least: RSA to check what an authority
// signed, Ed25519 to sign.
func newKey(authority bool) (key crypto.Signer) {
	var err error
	switch {
	case !everyByte():
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case authority:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	default:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		panic(err)
	}
	return key
}

// everyByte says that TestFaultsWithin64KiB is to try all bytes.
func everyByte() bool { return os.Getenv("HOLDFAST_EVERY_BYTE") != "" }

func signed(template, parent *x509.Certificate, by, key crypto.Signer) (*x509.Certificate, crypto.Signer) {
	if by == nil {
		by = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return cert, key
}

// leaf makes a certificate with the URI name; change may spoil it.
func (a *authority) leaf(uri string, change func(*x509.Certificate)) tls.Certificate {
	u, err := url.Parse(uri)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: year1999, NotAfter: year2099, URIs: []*url.URL{u},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if change != nil {
		change(template)
	}
	cert, key := signed(template, a.cert, a.key, newKey(false))
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

func (a *authority) pin() Pin { return Pin{a.site, a.cert} }

// The sites of the tests, made once: keys cost time.
var sites = sync.OnceValue(func() (s struct {
	east, west, north     *authority
	source, other, target tls.Certificate
}) {
	s.east, s.west, s.north = newAuthority("east"), newAuthority("west"), newAuthority("north")
	s.source = s.east.leaf("holdfast://east/vra/s1", nil)
	s.other = s.east.leaf("holdfast://east/vra/s2", nil)
	s.target = s.west.leaf("holdfast://west/vra/t1", nil)
	return s
})

func sourceCredentials() Credentials {
	return Credentials{Certificate: sites().source, Pins: []Pin{sites().west.pin()}}
}

// world is a target on a network in memory, and what its handler saw.
type world struct {
	t      *testing.T
	net    *faultlink.Net
	server *Server
	stop   func()
	target *handler
	log    *logged
}

// logged keeps what was logged.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// newWorld starts a target; it ends with the test, and all its memory must be home.
func newWorld(t *testing.T, n *faultlink.Net, change func(*ServerConfig)) *world {
	t.Helper()
	c := ServerConfig{
		ListenControl: "control", ListenData: "data", Listen: n.Listen,
		Credentials: Credentials{Certificate: sites().target, Pins: []Pin{sites().east.pin()}},
	}
	log := new(logged)
	c.Log = slog.New(slog.NewTextHandler(log, nil))
	if change != nil {
		change(&c)
	}
	s, err := Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, net: n, server: s, target: newHandler(t), log: log}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, w.target) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if out := s.memory.out(); out != 0 {
			t.Errorf("%d buffers are not home", out)
		}
	})
	return w
}

// connect starts a source; stop ends it and waits.
func (w *world) connect(h Handler, change func(*ClientConfig)) (stop func()) {
	c := ClientConfig{Control: "control", Data: "data", Dial: w.net.Dial, Credentials: sourceCredentials()}
	if change != nil {
		change(&c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Connect(ctx, c, h) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Connect: %v", err)
		}
	})
}

// handler notes what it sees as lines, and lets a test answer.
type handler struct {
	t         *testing.T
	onOpened  func(*Session) error
	onMessage func(*Session, Message) error
	onRecord  func(*Session, *Received) error
	onLost    func(*Session, uint32)
	opened    chan *Session
	closed    chan error

	mu    sync.Mutex
	lines []string
	live  map[*Session]bool
}

func newHandler(t *testing.T) *handler {
	return &handler{t: t, opened: make(chan *Session, 100), closed: make(chan error, 100), live: make(map[*Session]bool)}
}

func (h *handler) say(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lines = append(h.lines, fmt.Sprintf(format, args...))
}

func (h *handler) said() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.lines...)
}

func (h *handler) Opened(s *Session) error {
	h.mu.Lock()
	for other := range h.live {
		if other.Peer() == s.Peer() {
			h.t.Errorf("two sessions of %v at once", s.Peer())
		}
	}
	h.live[s] = true
	h.mu.Unlock()
	h.say("opened %v", s.Peer())
	var err error
	if h.onOpened != nil {
		err = h.onOpened(s)
	}
	if err != nil {
		h.mu.Lock()
		delete(h.live, s)
		h.mu.Unlock()
		return err
	}
	h.opened <- s
	return nil
}

func (h *handler) check(s *Session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.live[s] {
		h.t.Error("a call for a session that is not open")
	}
}

func (h *handler) Message(s *Session, m Message) error {
	h.check(s)
	h.say("%+v", m)
	if h.onMessage != nil {
		return h.onMessage(s, m)
	}
	return nil
}

func (h *handler) Record(s *Session, r *Received) error {
	h.check(s)
	h.say("record %d of %d bytes", r.Header().Seq, len(r.Bytes()))
	if h.onRecord != nil {
		return h.onRecord(s, r)
	}
	r.Release()
	return nil
}

func (h *handler) Lost(s *Session, line uint32) {
	h.check(s)
	h.say("lost %d", line)
	if h.onLost != nil {
		h.onLost(s, line)
	}
}

func (h *handler) Closed(s *Session, err error) {
	h.check(s)
	h.mu.Lock()
	delete(h.live, s)
	h.mu.Unlock()
	if err == nil {
		h.t.Error("closed for no reason")
	}
	select {
	case <-s.Context().Done():
	default:
		h.t.Error("closed before its context ended")
	}
	h.say("closed")
	h.closed <- err
}

// testStream is the stream of the tests' records.
const testStream record.StreamID = 7

// small makes the smallest record there is.
func small(seq record.Seq) []byte {
	id := record.Identity{Stream: testStream, Epoch: 1, Incarnation: 1, Seq: seq}
	return record.AppendConfirm(nil, id, record.Time(seq), record.Ticket(seq), uint64(seq))
}

// large makes a record with n bytes of noise in it.
func large(seq record.Seq, n int) []byte {
	b := record.NewBatch(record.Limits{})
	data := make([]byte, n)
	rand.Read(data)
	for off := 0; off < n; off += 32 << 10 {
		p := data[off:min(n, off+32<<10)]
		if !b.Add(record.Piece{Volume: 1, Off: int64(off), Len: int64(len(p)), Ticket: record.Ticket(seq), Data: p}) {
			panic("does not fit")
		}
	}
	id := record.Identity{Stream: testStream, Epoch: 1, Incarnation: 1, Seq: seq}
	return b.Seal(nil, id, record.Time(seq), record.NewCompressor())
}

func openStream() *OpenStream {
	return &OpenStream{
		Group: 1, GroupName: "shop", Lineage: 5, Stream: testStream, Epoch: 1, Incarnation: 1, Acked: 3,
		Volumes: []Volume{{1, "vol1", 1 << 30}, {2, "vol2", 512}},
	}
}

var errTest = errors.New("the test says no")
